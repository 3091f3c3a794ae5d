"""Recordings as HLS, asked in memory: from a folder of this node, and from the object store."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.audio.test_fmp4 import demux
from tests.audio.test_ogg_segments import recording
from tests.audio.tones import tone
from tests.services.stream.hearing import Answer, ask
from whispr.adapters.objects import objects_at
from whispr.audio.adts import AdtsError, adts
from whispr.audio.adts_segments import AdtsSegmented, frames_in
from whispr.audio.packets import Codec, Quality, Rendition
from whispr.bridge import open_bridge
from whispr.errors import Code, denied
from whispr.services.stream.listening.recorded import PATH, RecordedHls
from whispr.services.stream.recordings import Recording, RecordingStatus

RECORDING = "0198f0a0-0000-7000-8000-00000000000a"
AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
BASE = f"/recordings/{RECORDING}/token"


def a_recording(size: int, key: str = "") -> Recording:
    return Recording(
        id=RECORDING, stream_id="", streamer_id="", title="a tone", status=RecordingStatus.COMPLETED,
        quality=Quality.LOW, codec=Codec.OPUS, auto_upload=bool(key), node="", object_key=key, bytes=size,
        duration_s=14.0, error="", created_at=AT, ended_at=AT, expires_at=None,
    )  # fmt: skip


@dataclass
class Shelf:
    """An index of one recording, and what checks tokens."""

    recording: Recording
    asked: int = 0

    async def find(self, recording_id: str) -> Recording:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        return self.recording

    def check_recording(self, token: str, recording_id: str) -> None:
        if token != "token":
            raise denied("not signed", "bad_signature")


async def whole(app: Any) -> tuple[Answer, bytes]:
    """The playlist, and all that it names."""
    playlist = await ask(app, f"{BASE}/recording.m3u8")
    files = ["init.mp4", *[line for line in playlist.lines if line.endswith(".m4s")]]
    return playlist, b"".join([(await ask(app, f"{BASE}/{file}")).body for file in files])


@pytest.mark.parametrize("stored", [False, True], ids=["folder", "objects"])
async def test_a_recording_is_one_vod_of_its_very_packets(stored: bool, tmp_path: Path) -> None:
    """From the master playlist to the last packet, bit for bit; the file is read through once."""
    data, packets = recording(14.3)
    async with open_bridge() as bridge:
        objects = objects_at(bridge, "", tmp_path / "objects")
        if stored:
            await objects.put("recordings/a.ogg", data)
        else:
            (tmp_path / f"{RECORDING}.ogg").write_bytes(data)
        shelf = Shelf(a_recording(len(data), "recordings/a.ogg" if stored else ""))
        app = RecordedHls(shelf, shelf, objects, tmp_path)
        master = await ask(app, f"{BASE}/master.m3u8")
        assert master.lines[-1] == "recording.m3u8"
        playlist, sound = await whole(app)
        assert playlist.lines[-1] == "#EXT-X-ENDLIST"
        lengths = [line for line in playlist.lines if line.startswith("#EXTINF")]
        assert lengths == ["#EXTINF:6.00000,", "#EXTINF:6.00000,", "#EXTINF:2.30000,"]
        assert demux(sound)[1] == packets
        assert shelf.asked == 1


async def test_a_recording_in_aac_is_a_vod_too(tmp_path: Path) -> None:
    """Of whole frames: every one of them, in segments of some six seconds."""
    packets = list(tone(Rendition(Codec.AAC, Quality.LOW), 13.0))
    data = adts(packets)
    (tmp_path / f"{RECORDING}.aac").write_bytes(data)
    shelf = Shelf(msgspec.structs.replace(a_recording(len(data)), codec=Codec.AAC))
    app = RecordedHls(shelf, shelf, cast(Any, None), tmp_path)
    assert b"mp4a.40.2" in (await ask(app, f"{BASE}/master.m3u8")).body
    playlist, sound = await whole(app)
    assert "#EXT-X-TARGETDURATION:6" in playlist.lines
    lengths = [line for line in playlist.lines if line.startswith("#EXTINF")]
    assert lengths[:2] == ["#EXTINF:6.01600,", "#EXTINF:6.01600,"]
    assert demux(sound)[1] == packets


@given(st.binary(max_size=60), st.lists(st.integers(1, 400), max_size=6))
def test_bytes_that_are_no_aac_are_refused(noise: bytes, cuts: list[int]) -> None:
    """However they come in: segments are what frames say, or the file is said to be none."""
    data = adts(list(tone(Rendition(Codec.AAC, Quality.LOW), 0.5))) + noise
    segmented, at = AdtsSegmented(), 0
    with suppress(AdtsError):
        for cut in (*cuts, len(data)):
            segmented.feed(data[at : at + cut])
            at += cut
        segmented.finish()
        assert sum(each.end - each.start for each in segmented.stretches) <= len(data)
        for each in segmented.stretches:
            assert len(frames_in(data[each.start : each.end], 0)) * 1024 == each.duration


async def test_what_is_not_complete_or_not_allowed_is_refused(tmp_path: Path) -> None:
    """By its own reason; a segment past the end is not found."""
    data, _ = recording(7)
    (tmp_path / f"{RECORDING}.ogg").write_bytes(data)
    shelf = Shelf(a_recording(len(data)))
    app = RecordedHls(shelf, shelf, cast(Any, None), tmp_path)
    for path, code in (
        (f"{BASE}/9.m4s", Code.NOT_FOUND),
        (BASE.replace("token", "forged") + "/init.mp4", Code.PERMISSION_DENIED),
    ):
        answer = await ask(app, path)
        assert answer.error is not None
        assert answer.error.code is code
    unfinished = Shelf(msgspec.structs.replace(a_recording(0), status=RecordingStatus.RECORDING))
    answer = await ask(RecordedHls(unfinished, unfinished, cast(Any, None), tmp_path), f"{BASE}/master.m3u8")
    assert answer.error is not None
    assert answer.error.reason == "not_complete"


def test_the_download_beside_it_is_not_taken() -> None:
    """Each path has one who serves it."""
    assert PATH.fullmatch(f"{BASE}/master.m3u8")
    assert not PATH.fullmatch(f"{BASE}/audio.ogg")
