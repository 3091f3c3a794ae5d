"""The layer rule of the architecture: a module imports from lower layers only, never from a sibling."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "whispr"

LAYERS = {
    "errors": 0, "config": 0, "v1": 0, "nurseries": 0,
    "http2": 1, "resilience": 1, "telemetry": 1, "bridge": 1, "ids": 1, "tokens": 1,
    "unix_sockets": 1, "tcp_sockets": 1, "households": 1, "audio": 1,
    "rpc": 2, "asgi": 2, "adapters": 2, "embed": 2, "realtime": 2, "webrtc": 2,
    "events": 2.5,  # what the others of layer 3 tell of things by
    "conversations": 3, "identity": 3, "online": 3, "seats": 3,
    "services": 4, "gateway": 4,
    "app": 5, "node": 5, "making": 5, "peers": 5, "peers_metrics": 5, "workers": 5, "worker": 5,
    "worker_metrics": 5, "worker_questions": 5, "operating": 5,
    "polling": 5, "ports": 5, "credentials": 5, "neighbours": 5, "limits": 5,
    "call_rules": 5, "dependencies": 5, "status_cli": 5, "status_console": 5, "quotas": 5, "stale_reads": 5,
    "progress": 5, "account_cli": 5, "account_console": 5, "backup": 5, "backup_cli": 5,
    "healthcheck": 5, "keys_cli": 5, "options_cli": 5, "cli": 5, "rpc_cli": 5, "rpc_console": 5, "tree_cli": 5,
    "tree_console": 5, "observing": 5, "task_facts": 5, "events_cli": 5, "events_console": 5,
    "doctor": 5, "chat": 5, "testing": 5,
}  # fmt: skip
PURE = (
    "http2",
    "audio",
    "telemetry/tracing.py",
    "telemetry/tree.py",
    "tokens.py",
    "events/envelope.py",
    "realtime/protocol.py",
    "realtime/presence.py",
    "realtime/replication.py",
    "realtime/serializers.py",
    "conversations/domain.py",
    "conversations/message_rules.py",
    "conversations/values.py",
    "conversations/room_rules.py",
    "conversations/spam.py",
    "services/notification/domain.py",
    "resilience/breaker.py",
    "resilience/bulkhead.py",
    "resilience/retry.py",
    "rpc/wire.py",
    "rpc/compression.py",
    "webrtc/stun.py",
    "webrtc/ice.py",
    "webrtc/sdp.py",
    "webrtc/answers.py",
    "webrtc/turn.py",
    "webrtc/rtp.py",
    "webrtc/rtcp.py",
    "webrtc/reception.py",
    "webrtc/srtp.py",
    "webrtc/dtls.py",
    "webrtc/peer.py",
    "webrtc/flood.py",
    "services/stream/webrtc/adaptation.py",
    "asgi/body.py",
    "asgi/conditions.py",
    "asgi/date.py",
    "asgi/limits.py",
    "asgi/reader.py",
    "asgi/refusals.py",
    "asgi/request.py",
    "asgi/response.py",
)
"""Protocol and domain modules: bytes or values in, events or values out."""
TOP = 5
"""The top layer is one thing, the composition root and its command line; its modules know each other."""


def modules() -> list[Path]:
    return sorted(p for p in PACKAGE.rglob("*.py") if "v1" not in p.relative_to(PACKAGE).parts)


def unit(dotted: str) -> str:
    """Return the unit of the layer table that a dotted module name belongs to: a package, or one service."""
    parts = dotted.split(".")[1:]
    if not parts:
        return ""
    return ".".join(parts[:2]) if parts[0] == "services" else parts[0]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative imports hide layers"
            assert node.module
            yield from (
                [f"whispr.{a.name}" for a in node.names] if node.module == "whispr" else [node.module]
            )


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_a_module_imports_from_lower_layers_only(path: Path) -> None:
    """Each import of ours goes down the layer table; siblings never know each other."""
    here = unit(".".join(("whispr", *path.relative_to(PACKAGE).with_suffix("").parts)))
    if here == "__init__":
        return
    level = LAYERS[here.split(".")[0]]
    for name in imports(path):
        there = unit(name) if name.split(".")[0] == "whispr" else ""
        if (
            not there
            or there == here
            or (level == TOP and LAYERS.get(there) == TOP)
            or there == "__version__"
        ):
            continue
        assert LAYERS[there.split(".")[0]] < level, f"{path.relative_to(ROOT)} imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(ROOT)))
def test_asyncio_stays_behind_the_bridge(path: Path) -> None:
    """Only bridge.py and the adapters may know asyncio."""
    inside = path.relative_to(PACKAGE).parts
    if inside[0] in ("bridge.py", "adapters"):
        return
    assert not {"asyncio", "asyncpg", "redis", "nats"} & {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize("where", PURE)
def test_protocol_and_domain_modules_do_no_io(where: str) -> None:
    """Protocols and rules are pure: they import neither Trio nor anything that reads or writes."""
    target = PACKAGE / where
    paths = sorted(target.rglob("*.py")) if target.is_dir() else [target]
    assert paths
    for path in paths:
        known = {name.split(".")[0] for name in imports(path)}
        assert not {"trio", "anyio", "asyncio", "socket", "ssl", "asyncpg", "trio_websocket"} & known, path
