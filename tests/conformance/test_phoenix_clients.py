"""Phoenix clients of the community, as published, installed into a folder of the test's own, against the hub."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import trio

from whispr.realtime.channel import Channel
from whispr.realtime.hub import Hub
from whispr.realtime.limits import Limits
from whispr.realtime.testing import Server, served

pytestmark = pytest.mark.slow
HERE = Path(__file__).parent
JS = ("phoenix-channels@1.0.0", "@supabase/realtime-js@2.119.1", "ws@8.23.0")
PY = ("phoenix-channels-python-client==0.4.1",)
INSTALL_S = 50


class Room(Channel):
    """Echoes and shouts, and crashes when asked to."""

    async def handle(self, event: str, payload: object) -> object:
        if event == "echo":
            return payload
        if event == "shout":
            self.link.broadcast("shouted", payload)
            return None
        if event == "crash":
            raise RuntimeError("on request")
        return await super().handle(event, payload)


class SupabaseRoom(Channel):
    """What Supabase's client expects of a topic: broadcasts go to everybody, presence is tracked on request."""

    async def join(self, payload: object) -> object:
        self.link.track({"online": True})
        self.link.push_presence_state()
        return {"postgres_changes": []}

    async def handle(self, event: str, payload: object) -> object:
        if event == "broadcast":
            self.link.broadcast("broadcast", payload)
            return None
        return await super().handle(event, payload)


def installed(command: list[str], what: str) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{what} could not be installed in {INSTALL_S} s")
    if done.returncode:
        pytest.skip(f"{what} could not be installed: {done.stderr.strip()[-300:]}")


@pytest.fixture(scope="module")
def modules(node: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the JavaScript clients are."""
    folder = tmp_path_factory.mktemp("clients")
    npm = shutil.which("npm")
    assert npm is not None, "where node is, npm is"
    quiet = ["--silent", "--no-audit", "--no-fund", "--ignore-scripts"]
    installed([npm, "install", "--prefix", str(folder), *quiet, *JS], "the JavaScript clients")
    return folder / "node_modules"


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the Python client is."""
    folder = tmp_path_factory.mktemp("packages")
    uv = Path(sys.executable).with_name("uv")
    installed(
        [str(uv), "pip", "install", "-q", "--python", sys.executable, "--target", str(folder), *PY],
        "the Python client",
    )
    return folder


async def joined(server: Server, count: int) -> None:
    """Return once so many channels of the room are joined."""
    while len(server.hub.subscribers("room:1")) != count:
        changed = trio.Event()
        server.hub.watcher = lambda user_id, topic, changed=changed: changed.set()
        await changed.wait()


async def played(node: str, modules: Path, which: str, server: Server) -> dict[str, object]:
    """Have a JavaScript client play its scenario; return what it saw."""
    now = time.time()
    command = [node, str(HERE / "phoenix_clients.cjs"), which, f"{server.url}/socket"]
    tokens = [f"alice/s/{now + 600}", f"alice/s/{now + 900}"]
    environ = {**os.environ, "NODE_PATH": str(modules)}
    done = await trio.run_process(
        [*command, *tokens], env=environ, capture_stdout=True, capture_stderr=True, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    result: dict[str, object] = json.loads(done.stdout)
    return result


async def test_phoenix_channels_of_npm(node: str, modules: Path) -> None:
    """Version 1 of the protocol: join, reply, broadcast, refusal, crash and rejoin, reconnect, renewal, leave."""
    async with served({"room": Room}, Limits(operations_per_min=0)) as server:
        result = await played(node, modules, "channels", server)
    assert result == {
        "join": "ok",
        "echo": {"n": 1},
        "heard": {"text": "hé"},
        "refused": "error",
        "unmatched": {"reason": "unmatched topic"},
        "rejoined": 1,
        "opens": 2,
        "renewed": "ok",
        "leave": "ok",
    }


async def test_supabases_client(node: str, modules: Path) -> None:
    """Version 1: subscribe, broadcast with acknowledgement, presence, `access_token`, heartbeat, unsubscribe."""
    hub = Hub(Limits(operations_per_min=0))
    async with served({"realtime": SupabaseRoom}, hub=hub) as server:
        result = await played(node, modules, "supabase", server)
    assert result == {
        "join": "SUBSCRIBED",
        "echo": "ok",
        "heard": {"text": "hé"},
        "present": ["alice"],
        "heartbeat": "ok",
        "leave": "ok",
    }


@pytest.mark.parametrize("version", ["1.0.0", "2.0.0"])
async def test_the_python_client_listens_and_comes_back(packages: Path, version: str) -> None:
    """It hears a broadcast, rejoins after a crash of its channel, and reconnects after its connection was lost."""
    async with served({"room": Room}, Limits(operations_per_min=0)) as server:
        command = [sys.executable, str(HERE / "phoenix_client.py")]
        environ = {**os.environ, "PYTHONPATH": str(packages)}
        process = await trio.lowlevel.open_process(
            [*command, f"{server.url}/socket/websocket?token=alice", version],
            env=environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        printed = bytearray()

        async def line() -> str:
            assert process.stdout is not None
            while b"\n" not in printed:
                printed.extend(await process.stdout.receive_some())
            first, _, rest = bytes(printed).partition(b"\n")
            printed[:] = rest
            return first.decode()

        async def hears(n: int) -> None:
            await joined(server, 1)
            server.hub.broadcast("room:1", "shouted", {"n": n})
            assert json.loads(await line()) == {"n": n}

        with trio.fail_after(30):
            assert await line() == "joined"
            await hears(1)
            (link,) = server.hub.subscribers("room:1")
            link.start_soon(_crash)
            await joined(server, 0)
            await hears(2)
            (socket,) = server.hub.sockets
            socket.close(1012, "the server is restarting")
            await joined(server, 0)
            await hears(3)
            await process.stdin.aclose()
            assert await process.wait() == 0


async def _crash() -> None:
    raise RuntimeError("on request")
