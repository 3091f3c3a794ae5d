"""Sees to it that the streams whose source is in this process are as they are wanted, and says how they are.

What is wanted is in PostgreSQL: whether a stream runs or is paused, how loud it is, what is recorded of it. The
steward reads it when it is told to look, and every `LOOK_S`; and it shows in Redis, every `SHOW_S`, how each stream
is, so that any process answers about it. It is also what the engine tells of sources that come and go.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final, Protocol

import structlog
import trio

from whispr.errors import WhisprError
from whispr.services.stream.control import Announce, Control, topic
from whispr.services.stream.domain import Status, Stream
from whispr.services.stream.engine.live import Levels, Live
from whispr.services.stream.engine.lives import Lives
from whispr.services.stream.livestate import LiveState, Picture
from whispr.services.stream.notices import LOOK, Notice, Notices
from whispr.services.stream.recordings import Recording, Recordings
from whispr.services.stream.store import StreamStore

LOOK_S: Final = 10.0
SHOW_S: Final = 1.0
LEVELS_S: Final = 0.5
"""How often sockets are told of levels."""
SOURCED_S: Final = 30.0
QUIET_LUFS: Final = -70.0
"""The gate of EBU R 128: below it nothing was measured."""

log = structlog.get_logger("whispr.stream")


class Recorder(Protocol):
    """The engine's recordings in this process."""

    node: str
    """Names the disk that they are on."""

    def begin(self, live: Live, recording: Recording) -> None:
        """Record from now on, unless that is done already."""

    def finish(self, recording_id: str) -> None:
        """End a recording and store it; nothing when it is none of this process."""

    def under_way(self, stream_id: str) -> list[str]:
        """Return the ids of the recordings of a stream that this process makes."""


