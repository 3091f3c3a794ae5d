"""Sound from a socket: who publishes a stream over its channel, such as a browser with MediaRecorder.

    publish {key | token, format: webm|ogg|…}     replied to when the stream has its source
    audio   <binary>                              the container's bytes, in order, however they are cut
    unpublish                                     ends it; so does leaving

With the format `packets` each `audio` is a message of Opus packets instead (`whispr.audio.messages`). What waits is
bounded: a client that sends faster than it is heard is held back, and its socket with it. `publish_stopped {reason}`
tells of an end that the client did not ask for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import trio

from whispr.audio.messages import decode_message
from whispr.audio.packets import Codec
from whispr.errors import WhisprError, conflict, invalid
from whispr.realtime.channel import Deferred
from whispr.realtime.link import Link
from whispr.services.stream.access import Access, Shown
from whispr.services.stream.engine.containers import FORMS
from whispr.services.stream.engine.live import Sound
from whispr.services.stream.engine.lives import Feed, Lives, SourceOptions

WAITING_MAX: Final = 64
"""Messages that wait to be read: some seconds of a recorder's."""
PACKETS: Final = "packets"


class SocketSource:
    """What one channel publishes."""

    def __init__(self, link: Link, lives: Lives, access: Access) -> None:
        self._link = link
        self._lives = lives
        self._access = access
        self._serving: trio.CancelScope | None = None
        self._sound: trio.MemorySendChannel[bytes] | None = None

    @property
    def on(self) -> bool:
        """Whether sound is taken."""
        return self._sound is not None

    def begin(self, payload: object) -> Deferred:
        """Connect as the stream's source. Raises INVALID_ARGUMENT; the reply fails as `Access.source` does."""
        shown, form = _asked(payload)
        self.end()
        reply = Deferred()
        serving = self._serving = trio.CancelScope()
        self._link.start_soon(self._serve, shown, form, serving, reply)
        return reply

    def take_now(self, data: bytes) -> bool:
        """Take a message if there is room at once. Raises FAILED_PRECONDITION (not_publishing)."""
        try:
            self._channel().send_nowait(data)
        except trio.WouldBlock:
            return False
        return True

    async def take(self, data: bytes) -> None:
        """Take a message, waiting for room. Raises FAILED_PRECONDITION (not_publishing)."""
        try:
            await self._channel().send(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise _not_publishing() from None

    def end(self) -> None:
        """Disconnect, once what has been taken is heard."""
        if self._sound is not None:
            self._sound.close()
            self._sound = None
        elif self._serving is not None:
            self._serving.cancel(reason="unpublished")

    def _channel(self) -> trio.MemorySendChannel[bytes]:
        if self._sound is None:
            raise _not_publishing()
        return self._sound

    async def _serve(self, shown: Shown, form: str, serving: trio.CancelScope, reply: Deferred) -> None:
        """Be the source until the client ends it, or it is told to."""
        feed: Feed | None = None
        try:
            with serving:
                stream = await self._access.source(self._link.subtopic, shown)
                sound = Sound(volume=stream.volume)
                options = SourceOptions(kind="websocket", top=stream.config.quality, sound=sound)
                async with self._lives.source(stream.id, options) as feed:
                    await self._feed(feed, form, reply)
            if feed is not None and feed.reason:
                self._link.push("publish_stopped", {"reason": feed.reason})
        except WhisprError as error:
            if reply.settled:
                self._link.push("publish_stopped", {"reason": error.reason, "message": error.message})
            reply.fail(error)
        finally:
            if self._serving is serving:
                self._serving = None
        reply.fail(conflict("it was taken back before it began", "unpublished"))

    async def _feed(self, feed: Feed, form: str, reply: Deferred) -> None:
        send, receive = trio.open_memory_channel[bytes](WAITING_MAX)
        self._sound = send
        reply.resolve({"started_at": feed.live.started_at})
        try:
            with send, receive:
                if form == PACKETS:
                    async for data in receive:
                        _feed_packets(feed, data)
                        await feed.keep_pace()
                else:
                    await feed.container(receive, form)
        finally:
            if self._sound is send:
                self._sound = None


def _feed_packets(feed: Feed, data: bytes) -> None:
    codec, pts, packets = decode_message(data)
    if codec is not Codec.OPUS:
        raise invalid({"audio": "packets of Opus alone; send others in a container"})
    for index, packet in enumerate(packets):
        feed.opus(packet, pts if index == 0 else None)


def _asked(payload: object) -> tuple[Shown, str]:
    """Read whom a client shows itself as, and what it sends. Raises INVALID_ARGUMENT."""
    asked = payload if isinstance(payload, Mapping) else {}
    key, token, form = asked.get("key", ""), asked.get("token", ""), asked.get("format", "webm")
    wrong = {
        name: "must be text" for name, value in (("key", key), ("token", token)) if not isinstance(value, str)
    }
    if form != PACKETS and form not in FORMS:
        wrong["format"] = f"must be one of {PACKETS}, {', '.join(FORMS)}"
    if wrong:
        raise invalid(wrong)
    return Shown(token=str(token), password=str(key)), str(form)


def _not_publishing() -> WhisprError:
    return conflict("publish first", "not_publishing")
