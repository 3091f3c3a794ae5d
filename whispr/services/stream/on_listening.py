"""RPCs of listeners: URLs to listen by, quality and volume, how it sounds, who listens, what was listened to."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from whispr.adapters.postgres import Postgres
from whispr.audio.packets import Quality
from whispr.errors import WhisprError, exhausted, invalid
from whispr.identity import current_actor
from whispr.services.stream import wire
from whispr.services.stream.control import topic
from whispr.services.stream.domain import LISTEN_URL_S_MAX, Stream
from whispr.services.stream.notices import PUT_OUT, WISH, Notice
from whispr.services.stream.parts import Parts, audible, ended, known, own, person, viewer
from whispr.services.stream.urls import Granted
from whispr.v1 import stream_pb2 as pb

LISTENERS_MAX: Final = 1000
LISTENERS_SHOWN: Final = 100
BUFFER_MS: Final = 2000
"""What an HLS player had better hold: three parts and what the network needs."""
EVENT_TYPES_MAX: Final = 32

_KINDS: Final[Mapping[str, str]] = {
    "listener_joined": "LISTENER_JOINED",
    "listener_left": "LISTENER_LEFT",
    "quality_changed": "QUALITY_CHANGED",
    "metadata_updated": "METADATA_UPDATED",
    "stream_paused": "STREAM_PAUSED",
    "stream_resumed": "STREAM_RESUMED",
    "error_occurred": "ERROR_OCCURRED",
    "stream_started": "STREAM_STARTED",
    "stream_stopped": "STREAM_STOPPED",
    "source_connected": "SOURCE_CONNECTED",
    "source_lost": "SOURCE_LOST",
    "listener_count": "LISTENER_COUNT",
    "recording_started": "RECORDING_STARTED",
    "recording_completed": "RECORDING_COMPLETED",
}
_BY_TYPE: Final = {pb.StreamEvent.Type.Value(name): kind for kind, name in _KINDS.items()}
_HISTORY = """
    SELECT s.stream_id, t.title, t.streamer_id, s.joined_at, s.left_at, s.transport, s.qualities::text AS qualities
    FROM streams.sessions s JOIN streams.streams t ON t.id = s.stream_id
    WHERE s.user_id = $1 ORDER BY s.joined_at DESC, s.id DESC LIMIT $2
"""
_TOTAL = """
    SELECT coalesce(sum(extract(epoch FROM coalesce(left_at, now()) - joined_at)), 0)::float8 AS listened_s,
        count(DISTINCT stream_id) AS streams
    FROM streams.sessions WHERE user_id = $1
