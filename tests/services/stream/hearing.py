"""A stream that is live without an engine, and an audience that lets in whom the test says: for what serves them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import trio

from tests.audio.tones import tone
from whispr.asgi.errors import ERROR_HEADERS
from whispr.audio.packets import CLOCK_HZ, Packet, Quality, Rendition
from whispr.errors import WhisprError, denied, not_found
from whispr.services.stream.access import Shown
from whispr.services.stream.audience import HlsSession
from whispr.services.stream.domain import Stream, Visibility
from whispr.services.stream.engine.live import Live
from whispr.services.stream.listener import Listener, Transport, Wish
from whispr.services.stream.listening.shelves import RENDITIONS, Find

STREAM = "0198f0a0-0000-7000-8000-000000000001"
BEGAN_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
BATCH = 4800
"""Samples between two batches: 100 ms."""


def a_stream(visibility: Visibility = Visibility.PUBLIC_STREAM, **more: Any) -> Stream:
    return Stream(
        id=STREAM,
        title="a tone",
        visibility=visibility,
        streamer_id="streamer",
        streamer_username="sam",
        created_at=BEGAN_AT,
        **more,
    )


class TonedLive(Live):
    """Goes on with a tone, as real packets, as far as `advance` says; each quality has a tone of its own."""

    def __init__(self, hz: dict[Quality, float] | None = None, *, on_demand: bool = False) -> None:
        """`on_demand`: makes only the renditions that somebody hears, as the product does, not all from the start."""
        super().__init__(STREAM, BEGAN_AT)
        self._hz = hz or {}
        for rendition in () if on_demand else RENDITIONS.values():
            self.subscribe(rendition, lambda packets: None)

    def packets(self, rendition: Rendition, start: int, end: int) -> list[Packet]:
        """The packets that begin from `start` on and are whole by `end`: a second's, again and again."""
        of_a_second = tone(rendition, 1.0, self._hz.get(rendition.quality, 440.0))
        size, count = of_a_second[0].duration, len(of_a_second)
        return [
            Packet(number * size, size, of_a_second[number % count].data)
            for number in range(-(-start // size), end // size)
        ]

    def advance(self, seconds: float) -> None:
        """Let time pass on the stream's clock, batch by batch."""
        until = self.now_pts + round(seconds * CLOCK_HZ)
        while self.now_pts < until:
            before, self.now_pts = self.now_pts, min(until, self.now_pts + BATCH)
            for rendition in self.wanted():
                goes_on = self.next_pts(rendition)
                start = before if goes_on is None else goes_on
                self.publish(rendition, self.packets(rendition, start, self.now_pts))
                self.track(rendition).flush()


@dataclass
class Doorkeeper:
    """An audience of whoever shows the right token, if one is asked for."""

    stream: Stream = field(default_factory=a_stream)
    asks: str = ""
    wish: Wish = field(default_factory=Wish)
    sessions: dict[str, Listener] = field(default_factory=dict)
    here: list[Listener] = field(default_factory=list)
    resumed: list[str] = field(default_factory=list)
    seen_count: int = 0

    def _admit(self, shown: Shown, transport: Transport, address: str, user_agent: str) -> Listener:
        if self.asks and shown.token != self.asks:
            raise denied("not invited", "invitation_required")
        listener = Listener(
            f"listener-{len(self.sessions)}-{len(self.here)}",
            self.stream,
            user_id="",
            session_id="",
            transport=transport,
            address=address,
            user_agent=user_agent,
            wish=self.wish,
            joined_at=0.0,
        )
        self.here.append(listener)
        return listener

    @asynccontextmanager
    async def listening(
        self, stream_id: str, shown: Shown, transport: Transport, address: str, user_agent: str
    ) -> AsyncIterator[Listener]:
        await trio.lowlevel.checkpoint()
        if stream_id != STREAM:
            raise not_found("stream", stream_id)
        listener = self._admit(shown, transport, address, user_agent)
        try:
            async with trio.open_nursery() as nursery:

                async def put_out() -> None:
                    await listener.ended.wait()
                    nursery.cancel_scope.cancel(reason=listener.reason)

                nursery.start_soon(put_out)
                yield listener
                nursery.cancel_scope.cancel(reason="left")
        finally:
            self.here.remove(listener)

    async def regard(self, stream_id: str, shown: Shown) -> tuple[Stream, WhisprError | None]:
        await trio.lowlevel.checkpoint()
        if stream_id != STREAM:
            raise not_found("stream", stream_id)
        refused = self.asks and shown.token != self.asks
        return self.stream, denied("not invited", "invitation_required") if refused else None

    async def open_session(self, stream_id: str, shown: Shown, address: str, user_agent: str) -> HlsSession:
        assert stream_id == STREAM
        await trio.lowlevel.checkpoint()
        listener = self._admit(shown, Transport.HLS, address, user_agent)
        token = f"session{len(self.sessions)}"
        self.sessions[token] = listener
        return HlsSession(listener, token)

    def put_out(self, token: str, reason: str) -> None:
        self.sessions.pop(token).end(reason)

    def seen(self, stream_id: str, token: str) -> Listener | None:
        self.seen_count += 1
        return self.sessions.get(token)

    async def resume(self, stream_id: str, token: str, address: str, user_agent: str) -> Listener:
        await trio.lowlevel.checkpoint()
        self.resumed.append(token)
        raise denied("not one of ours", "bad_signature")


def finder(live: TonedLive) -> Find:
    """Finds the one stream there is."""

    async def find(stream_id: str) -> Live | None:
        await trio.lowlevel.checkpoint()
        return live if stream_id == STREAM else None

    return find


@dataclass
class Answer:
    """What an ASGI application said."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    error: WhisprError | None = None
    error_headers: dict[str, str] = field(default_factory=dict)
    """What the gateway says beside an error."""

    @property
    def lines(self) -> list[str]:
        return self.body.decode().splitlines()


async def ask(app: Any, path: str, method: str = "GET", **headers: str) -> Answer:
    """Ask an ASGI application, in memory; an error that it raises is in the answer."""
    answer = Answer()
    plain, _, query = path.partition("?")
    scope: dict[str, Any] = {
        "type": "http",
        "method": method,
        "path": plain,
        "query_string": query.encode(),
        "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()],
        "client": ("192.0.2.1", 1234),
        "extensions": {},
    }

    async def receive() -> Any:
        await trio.sleep_forever()

    async def send(message: Any) -> None:
        await trio.lowlevel.checkpoint()
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {k.decode(): v.decode() for k, v in message["headers"]}
        else:
            answer.body += message.get("body", b"")

    try:
        await app(scope, receive, send)
    except WhisprError as error:
        answer.error, answer.error_headers = error, scope.get(ERROR_HEADERS, {})
    return answer
