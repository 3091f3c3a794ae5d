"""gRPC's interoperability tests, both ways, with clients and servers of others: `just conformance` runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conformance import parties

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

HERE = Path(__file__).parent
SCRIPT = HERE / "interop.cjs"
CASE_S_MAX = 60

PYTHON_CASES = (
    "empty_unary", "large_unary", "server_streaming", "client_streaming", "ping_pong", "cancel_after_begin",
    "cancel_after_first_response", "empty_stream", "status_code_and_message", "unimplemented_method",
    "unimplemented_service", "custom_metadata", "timeout_on_sleeping_server", "special_status_message",
)  # fmt: skip
CPP_CASES = (
    *PYTHON_CASES, "client_compressed_unary", "server_compressed_unary", "client_compressed_streaming",
    "server_compressed_streaming", "half_duplex", "slow_consumer", "pick_first_unary", "rpc_soak",
    "channel_soak",
)  # fmt: skip
GO_CASES = (*PYTHON_CASES, "pick_first_unary")
"""All that it has but those that need credentials of a cloud."""
COMPRESSION = ("client_compressed_unary", "client_compressed_streaming")
"""Of our client's tests: only C++ servers can say whether a message came compressed."""

Start = Callable[..., Any]


def finish(*command: object, env: dict[str, str] | None = None) -> str:
    """Run a client to its end; what it printed is shown when it fails."""
    with subprocess.Popen(
        [str(part) for part in command],
        cwd=HERE.parents[1],
        env={**os.environ, "PYTHONUNBUFFERED": "1", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as child:
        try:
            printed, _ = child.communicate(timeout=CASE_S_MAX)
        except subprocess.TimeoutExpired:
            child.kill()
            printed = child.communicate()[0] + "… and then nothing more"
    assert child.returncode == 0, printed[-4000:]
    return printed


def our_client(port: int, *skipped: str) -> None:
    arguments = [f"--skip={name}" for name in skipped]
    finish(sys.executable, "-m", "tests.conformance.interop_client", "--server_port", port, *arguments)


@pytest.mark.parametrize("case", PYTHON_CASES)
def test_python_client(our_server: int, case: str) -> None:
    """GRPC's own Python client against our server."""
    python, env = parties.python()
    where = ["--server_host", "127.0.0.1", "--server_port", our_server]
    finish(python, "-m", "tests.interop.client", *where, "--test_case", case, env=env)


def test_python_server(start: Start, free_port: int) -> None:
    """Our client against gRPC's own Python server."""
    python, env = parties.python()
    start(python, "-m", "tests.interop.server", "--port", free_port, env=env)
    our_client(free_port, *COMPRESSION)


@pytest.mark.parametrize("case", CPP_CASES)
def test_cpp_client(our_server: int, case: str) -> None:
    """GRPC's own C++ client against our server, compression and soak included."""
    client, _ = parties.cpp()
    soak = ["--soak_iterations=200", "--soak_per_iteration_max_acceptable_latency_ms=5000"]
    where = ["--server_host=127.0.0.1", f"--server_port={our_server}"]
    finish(client, *where, f"--test_case={case}", *soak, "--soak_overall_timeout_seconds=50")


def test_cpp_server(start: Start, free_port: int) -> None:
    """Our client against gRPC's own C++ server, compression included."""
    _, server = parties.cpp()
    start(server, f"--port={free_port}")
    our_client(free_port)


@pytest.mark.parametrize("case", GO_CASES)
def test_go_client(our_server: int, case: str) -> None:
    """grpc-go's own client against our server."""
    client, _ = parties.golang()
    finish(client, "-server_host=127.0.0.1", f"-server_port={our_server}", f"-test_case={case}")


def test_go_server(start: Start, free_port: int) -> None:
    """Our client against grpc-go's own server."""
    _, server = parties.golang()
    start(server, f"-port={free_port}")
    our_client(free_port, *COMPRESSION)


def test_grpc_js_client(our_server: int) -> None:
    """@grpc/grpc-js against our server."""
    node, env, _ = parties.node()
    assert finish(node, SCRIPT, "client", our_server, env=env).count("passed") >= 18


def test_grpc_js_server(start: Start, printed: Callable[[Any], int]) -> None:
    """Our client against @grpc/grpc-js."""
    node, env, _ = parties.node()
    our_client(printed(start(node, SCRIPT, "server", env=env)), *COMPRESSION)


def test_our_own(our_server: int) -> None:
    """Our client against our server: nothing that both get wrong, but a base line for the others."""
    our_client(our_server)


def test_grpcurl(our_server: int) -> None:
    """Grpcurl lists and describes by reflection, and calls with JSON."""
    grpcurl = parties.grpcurl()
    address = f"127.0.0.1:{our_server}"
    assert "grpc.testing.TestService" in finish(grpcurl, "-plaintext", address, "list").split()
    assert "rpc UnaryCall" in finish(grpcurl, "-plaintext", address, "describe", "grpc.testing.TestService")
    call = [
        grpcurl,
        "-plaintext",
        "-d",
        '{"response_size": 5}',
        address,
        "grpc.testing.TestService/UnaryCall",
    ]
    assert json.loads(finish(*call))["payload"]["body"] == "AAAAAAA="
    stream = '{"response_parameters": [{"size": 1}, {"size": 2}]}'
    call = [grpcurl, "-plaintext", "-d", stream, address, "grpc.testing.TestService/FullDuplexCall"]
    assert finish(*call).count('"body"') == 2


def test_buf_curl(our_server: int) -> None:
    """`buf curl` speaks gRPC to our server."""
    _, env, commands = parties.node()
    url = f"http://127.0.0.1:{our_server}/grpc.testing.TestService/UnaryCall"
    protocol = ["--protocol", "grpc", "--http2-prior-knowledge", "--schema", HERE / "interop.proto"]
    reply = finish(commands / "buf", "curl", *protocol, "-d", '{"responseSize": 5}', url, env=env)
    assert json.loads(reply)["payload"]["body"] == "AAAAAAA="


def envoy_config(port: int, server_port: int) -> dict[str, Any]:
    """A plain HTTP/2 proxy in front of one server."""

    def address(number: int) -> dict[str, Any]:
        return {"socket_address": {"address": "127.0.0.1", "port_value": number}}

    extensions = "envoy.extensions"
    router = {"@type": f"type.googleapis.com/{extensions}.filters.http.router.v3.Router"}
    manager = {
        "@type": f"type.googleapis.com/{extensions}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "interop",
        "codec_type": "HTTP2",
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "server", "timeout": "0s"}}],
                }
            ]
        },
    }
    options = {
        "@type": f"type.googleapis.com/{extensions}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    endpoint = {"lb_endpoints": [{"endpoint": {"address": address(server_port)}}]}
    cluster = {
        "name": "server",
        "connect_timeout": "5s",
        "type": "STATIC",
        "load_assignment": {"cluster_name": "server", "endpoints": [endpoint]},
        "typed_extension_protocol_options": {f"{extensions}.upstreams.http.v3.HttpProtocolOptions": options},
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    listener = {"name": "front", "address": address(port), "filter_chains": [chain]}
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def test_through_envoy(our_server: int, start: Start, free_port: int, tmp_path: Path) -> None:
    """Our client and gRPC's Python client reach our server through a real Envoy."""
    envoy = parties.envoy()
    python, env = parties.python()
    config = tmp_path / "envoy.json"
    config.write_text(json.dumps(envoy_config(free_port, our_server)))
    options = ["--use-dynamic-base-id", "--concurrency", "1", "--log-level", "off"]
    proxy = start(envoy, "-c", config, *options)
    our_client(free_port)
    where = ["--server_host", "127.0.0.1", "--server_port", free_port]
    for case in PYTHON_CASES:
        finish(python, "-m", "tests.interop.client", *where, "--test_case", case, env=env)
    assert proxy.poll() is None
