"""One connection: a request is read, the application runs, the answer is written, and again.

All of it happens in one task, which is what makes it fast. Nobody reads while the application works, unless it
asks to; that its client has left is then found out by `look_after`, which the server calls now and then.

The connection's cancel scope is cancelled, with a reason, when its time is up, when a drain finds it idle, and
when the client has left before its answer was complete: the application sees Trio's Cancelled.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import structlog
import trio

from whispr.asgi import metrics
from whispr.asgi.date import DateLine
from whispr.asgi.exchange import Exchange, Message
from whispr.asgi.limits import HttpLimits
from whispr.asgi.reader import RequestReader
from whispr.asgi.refusals import Refusal, Renderer, plain
from whispr.asgi.request import Known, RequestHead
from whispr.asgi.response import AppError, ResponseWriter, refusal_bytes
from whispr.asgi.wire import LINGER_S, ClientGoneError, Wire

App = Callable[
    [dict[str, Any], Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]
"""An ASGI 3 application."""

log = structlog.get_logger("whispr.http")


@dataclass(frozen=True, slots=True)
class Serving:
    """What all connections of a server have in common."""

    app: App
    limits: HttpLimits = field(default_factory=HttpLimits)
    render: Renderer = plain
    server_header: bytes = b""
    date: DateLine = field(default_factory=DateLine)
    heads: Known = field(default_factory=Known)


class Connection:
    """Serves one connection until either side ends it."""

    def __init__(self, serving: Serving, wire: Wire, base: dict[str, Any]) -> None:
        """`base`: what is the same in the ASGI scope of every request."""
        self.limits = serving.limits
        self.wire = wire
        self.reader = RequestReader(serving.limits, base, serving.heads)
        self.draining = False
        self._serving = serving
        self._peer = base["client"]
        self._scope = trio.CancelScope()
        self._idle = True
        """Whether nothing of a request has come."""
        self._reading_head = False
        self._lingers = False
        """Whether the client may be sending still, and should be heard out before the end."""
        self._exchange: Exchange | None = None
        self._seen: Exchange | None = None
        self._answered = 0
        """Requests so far."""
        self._idle_since = (0, math.inf)
        """After how many requests the connection was seen idle, and when."""

    async def run(self) -> None:
        """Serve until the end, which it does not raise for, whatever the client does."""
        try:
            with self._scope:
                await self._serve()
            if self._scope.cancelled_caught and self._reading_head:
                seconds = self.limits.head_s
                await self.refuse(Refusal(408, "head_too_slow", f"the headers took over {seconds:g} s"))
            if self._lingers:
                await self.wire.linger()
        finally:
            with trio.CancelScope(shield=True):
                await self.wire.close()

    async def _serve(self) -> None:
        try:
            self._scope.deadline = trio.current_time() + self.limits.head_s
            head = await self._next_head()
            self._scope.deadline = math.inf
            while head is not None and await self._answer(head):
                self._answered += 1
                head = await self._next_head()
        except Refusal as refusal:
            self._scope.deadline = math.inf
            await self.refuse(refusal)

    async def _next_head(self) -> RequestHead | None:
        """Wait for a request; None when there will be none. Raises Refusal."""
        reader = self.reader
        if reader.buffered:
            # One after another without a pause, a client's requests would let nobody else have a turn.
            await trio.lowlevel.checkpoint()
            if (head := reader.head()) is not None:
                return head
        self._idle = True
        while not reader.buffered:
            if self.draining or not (data := await self.wire.receive()):
                return None
            reader.feed(data)
            if (head := reader.head()) is not None:
                self._idle = False
                return head
        self._idle = False
        return await self._rest_of_head()

    async def _rest_of_head(self) -> RequestHead | None:
        """Wait for the rest of a head, within its time; None if the client leaves. Raises Refusal."""
        self._reading_head = True
        self._scope.deadline = trio.current_time() + self.limits.head_s
        head = None
        while head is None and (data := await self.wire.receive()):
            self.reader.feed(data)
            head = self.reader.head()
        self._reading_head = False
        self._scope.deadline = math.inf
        return head

    async def _answer(self, head: RequestHead) -> bool:
        """Have the application answer; whether the connection can serve another request."""
        serving = self._serving
        head_only = head.scope["method"] == "HEAD"
        response = ResponseWriter(
            http11=head.http11, head_only=head_only, date=serving.date, server=serving.server_header
        )
        exchange = self._exchange = Exchange(self, head, response)
        try:
            await serving.app(head.scope, exchange.receive, exchange.send)
        except Exception as error:  # noqa: BLE001 - a defect must cost one request, not the listener
            await self._failed(exchange, error)
        else:
            if exchange.gone and not response.complete:
                metrics.CLIENTS_GONE.inc()  # There was nobody left to answer.
            elif not response.complete:
                await self._failed(exchange, AppError("the application has not answered"))
        self._exchange = None
        if response.complete and response.keep_alive:
            return True
        if not response.complete:
            self.wire.cut()
        elif not self.reader.body_done or self.reader.buffered or self.draining:
            self._lingers = True
        return False

    async def _failed(self, exchange: Exchange, error: Exception) -> None:
        """Say so once: in the log, and to a client that has not been told anything yet."""
        response = exchange.response
        if exchange.refusal is not None:
            return
        if exchange.gone or isinstance(error, ClientGoneError):  # an application, too, gives up a client
            metrics.CLIENTS_GONE.inc()
            if _is_about_leaving(error):
                return
        metrics.FAILURES.inc()
        scope = exchange.head.scope
        log.error("request_failed", method=scope["method"], path=scope["path"], exc_info=error)
        if not response.started and not exchange.gone:
            response.keep_alive = False
            await self._say(Refusal(500, "internal", "internal error"), exchange)

    async def refuse(self, refusal: Refusal, exchange: Exchange | None = None) -> None:
        """Answer in the application's place, unless it has begun to; the connection is closed after that."""
        metrics.REFUSED.labels(refusal.reason).inc()
        log.info("request_refused", status=refusal.status, reason=refusal.reason, client=self._peer)
        await self._say(refusal, exchange)

    async def _say(self, refusal: Refusal, exchange: Exchange | None) -> None:
        if exchange is not None and exchange.response.started:
            return
        self._lingers = True
        head_only = exchange is not None and exchange.head.scope["method"] == "HEAD"
        data = refusal_bytes(refusal, self._serving.render, self._serving.date(), head_only=head_only)
        try:
            with trio.move_on_after(LINGER_S):
                await self.wire.send(data)
        except ClientGoneError:
            return
        if exchange is not None:
            exchange.response.started = exchange.response.complete = True

    def drain(self) -> None:
        """Serve the request in flight and no other."""
        self.draining = True
        if self._idle:
            self._scope.cancel(reason="the server is draining")

    def look_after(self, now: float) -> None:
        """End the connection if it has been idle for long, or the client of a long request has left.

        Called now and then, so that nothing has to be set up and taken down for each request.
        """
        exchange, seen = self._exchange, self._seen
        self._seen = exchange
        if self._idle:
            answered, since = self._idle_since
            if answered != self._answered or since == math.inf:
                self._idle_since = (self._answered, now)
            elif now - since >= self.limits.idle_s:
                self._scope.cancel(reason="the connection was idle for too long")
        elif exchange is not None and exchange is seen and self._is_abandoned(exchange):
            exchange.gone = True
            metrics.CLIENTS_GONE.inc()
            self._scope.cancel(reason="the client has gone")

    def _is_abandoned(self, exchange: Exchange) -> bool:
        # Who sends without end closes one side to say that this was all; what has come is yet to be taken.
        return not exchange.response.complete and not exchange.endless and self.wire.is_gone()


def _is_about_leaving(error: BaseException | None) -> bool:
    """Whether an exception comes of the client having left, as whatever the application made of it."""
    while error is not None:
        if isinstance(error, ClientGoneError):
            return True
        if isinstance(error, BaseExceptionGroup):
            return all(_is_about_leaving(inner) for inner in error.exceptions)
        error = error.__cause__ or error.__context__
    return False
