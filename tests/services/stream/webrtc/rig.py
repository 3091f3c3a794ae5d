"""WHIP and WHEP over a real HTTP listener and a real UDP port, with streams that tests feed and listen to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import trio
from starlette.datastructures import Headers
from starlette.responses import HTMLResponse
from starlette.types import Scope

from whispr.asgi import HttpLimits, HttpServer
from whispr.audio.packets import CLOCK_HZ, Codec, Packet, Quality, Rendition
from whispr.errors import denied, unauthenticated
from whispr.gateway.server import Endpoint as Mounted
from whispr.gateway.server import _Front, _refused
from whispr.nurseries import own_nursery
from whispr.services.stream.access import Shown
from whispr.services.stream.audience import HlsSession
from whispr.services.stream.domain import Stream, Visibility
from whispr.services.stream.engine.live import Live
from whispr.services.stream.engine.lives import Lives, SourceOptions
from whispr.services.stream.listener import Listener, Transport, Wish
from whispr.services.stream.webrtc.service import PATH, WebRtc, WebRtcSetup

STREAM = "0190f5c2-7b1e-7c3a-9d4e-1a2b3c4d5e6f"
KEY = "key"
TICKS = CLOCK_HZ // 50


@dataclass
class Fed:
    """A source's way in: what it fed is kept, and goes out again as every rendition, as it is."""

    live: Live
    options: SourceOptions
    scope: trio.CancelScope
    reason: str = ""
    packets: list[tuple[bytes, int, int]] = field(default_factory=list)

    def opus(self, data: bytes, timestamp: int, *, lost: int = 0) -> None:
        self.packets.append((data, timestamp, lost))
        publish(self.live, self.live.now_pts + TICKS * lost, data)

    async def container(self, chunks: AsyncIterator[bytes], form: str) -> None:
        raise AssertionError("WHIP brings packets")


def publish(live: Live, pts: int, data: bytes, qualities: tuple[Quality, ...] = tuple(Quality)) -> None:
    """Let a packet out as these renditions, where the clock is."""
    live.now_pts = pts + TICKS
    for quality in qualities:
        rendition = Rendition(Codec.OPUS, quality)
        if live.next_pts(rendition) not in (None, pts):
            live.track(rendition).rest()
        live.publish(rendition, [Packet(pts, TICKS, data)])


class FakeLives:
    """Streams that are live because a test says so, or a source has come."""

    def __init__(self) -> None:
        self.lives: dict[str, Live] = {}
        self.feeds: list[Fed] = []

    def get(self, stream_id: str) -> Live | None:
        return self.lives.get(stream_id)

    def __iter__(self) -> Iterator[Live]:
        return iter(self.lives.values())

    def begin(self, stream_id: str = STREAM) -> Live:
        live = self.lives[stream_id] = Live(stream_id, datetime.now(UTC))
        return live

    @asynccontextmanager
    async def source(self, stream_id: str, options: SourceOptions) -> AsyncIterator[Fed]:
        live = self.lives.get(stream_id) or self.begin(stream_id)
        with trio.CancelScope() as scope:
            feed = Fed(live, options, scope)
            self.feeds.append(feed)
            live.source.connected = True
            try:
                yield feed
            finally:
                live.source.connected = False

    def end(self, stream_id: str, reason: str) -> None:
        self.lives.pop(stream_id).end(reason)


class FakeAccess:
    """Takes one key."""

    async def source(self, stream_id: str, shown: Shown) -> Stream:
        if not shown.token:
            raise unauthenticated("no key")
        if shown.token != KEY:
            raise denied("not the key", "not_the_streamer")
        return stream(stream_id)


class FakeAudience:
    """Admits everybody but one."""

    def __init__(self) -> None:
        self.listeners: list[Listener] = []
        self.wish = Wish()
        """What they come with."""

    @asynccontextmanager
    async def listening(
        self, stream_id: str, shown: Shown, transport: Transport, address: str, user_agent: str
    ) -> AsyncIterator[Listener]:
        if shown.token == "nobody":
            raise denied("not invited", "invitation_required")
        listener = Listener(
            "listener", stream(stream_id), user_id="", session_id="", transport=transport, address=address,
            user_agent=user_agent, wish=self.wish, joined_at=0.0,
        )  # fmt: skip
        self.listeners.append(listener)
        async with own_nursery("the listener left") as nursery:
            nursery.start_soon(_watch, listener, nursery.cancel_scope)
            yield listener
        listener.end("left")

    async def open_session(self, stream_id: str, shown: Shown, address: str, user_agent: str) -> HlsSession:
        raise AssertionError("of HLS")

    def seen(self, stream_id: str, token: str) -> Listener | None:
        raise AssertionError("of HLS")

    async def resume(self, stream_id: str, token: str, address: str, user_agent: str) -> Listener:
        raise AssertionError("of HLS")


async def _watch(listener: Listener, scope: trio.CancelScope) -> None:
    await listener.ended.wait()
    scope.cancel(reason=listener.reason)


def stream(stream_id: str) -> Stream:
    """A stream that runs."""
    return Stream(
        id=stream_id, title="a stream", visibility=Visibility.PUBLIC_STREAM, streamer_id="streamer",
        streamer_username="streamer", created_at=datetime.now(UTC),
    )  # fmt: skip


@dataclass
class Rig:
    """What a test works with."""

    lives: FakeLives
    audience: FakeAudience
    webrtc: WebRtc
    port: int
    udp_port: int

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"


def client_address(scope: Scope, headers: Headers) -> str:
    return str(scope["client"][0])


@asynccontextmanager
async def rigged(
    setup: WebRtcSetup | None = None, page: str = "", engine: Lives | None = None, bus: Any = None
) -> AsyncIterator[Rig]:
    """Serve, with the gateway's own wording of errors; a page, too, at every other path.

    `engine`: the product's own, rather than one that lets packets out as they come.
    """
    lives, audience = FakeLives(), FakeAudience()
    stand_ins: tuple[Any, Any, Any] = (lives if engine is None else engine, FakeAccess(), audience)
    webrtc = WebRtc(*stand_ins, setup or WebRtcSetup(), client_address, bus)
    mounted = Mounted("webrtc", PATH, webrtc.endpoints, answers_origins=True)

    pages = HTMLResponse(page)
    app = _Front(pages, pages, [mounted])
    server = HttpServer(app, HttpLimits(), render=_refused)
    async with trio.open_nursery() as nursery:
        udp_port = await nursery.start(webrtc.run)
        port = await nursery.start(server.serve_tcp, "127.0.0.1", 0)
        yield Rig(lives, audience, webrtc, port, udp_port)
        nursery.cancel_scope.cancel(reason="the test is over")
