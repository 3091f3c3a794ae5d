"""Recordings: files that stay good, their way into the store, and a process killed in the middle."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import av
import msgspec
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.audio.tones import tone
from tests.services.stream.sounds import opus_packets
from tests.services.stream.test_engine import News, Start, on_air, send, start
from whispr.adapters.objects import Objects
from whispr.audio.adts import adts, whole_frames
from whispr.audio.ogg import whole_pages
from whispr.audio.packets import Codec, Packet, Quality, Rendition
from whispr.errors import not_found, unavailable
from whispr.ids import new_id
from whispr.services.stream.engine.live import Live
from whispr.services.stream.engine.recording import recorder as recorder_module
from whispr.services.stream.engine.recording.adtsfile import AdtsFile
from whispr.services.stream.engine.recording.appended import InUseError
from whispr.services.stream.engine.recording.oggfile import OggFile
from whispr.services.stream.engine.recording.recorder import Recorder, object_key
from whispr.services.stream.recordings import Recording, RecordingStatus

__all__ = ["start"]

NOW = datetime(2030, 1, 1, tzinfo=UTC)
_OPEN = (RecordingStatus.RECORDING, RecordingStatus.PROCESSING)


def packets(seconds: float, start: int = 0) -> list[Packet]:
    return [Packet((start + n) * 960, 960, data) for n, data in enumerate(opus_packets(seconds))]


def played_s(path: Path) -> float:
    """Return how long FFmpeg finds a file to be, having decoded all of it."""
    with av.open(str(path), "r") as container:
        frames = list(container.decode(container.streams.audio[0]))
        assert container.duration is not None
        assert abs(sum(frame.samples for frame in frames) / 48_000 - container.duration / 1e6) < 0.05
        return container.duration / 1e6


def test_a_recording_plays(tmp_path: Path) -> None:
    """What was written is there, as long as it was, with its title."""
    file = OggFile(tmp_path / "a.ogg", {"title": "On air"})
    file.append(packets(3.3))
    file.end()
    assert file.duration_s == pytest.approx(3.3, abs=0.02)
    assert file.size == (tmp_path / "a.ogg").stat().st_size
    file.close()
    assert played_s(tmp_path / "a.ogg") == pytest.approx(3.3, abs=0.02)


def test_a_recording_is_taken_up_again(tmp_path: Path) -> None:
    """After a crash it goes on in the same file, whose times go on; ended, it says so of itself."""
    path = tmp_path / "a.ogg"
    for _ in range(3):
        file = OggFile(path, {"title": "x"})
        assert not file.ended
        file.append(packets(1.0))
        file.close()
    file = OggFile(path)
    file.end()
    file.close()
    assert OggFile(path).ended
    assert played_s(path) == pytest.approx(3.0, abs=0.02)
    pages = list(whole_pages(path.read_bytes()))
    assert [page.sequence for page in pages] == list(range(len(pages)))


def test_two_do_not_write_one_file(tmp_path: Path) -> None:
    """A file that another process records into is left alone."""
    file = OggFile(tmp_path / "a.ogg", {})
    with pytest.raises(InUseError):
        OggFile(tmp_path / "a.ogg")
    file.close()
    with pytest.raises(FileNotFoundError):
        OggFile(tmp_path / "b.ogg")


@settings(max_examples=25)
@given(st.data())
def test_cut_off_anywhere_it_is_good(data: st.DataObject) -> None:
    """Whatever a crash leaves of the last write, all before it is kept, and what comes after is appended."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.ogg"
        file = OggFile(path, {})
        file.append(packets(2.0))
        file.close()
        whole = path.read_bytes()
        ends = [0, *(page.end for page in whole_pages(whole))]
        at = data.draw(st.integers(0, len(whole)))
        path.write_bytes(whole[:at] + data.draw(st.binary(max_size=60)))
        file = OggFile(path, {})
        kept = max(end for end in ends if end <= at)
        assert file.size >= kept
        assert path.read_bytes()[:kept] == whole[:kept]
        file.append(packets(1.0))
        file.end()
        file.close()
        assert list(whole_pages(path.read_bytes()))[-1].last


def frames(seconds: float, start: int = 0) -> list[Packet]:
    return list(tone(Rendition(Codec.AAC, Quality.LOW), seconds, start=start))


