"""tus-js-client, as published on npm, uploads to us: in one piece, in many, and goes on after it was stopped."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.services.media.conftest import Media, eventually

SCRIPT = Path(__file__).parent / "js" / "tus.mjs"


@pytest.fixture(scope="module")
def tus_js() -> str:
    """Return Node with tus-js-client beside the script, installed once from the lock file; skip without."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed: tus-js-client cannot be run")
    if not (SCRIPT.parent / "node_modules" / "tus-js-client").exists():
        command = [npm, "ci", "--no-audit", "--no-fund"]
        done = subprocess.run(
            command, cwd=SCRIPT.parent, capture_output=True, text=True, timeout=50, check=False
        )
        if done.returncode:
            pytest.skip(f"npm ci failed, so tus-js-client cannot be run: {done.stderr.strip()[-300:]}")
    return node


async def run(node: str, url: str, path: Path, chunk: int | str, stop_after: int = 0) -> Any:
    command = [node, str(SCRIPT), url, str(path), str(chunk), str(stop_after)]
    with trio.fail_after(30):
        done = await trio.run_process(command, capture_stdout=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [100_000, 10_000_000])
async def test_a_stock_client_uploads(tus_js: str, media: Media, tmp_path: Path, chunk: int) -> None:
    """In one request or in several, without a line of code of ours."""
    sent = b"%PDF-1.7\n" + os.urandom(350_000)
    path = tmp_path / "sent.pdf"
    path.write_bytes(sent)
    created = await media.announce(len(sent))
    assert (await run(tus_js, created.upload_url, path, chunk))["done"]
    assert (await media.settled(created.media_id)).upload_status == "ready"
    assert (await media.http.get(await media.url(created.media_id))).content == sent


async def test_a_stock_client_goes_on(tus_js: str, media: Media, tmp_path: Path) -> None:
    """Stopped in the middle and started anew, it sends the rest and no more."""
    sent = b"%PDF-1.7\n" + os.urandom(350_000)
    path = tmp_path / "sent.pdf"
    path.write_bytes(sent)
    created = await media.announce(len(sent))
    stopped = await run(tus_js, created.upload_url, path, 50_000, stop_after=150_000)
    assert stopped == {"sent": 150_000, "done": False, "aborted": True}

    async def kept() -> bool:
        return int((await media.head(created.upload_url)).headers["upload-offset"]) >= 150_000

    await eventually(kept)
    assert (await run(tus_js, created.upload_url, path, 50_000))["done"]
    await media.settled(created.media_id)
    assert (await media.http.get(await media.url(created.media_id))).content == sent


@pytest.mark.slow
async def test_a_stock_client_is_told_of_its_errors(tus_js: str, media: Media, tmp_path: Path) -> None:
    """An URL that is not ours ends in an error that says so, at once."""
    path = tmp_path / "sent.pdf"
    path.write_bytes(b"%PDF-1.7\n")
    created = await media.announce(9)
    said = await run(tus_js, created.upload_url[:-2] + "xx", path, 1000)
    assert not said["done"]
    assert "bad_signature" in said["error"] or "403" in said["error"]
