"""One client's connection to a server: requests become calls, each in a cancel scope.

Theory of operation. One task leads: it reads, and runs the calls that a read brought, one after the other. Most
never wait, and all their answers leave in one write. As soon as a handler has to wait, its task is that call's
until it ends, and another task leads; the method's next call gets a task of its own from the start. So at any
time there is one leader, and a task for each call that waits; a connection without calls is one task that
waits for something to read, and one that waits for something to write.
See `driving` for why the handler cannot tell the difference from a task of its own.
"""

from __future__ import annotations

import contextvars
from collections.abc import Awaitable, Iterable, Mapping
from math import inf
from typing import Any

import structlog
import trio

from whispr.errors import Code, WhisprError, internal, unavailable
from whispr.http2 import events
from whispr.http2.connection import Connection, Role
from whispr.http2.errors import ErrorCode
from whispr.http2.headers import Headers
from whispr.rpc.call import set_current_call
from whispr.rpc.common import Common
from whispr.rpc.driving import drive
from whispr.rpc.inbox import Waker
from whispr.rpc.interceptors import cancelled_code
from whispr.rpc.keepalive import PingGuard, server_watches
from whispr.rpc.limits import RpcLimits
from whispr.rpc.methods import Method, Refusal, RequestHead, read_head
from whispr.rpc.patience import Patience
from whispr.rpc.server_call import ServerCall
from whispr.rpc.statuses import status_of
from whispr.rpc.tls import identity_of
from whispr.rpc.transport import Transport
from whispr.rpc.watchman import Watch

ANSWERS = 16
"""After so many calls of one read, answers leave: the client works on them while we go on."""

_TRIED_AGAIN = 32
"""One in so many streams (there are only odd ones) of a method that waits is run as if it did not."""

_DRAIN_PING = b"whsprdrn"

_TOO_MANY_CALLS = unavailable("too many calls on one connection")

_log = structlog.get_logger("whispr.rpc")