"""


class ListeningHandlers:
    """Half of StreamService; the other half is `StreamHandlers`."""

    _parts: Parts
    _db: Postgres

    async def shown(self, stream: Stream) -> pb.Stream:
        """Return a stream as it is now (`StreamHandlers.shown`)."""
        raise NotImplementedError

    async def JoinStream(self, input_message: pb.JoinStreamRequest) -> pb.JoinStreamResponse:
        """Return URLs to listen by."""
        parts, user_id = self._parts, person()
        preferred = wire.quality_of(input_message.preferred_quality, "preferred_quality")
        stream = await audible(parts, input_message.stream_id)
        await self._check_room(stream, user_id)
        await parts.rooms.let_in(stream, user_id)
        quality = preferred or stream.default_quality
        urls, expires_at = self._urls(stream, self._granted(stream, quality))
        return pb.JoinStreamResponse(
            stream_url=urls.hls,
            actual_quality=wire.quality_name(quality),
            buffer_duration_ms=BUFFER_MS,
            urls=urls,
            expires_at=expires_at,
            stream=await self.shown(stream),
        )

    async def _check_room(self, stream: Stream, user_id: str) -> None:
        """Refuse early what admission would refuse: it is what decides."""
        limits = [most for most in (stream.config.max_listeners, self._parts.limits.listeners) if most]
        if not limits or user_id == stream.streamer_id:
            return
        try:
            counts = await self._parts.live_state.counts([stream.id])
        except WhisprError:
            return
        if counts[stream.id] >= min(limits):
            raise exhausted(f"the stream has room for {min(limits)} listeners", reason="stream_full")

    def _granted(self, stream: Stream, quality: Quality | None) -> Granted:
        actor, seen = current_actor(), viewer()
        return Granted(
            stream.id,
            self._parts.urls.until(self._parts.limits.listen_url_s),
            actor.user_id,
            "" if actor.is_service else actor.claims.session_id,
            seen.premium,
            seen.trusted,
            quality,
        )

    def _urls(self, stream: Stream, granted: Granted) -> tuple[pb.ListenUrls, datetime]:
        base, query = self._parts.base_url(), self._parts.urls.query(granted)
        urls = pb.ListenUrls(
            hls=f"{base}/hls/{stream.id}/master.m3u8?{query}",
            whep=f"{base}/whep/{stream.id}?{query}",
            progressive=f"{base}/listen/{stream.id}?{query}",
            topic=topic(stream.id),
        )
        return urls, datetime.fromtimestamp(granted.expires_at, UTC)

    async def LeaveStream(self, input_message: pb.LeaveStreamRequest) -> pb.LeaveStreamResponse:
        """End all the caller's listening to a stream."""
        parts, user_id = self._parts, person()
        stream = (await known(parts, input_message.stream_id)).stream
        listened_s = 0.0
        try:
            mine = [each for each in await parts.live_state.listeners(stream.id) if each.user_id == user_id]
            listened_s = max((time.time() - each.joined_at for each in mine), default=0.0)
        except WhisprError:  # they leave all the same
            listened_s = 0.0
        parts.notices.tell(Notice(stream.id, PUT_OUT, {"user_id": user_id, "reason": "left"}))
        return pb.LeaveStreamResponse(listen_duration=round(listened_s))

    async def GetListeners(self, input_message: pb.GetListenersRequest) -> pb.GetListenersResponse:
        """Return who listens."""
        if not 0 <= input_message.limit <= LISTENERS_MAX:
            raise invalid({"limit": f"from 0 to {LISTENERS_MAX}"})
        stream = await own(self._parts, input_message.stream_id, moderated=True)
        found = await self._parts.live_state.listeners(stream.id)
        page = found[: input_message.limit or LISTENERS_SHOWN]
        names = await self._names([each.user_id for each in page if each.user_id])
        return pb.GetListenersResponse(
            listeners=[wire.listener_pb(each, names.get(each.user_id, "")) for each in page],
            total_count=len(found),
        )

    async def _names(self, user_ids: list[str]) -> dict[str, str]:
        rows = await self._db.fetch(
            "SELECT id, username FROM auth.people WHERE id = ANY($1::uuid[])", user_ids
        )
        return {str(row["id"]): row["username"] for row in rows}

    async def CreateListenUrl(self, input_message: pb.CreateListenUrlRequest) -> pb.CreateListenUrlResponse:
        """Return a URL that lets whoever has it listen."""
        parts, lasts_s = self._parts, input_message.expires_in_s
        quality = wire.quality_of(input_message.quality, "quality")
        if not 0 <= lasts_s <= LISTEN_URL_S_MAX:
            raise invalid({"expires_in_s": f"from 1 to {LISTEN_URL_S_MAX} seconds"})
        stream = await own(parts, input_message.stream_id)
        if stream.ended_at is not None:
            raise ended()
        until = parts.urls.until(lasts_s or parts.limits.listen_url_s)
        urls, expires_at = self._urls(stream, Granted(stream.id, until, quality=quality))
        return pb.CreateListenUrlResponse(urls=urls, expires_at=expires_at)

    async def ChangeQuality(self, input_message: pb.ChangeQualityRequest) -> pb.ChangeQualityResponse:
        """Have the caller's listeners hear another quality."""
        parts, user_id = self._parts, person()
        quality = wire.quality_of(input_message.quality, "quality")
        stream = await audible(parts, input_message.stream_id)
        data = {"user_id": user_id, "quality": quality.value if quality else ""}
        parts.notices.tell(Notice(stream.id, WISH, data))
        urls, _ = self._urls(stream, self._granted(stream, quality))
        return pb.ChangeQualityResponse(new_stream_url=urls.hls)

    async def SetVolume(self, input_message: pb.SetVolumeRequest) -> pb.SetVolumeResponse:
        """Set the volume of the caller's stream, or of what the caller hears."""
        parts, user_id, volume = self._parts, person(), input_message.volume
        if not 0 <= volume <= 100:
            raise invalid({"volume": "from 0 to 100 percent"})
        stream = await audible(parts, input_message.stream_id)
        if user_id == stream.streamer_id:
            await parts.control.set_volume(stream.id, volume)
        else:
            parts.notices.tell(Notice(stream.id, WISH, {"user_id": user_id, "volume": volume}))
        return pb.SetVolumeResponse()

    async def GetAudioMetrics(self, input_message: pb.GetAudioMetricsRequest) -> pb.AudioMetrics:
        """Return how a stream is now."""
        parts = self._parts
        stream = await audible(parts, input_message.stream_id)
        picture = await parts.live_state.picture(stream.id)
        return wire.metrics_pb(stream.id, picture, await parts.live_state.listeners(stream.id), time.time())

    async def GetUserListeningHistory(
        self, input_message: pb.GetUserListeningHistoryRequest
    ) -> pb.GetUserListeningHistoryResponse:
        """Return what the caller has listened to."""
        parts, user_id = self._parts, person()
        if input_message.limit < 0:
            raise invalid({"limit": "must not be negative"})
        size = min(input_message.limit or parts.limits.page_size, parts.limits.page_size_max)
        rows = await self._db.fetch(_HISTORY, user_id, size)
        total = await self._db.fetchrow(_TOTAL, user_id)
        assert total is not None, "an aggregate has one row"
        return pb.GetUserListeningHistoryResponse(
            sessions=[_session(row) for row in rows],
            total_listen_time=round(total["listened_s"]),
            streams_listened=int(total["streams"]),
        )

    async def SubscribeToStreamEvents(
        self, input_message: pb.SubscribeToStreamEventsRequest
    ) -> AsyncIterator[pb.StreamEvent]:
        """Follow a stream, for as long as the caller may."""
        parts, user_id, claims = self._parts, person(), current_actor().claims
        kinds = _kinds(input_message.event_types)
        stream = (await known(parts, input_message.stream_id)).stream
        if stream.ended_at is not None:
            raise ended()

        async def check() -> None:
            standing = await known(parts, stream.id)
            if standing.stream.ended_at is not None:
                raise ended()

        mine = stream.streamer_id == user_id or viewer().trusted
        events = parts.subscriptions.events(
            stream.id, user_id, claims.session_id, claims.expires_at, own=mine, check=check, kinds=kinds
        )
        async with aclosing(events) as following:
            async for news in following:
                kind, data = news.kind, news.data
                if not kind:  # the subscription is in force
                    kind, data = "listener_count", {"count": (await self.shown(stream)).listener_count}
                if kind in _KINDS:
                    yield pb.StreamEvent(
                        type=_KINDS[kind],
                        stream_id=stream.id,
                        time=news.time,
                        data=msgspec.json.encode(data),
                    )


def _kinds(types: Any) -> list[str]:
    """Read which events are wanted. Raises INVALID_ARGUMENT."""
    if len(types) > EVENT_TYPES_MAX:
        raise invalid({"event_types": f"at most {EVENT_TYPES_MAX}"})
    unknown = [each for each in types if each not in _BY_TYPE]
    if unknown:
        raise invalid({"event_types": f"must be some of {', '.join(_KINDS.values())}"})
    return [_BY_TYPE[each] for each in types]


def _session(row: Any) -> pb.ListeningSession:
    qualities: dict[str, float] = msgspec.json.decode(row["qualities"])
    most = max(qualities, key=lambda name: qualities[name], default="")
    until = row["left_at"] or datetime.now(UTC)
    return pb.ListeningSession(
        stream_id=str(row["stream_id"]),
        title=row["title"],
        streamer_id=str(row["streamer_id"]),
        joined_at=row["joined_at"],
        left_at=row["left_at"],
        duration=int((until - row["joined_at"]).total_seconds()),
        transport=row["transport"],
        quality=wire.quality_name(Quality(most) if most in list(Quality) else None),
    )