class Steward:
    """Looks after the streams of one process; told by the engine of sources that come and go."""

    def __init__(
        self,
        node: str,
        store: StreamStore,
        control: Control,
        recordings: Recordings,
        live_state: LiveState,
        notices: Notices,
        announce: Announce,
        *,
        idle_s: float,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`idle_s`: how long a stream lasts without a source."""
        self._node = node
        self._store = store
        self._control = control
        self._recordings = recordings
        self._live_state = live_state
        self._announce = announce
        self._idle_s = idle_s
        self._clock = clock
        self._lives: Lives | None = None
        self._recorder: Recorder | None = None
        self._wanted: set[str] = set()
        self._look = trio.Event()
        notices.on(self._told)

    def attend(self, lives: Lives, recorder: Recorder | None) -> None:
        """Look after these; called once, before `run`."""
        self._lives, self._recorder = lives, recorder

    def _told(self, notice: Notice) -> None:
        if notice.kind == LOOK and self._lives is not None and self._lives.made_here(notice.stream_id):
            self._wanted.add(notice.stream_id)
            self._look.set()

    # What the engine tells (`engine.lives.Hooks`)

    async def started(self, live: Live) -> None:
        """The first source has connected."""
        self._wanted.add(live.stream_id)
        self._look.set()
        await self.source_changed(live)

    async def source_changed(self, live: Live) -> None:
        """A source has connected or gone."""
        source = live.source
        kind = "source_connected" if source.connected else "source_lost"
        told = {"connected": source.connected, "kind": source.kind}
        # First, so that who hears of it and looks, on whichever node, sees it.
        await self._show(live)
        self._control.tell(live.stream_id, kind, {"kind": source.kind})
        self._announce(topic(live.stream_id), "source_changed", told)
        try:
            await self._control.sourced(live.stream_id)
        except WhisprError as error:
            log.info("source_not_noted", stream_id=live.stream_id, error=str(error))

    async def released(self, live: Live) -> None:
        """Another node makes it now, and records it."""
        self._finish_recordings(live.stream_id, set())

    async def ended(self, live: Live) -> None:
        """It is live here no more. A stream whose source is lost for good ends; one whose process stops does not."""
        try:
            await self._live_state.hide(live.stream_id)
            if live.reason in ("source_gone", "failed"):
                reason = "source_lost" if live.reason == "source_gone" else "error"
                await self._control.stop(live.stream_id, "", reason)
        except WhisprError as error:
            log.warning("stream_not_ended", stream_id=live.stream_id, error=str(error))

    # Looking after them

    async def run(self) -> None:
        """Look after them until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_for_ever)
            nursery.start_soon(self._show_for_ever)
            nursery.start_soon(self._tell_levels_for_ever)
            nursery.start_soon(self._note_for_ever)

    async def _look_for_ever(self) -> None:
        all_at = trio.current_time() + LOOK_S
        while True:
            with trio.move_on_at(all_at):
                await self._look.wait()
            self._look = trio.Event()
            wanted, self._wanted = self._wanted, set()
            if trio.current_time() >= all_at:  # however often single ones were looked at meanwhile
                wanted = {live.stream_id for live in self._all()}
                all_at = trio.current_time() + LOOK_S
            for stream_id in wanted:
                try:
                    await self.look(stream_id)
                except WhisprError as error:
                    log.info("stream_not_looked_at", stream_id=stream_id, error=str(error))

    async def look(self, stream_id: str) -> None:
        """Bring a stream here to what is wanted of it. Raises UNAVAILABLE."""
        lives = self._lives
        if lives is None or not lives.made_here(stream_id) or (live := lives.get(stream_id)) is None:
            return
        try:
            stream = await self._store.find(stream_id)
        except WhisprError as error:
            if error.reason != "not_found":
                raise
            lives.end(stream_id, "stopped")
            return
        if not stream.status.runs:
            self._finish_recordings(stream_id, set())
            lives.end(stream_id, "stopped")
            return
        _arrange(live, stream)
        await self._record(live)

    async def _record(self, live: Live) -> None:
        wanted = await self._recordings.wanted([live.stream_id])
        self._finish_recordings(live.stream_id, {each.id for each in wanted})
        if self._recorder is not None:
            for recording in wanted:
                if recording.node not in ("", self._recorder.node):
                    # Its disk is another machine's, which keeps what it has; here a second part begins.
                    recording = await self._recordings.part(recording)
                self._recorder.begin(live, recording)

    def _finish_recordings(self, stream_id: str, wanted: set[str]) -> None:
        if self._recorder is not None:
            for recording_id in set(self._recorder.under_way(stream_id)) - wanted:
                self._recorder.finish(recording_id)

    # Saying how they are

    async def _show_for_ever(self) -> None:
        while True:
            for live in self._all():
                if not await self._show(live):
                    break
            await trio.sleep(SHOW_S)

    async def _show(self, live: Live) -> bool:
        """Let every node see how a stream here is; return whether Redis took it."""
        try:
            await self._live_state.show(live.stream_id, self._picture(live))
        except WhisprError as error:
            log.info("stream_not_shown", stream_id=live.stream_id, error=str(error))
            return False
        return True

    async def _tell_levels_for_ever(self) -> None:
        while True:
            for live in self._all():
                self._announce(topic(live.stream_id), "levels", levels_of(live.levels))
            await trio.sleep(LEVELS_S)

    async def _note_for_ever(self) -> None:
        """Note what has a source, and end what has had none for long."""
        while True:
            try:
                for live in self._all():
                    if live.source.connected:
                        await self._control.sourced(live.stream_id)
                if self._idle_s:
                    await self._control.end_idle(self._idle_s)
            except WhisprError as error:
                log.info("sources_not_noted", error=str(error))
            await trio.sleep(SOURCED_S)

    def _all(self) -> list[Live]:
        lives = self._lives
        return [live for live in lives if lives.made_here(live.stream_id)] if lives is not None else []

    def _picture(self, live: Live) -> Picture:
        source, levels = live.source, live.levels
        silent_since = source.silent_since or source.away_since
        return Picture(
            node=self._node,
            kind=source.kind if source.connected else "",
            codec=source.codec,
            bitrate_bps=source.bitrate_bps,
            loss=source.loss,
            silent_s=(datetime.now(UTC) - silent_since).total_seconds() if silent_since else 0.0,
            connected=source.connected,
            momentary_lufs=_measured(levels.momentary_lufs),
            short_term_lufs=_measured(levels.short_lufs),
            integrated_lufs=_measured(levels.integrated_lufs),
            peak_dbfs=levels.peak_dbfs,
            at=self._clock(),
        )


def _arrange(live: Live, stream: Stream) -> None:
    """Let a stream sound as it is wanted."""
    live.paused = stream.status is Status.PAUSED
    if live.sound.volume != stream.volume:
        live.sound = replace(live.sound, volume=stream.volume)


def _measured(lufs: float) -> float | None:
    return lufs if lufs > QUIET_LUFS else None


def levels_of(levels: Levels) -> dict[str, float | None]:
    """Return what sockets are told of levels."""
    return {
        "momentary": _measured(levels.momentary_lufs),
        "short_term": _measured(levels.short_lufs),
        "integrated": _measured(levels.integrated_lufs),
        "peak": levels.peak_dbfs,
    }
