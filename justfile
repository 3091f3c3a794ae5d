# Whispr's commands. `just` alone lists them. All run in .venv, which `setup` fills from the lock files.

python := justfile_directory() / ".venv/bin/python"
uv := justfile_directory() / ".venv/bin/uv"
compile := uv + " pip compile -q --universal --python-version 3.11 --generate-hashes --custom-compile-command 'just lock'"
whispr := justfile_directory() / ".venv/bin/whispr"

# Processes that start processes would compile the same modules over and over where the environment keeps no cache.
export PYTHONDONTWRITEBYTECODE := ""

_list:
    @just --list --unsorted

# run the product: `just serve`, or only some of its services: `just serve auth user`
serve *services: _runtime
    @exec {{ whispr }} serve {{ services }}

# every fast test, on the real backends: a set of them for each worker
test *arguments: _dev
    @{{ python }} -m pytest -m "not slow" -n auto --maxprocesses 4 --dist loadfile \
        --ignore tests/integration/test_api_schema.py {{ arguments }}

# what CI asks for beside the tests: lint, format, strict types, generated code and lock files up to date
check: _dev
    {{ python }} -m ruff check .
    {{ python }} -m ruff format --check .
    {{ python }} -m mypy
    {{ python }} -m whispr.rpc.generate --check

# kill and starve the product and its backends under load: nothing acknowledged may be lost
test-resilience: _dev && chaos
    {{ python }} -m pytest -m slow tests/adapters tests/embed tests/integration tests/services tests/conversations

# each fault to each process and backend under load, in namespaces of their own (root): what was lost, and for how long
chaos *arguments: _dev
    @{{ python }} -m tests.chaos {{ arguments }}

# half capacity with faults at random, and what must not grow: `just soak --minutes 30 --seed 7`
soak *arguments: _dev
    @{{ python }} -m tests.chaos.soak {{ arguments }}

# the success criteria that there have always been, each measured on a running product
validate *arguments: _dev
    @{{ python }} -m tests.integration.validate {{ arguments }}

# the image's steps, compose, Kubernetes, systemd, backup and restore: by the schemas and tools of others, too
test-deployment *arguments: _dev _config-checkers
    {{ python }} -m pytest -m "slow or not slow" -rs tests/deployment {{ arguments }}

# the alerts, by Prometheus' own tool: every expression, and when they fire
test-alerts: _dev _promtool
    {{ python }} -m pytest -m "slow or not slow" -rs tests/telemetry/test_dashboards.py

# out of the distribution's package, which need not be installed
[private]
_promtool:
    @folder="${XDG_CACHE_HOME:-$HOME/.cache}/whispr/prometheus"; \
    command -v promtool > /dev/null || test -x $folder/usr/bin/promtool || { \
        mkdir -p $folder && cd $folder && apt-get download -q prometheus && dpkg -x prometheus_*.deb . && rm *.deb || \
        echo "promtool cannot be fetched"; }

# in an environment of their own: nothing of Whispr's needs them
[private]
_config-checkers:
    @checkers="${XDG_CACHE_HOME:-$HOME/.cache}/whispr/config-checkers"; \
    test -x $checkers/bin/kubernetes-validate -a -x $checkers/bin/check-jsonschema || { \
        {{ uv }} venv -q --clear --python {{ python }} $checkers && \
        {{ uv }} --no-config pip install -q --python $checkers/bin/python check-jsonschema kubernetes-validate || \
        { rm -rf $checkers; echo "the checkers of schemas cannot be installed"; }; }

# the pages of chat, live audio and the console in headless Chromium, with axe-core and screenshots
test-web *arguments: _dev
    {{ python }} -m pytest -m slow -n0 -rs tests/web tests/integration/test_on_a_terminal.py {{ arguments }}

# every REST operation, with what its OpenAPI document allows and does not: no answer may be a server error
test-api *arguments: _dev
    {{ python }} -m pytest -m slow tests/integration/test_api_schema.py {{ arguments }}

# HTTP/2, WebSocket and Phoenix conformance, and gRPC's interop tests, with clients and servers that others wrote
conformance *arguments: _dev
    {{ python }} -m pytest -m "slow or not slow" -rs tests/conformance tests/realtime/test_phoenix_js.py tests/realtime/test_phoenix_js_protocol.py {{ arguments }}

# mutated conversations against both ends of a connection and a whole server: `just fuzz --seconds 600 --seed 7`
fuzz *arguments: _dev
    {{ python }} -m tests.fuzz.target {{ arguments }}

# many seeds of the simulated network: WHISPR_SIM_SEEDS=1000 just simulate
simulate *arguments: _dev
    {{ python }} -m pytest -m slow tests/sim {{ arguments }}

