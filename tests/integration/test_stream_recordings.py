"""A recording through the whole product: from an Icecast source to a download, a playlist, and out of the world."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.integration.succeeding import until
from tests.world import World, open_world
from whispr.adapters.bus import Bus
from whispr.adapters.cache import Cache
from whispr.adapters.postgres import Postgres

PATIENCE_S = 60.0
SECONDS = 6

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None,
        reason="FFmpeg's programs are not on this machine",
    ),
]


async def publish(world: World, stream_id: str, key: str) -> None:
    """Send a tone as an Icecast source does, in real time."""
    url = f"icecast://source:{key}@127.0.0.1:{world.ports['gateway']}/ingest/{stream_id}"
    tone = f"sine=frequency=440:sample_rate=48000:duration={SECONDS}"
    command = [
        "ffmpeg", "-v", "error", "-re", "-f", "lavfi", "-i", tone, "-c:a", "libopus", "-b:a", "96k",
        "-content_type", "audio/ogg", "-f", "ogg", url,
    ]  # fmt: skip
    await trio.run_process(command, capture_stderr=True)


async def length_s(where: str) -> float:
    """How long FFmpeg finds the sound to be, having decoded all of it."""
    command = ["ffmpeg", "-v", "error", "-i", where, "-f", "s16le", "-ac", "1", "-ar", "48000", "-"]
    done = await trio.run_process(command, capture_stdout=True, capture_stderr=True)
    return len(done.stdout) / 2 / 48_000


def sound_in(folder: Path, recording_id: str) -> list[Path]:
    """What there is of a recording, on the node's disk and in its store."""
    return list(folder.rglob(f"{recording_id}.*"))


@pytest.mark.parametrize(("codec", "beginning"), [("OPUS", b"OggS"), ("AAC", b"\xff\xf1")])
async def test_from_a_source_to_its_recording(
    db: Postgres, cache: Cache, bus: Bus, tmp_path: Path, codec: str, beginning: bytes
) -> None:
    """It is had whole and in pieces, plays from its playlist, and its sound goes with its row."""
    async with open_world(db, cache, bus, tmp_path, stream={"grace_s": 1}) as world:
        made = await world.call("StreamService/CreateStream", {"title": "live"})
        what: dict[str, Any] = {"stream_id": made.stream.id}
        config = {"enable_recording": True, "codec": codec}
        await world.call("StreamService/StartStream", {**what, "config": config})
        base = f"http://127.0.0.1:{world.ports['gateway']}"
        async with httpx.AsyncClient(base_url=base, timeout=PATIENCE_S) as client:
            for early in (f"/hls/{made.stream.id}/master.m3u8", f"/listen/{made.stream.id}"):
                assert (await client.get(early)).status_code == 404, "there is no sound yet"
            with trio.fail_after(PATIENCE_S):
                await publish(world, made.stream.id, made.stream_key)
            found = await until(
                world, "StreamService/GetRecordings", {},
                lambda answer: bool(answer.recordings) and bool(answer.recordings[0].file_url),
                world.token("owner"),
            )  # fmt: skip
            recording = found.recordings[0]
            whole = (await client.get(recording.file_url)).content
            assert (len(whole), whole[: len(beginning)]) == (recording.file_size, beginning)
            piece = await client.get(recording.file_url, headers={"range": "bytes=100-299"})
            assert (piece.status_code, piece.content) == (206, whole[100:300])
            (tmp_path / "whole").write_bytes(whole)
            with trio.fail_after(PATIENCE_S):
                lengths = [await length_s(str(tmp_path / "whole")), await length_s(recording.hls_url)]
            assert lengths == [pytest.approx(recording.duration, abs=0.1)] * 2
            assert SECONDS - 1.5 < recording.duration < SECONDS + 3
            files = partial(sound_in, tmp_path, recording.id)
            assert await trio.to_thread.run_sync(files)
            await world.call("StreamService/DeleteRecording", {"recording_id": recording.id})
            assert not await trio.to_thread.run_sync(files)
            assert (await client.get(recording.file_url)).status_code == 404
    assert await db.fetchval("SELECT count(*) FROM streams.sessions") == 0
