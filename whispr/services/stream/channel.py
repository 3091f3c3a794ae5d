"""The channel `stream:<id>`: what happens to a stream, and its sound for who asks for it.

In: listen {format, codec, quality}, unlisten, change_quality {quality}, set_volume {volume}, report {buffer_ms,
bandwidth_bps, latency_ms, dropped_frames, rebuffers}; to send sound publish, audio and unpublish
(`listening.publishing`). Out: stream_started, stream_stopped, stream_paused,
stream_resumed, metadata_updated, source_changed, listener_count, levels, recording_started, recording_completed; to
who listens here quality_changed, audio_init, audio (`listening.websocket`) and audio_stopped {reason}.

Whoever may know of the stream may join; whoever listens is admitted as any listener is. A member whose access ends is
put out of the channel, too: the event `removed` is the last.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import msgspec
import trio

from whispr.audio.packets import Quality
from whispr.errors import WhisprError, conflict, invalid, not_found
from whispr.ids import is_id
from whispr.realtime.channel import Channel, Deferred, Joined, LeaveReason
from whispr.realtime.link import Link
from whispr.services.stream.access import Access
from whispr.services.stream.audience import Audience
from whispr.services.stream.control import Control
from whispr.services.stream.domain import Stream, may_not_know, viewer_of
from whispr.services.stream.engine.live import Live
from whispr.services.stream.engine.lives import Lives
from whispr.services.stream.listener import Listener, Transport, Wish
from whispr.services.stream.listening.publishing import SocketSource
from whispr.services.stream.listening.websocket import SharedFrames, SocketSound
from whispr.services.stream.livestate import LiveState
from whispr.services.stream.notices import PUT_OUT, RECONSIDER, WISH, Notice, Notices
from whispr.services.stream.store import StreamStore
from whispr.tokens import Claims

AUTO: Final = "AUTO"
CHECK_AGAIN_S: Final = 2.0
"""After which it is looked at again whether a member may stay, when that could not be told."""
MEDIA: Final = frozenset({"audio"})

Find = Callable[[str], Awaitable[Live | None]]
"""Finds a stream that is live, here or on another node."""


class _Quality(msgspec.Struct):
    quality: str = AUTO


class _Volume(msgspec.Struct):
    volume: Annotated[int, msgspec.Meta(ge=0, le=100)]


class _Report(msgspec.Struct):
    buffer_ms: Annotated[float, msgspec.Meta(ge=0, le=3_600_000)] | None = None
    bandwidth_bps: Annotated[float, msgspec.Meta(ge=0, le=1e12)] | None = None
    latency_ms: Annotated[float, msgspec.Meta(ge=0, le=3_600_000)] | None = None
    dropped_frames: Annotated[int, msgspec.Meta(ge=0, le=100_000)] = 0
    rebuffers: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 0


@dataclass(slots=True)
class Members:
    """What the channels of one process share, and which there are."""

    store: StreamStore
    audience: Audience
    control: Control
    live_state: LiveState
    notices: Notices
    lives: Lives
    access: Access
    find: Find
    frames: SharedFrames = field(default_factory=SharedFrames)
    channels: set[StreamChannel] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.notices.on(self._heard)

    def channel(self, link: Link) -> StreamChannel:
        """Make the channel of a link."""
        return StreamChannel(link, self)

    def _heard(self, notice: Notice) -> None:
        """Say how many listen; look again at the members whom a change of access may concern."""
        if notice.kind == "listener_count":
            for channel in self._of(notice):
                channel.link.push("listener_count", notice.data)
        elif notice.kind in (PUT_OUT, RECONSIDER) and notice.data.get("reason") != "left":
            about = notice.data.get("user_id")
            for channel in self._of(notice):
                if about in (None, channel.claims.user_id):
                    channel.reconsider()

    def _of(self, notice: Notice) -> list[StreamChannel]:
        return [channel for channel in self.channels if channel.link.subtopic == notice.stream_id]


class StreamChannel(Channel):
    """One stream, on one socket."""

    def __init__(self, link: Link, shared: Members) -> None:
        super().__init__(link)
        self._shared = shared
        self._stream_id = link.subtopic
        self._listener: Listener | None = None
        self._sound: SocketSound | None = None
        self._serving: trio.CancelScope | None = None
        self._doubts = 0
        """How often it was said, since that was last looked at, that this member's access may have ended."""
        self._source = SocketSource(link, shared.lives, shared.access)

    @property
    def claims(self) -> Claims:
        """Whose socket it is."""
        claims = self.link.session
        assert isinstance(claims, Claims), "sockets are opened with access tokens"
        return claims

    @property
    def media(self) -> frozenset[str]:
        """Return what a source sends, while it is one."""
        return MEDIA if self._source.on else frozenset()

    async def join(self, payload: object) -> object:
        """Admit who may know of the stream."""
        del payload
        self._shared.channels.add(self)  # first, to hear who is put out meanwhile
        seen: Joined | None = None
        try:
            stream = await self._seen()
            seen = Joined({"stream": shown(stream), "listener_count": await self._count(stream.id)})
        finally:
            if seen is None:
                self._shared.channels.discard(self)  # what has not joined does not leave
        return seen

    async def _count(self, stream_id: str) -> int | None:
        """Return how many listen; None, for it is not worth refusing anybody, when that cannot be told."""
        try:
            return (await self._shared.live_state.counts([stream_id]))[stream_id]
        except WhisprError:
            return None

    async def _seen(self) -> Stream:
        """Return the stream. Raises NOT_FOUND, also to who may not know of it, or was put out."""
        if not is_id(self._stream_id):
            raise not_found("stream", self._stream_id)
        standing = await self._shared.store.standing(self._stream_id, self.claims.user_id)
        refused = may_not_know(standing.stream, viewer_of(self.claims), invited=standing.invited)
        if refused is not None or standing.removed:
            raise not_found("stream", self._stream_id)
        return standing.stream

    def reconsider(self) -> None:
        """Have it looked at whether this member may still be here."""
        self._doubts += 1
        if self._doubts == 1:
            self.link.start_soon(self._check)

    async def _check(self) -> None:
        """Close the channel of somebody who may not be here any more, as soon as that can be told."""
        while doubts := self._doubts:
            try:
                await self._seen()
            except WhisprError as error:
                if error.reason == "not_found":
                    self.link.close("removed", {"stream_id": self._stream_id})
                    return
                await trio.sleep(CHECK_AGAIN_S)
            else:
                self._doubts -= doubts

    def handle_now(self, event: str, payload: object) -> object:
        """Take a report without a task: players send one every few seconds."""
        if event == "audio" and isinstance(payload, bytes):
            return None if self._source.take_now(payload) else NotImplemented
        if event != "report":
            return NotImplemented
        told = _read(payload, _Report)
        if self._listener is not None:
            self._listener.report(**msgspec.structs.asdict(told))
        return None

    async def handle(self, event: str, payload: object) -> object:
        """Begin and end to listen, and change how."""
        match event:
            case "listen":
                return self._listen(payload)
            case "publish":
                return self._source.begin(payload)
            case "audio" if isinstance(payload, bytes):
                await self._source.take(payload)
                return None
            case "unpublish":
                self._source.end()
                return None
            case "unlisten":
                self._stop("left")
                return None
            case "change_quality":
                await trio.lowlevel.checkpoint()
                return self._change_quality(_quality(_read(payload, _Quality).quality))
            case "set_volume":
                return await self._set_volume(_read(payload, _Volume).volume)
            case _:
                return await super().handle(event, payload)

    async def leave(self, reason: LeaveReason) -> None:
        """Forget the channel."""
        del reason
        self._shared.channels.discard(self)
        self._source.end()
        await trio.lowlevel.checkpoint()

    # Listening

    def _listen(self, payload: object) -> Deferred:
        """Have sound sent; the reply comes when it has begun."""
        quality = _quality(_read(payload, _Quality).quality)
        self._stop("again")
        reply = Deferred()
        serving = self._serving = trio.CancelScope()
        self.link.start_soon(self._serve, payload, quality, serving, reply)
        return reply

    def _stop(self, reason: str) -> None:
        if self._serving is not None:
            self._serving.cancel(reason=reason)
            self._serving = None

    async def _serve(
        self, payload: object, quality: Quality | None, serving: trio.CancelScope, reply: Deferred
    ) -> None:
        """Serve this listener until they leave, their access ends, or the sound does."""
        with serving:
            try:
                live = await self._shared.find(self._stream_id)
                if live is None:  # whoever hears nothing is no listener
                    raise conflict("nothing is sent to the stream yet: wait for source_changed", "no_source")
                admission = self._shared.audience.listening_as(
                    self._stream_id, self.claims, Transport.WEBSOCKET, quality
                )
                async with admission as listener:
                    await self._sound_to(listener, live, payload, reply)
                self.link.push("audio_stopped", {"reason": listener.reason or "ended"})
            except WhisprError as error:
                reply.fail(error)
        reply.fail(conflict("it was taken back before it began", "unlistened"))

    async def _sound_to(self, listener: Listener, live: Live, payload: object, reply: Deferred) -> None:
        sound = SocketSound(self.link, live, listener, self._shared.frames)
        reply.resolve(sound.begin(payload))
        self._listener, self._sound = listener, sound
        try:
            await live.ended.wait()
            listener.end(live.reason or "ended")
        finally:
            sound.end()
            if self._sound is sound:
                self._listener = self._sound = None

    def _change_quality(self, quality: Quality | None) -> object:
        told = {"quality": quality.name if quality else AUTO}
        if self._listener is not None:
            self._listener.wants(Wish(quality, self._listener.volume))
            self.link.push("quality_changed", told)
        else:
            data = {"user_id": self.claims.user_id, "quality": quality.value if quality else ""}
            self._shared.notices.tell(Notice(self._stream_id, WISH, data))
        return told

    async def _set_volume(self, volume: int) -> object:
        """Set the volume of all, as the streamer, or of what is told to the own listeners."""
        stream = await self._seen()
        if stream.streamer_id == self.claims.user_id:
            await self._shared.control.set_volume(stream.id, volume)
        else:
            data = {"user_id": self.claims.user_id, "volume": volume}
            self._shared.notices.tell(Notice(stream.id, WISH, data))
        return {"volume": volume}


def _read(payload: object, kind: type[Any]) -> Any:
    """Read a push. Raises INVALID_ARGUMENT."""
    try:
        return msgspec.convert(payload if payload is not None else {}, kind)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        raise invalid({path.rstrip("`") or "payload": message}) from None


def _quality(name: str) -> Quality | None:
    """Read a quality; None for AUTO. Raises INVALID_ARGUMENT."""
    if name.upper() == AUTO:
        return None
    try:
        return Quality[name.upper()]
    except KeyError:
        raise invalid(
            {"quality": f"must be one of {AUTO}, {', '.join(each.name for each in Quality)}"}
        ) from None


def shown(stream: Stream) -> dict[str, Any]:
    """Return a stream as sockets are told of it."""
    return {
        "id": stream.id,
        "title": stream.title,
        "description": stream.description,
        "category": stream.category,
        "visibility": stream.visibility,
        "status": stream.status,
        "streamer_id": stream.streamer_id,
        "streamer_username": stream.streamer_username,
        "metadata": msgspec.to_builtins(stream.metadata),
        "started_at": stream.started_at,
        "end_reason": stream.end_reason,
        "room_id": stream.room_id or "",
        "volume": stream.volume,
    }
