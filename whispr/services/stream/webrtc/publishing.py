"""Who publishes a stream by WebRTC: a task per publisher, from the offer until they leave or are put out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import trio

from whispr.asgi.errors import HttpError
from whispr.errors import WhisprError
from whispr.services.stream.access import Access
from whispr.services.stream.engine.live import Sound
from whispr.services.stream.engine.lives import Feed, Lives, SourceOptions
from whispr.services.stream.webrtc import metrics
from whispr.services.stream.webrtc.http import Request
from whispr.services.stream.webrtc.sessions import Session, Sessions, log_failures
from whispr.webrtc import metrics as transport
from whispr.webrtc import rtcp, rtp
from whispr.webrtc.endpoint import Endpoint
from whispr.webrtc.peer import State
from whispr.webrtc.reception import Arrived, Reception
from whispr.webrtc.rtcp import Item, SenderReport
from whispr.webrtc.rtp import RtpError

POLL_S: Final = 0.1
"""Between looks for packets that are held up though nothing follows them."""
REPORT_S: Final = 1.0
SILENT_S: Final = 3.0
"""A publisher of whom nothing came for so long has lost its way: packets come fifty times a second."""
CNAME: Final = b"whispr"
OWN_SSRC: Final = 1
"""Of reports: who sends nothing needs a number all the same (RFC 3550, section 6.4.2)."""


class Publishing:
    """WHIP for one process. `run` it before anybody publishes."""

    def __init__(self, endpoint: Endpoint, lives: Lives, access: Access, sessions: Sessions) -> None:
        self._endpoint = endpoint
        self._lives = lives
        self._access = access
        self._sessions = sessions
        self._current: dict[str, Session] = {}
        """Stream → its publisher here."""
        self._nursery: trio.Nursery | None = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the publishers' tasks, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def publish(self, request: Request) -> tuple[Session, str]:
        """Begin a publisher's session; returns it with our answer.

        Raises as `Access.source` and `Lives.source`, 409 while the stream has another source.
        """
        assert self._nursery is not None, "not running"
        try:
            begun: tuple[Session, str] = await self._nursery.start(self._hold, request)
        except WhisprError as error:
            if error.reason == "source_connected":
                raise HttpError(409, error.code, error.message, error.reason) from None
            raise
        return begun

    async def _hold(self, request: Request, *, task_status: trio.TaskStatus[tuple[Session, str]]) -> None:
        """Be a publisher's task."""
        stream = await self._access.source(request.stream_id, request.shown)
        options = SourceOptions(kind="whip", top=stream.config.quality, sound=Sound(volume=stream.volume))
        await self._replace(request.stream_id)
        session = Session(self._endpoint, request.offer, self._sessions.process)
        try:
            async with self._lives.source(request.stream_id, options) as feed:
                self._current[request.stream_id] = session
                with self._sessions.holding("whip", request.stream_id, session):
                    task_status.started((session, self._endpoint.answer(session.peer, request.offer)))
                    with log_failures("whip", request.stream_id):
                        await session.connected.wait()
                        if session.peer.state is State.CONNECTED:
                            metrics.CONNECTING.observe(session.age_s)
                            await Published(self._endpoint, session, feed).serve()
        finally:
            session.end("the stream has another source, or ended")
            session.over.set()
            if self._current.get(request.stream_id) is session:
                del self._current[request.stream_id]

    async def _replace(self, stream_id: str) -> None:
        """End a publisher who has fallen silent: who comes again after a crash need not wait for consent to end."""
        before = self._current.get(stream_id)
        if before is not None and before.silent_s >= SILENT_S:
            before.end("its publisher came again")
            await before.over.wait()


class Published:
    """Takes what a publisher sends for as long as both are there."""

    def __init__(self, endpoint: Endpoint, session: Session, feed: Feed) -> None:
        self._endpoint = endpoint
        self._session = session
        self._feed = feed
        self._payload_type = session.offer.payload_type
        self._asks = session.offer.nack
        self._reception = Reception()

    async def serve(self) -> None:
        """Take packets until the publisher is gone."""
        peer = self._session.peer
        peer.on_rtp, peer.on_rtcp = self._packet, self._said
        metrics.PUBLISHERS.inc()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._poll)
                nursery.start_soon(self._report)
                await self._session.closed.wait()
                nursery.cancel_scope.cancel(reason="the publisher left")
        finally:
            metrics.PUBLISHERS.dec()

    def _packet(self, data: bytes, now: float) -> None:
        """Take an RTP packet, and ask for those that are missing."""
        try:
            packet = rtp.parse(data)
        except RtpError:
            transport.RECEIVED.labels("malformed").inc()
            return
        if packet.payload_type != self._payload_type or not packet.payload:
            return  # comfort noise, telephone events, padding: no sound
        transport.RECEIVED.labels("taken").inc()
        self._give(self._reception.receive(packet, now))
        self._ask(now)

    def _give(self, arrived: Iterable[Arrived]) -> None:
        for each in arrived:
            if each.lost:
                transport.RECEIVED.labels("lost").inc(each.lost)
            self._feed.opus(each.payload, each.timestamp, lost=each.lost)

    def _ask(self, now: float) -> None:
        source = self._reception.ssrc
        if self._asks and source is not None and (missing := self._reception.asks(now)):
            # A compound begins with a report, be it empty (RFC 3550, section 6.1).
            empty = rtcp.receiver_report(OWN_SSRC, [], CNAME)
            self._send(empty + rtcp.nack(OWN_SSRC, source, missing))

    def _said(self, items: Sequence[Item], now: float) -> None:
        for item in items:
            if isinstance(item, SenderReport):
                self._reception.sender_report(item, now)

    async def _poll(self) -> None:
        while True:
            await trio.sleep(POLL_S)
            now = trio.current_time()
            self._ask(now)
            self._give(self._reception.poll(now))

    async def _report(self) -> None:
        """Tell the publisher how its packets come, once a second: its encoder goes by that."""
        while True:
            await trio.sleep(REPORT_S)
            report = self._reception.report(trio.current_time())
            if report is not None:
                self._send(rtcp.receiver_report(OWN_SSRC, [report], CNAME))

    def _send(self, compound: bytes) -> None:
        protection = self._session.peer.protection
        assert protection is not None, "connected"
        self._endpoint.send(protection.protect_rtcp(compound), self._session.peer.address)
