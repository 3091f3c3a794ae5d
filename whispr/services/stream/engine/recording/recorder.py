"""The recordings that this process makes: from a live stream into a file, from there into the object store.

What is to be recorded is in the index (`Recordings`). A recording is a task that hears a rendition as any listener
does. While the row says RECORDING its file goes on, also after a crash, when the stream is live again; once it says
PROCESSING the file is ended and stored. The sweep does that for files that no task has any more, as after a crash; a
lock on the file keeps processes that share the folder out of each other's way.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Final, Protocol

import structlog
import trio

from whispr.adapters.objects import Objects
from whispr.audio.packets import CLOCK_HZ, Codec, Packet, Rendition
from whispr.errors import WhisprError
from whispr.ids import is_id, new_id
from whispr.nurseries import own_nursery
from whispr.services.stream.engine import metrics
from whispr.services.stream.engine.encoders import silence
from whispr.services.stream.engine.live import Live
from whispr.services.stream.engine.recording.adtsfile import AdtsFile
from whispr.services.stream.engine.recording.appended import AppendedFile, InUseError
from whispr.services.stream.engine.recording.oggfile import OggFile
from whispr.services.stream.recordings import EXTENSIONS, Recording, RecordingStatus

FOLDER: Final = "recordings"
"""Of the object store."""
QUEUE_LEN_MAX: Final = 600
"""Batches, of 100 ms each, that wait for the disk; what comes while it is full is silence in the recording."""
GATHER: Final = CLOCK_HZ // 2
"""Ticks that are written at a time."""
TOLD_S: Final = 10.0
"""Between two notes in the index of how far a recording has come."""
SWEEP_S: Final = 5.0
TIDY_S: Final = 900.0
"""Between two looks for files that no recording has any more: it has expired, or its streamer was erased."""
KEYS_AT_ONCE: Final = 500
CLOSE_S: Final = 5.0
HANDED_OVER_S: Final = 5.0
"""How long a process may take to close a file that another one goes on with."""

log = structlog.get_logger("whispr.stream.recording")


class Index(Protocol):
    """`Recordings`, as far as a recorder needs it."""

    async def find(self, recording_id: str) -> Recording:
        """Return a recording. Raises NOT_FOUND."""

    async def unfinished(self, node: str) -> Sequence[Recording]:
        """Return what a node's disk has that is not settled."""

    async def known(self, recording_ids: Sequence[str]) -> set[str]:
        """Return which of these there are."""

    async def taken(self, recording_id: str, node: str) -> None:
        """Say which node's disk has it."""

    async def grown(self, recording_id: str, bytes_len: int, duration_s: float) -> None:
        """Say how far it has come."""

    async def completed(self, recording_id: str, object_key: str, bytes_len: int, duration_s: float) -> None:
        """Say that its file is stored."""

    async def failed(self, recording_id: str, error: str) -> None:
        """Say that nothing comes of it."""


def object_key(recording: Recording) -> str:
    """Return where a recording is in the object store."""
    return f"{FOLDER}/{recording.stream_id}/{recording.id}.{recording.extension}"