# rewrite whispr/v1 from proto/
generate-proto: _dev
    {{ python }} -m whispr.rpc.generate

# format and mend what ruff can
format: _dev
    {{ python }} -m ruff check --fix .
    {{ python }} -m ruff format .

# acknowledged durable messages per second, end to end
bench-messages *arguments: _dev
    {{ python }} -m tests.bench.bench_messages {{ arguments }}

# queries per second through the asyncio bridge, beside plain asyncio and trio-asyncio
bench-bridge: _dev
    {{ python }} -m tests.bench.bench_bridge

# several workers on one machine: messages, fan-out and joins, and what each costs
bench-workers *arguments: _dev
    @{{ python }} -m tests.bench.bench_workers {{ arguments }}

# what metrics, logs and traces cost a call, in CPU time
bench-telemetry *arguments: _dev
    @{{ python }} -m tests.bench.bench_telemetry {{ arguments }}

# the gRPC runtime beside grpcio.aio, grpclib and stock purerpc, servers, clients and both
bench-grpc *arguments: _dev _bench-peers
    {{ python }} -m tests.bench.bench_grpc {{ arguments }}

# grpclib and purerpc as published, which wants an older h2 than Whispr: in an environment of their own
[private]
_bench-peers:
    @peers="${XDG_CACHE_HOME:-$HOME/.cache}/whispr/bench-peers"; test -x $peers/bin/python || { \
        {{ uv }} venv -q --python {{ python }} $peers && \
        {{ uv }} --no-config pip install -q --python $peers/bin/python "purerpc==0.8.0" "h2<4" grpclib trio || \
        { rm -rf $peers; echo "grpclib and purerpc cannot be installed"; }; }

# deliveries per second to one topic, beside trio-websocket's own sender
bench-fanout: _dev
    {{ python }} -m tests.bench.bench_fanout

# the real-time hub beside ws, websockets, picows and a C send loop; sections by name: `just bench-realtime fanout stall`
bench-realtime *arguments: _dev _bench-realtime-peers
    {{ python }} -m tests.bench.bench_realtime {{ arguments }}

# what others reach, as published, in a folder of their own
[private]
_bench-realtime-peers:
    @peers="${XDG_CACHE_HOME:-$HOME/.cache}/whispr/bench-realtime-peers"; \
    test -x $peers/python/bin/python || { \
        {{ uv }} venv -q --python {{ python }} $peers/python && \
        {{ uv }} --no-config pip install -q --python $peers/python/bin/python websockets uvloop picows || \
        { rm -rf $peers/python; echo "websockets, uvloop and picows cannot be installed"; }; }; \
    test -d $peers/node_modules/ws || npm install --silent --no-audit --no-fund --prefix $peers ws@8 || \
        echo "ws cannot be installed"

# HTTP requests per second, beside uvicorn, and REST calls through the gateway
bench-http *arguments: _dev
    {{ python }} -m tests.bench.bench_http {{ arguments }}

# messages per second into the log, by batch size
bench-log: _dev
    {{ python }} -m tests.bench.bench_log

# every RPC on ten million messages: what it reads, and how long that takes
bench-scale *arguments: _dev
    {{ python }} -m tests.bench.bench_scale {{ arguments }}

# events per second through the outbox: published, and handled
bench-events: _dev
    {{ python }} -m tests.bench.bench_events

# live audio, one table: ladders and listeners a core, aiortc beside, latency by transport; --quick takes a minute
bench-stream *arguments: _dev
    @{{ python }} -m tests.bench.bench_stream_table {{ arguments }}

# megabytes per second of media, sent and given out
bench-media *arguments: _dev
    {{ python }} -m tests.bench.bench_media {{ arguments }}

# pin the dependencies anew; the files hold versions and hashes, no addresses
lock: _venv
    {{ compile }} --group build pyproject.toml -o config/requirements.txt
    {{ compile }} --group build --group dev pyproject.toml -c config/requirements.txt -o config/requirements-dev.txt

_venv:
    @test -x {{ uv }} || { python3 -m venv .venv && .venv/bin/pip install -q uv rust-just; }

_runtime: _venv (_install "config/requirements.txt")

_dev: _venv (_install "config/requirements-dev.txt")

# Installs a lock file once: the stamp holds what was installed last.
[private]
_install lock:
    @digest=$(cat {{ lock }} pyproject.toml | sha256sum); stamp=.venv/$(basename {{ lock }}).stamp; \
    if [ "$(cat $stamp 2>/dev/null)" != "$digest" ]; then \
        {{ uv }} pip install -q --python {{ python }} --no-deps --require-hashes -r {{ lock }} && \
        {{ uv }} pip install -q --python {{ python }} --no-deps --no-build-isolation -e . && \
        printf '%s' "$digest" > $stamp; \
    fi