def test_a_recording_in_aac_plays_and_is_taken_up_again(tmp_path: Path) -> None:
    """What was written is there, and what comes after a crash goes on behind it."""
    path = tmp_path / "a.aac"
    for _ in range(2):
        file = AdtsFile(path, create=True)
        file.append(frames(1.5))
        file.close()
    file = AdtsFile(path)
    file.end()
    assert (file.size, file.duration_s) == (path.stat().st_size, 2 * len(frames(1.5)) * 1024 / 48_000)
    with pytest.raises(InUseError):
        AdtsFile(path)
    file.close()
    with av.open(str(path), "r", format="aac") as container:
        decoded = sum(frame.samples for frame in container.decode(container.streams.audio[0]))
    assert decoded / 48_000 == pytest.approx(3.0, abs=0.05)
    with pytest.raises(FileNotFoundError):
        AdtsFile(tmp_path / "b.aac")


@settings(max_examples=15)
@given(st.data())
def test_cut_off_anywhere_its_whole_frames_are_good(data: st.DataObject) -> None:
    """Whatever a crash leaves of the last write, all whole frames are kept, and what comes after is appended."""
    whole = adts(frames(1.0))
    ends = [0, *(end for _, end in whole_frames(whole))]
    at = data.draw(st.integers(0, len(whole)))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.aac"
        path.write_bytes(whole[:at] + data.draw(st.binary(max_size=6)))
        file = AdtsFile(path)
        kept = max(end for end in ends if end <= at)
        before = path.read_bytes()
        assert before[:kept] == whole[:kept]
        assert [end for _, end in whole_frames(before, strict=True)][-1:] == ([len(before)] if before else [])
        file.append(frames(1.0))
        file.end()
        file.close()
        assert path.read_bytes() == before + whole


async def test_the_codec_asked_for_is_recorded(nursery: trio.Nursery, tmp_path: Path) -> None:
    """AAC is heard, written as ADTS with what came while the disk was away as silence, and stored under its name."""
    rows, work = Rows(), tmp_path / "work"
    recorder = Recorder(rows, cast(Objects, Shelf(tmp_path / "store")), work)
    await nursery.start(recorder.run)
    recording = rows.add("r", codec=Codec.AAC, quality=Quality.LOW)
    live, rendition = Live("s", NOW), Rendition(Codec.AAC, Quality.LOW)
    recorder.begin(live, recording)
    with trio.fail_after(10):
        while rendition not in live.wanted():  # noqa: ASYNC110  # nothing tells that it is heard
            await trio.sleep(0.01)
    live.publish(rendition, frames(1.0))
    rows.change("r", status=RecordingStatus.PROCESSING)
    recorder.finish("r")
    with trio.fail_after(10):
        await rows.settled()
    row = rows.rows["r"]
    assert (row.status, row.object_key) == (RecordingStatus.COMPLETED, "recordings/s/r.aac")
    assert (tmp_path / "store" / row.object_key).read_bytes() == adts(frames(1.0))
    assert row.duration_s == len(frames(1.0)) * 1024 / 48_000
    await recorder.discard(row)
    assert not list(tmp_path.rglob("r.*"))


class Rows:
    """The index, in memory."""

    def __init__(self) -> None:
        self.rows: dict[str, Recording] = {}
        self._changed = trio.Event()

    def add(self, recording_id: str, **facts: object) -> Recording:
        row = Recording(
            id=recording_id, stream_id="s", streamer_id="u", title="Song", status=RecordingStatus.RECORDING,
            quality=Quality.HIGH, codec=Codec.OPUS, auto_upload=True, node="", object_key="", bytes=0, duration_s=0.0,
            error="", created_at=NOW, ended_at=None, expires_at=None,
        )  # fmt: skip
        self.rows[recording_id] = msgspec.structs.replace(row, **facts)
        return self.rows[recording_id]

    def change(self, recording_id: str, **facts: object) -> None:
        self.rows[recording_id] = msgspec.structs.replace(self.rows[recording_id], **facts)
        self._changed.set()

    async def settled(self) -> None:
        """Wait until nothing is under way any more."""
        while any(
            row.status in (RecordingStatus.RECORDING, RecordingStatus.PROCESSING)
            for row in self.rows.values()
        ):
            await self._changed.wait()
            self._changed = trio.Event()

    async def find(self, recording_id: str) -> Recording:
        await trio.lowlevel.checkpoint()
        if recording_id not in self.rows:
            raise not_found("recording", recording_id)
        return self.rows[recording_id]

    async def unfinished(self, node: str) -> Sequence[Recording]:
        await trio.lowlevel.checkpoint()
        return [row for row in self.rows.values() if row.node == node and row.status in _OPEN]

    async def known(self, recording_ids: Sequence[str]) -> set[str]:
        await trio.lowlevel.checkpoint()
        return set(recording_ids) & set(self.rows)

    async def taken(self, recording_id: str, node: str) -> None:
        await trio.lowlevel.checkpoint()
        self.change(recording_id, node=node)

    async def grown(self, recording_id: str, bytes_len: int, duration_s: float) -> None:
        await trio.lowlevel.checkpoint()
        self.change(recording_id, bytes=bytes_len, duration_s=duration_s)

    async def completed(self, recording_id: str, object_key: str, bytes_len: int, duration_s: float) -> None:
        await trio.lowlevel.checkpoint()
        self.change(
            recording_id, status=RecordingStatus.COMPLETED, object_key=object_key, bytes=bytes_len,
            duration_s=duration_s,
        )  # fmt: skip

    async def failed(self, recording_id: str, error: str) -> None:
        await trio.lowlevel.checkpoint()
        self.change(recording_id, status=RecordingStatus.FAILED, error=error)