class Recorder:
    """Records for one process. `run` it."""

    def __init__(self, index: Index, objects: Objects, folder: Path) -> None:
        """`folder` is on this node's disk; processes of one node may share it."""
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._index = index
        self._objects = objects
        self._folder = folder
        self.node = _node_of(folder)
        """Names the disk."""
        self._tasks: dict[str, tuple[str, trio.Event]] = {}
        self._nursery: trio.Nursery | None = None
        self._sweep = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Record, and settle what was left, until cancelled."""
        try:
            async with trio.open_nursery() as self._nursery:
                self._nursery.start_soon(self._sweep_for_ever)
                task_status.started()
        finally:
            self._nursery = None

    # What a steward calls

    def begin(self, live: Live, recording: Recording) -> None:
        """Record from now on, unless that is done already."""
        if recording.id not in self._tasks and self._nursery is not None and not live.ended.is_set():
            finish = trio.Event()
            self._tasks[recording.id] = (recording.stream_id, finish)
            self._nursery.start_soon(self._record, live, recording, finish)

    def finish(self, recording_id: str) -> None:
        """End a recording and store it; nothing when it is none of this process."""
        if recording_id in self._tasks:
            self._tasks[recording_id][1].set()

    def under_way(self, stream_id: str) -> list[str]:
        """Return the ids of the recordings of a stream that this process makes."""
        return [each for each, (stream, _) in self._tasks.items() if stream == stream_id]

    def path_of(self, recording: Recording) -> Path:
        """Return where a recording's file is on this node, if it is."""
        return self._folder / f"{recording.id}.{recording.extension}"

    async def discard(self, recording: Recording) -> None:
        """Delete what there is of a recording whose row is no more, as far as that can be done from here now.

        What cannot, or is on the disk of another node, is found by whoever tidies there.
        """
        try:
            if recording.object_key:
                await self._objects.delete([recording.object_key])
            if recording.id not in self._tasks:
                await trio.to_thread.run_sync(_unlink, self.path_of(recording))
        except (WhisprError, OSError) as error:
            log.warning("recording_not_discarded", recording_id=recording.id, error=str(error))

    # Recording

    async def _record(self, live: Live, recording: Recording, finish: trio.Event) -> None:
        """Be a recording's task."""
        try:
            with metrics.RECORDING.track_inprogress():
                await self._index.taken(recording.id, self.node)
                await self._write(live, recording, finish)
        except InUseError:
            log.info("recorded_elsewhere", recording_id=recording.id)
            return
        except OSError as error:
            # What is on the disk stays good; it is stored as it is when the recording ends.
            log.error("recording_not_written", recording_id=recording.id, error=str(error))
        except WhisprError as error:
            log.warning("recording_put_off", recording_id=recording.id, error=str(error))
        finally:
            del self._tasks[recording.id]
            self._sweep.set()

    async def _write(self, live: Live, recording: Recording, finish: trio.Event) -> None:
        comments = {"title": recording.title, "date": live.started_at.date().isoformat()}
        file = await self._opened(recording, comments)
        rendition = Rendition(recording.codec, recording.quality)
        batches = _Batches(rendition)
        try:
            subscription = live.subscribe(rendition, batches.take)
            try:
                async with own_nursery("the recording has ended") as nursery:
                    nursery.start_soon(self._until, finish, batches.end)
                    nursery.start_soon(self._until, live.ended, batches.end)
                    nursery.start_soon(self._tell_growth, recording.id, file)
                    await _drain(batches, file)
            finally:
                subscription.close()
        finally:
            with trio.CancelScope(shield=True) as closing:
                closing.deadline = trio.current_time() + CLOSE_S
                await trio.to_thread.run_sync(_close, file, batches.rest())

    async def _opened(self, recording: Recording, comments: Mapping[str, str]) -> AppendedFile:
        """Open the file; a process beside this one, which made the stream before, may be about to close it.

        Raises OSError, InUseError.
        """
        patience = trio.current_time() + HANDED_OVER_S
        while True:
            try:
                return await trio.to_thread.run_sync(_file, self.path_of(recording), comments)
            except InUseError:
                if trio.current_time() > patience:
                    raise
                await trio.sleep(HANDED_OVER_S / 20)

    async def _until(self, event: trio.Event, then: Callable[[], None]) -> None:
        await event.wait()
        then()

    async def _tell_growth(self, recording_id: str, file: AppendedFile) -> None:
        while True:
            await trio.sleep(TOLD_S)
            try:
                await self._index.grown(recording_id, file.size, file.duration_s)
            except WhisprError as error:
                log.info("growth_not_told", error=str(error))

    # Settling

    async def _sweep_for_ever(self) -> None:
        tidy_at = trio.current_time()
        while True:
            self._sweep = trio.Event()
            try:
                for recording in await self._index.unfinished(self.node):
                    if recording.status is RecordingStatus.PROCESSING and recording.id not in self._tasks:
                        await self._try_to_settle(recording)
                if trio.current_time() >= tidy_at:
                    await self._tidy()
                    await self._tidy_store()
                    tidy_at = trio.current_time() + TIDY_S
            except (WhisprError, OSError) as error:
                log.info("recordings_not_settled", error=str(error))
            with trio.move_on_after(SWEEP_S):
                await self._sweep.wait()

    async def _try_to_settle(self, recording: Recording) -> None:
        """Settle one as far as that can be done now: the next sweep tries again, and none behind it has to wait."""
        try:
            await self._settle(recording)
        except (WhisprError, OSError) as error:
            # Another process of the node may have stored the file and deleted it meanwhile.
            log.info("recording_not_settled", recording_id=recording.id, error=str(error))

    async def _settle(self, recording: Recording) -> None:
        """End a file and store it. Raises UNAVAILABLE, OSError."""
        path = self.path_of(recording)
        try:
            size, duration_s = await trio.to_thread.run_sync(_ended, path)
        except InUseError:
            return
        except FileNotFoundError:
            await self._index.failed(recording.id, "nothing was recorded")
            return
        except OSError as error:
            log.error("recording_not_ended", recording_id=recording.id, error=str(error))
            return
        key = ""
        if recording.auto_upload:
            key = object_key(recording)
            await self._objects.put_file(key, path)
        await self._index.completed(recording.id, key, size, duration_s)
        metrics.RECORDED.inc()
        if key:
            await trio.to_thread.run_sync(_unlink, path)

    async def _tidy(self) -> None:
        """Delete the files of recordings that are no more, or are stored."""
        for path in await trio.to_thread.run_sync(self._files):
            if path.stem in self._tasks or not is_id(path.stem):
                continue  # what has another name is none of ours
            try:
                recording = await self._index.find(path.stem)
                spent = recording.status is RecordingStatus.COMPLETED and bool(recording.object_key)
            except WhisprError as error:
                if error.reason != "not_found":
                    raise
                spent = True
            if spent:
                await trio.to_thread.run_sync(_unlink, path)

    def _files(self) -> list[Path]:
        return [path for each in EXTENSIONS.values() for path in self._folder.glob(f"*.{each}")]

    async def _tidy_store(self) -> None:
        """Delete the objects of recordings that are no more. Rows are there before their objects are."""
        keys: dict[str, str] = {}
        async with aclosing(self._objects.list(FOLDER)) as found:
            async for key in found:
                keys[key.rpartition("/")[2].partition(".")[0]] = key
        ids = [each for each in keys if is_id(each)]
        for at in range(0, len(ids), KEYS_AT_ONCE):
            some = ids[at : at + KEYS_AT_ONCE]
            known = await self._index.known(some)
            await self._objects.delete([keys[each] for each in some if each not in known])


