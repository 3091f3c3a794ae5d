"""Recordings over HTTP: all of one, pieces of it, conditions, from a folder and from the object store."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import msgspec
import pytest
import trio

from tests.services.stream.test_hls_recorded import BASE, RECORDING, Shelf, a_recording
from whispr.adapters.objects import objects_at
from whispr.asgi.errors import HttpError
from whispr.audio.packets import Codec
from whispr.bridge import open_bridge
from whispr.errors import WhisprError
from whispr.services.stream.engine.recording.download import PATH, Download
from whispr.services.stream.recordings import RecordingStatus

DATA = bytes(range(256)) * 300


class Answered:
    """What a client gets."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.body = b""

    async def send(self, event: Any) -> None:
        await trio.lowlevel.checkpoint()
        if event["type"] == "http.response.start":
            self.status = event["status"]
            self.headers = {name.decode(): value.decode("latin-1") for name, value in event["headers"]}
        elif event["type"] == "http.response.zerocopysend":
            event["file"].seek(event["offset"])
            self.body += event["file"].read(event["count"])
        else:
            self.body += event["body"]


async def ask(
    app: Download, path: str = f"{BASE}/audio.ogg", method: str = "GET", **headers: str
) -> Answered:
    """Ask for it; header names with underscores."""
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    answered = Answered()
    await app(
        {"type": "http", "method": method, "path": path, "headers": raw}, cast(Any, None), answered.send
    )
    return answered


@pytest.mark.parametrize("stored", [False, True], ids=["folder", "objects"])
async def test_a_recording_is_had_whole_and_in_pieces(stored: bool, tmp_path: Path) -> None:
    """GET, HEAD, one range, a suffix, a range that is none, conditions: as RFC 9110 has them, wherever it is."""
    async with open_bridge() as bridge:
        objects = objects_at(bridge, "", tmp_path / "objects")
        key = "recordings/a.ogg" if stored else ""
        if stored:
            await objects.put(key, DATA)
        else:
            (tmp_path / f"{RECORDING}.ogg").write_bytes(DATA)
        shelf = Shelf(a_recording(len(DATA), key))
        app = Download(shelf, shelf, objects, tmp_path)
        whole = await ask(app)
        assert (whole.status, whole.body) == (200, DATA)
        assert whole.headers["content-type"] == "audio/ogg; codecs=opus"
        assert whole.headers["accept-ranges"] == "bytes"
        assert "a tone.ogg" in whole.headers["content-disposition"]
        head = await ask(app, method="HEAD")
        assert (head.status, head.headers["content-length"]) == (200, str(len(DATA)))
        tag = whole.headers["etag"]
        for asked, start, end in (
            ("bytes=10-19", 10, 20),
            ("bytes=-5", len(DATA) - 5, len(DATA)),
            ("bytes=9-", 9, len(DATA)),
        ):
            piece = await ask(app, range=asked, if_range=tag)
            assert (piece.status, piece.body) == (206, DATA[start:end])
            assert piece.headers["content-range"] == f"bytes {start}-{end - 1}/{len(DATA)}"
        beyond = await ask(app, range=f"bytes={len(DATA)}-")
        assert (beyond.status, beyond.headers["content-range"]) == (416, f"bytes */{len(DATA)}")
        another = await ask(app, range="bytes=10-19", if_range='"another"')
        assert (another.status, another.body) == (200, DATA), "the piece would be of another file"
        same = await ask(app, if_none_match=tag)
        assert (same.status, same.body) == (304, b"")


async def test_what_may_not_be_had_is_refused(tmp_path: Path) -> None:
    """By a token that is none, by another method, as another file, before it is complete, on another node's disk."""
    shelf = Shelf(a_recording(10))
    app = Download(shelf, shelf, cast(Any, None), tmp_path)
    refusals = {
        "bad_signature": {"path": BASE.replace("token", "forged") + "/audio.ogg"},
        "method_not_allowed": {"method": "POST"},
        "not_found": {"path": f"{BASE}/audio.aac"},
        "unavailable": {},
    }
    for reason, asked in refusals.items():
        with pytest.raises((WhisprError, HttpError)) as told:
            await ask(app, **asked)
        assert told.value.reason == reason
    shelf.recording = msgspec.structs.replace(a_recording(10), status=RecordingStatus.PROCESSING)
    with pytest.raises(WhisprError) as told:
        await ask(app)
    assert told.value.reason == "not_complete"


async def test_aac_is_had_by_its_own_name(tmp_path: Path) -> None:
    """With its own type."""
    (tmp_path / f"{RECORDING}.aac").write_bytes(DATA)
    shelf = Shelf(msgspec.structs.replace(a_recording(len(DATA)), codec=Codec.AAC))
    answered = await ask(Download(shelf, shelf, cast(Any, None), tmp_path), f"{BASE}/audio.aac")
    assert (answered.body, answered.headers["content-type"]) == (DATA, "audio/aac")
    assert PATH.fullmatch(f"{BASE}/audio.aac")
    assert not PATH.fullmatch(f"{BASE}/audio.mp3")