class Shelf:
    """The object store, as far as a recorder needs it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def put_file(self, key: str, path: Path) -> None:
        await trio.lowlevel.checkpoint()
        target = self.folder / key
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())

    async def list(self, folder: str) -> AsyncGenerator[str, None]:
        for path in sorted((self.folder / folder).rglob("*.ogg")):
            await trio.lowlevel.checkpoint()
            yield str(path.relative_to(self.folder))

    async def delete(self, keys: Sequence[str]) -> None:
        await trio.lowlevel.checkpoint()
        for key in keys:
            (self.folder / key).unlink()


@pytest.fixture
async def news() -> News:
    return News()


@pytest.mark.slow
async def test_a_stream_is_recorded_and_stored(start: Start, nursery: trio.Nursery, tmp_path: Path) -> None:
    """From StartRecording to its end: the file is in the store, and as long as it was recorded."""
    rows, lives = Rows(), await start()
    recorder = Recorder(rows, cast(Objects, Shelf(tmp_path / "store")), tmp_path / "work")
    await nursery.start(recorder.run)
    recording = rows.add("r")
    async with on_air(lives) as feed:
        stamp = await send(feed, opus_packets(0.4))
        recorder.begin(feed.live, recording)
        recorder.begin(feed.live, recording)
        stamp = await send(feed, opus_packets(2.0), stamp)
        assert recorder.under_way("s") == ["r"]
        rows.change("r", status=RecordingStatus.PROCESSING)
        recorder.finish("r")
        with trio.fail_after(30):
            await rows.settled()
    assert recorder.under_way("s") == []
    row = rows.rows["r"]
    assert (row.status, row.object_key) == (RecordingStatus.COMPLETED, object_key(row))
    assert 0.2 < row.duration_s < 2.8
    stored = tmp_path / "store" / row.object_key
    assert stored.stat().st_size == row.bytes
    assert played_s(stored) == pytest.approx(row.duration_s, abs=0.02)


async def test_a_file_that_another_process_is_about_to_close(nursery: trio.Nursery, tmp_path: Path) -> None:
    """A stream that goes on in another process of the node is recorded into the same file, once that is closed."""
    rows, work = Rows(), tmp_path / "work"
    recorder = Recorder(rows, cast(Objects, Shelf(tmp_path / "store")), work)
    await nursery.start(recorder.run)
    recording = rows.add("r")
    before = OggFile(recorder.path_of(recording), {})
    before.append(packets(1.0))
    live = Live("s", NOW)
    recorder.begin(live, recording)
    await trio.sleep(0.3)
    before.close()
    with trio.fail_after(10):
        while not live.wanted():  # noqa: ASYNC110  # nothing tells that it is heard
            await trio.sleep(0.05)
    live.publish(Rendition(Codec.OPUS, recording.quality), packets(2.0))
    rows.change("r", status=RecordingStatus.PROCESSING)
    recorder.finish("r")
    with trio.fail_after(10):
        await rows.settled()
    assert rows.rows["r"].status is RecordingStatus.COMPLETED
    assert rows.rows["r"].duration_s == pytest.approx(3.0, abs=0.02)


async def test_what_a_crash_left_is_settled(nursery: trio.Nursery, tmp_path: Path) -> None:
    """At start, files of streams that have ended are stored, what has no file fails, what no row wants is deleted."""
    rows = Rows()
    work = tmp_path / "work"
    node = Recorder(rows, cast(Objects, Shelf(tmp_path / "store")), work).node
    deleted = new_id()
    for name in ("left", "kept", deleted, "foreign"):
        file = OggFile(work / f"{name}.ogg", {})
        file.append(packets(2.0))
        file.close()
    gone, other = (tmp_path / "store" / f"recordings/s/{name}.ogg" for name in (new_id(), "other"))
    gone.parent.mkdir(parents=True)
    gone.touch()
    other.touch()
    rows.add("left", node=node, status=RecordingStatus.PROCESSING)
    rows.add("kept", node=node, status=RecordingStatus.PROCESSING, auto_upload=False)
    rows.add("never", node=node, status=RecordingStatus.PROCESSING)
    recorder = Recorder(rows, cast(Objects, Shelf(tmp_path / "store")), work)
    assert recorder.node == node
    await nursery.start(recorder.run)
    with trio.fail_after(30):
        await rows.settled()
        while (work / f"{deleted}.ogg").exists() or gone.exists():  # noqa: ASYNC110 - a file says to nobody that it is gone
            await trio.sleep(0.02)
    assert rows.rows["left"].object_key == "recordings/s/left.ogg"
    assert rows.rows["left"].duration_s == pytest.approx(2.0, abs=0.02)
    assert (rows.rows["kept"].status, rows.rows["kept"].object_key) == (RecordingStatus.COMPLETED, "")
    assert rows.rows["never"].status is RecordingStatus.FAILED
    assert other.exists()
    assert sorted(path.name for path in work.glob("*.ogg")) == ["foreign.ogg", "kept.ogg"]


class FullDisk(OggFile):
    """A file on a disk that is full until it is not."""

    full = True

    def append(self, packets: Sequence[Packet]) -> None:
        if packets and FullDisk.full:
            raise OSError(errno.ENOSPC, "No space left on device")
        super().append(packets)


async def test_a_full_disk_ends_neither_the_recorder_nor_the_recording(
    nursery: trio.Nursery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was heard meanwhile is missing; when there is room again the same recording goes on, and is stored."""
    monkeypatch.setattr(recorder_module, "OggFile", FullDisk)
    monkeypatch.setattr(FullDisk, "full", True)
    rows, work = Rows(), tmp_path / "work"
    recorder = Recorder(rows, cast(Objects, Shelf(tmp_path / "store")), work)
    await nursery.start(recorder.run)
    recording, live = rows.add("r"), Live("s", NOW)
    rendition, at = Rendition(Codec.OPUS, recording.quality), 0
    for full in (True, False):
        monkeypatch.setattr(FullDisk, "full", full)
        recorder.begin(live, recording)
        with trio.fail_after(10):
            while not live.track(rendition)._batched:  # noqa: ASYNC110  # nothing tells that it is heard
                await trio.sleep(0.01)
            live.publish(rendition, packets(1.0, at))
            at += 50
            while full and recorder.under_way("s"):  # noqa: ASYNC110  # nothing tells that it has given up
                await trio.sleep(0.01)
    rows.change("r", status=RecordingStatus.PROCESSING)
    recorder.finish("r")
    with trio.fail_after(10):
        await rows.settled()
    assert rows.rows["r"].status is RecordingStatus.COMPLETED
    assert rows.rows["r"].duration_s == pytest.approx(1.0, abs=0.02)