class _Batches:
    """What is heard and not written yet; the hole that a full queue leaves is filled with silence."""

    def __init__(self, rendition: Rendition) -> None:
        self._rendition = rendition
        self._packets: list[Packet] = []
        self._next: int | None = None
        self._more = trio.Event()
        self.ended = False

    def take(self, packets: Sequence[Packet]) -> None:
        """Take a batch, if there is room."""
        if len(self._packets) >= QUEUE_LEN_MAX * 5:
            return
        if self._next is not None:
            self._packets += silence(self._rendition, self._next, packets[0].pts)
        self._packets += packets
        self._next = packets[-1].pts + packets[-1].duration
        self._more.set()

    def end(self) -> None:
        """Nothing more will be heard."""
        self.ended = True
        self._more.set()

    def rest(self) -> list[Packet]:
        """Return what is there."""
        packets, self._packets = self._packets, []
        return packets

    async def some(self) -> list[Packet]:
        """Wait for half a second of it, or the end."""
        while not self.ended and sum(each.duration for each in self._packets) < GATHER:
            await self._more.wait()
            self._more = trio.Event()
        return self.rest()


async def _drain(batches: _Batches, file: AppendedFile) -> None:
    while not batches.ended:
        packets = await batches.some()
        await trio.to_thread.run_sync(file.append, packets)


def _file(path: Path, comments: Mapping[str, str] | None = None) -> AppendedFile:
    """Open a file, which is made when `comments` are given. Raises InUseError, OSError."""
    if path.suffix == f".{EXTENSIONS[Codec.AAC]}":
        return AdtsFile(path, create=comments is not None)
    return OggFile(path, comments)


def _close(file: AppendedFile, rest: Sequence[Packet]) -> None:
    try:
        file.append(rest)
    finally:
        file.close()


def _ended(path: Path) -> tuple[int, float]:
    """End a file; return its size and duration. Raises InUseError, OSError."""
    file = _file(path)
    try:
        file.end()
        return file.size, file.duration_s
    finally:
        file.close()


def _unlink(path: Path) -> None:
    path.unlink(missing_ok=True)


def _node_of(folder: Path) -> str:
    """Return the name of the disk that a folder is on, made the first time."""
    path = folder / "node"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    with open(descriptor, "w") as file:
        file.write(new_id())
    return path.read_text().strip()
