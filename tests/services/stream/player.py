"""A page that plays streams and listens to what it plays, and a server for it: what Chromium is shown in tests."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.services.stream.hearing import TonedLive
from whispr.asgi import HttpServer

HERE = Path(__file__).parent
FILES = {
    "/player.html": (HERE / "pages" / "player.html", b"text/html"),
    "/player.js": (HERE / "pages" / "player.js", b"text/javascript"),
    "/hls.js": (HERE / "js" / "node_modules" / "hls.js" / "dist" / "hls.js", b"text/javascript"),
    "/phoenix.js": (
        HERE / "js" / "node_modules" / "phoenix" / "priv" / "static" / "phoenix.mjs",
        b"text/javascript",
    ),
}
CHROMIUM = (
    "--autoplay-policy=no-user-gesture-required", "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)  # fmt: skip


def installed_players() -> None:
    """Have hls.js and the others beside the script, installed once from the lock file; skip without."""
    npm, folder = shutil.which("npm"), HERE / "js"
    if npm is None:
        pytest.skip("npm is not installed: hls.js cannot be had")
    if not (folder / "node_modules" / "hls.js").exists():
        done = subprocess.run(
            [npm, "ci", "--no-audit", "--no-fund"], cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"npm ci failed, so hls.js cannot be had: {done.stderr.strip()[-300:]}")


async def serve_file(scope: Any, receive: Any, send: Any) -> None:
    """One of the files that a player needs."""
    if scope["path"] not in FILES:
        await send({"type": "http.response.start", "status": 404, "headers": []})
        await send({"type": "http.response.body", "body": b""})
        return
    path, kind = FILES[scope["path"]]
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    await send({"type": "http.response.body", "body": await trio.to_thread.run_sync(path.read_bytes)})


@asynccontextmanager
async def served(*apps: tuple[str, Any]) -> AsyncIterator[str]:
    """Serve the player and applications by the beginning of their paths; gives where."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        chosen = next((each for prefix, each in apps if scope["path"].startswith(prefix)), serve_file)
        await chosen(scope, receive, send)

    server = HttpServer(app)
    async with trio.open_nursery() as nursery:
        port = await nursery.start(server.serve_tcp, "127.0.0.1", 0)
        yield f"http://127.0.0.1:{port}"
        nursery.cancel_scope.cancel(reason="the test is over")


async def in_real_time(lives: Sequence[TonedLive]) -> None:
    """Let streams go on as fast as the clock does."""
    began = trio.current_time()
    batches = 0
    while True:
        batches += 1
        await trio.sleep_until(began + batches * 0.1)
        for live in lives:
            live.advance(0.1)