class Rival(Shelf):
    """A store into which another process of the node has just put the same file, and deleted it from the disk."""

    def __init__(self, folder: Path, *, sooner: bool) -> None:
        super().__init__(folder)
        self.sooner = sooner

    async def put_file(self, key: str, path: Path) -> None:
        if not self.sooner:
            await super().put_file(key, path)
        path.unlink()
        if self.sooner:
            await super().put_file(key, path)


@pytest.mark.parametrize("sooner", [False, True])
async def test_a_file_that_vanishes_while_it_is_stored(
    nursery: trio.Nursery, tmp_path: Path, sooner: bool
) -> None:
    """Another process of the node has stored it, or it was deleted: that is no reason to record nothing else."""
    rows, work = Rows(), tmp_path / "work"
    recorder = Recorder(rows, cast(Objects, Rival(tmp_path / "store", sooner=sooner)), work)
    for name in ("a", "b"):
        file = OggFile(work / f"{name}.ogg", {})
        file.append(packets(1.0))
        file.close()
        rows.add(name, node=recorder.node, status=RecordingStatus.PROCESSING)
    await nursery.start(recorder.run)
    with trio.fail_after(10):
        while list(work.glob("*.ogg")):  # noqa: ASYNC110  # a file says to nobody that it is gone
            await trio.sleep(0.01)
        if not sooner:
            await rows.settled()