class ServerConnection(Transport[ServerCall]):
    """The server's end of one connection."""

    # There may be thousands that are idle, and a dictionary of so many attributes takes 1.6 KiB.
    __slots__ = (
        "_calls_max",
        "_compression",
        "_context",
        "_draining",
        "_first",
        "_first_is_back",
        "_guard",
        "_inflated",
        "_leader",
        "_limits",
        "_methods",
        "_reading_over",
        "_ready",
        "_refused",
        "_standing_in",
        "identity",
        "message_bytes_max",
        "peer",
        "settled",
    )

    def __init__(
        self,
        stream: trio.abc.Stream,
        peer: str,
        methods: Mapping[str, Method],
        limits: RpcLimits,
        common: Common,
        compression: str | None = None,
    ) -> None:
        core = Connection(
            Role.SERVER, limits.http2, trio.current_time, whole_messages=True, shared=common.headers
        )
        core.on_ping = self._pinged
        super().__init__(stream, core, common, pauses=True)
        self.peer = peer
        self.identity = identity_of(stream)
        """Who the client is, by its certificate."""
        self.message_bytes_max = limits.message_bytes_max
        self._methods = methods
        self._compression = compression
        self._calls_max = limits.http2.streams_max
        self.settled = False
        """The client has said that it speaks HTTP/2."""
        self._limits = limits
        self._guard: PingGuard | None = None
        """Made for the first ping."""
        self._refused: dict[int, Refusal] = {}
        self._inflated = 0
        self._ready: list[ServerCall] = []  # short, and an empty deque takes 0.7 KiB
        self._context = contextvars.copy_context()
        self._leader: trio.lowlevel.Task | None = None
        self._reading_over = False
        self._first = Waker()
        self._first_is_back = False
        """The first leader waits for another to let it lead."""
        self._standing_in: trio.CancelScope | None = None
        """Around the wait of another."""
        self._draining = False

    # --- Events -------------------------------------------------------------------------------------------

    def on_headers(self, event: events.HeadersReceived) -> None:
        """Begin a call."""
        if not event.trailers:
            self._begin(event.stream_id, event.headers)
        if event.end_stream:
            self._feed(event.stream_id, b"", True)

    def on_request(self, event: events.RequestReceived) -> None:
        """Begin a call of which everything is there."""
        call = self._begin(event.stream_id, event.headers)
        if call is None or not call.receive_whole(event.data):
            self._feed(event.stream_id, event.data, True)

    def _begin(self, stream_id: int, headers: Headers) -> ServerCall | None:
        head = headers.parsed
        if not isinstance(head, RequestHead):
            head = headers.parsed = read_head(headers, self._methods)
        if isinstance(head, Refusal):
            self._refuse(stream_id, head, False)
            self.counters.fail(head.error, "")
            return None
        if len(self._calls) >= self._calls_max:
            # A reset call frees its stream at once, but its handler may take time to unwind.
            self.core.reset(stream_id, ErrorCode.REFUSED_STREAM)
            self.counters.fail(_TOO_MANY_CALLS, head.method.name)
            return None
        deadline = inf if head.timeout_s is None else self.read_at + head.timeout_s
        call = ServerCall(self, stream_id, head, deadline)
        if self._compression is not None:
            call.compression = self._compression
        self._calls[stream_id] = call
        if head.method.waits and stream_id % _TRIED_AGAIN != 1:
            self.nursery.start_soon(self._run_alone, call, name=call.method)
        else:
            self._ready.append(call)
        return call

    def on_data(self, event: events.DataReceived) -> None:
        """Hand bytes to their call."""
        self._feed(event.stream_id, event.data, event.end_stream)

    def _feed(self, stream_id: int, data: bytes | memoryview, end: bool) -> None:
        call = self._calls.get(stream_id)
        if call is None or call.ended_by is not None:
            self.core.consume(stream_id, len(data))
            if end and stream_id in self._refused:
                self._refuse(stream_id, self._refused.pop(stream_id), True)
            return
        try:
            if data:
                call.receive_data(data)
            if end:
                call.receive_end()
        except WhisprError as error:
            call.end(error, error.message)

    def _refuse(self, stream_id: int, refusal: Refusal, ended: bool) -> None:
        if not refusal.body:
            self.core.send_headers(stream_id, refusal.block, end_stream=True)
        elif ended:
            self.core.respond(stream_id, refusal.block, refusal.body, refusal.trailers)
        else:
            # HTTP clients send all of a request before they look at the answer: it is heard out, and dropped.
            self._refused[stream_id] = refusal

    def on_reset(self, event: events.StreamReset) -> None:
        """Cancel the call of a stream that is gone."""
        self._refused.pop(event.stream_id, None)
        call = self._calls.get(event.stream_id)
        if call is not None:
            reason = "the client cancelled the call" if event.remote else event.message
            call.end(WhisprError(Code.CANCELLED, reason), reason)

    def on_settings(self, event: events.SettingsReceived) -> None:
        """The client speaks HTTP/2."""
        self.settled = True

    def on_ping_acknowledged(self, event: events.PingAcknowledged) -> None:
        """Second step of `shut_down`: whatever the client sent before it knew has arrived."""
        if event.data == _DRAIN_PING:
            self._refuse_new()

    def on_go_away(self, event: events.GoAwayReceived) -> None:
        """A client says it will open no more streams; it closes the connection itself."""

    def on_lost(self, reason: str) -> None:
        """Cancel every call at once."""
        for call in self._calls.values():
            call.end(unavailable(reason), reason)

    # --- Calls --------------------------------------------------------------------------------------------

    def watches(self) -> Iterable[Watch]:
        """Everything that ends a connection by the clock."""
        limits = self._limits
        yield Patience(self, limits.unfinished_s, limits.untaken_s)
        yield from server_watches(self, limits.keepalive, limits.handshake_s)

    def read(self) -> Awaitable[None]:
        """Until the client closes, breaks the connection, or breaks the protocol."""
        return self._lead(first=True)

    async def _lead(self, *, first: bool = False) -> None:
        """Read, and run calls, until one of them has had to wait and is over, or there is nothing to read.

        The `first` leader then leads again, and returns when there is nothing to read, whoever finds that out.
        """
        task = trio.lowlevel.current_task()
        self._leader = task
        while not self._reading_over:
            if self._leader is not task:
                if not first:
                    return
                await self._lead_again(task)
            elif self._ready:
                await self._run_ready(task)
            elif self._first_is_back and not first:
                break
            else:
                self.handling = False
                self.write_now()
                if self.must_pause:
                    await self.pause()
                try:
                    if not self.core.failed:
                        # An idle connection waits here: in as few coroutines as can be.
                        await (self.readable() if first else self._readable_for_now())
                except (OSError, trio.ClosedResourceError):
                    self.broken()
                if self._leader is task:
                    self._reading_over = self.core.failed or self._silent or not self.receive()
        self._first.wake()

    async def _readable_for_now(self) -> None:
        """Wait for something to read, unless the first leader comes back, who needs no task beside its own."""
        if self._socket is None:
            await self.readable()  # which reads, too: what it has read would be lost
            return
        try:
            with trio.CancelScope() as self._standing_in:
                await self.readable()
        finally:
            self._standing_in = None

    async def _lead_again(self, task: trio.lowlevel.Task) -> None:
        """The first leader's call is over: lead as soon as who leads now has nothing to do but to wait."""
        task.name = type(self).__name__
        if self._standing_in is None:
            self._first_is_back = True
            try:
                await self._first.wait()
            finally:
                self._first_is_back = False
        else:
            self._standing_in.cancel(reason="the first leader is back")
        self._leader = task

    async def _run_ready(self, task: trio.lowlevel.Task) -> None:
        """Run the calls that are ready, until one has to wait or is ended, or there are no more."""
        call: ServerCall | None = None
        try:
            # One scope serves many calls: making one costs as much as most handlers.
            with trio.CancelScope() as scope:
                while self._ready and self._leader is task and (call is None or call.ended_by is None):
                    call = self._ready.pop(0)
                    call.handler.waits = False  # unless `_waits` says otherwise
                    await self._run_call(call, scope, task)
                    if len(self._ready) % ANSWERS == 0:
                        self.write_now()
            if call is not None and scope.cancelled_caught:
                call.finish(call.ended_by or _deadline_passed())
        except Exception as error:  # whatever a handler raises ends its call, not the server
            if call is None:
                raise
            self._fail(call, error)
        finally:
            if call is not None and call.observed:
                self._tell(call, cancelled_code(call), None)
        task.context = self._context

    async def _run_call(self, call: ServerCall, scope: trio.CancelScope, task: trio.lowlevel.Task) -> None:
        """Run a call to its end, raising what its handler raises."""
        try:
            if call.ended_by is not None or call.deadline <= trio.current_time():
                call.finish(call.ended_by or _deadline_passed())
                return
            if scope.deadline != call.deadline:
                scope.deadline = call.deadline
            call.scope = scope
            call.observed = True
            self._answer(call, await drive(call, task, self._context, self._waits))
        finally:
            self._over(call)

    async def _run_alone(self, call: ServerCall) -> None:
        """Run a call in a task of its own, since calls of its method have to wait."""
        set_current_call(call)
        call.waits()
        try:
            with trio.CancelScope(deadline=call.deadline) as scope:
                if call.ended_by is None and not scope.cancel_called:
                    call.scope = scope
                    call.observed = True
                    self._answer(call, await call.handler.run(call))
            if scope.cancel_called:
                call.finish(call.ended_by or _deadline_passed())
            elif call.ended_by is not None:
                call.finish(call.ended_by)
        except Exception as error:  # noqa: BLE001  # whatever a handler raises ends its call, not the server
            self._fail(call, error)
        finally:
            if call.observed:
                self._tell(call, cancelled_code(call), None)
            self._over(call)

    def hold_inflated(self, call: ServerCall, size: int) -> None:
        """A call's message was inflated to `size` bytes, in place of its last. Raises RESOURCE_EXHAUSTED."""
        self._inflated += size - call.inflated
        call.inflated = size
        bytes_max = self._limits.inflated_bytes_max
        if self._inflated > bytes_max:
            told = f"compressed requests of this connection would be more than {bytes_max} bytes together"
            raise WhisprError(Code.RESOURCE_EXHAUSTED, told)

    def _answer(self, call: ServerCall, response: Any) -> None:
        if call.handler.streams_response:
            call.finish()
        else:
            call.respond(response)
        self._tell(call, Code.OK, None)

    def _tell(self, call: ServerCall, code: Code, error: WhisprError | None) -> None:
        """Tell the observers how a call has ended, once."""
        if call.observed:
            call.observed = False
            for observer in call.handler.observers:
                observer.ended(call, code, error)

    def _over(self, call: ServerCall) -> None:
        call.scope = None
        self._inflated -= call.inflated
        del self._calls[call.stream_id]
        if not self._calls:
            self.calls_over()
        if self._draining:
            self._close_if_drained()

    def _waits(self, call: ServerCall) -> None:
        """A handler has to wait: the leader's task is its own from now on, and another leads."""
        call.waits()
        call.handler.waits = True
        trio.lowlevel.current_task().name = call.method
        self._leader = None
        self.handling = False
        self.flush()
        # One after the other, those that wait would each hold up the next by a round of Trio's loop.
        while self._ready:
            later = self._ready.pop(0)
            self.nursery.start_soon(self._run_alone, later, name=later.method)
        self.nursery.start_soon(self._lead, name=f"{type(self).__name__} {self.peer}")

    def _fail(self, call: ServerCall, error: Exception) -> None:
        status = status_of(error)
        if status is None:
            call_id = call.metadata.text("x-request-id")
            _log.error("handler failed", method=call.method, peer=call.peer, call_id=call_id, exc_info=error)
            self._tell(call, Code.INTERNAL, None)
            status = internal("the server failed to handle the call")
        else:
            self._tell(call, status.code, status)
        call.finish(status)

    # --- The end ------------------------------------------------------------------------------------------

    @property
    def calls_begun(self) -> int:
        """A number that grows with each call."""
        return self.core.last_peer_id

    def _pinged(self) -> None:
        if self._guard is None:
            self._guard = PingGuard(self, self._limits.keepalive.pinged_s_min, trio.current_time)
        self._guard.pinged()

    def end_stream(self, stream_id: int, why: str) -> None:
        """End a stream and its call with ENHANCE_YOUR_CALM."""
        self.core.reset(stream_id, ErrorCode.ENHANCE_YOUR_CALM)
        call = self._calls.get(stream_id)
        if call is not None:
            call.end(WhisprError(Code.RESOURCE_EXHAUSTED, why), why)
        self.flush()

    def hang_up(self, why: str) -> None:
        """End the connection with ENHANCE_YOUR_CALM, as soon as that has been said."""
        self.core.go_away(ErrorCode.ENHANCE_YOUR_CALM, why)
        self._lose(why)
        self.close()

    def shut_down(self) -> None:
        """Begin a graceful end (RFC 9113 section 6.8): warn, and once the warning is seen refuse new calls."""
        self.core.announce_shutdown()
        self.core.ping(_DRAIN_PING)
        self.flush()

    def _refuse_new(self) -> None:
        self._draining = True
        self.core.go_away()
        self._close_if_drained()

    def abort(self, reason: str) -> None:
        """End every call with UNAVAILABLE, then the connection."""
        for call in self._calls.values():
            call.end(unavailable(reason), reason)
        self._refuse_new()

    def _close_if_drained(self) -> None:
        if self._draining and not self._calls:
            self.close()
        self.flush()


def _deadline_passed() -> WhisprError:
    return WhisprError(Code.DEADLINE_EXCEEDED, "the call's deadline passed")
