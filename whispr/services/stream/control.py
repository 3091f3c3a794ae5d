"""What happens to a stream because somebody says so, or because its source has gone.

Each change is one transaction, with its event; then everybody is told: other processes, readers of
SubscribeToStreamEvents, and the sockets that joined the stream's topic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from whispr.adapters.postgres import Postgres, Transaction
from whispr.audio.packets import Codec, Quality
from whispr.errors import conflict
from whispr.events import emit
from whispr.services.stream.domain import (
    Metadata,
    Status,
    Stream,
    StreamConfig,
    Visibility,
    not_running,
)
from whispr.services.stream.notices import LOOK, RECONSIDER, Notice, Notices
from whispr.services.stream.recordings import Changed, Recording, Recordings
from whispr.services.stream.store import change, lock, to_json

Announce = Callable[[str, str, object], None]
"""Broadcasts an event on a topic to the sockets of every node."""

SHOWN = {
    "stream_paused": "stream_paused",
    "stream_resumed": "stream_resumed",
    "stream_started": "stream_started",
    "stream_stopped": "stream_stopped",
    "metadata_updated": "metadata_updated",
    "recording_started": "recording_started",
    "recording_completed": "recording_completed",
}
"""News that the sockets of a stream hear, by what it is called there."""

FAULTS = {"source_lost": "source_lost", "error": "engine_failed"}
"""Why a stream ends that nobody ended → what went wrong, as its `error_occurred` has it."""


def topic(stream_id: str) -> str:
    """Return the topic of a stream."""
    return f"stream:{stream_id}"


class Changes(msgspec.Struct, frozen=True, kw_only=True):
    """What is to be another of a stream; None for what stays."""

    title: str | None = None
    description: str | None = None
    category: str | None = None
    visibility: Visibility | None = None
    default_quality: Quality | None = None
    sets_quality: bool = False
    """Whether `default_quality` is meant, of which None is AUTO."""
    metadata: Metadata | None = None
    max_listeners: int | None = None


class Control:
    """Changes streams."""

    def __init__(self, db: Postgres, recordings: Recordings, notices: Notices, announce: Announce) -> None:
        self._db = db
        self._recordings = recordings
        self._notices = notices
        self._announce = announce

    def tell(self, stream_id: str, kind: str, data: Mapping[str, Any]) -> None:
        """Tell everybody who is there of something that has happened."""
        self._notices.tell(Notice(stream_id, kind, data))
        if kind in SHOWN:
            self._announce(topic(stream_id), SHOWN[kind], {"stream_id": stream_id, **data})

    def recording_changed(self, changed: Changed) -> None:
        """Tell of a recording that is complete, or has failed."""
        recording = changed.recording
        data: dict[str, Any] = {"recording_id": recording.id}
        if changed.kind == "error":
            self.tell(recording.stream_id, "error_occurred", data | {"error": recording.error})
        else:
            data |= {"duration_s": recording.duration_s}
            self.tell(recording.stream_id, "recording_completed", data)

    async def start(self, stream_id: str, actor: str, config: StreamConfig) -> Stream:
        """Let a stream run; again changes nothing. Raises FAILED_PRECONDITION (stream_ended)."""
        async with self._db.transaction() as tx:
            stream = await lock(tx, stream_id)
            if stream.status.runs:
                return stream
            if stream.status is not Status.CREATED:
                raise conflict("the stream has ended: make another", "stream_ended")
            columns = {
                "status": Status.LIVE.value,
                "started_at": datetime.now(UTC),
                "config": to_json(config),
            }
            stream = await change(tx, stream_id, columns)
            data = {"title": stream.title, "category": stream.category.value}
            await emit(tx, "stream.events.stream_started", about=stream_id, actor=actor, data=data)
            recording = None
            if config.enable_recording:
                recording, _ = await self._record(tx, stream, stream.title, None, None, auto_upload=True)
        self.tell(stream_id, "stream_started", data)
        if recording is not None:
            self.tell(stream_id, "recording_started", {"recording_id": recording.id})
        return stream

    async def stop(self, stream_id: str, actor: str, reason: str) -> Stream:
        """End a stream for good; again changes nothing. `actor` is empty when nobody does it.

        One whose engine failed is in ERROR then. What nobody did is told of as an error, too.
        """
        fault = "" if actor else FAULTS.get(reason, "")
        async with self._db.transaction() as tx:
            stream = await lock(tx, stream_id)
            if stream.ended_at is not None:
                return stream
            now = datetime.now(UTC)
            status = Status.ERROR if fault == "engine_failed" else Status.ENDED
            columns = {"status": status.value, "ended_at": now, "end_reason": reason}
            stream = await change(tx, stream_id, columns)
            await self._recordings.end_all(tx, stream_id)
            lasted_s = (now - stream.started_at).total_seconds() if stream.started_at else 0.0
            data = {"reason": reason, "duration_s": round(lasted_s, 1), "room_id": stream.room_id or ""}
            if fault:
                await emit(tx, "stream.events.error", about=stream_id, actor=None, data={"error": fault})
            await emit(tx, "stream.events.stream_stopped", about=stream_id, actor=actor or None, data=data)
        if fault:
            self.tell(stream_id, "error_occurred", {"error": fault})
        self.tell(stream_id, "stream_stopped", data)
        self._notices.tell(Notice(stream_id, LOOK))
        return stream

    async def pause(self, stream_id: str, actor: str) -> Stream:
        """Have silence sent. Raises FAILED_PRECONDITION (not_started, stream_ended)."""
        return await self._move(stream_id, actor, Status.PAUSED, "stream_paused")

    async def resume(self, stream_id: str, actor: str) -> Stream:
        """Go on. Raises as `pause`."""
        return await self._move(stream_id, actor, Status.LIVE, "stream_resumed")

    async def _move(self, stream_id: str, actor: str, status: Status, kind: str) -> Stream:
        async with self._db.transaction() as tx:
            stream = await _running(tx, stream_id)
            if stream.status is status:
                return stream
            stream = await change(tx, stream_id, {"status": status.value})
            await emit(tx, f"stream.events.{kind}", about=stream_id, actor=actor, data={})
        self.tell(stream_id, kind, {})
        self._notices.tell(Notice(stream_id, LOOK))
        return stream

    async def update(self, stream_id: str, actor: str, changes: Changes) -> Stream:
        """Change what is given of a stream that has not ended. Raises FAILED_PRECONDITION (stream_ended)."""
        async with self._db.transaction() as tx:
            before = await lock(tx, stream_id)
            if before.ended_at is not None:
                raise conflict("the stream has ended", "stream_ended")
            columns = _columns(before, changes)
            if not columns:
                return before
            stream = await change(tx, stream_id, columns)
            data = {
                "title": stream.title,
                "description": stream.description,
                "metadata": msgspec.to_builtins(stream.metadata),
            }
            await emit(tx, "stream.events.metadata_updated", about=stream_id, actor=actor, data=data)
        self.tell(stream_id, "metadata_updated", data)
        if before.visibility is not stream.visibility:
            self._notices.tell(Notice(stream_id, RECONSIDER))
        return stream

    async def set_volume(self, stream_id: str, volume: int) -> None:
        """Set how loud everybody hears it. Raises FAILED_PRECONDITION (not_started, stream_ended)."""
        async with self._db.transaction() as tx:
            await _running(tx, stream_id)
            await change(tx, stream_id, {"volume": volume})
        self._notices.tell(Notice(stream_id, LOOK))

    async def record(
        self, stream_id: str, title: str, quality: Quality | None, codec: Codec | None, *, auto_upload: bool
    ) -> Recording:
        """Record from now on; return the recording that is under way when there is one.

        None for the quality or the codec is the stream's.
        """
        async with self._db.transaction() as tx:
            stream = await _running(tx, stream_id)
            recording, begun = await self._record(
                tx, stream, title or stream.title, quality, codec, auto_upload=auto_upload
            )
        if begun:
            self.tell(stream_id, "recording_started", {"recording_id": recording.id})
        self._notices.tell(Notice(stream_id, LOOK))
        return recording

    async def end_recording(self, recording: Recording) -> Recording:
        """End a recording; again changes nothing."""
        ended = await self._recordings.end(recording.id)
        self._notices.tell(Notice(recording.stream_id, LOOK))
        return ended

    async def _record(
        self, tx: Transaction, stream: Stream, title: str, quality: Quality | None, codec: Codec | None,
        *, auto_upload: bool,
    ) -> tuple[Recording, bool]:  # fmt: skip
        quality = quality or stream.config.quality or Quality.HIGH
        return await self._recordings.want(
            tx, stream.id, stream.streamer_id, title, quality, codec or stream.config.codec,
            auto_upload=auto_upload,
        )  # fmt: skip

    async def sourced(self, stream_id: str) -> None:
        """Note that something is sent to a stream now."""
        await self._db.execute("UPDATE streams.streams SET sourced_at = now() WHERE id = $1", stream_id)

    async def end_idle(self, idle_s: float) -> None:
        """End the streams that nothing has been sent to for so long."""
        rows = await self._db.fetch(
            "SELECT id FROM streams.streams WHERE status IN ('LIVE', 'PAUSED')"
            " AND greatest(sourced_at, started_at) < now() - make_interval(secs => $1)",
            idle_s,
        )
        for row in rows:
            await self.stop(str(row["id"]), "", "source_lost")


async def _running(tx: Transaction, stream_id: str) -> Stream:
    stream = await lock(tx, stream_id)
    refused = not_running(stream)
    if refused is not None:
        raise refused
    return stream


def _columns(stream: Stream, changes: Changes) -> dict[str, object]:
    """What is to be written: only what differs."""
    wanted: dict[str, object] = {
        "title": changes.title,
        "description": changes.description,
        "category": changes.category,
        "visibility": changes.visibility.value if changes.visibility else None,
        "metadata": to_json(changes.metadata) if changes.metadata is not None else None,
    }
    if changes.max_listeners is not None:
        config = msgspec.structs.replace(stream.config, max_listeners=changes.max_listeners)
        wanted["config"] = to_json(config)
    columns = {name: value for name, value in wanted.items() if value is not None}
    if changes.sets_quality:
        columns["default_quality"] = changes.default_quality.value if changes.default_quality else None
    return columns