class Refusing(Shelf):
    """A store that refuses one object."""

    async def put_file(self, key: str, path: Path) -> None:
        if path.stem == "a":
            raise unavailable("too large for this store")
        await super().put_file(key, path)


async def test_a_recording_that_cannot_be_stored_keeps_no_other_waiting(
    nursery: trio.Nursery, tmp_path: Path
) -> None:
    """It is tried again and again; those behind it are stored."""
    rows, work = Rows(), tmp_path / "work"
    recorder = Recorder(rows, cast(Objects, Refusing(tmp_path / "store")), work)
    for name in ("a", "b"):
        file = OggFile(work / f"{name}.ogg", {})
        file.append(packets(1.0))
        file.close()
        rows.add(name, node=recorder.node, status=RecordingStatus.PROCESSING)
    await nursery.start(recorder.run)
    with trio.fail_after(10):
        while (work / "b.ogg").exists():  # noqa: ASYNC110  # a file says to nobody that it is gone
            await trio.sleep(0.01)
    assert rows.rows["a"].status is RecordingStatus.PROCESSING
    assert (work / "a.ogg").exists()


_CHILD = """
import sys, time, trio
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.services.stream.test_engine_recording import Rows, Shelf
from tests.services.stream.sounds import opus_packets
from whispr.services.stream.engine.lives import Lives, SourceOptions
from whispr.services.stream.engine.recording.recorder import Recorder

async def main():
    async with trio.open_nursery() as nursery:
        lives, rows = Lives(), Rows()
        folder = Path(sys.argv[1])
        recorder = Recorder(rows, Shelf(folder / "store"), folder / "work")
        await nursery.start(lives.run)
        await nursery.start(recorder.run)
        packets = opus_packets(10.0)
        async with lives.source("s", SourceOptions(kind="test")) as feed:
            recorder.begin(feed.live, rows.add("r"))
            began = trio.current_time()
            for number, packet in enumerate(packets):
                feed.opus(packet, number * 960)
                print(number + 1, flush=True)
                await trio.sleep_until(began + (number + 1) * 0.02)

trio.run(main)
"""


@pytest.mark.slow
def test_killed_in_the_middle_it_loses_a_second_at_most(tmp_path: Path) -> None:
    """Kill -9 while it records: the file plays, and lacks no more than the last second."""
    root = str(Path(__file__).parents[3])
    for moment_s in (2.0, 3.1, 4.7):
        folder = tmp_path / str(moment_s)
        folder.mkdir()
        child = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(folder), root], stdout=subprocess.PIPE, cwd=root
        )
        assert child.stdout is not None
        sent = int(child.stdout.readline())
        began = time.monotonic()
        while time.monotonic() - began < moment_s:
            sent = int(child.stdout.readline())
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
        rest = child.stdout.read().split()
        sent = int(rest[-1]) if rest else sent
        child.stdout.close()
        path = folder / "work" / "r.ogg"
        file = OggFile(path)
        file.end()
        file.close()
        # Recording begins within a tick of the stream; all after that is there but the last second.
        assert sent * 0.02 - played_s(path) <= 1.2, f"killed after {moment_s} s"
        if shutil.which("ffprobe"):
            command = [
                "ffprobe",
                "-v",
                "error",
                "-show_entries",
                "format=duration",
                "-of",
                "csv=p=0",
                str(path),
            ]
            told = subprocess.run(command, capture_output=True, check=True)
            assert told.stderr == b""
            assert float(told.stdout) == pytest.approx(played_s(path), abs=0.05)


def test_other_files_are_not_ours(tmp_path: Path) -> None:
    """What somebody else has put in a recording's place is begun anew, rather than appended to."""
    path = tmp_path / "a.ogg"
    path.write_bytes(b"not ogg at all" * 100)
    file = OggFile(path, {})
    file.append(packets(1.0))
    file.end()
    file.close()
    assert played_s(path) == pytest.approx(1.0, abs=0.02)
