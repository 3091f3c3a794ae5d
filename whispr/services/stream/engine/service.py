"""The engine of one process, put together: live streams, Icecast's sources, recordings and their downloads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import trio

from whispr.adapters.objects import Objects
from whispr.services.stream.access import Access
from whispr.services.stream.engine.icecast import Icecast
from whispr.services.stream.engine.live import Live
from whispr.services.stream.engine.lives import EngineOptions, Lives
from whispr.services.stream.engine.recording.download import Download
from whispr.services.stream.engine.recording.recorder import Recorder
from whispr.services.stream.playing import Playing
from whispr.services.stream.recordings import Recordings
from whispr.services.stream.urls import ListenUrls


class Steward(Protocol):
    """Who is told of sources that come and go: `whispr.services.stream.steward.Steward`."""

    async def started(self, live: Live) -> None:
        """As `lives.Hooks`."""

    async def source_changed(self, live: Live) -> None:
        """As `lives.Hooks`."""

    async def released(self, live: Live) -> None:
        """As `lives.Hooks`."""

    async def ended(self, live: Live) -> None:
        """As `lives.Hooks`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSetup:
    """What an operator may choose."""

    recording_folder: Path
    """Where recordings are until they are stored, on a disk of this node."""
    options: EngineOptions = field(default_factory=EngineOptions)


class Engine:
    """`run` it. Requests whose path matches `icecast.PATH` and `download.PATH` go to those."""

    def __init__(
        self,
        setup: EngineSetup,
        objects: Objects,
        access: Access,
        playing: Playing,
        recordings: Recordings,
        urls: ListenUrls,
        steward: Steward,
    ) -> None:
        self.lives = Lives(setup.options, _Hooks(steward, playing))
        self.recorder = Recorder(recordings, objects, setup.recording_folder)
        self.icecast = Icecast(self.lives, access, playing.describe)
        self.download = Download(recordings, urls, objects, setup.recording_folder)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Make streams and record them, until cancelled."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.recorder.run)
            await nursery.start(self.lives.run)
            task_status.started()


class _Hooks:
    """Tells the steward, and of what is played whoever keeps it."""

    def __init__(self, steward: Steward, playing: Playing) -> None:
        self.started = steward.started
        self.source_changed = steward.source_changed
        self.released = steward.released
        self.ended = steward.ended
        self._playing = playing

    async def described(self, live: Live, facts: Mapping[str, str]) -> None:
        """The source says what it plays."""
        await self._playing.describe(live.stream_id, facts)
