"""phoenix.js as published on npm, run by Node, for the tests that have it."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

SCRIPT = Path(__file__).parent / "realtime" / "js" / "phoenix.mjs"

Steps = list[dict[str, object]]
"""See the head of the script for the steps there are."""
Step = Callable[[dict[str, object]], Awaitable[dict[str, object]]]


def installed_node() -> str:
    """Return Node with phoenix.js and ws beside the script, installed once from the lock file; skip without."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed: phoenix.js cannot be run")
    if not (SCRIPT.parent / "node_modules" / "phoenix").exists():
        command = [npm, "ci", "--no-audit", "--no-fund"]
        done = subprocess.run(
            command, cwd=SCRIPT.parent, capture_output=True, text=True, timeout=50, check=False
        )
        if done.returncode:
            pytest.skip(f"npm ci failed, so phoenix.js cannot be run: {done.stderr.strip()[-300:]}")
    return node


@asynccontextmanager
async def driven(node: str, url: str, token: str) -> AsyncIterator[Step]:
    """Run a client on the socket at `url` whose steps are given one at a time."""
    command = [node, str(SCRIPT), url, token]
    process = await trio.lowlevel.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None
    printed = bytearray()

    async def step(what: dict[str, object]) -> dict[str, object]:
        await stdin.send_all(json.dumps(what).encode() + b"\n")
        while b"\n" not in printed:
            printed.extend(await stdout.receive_some())
        line, _, rest = bytes(printed).partition(b"\n")
        printed[:] = rest
        result: dict[str, object] = json.loads(line)
        assert "error" not in result, result
        return result

    async with stdin, stdout:
        yield step
        await stdin.aclose()
        await process.wait()
