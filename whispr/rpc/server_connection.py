"""One client's connection to a server: requests become calls, each a task with a cancel scope."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import structlog
import trio

from whispr.errors import Code, WhisprError, internal, unavailable
from whispr.http2 import events
from whispr.http2.connection import Connection, Role
from whispr.http2.errors import ErrorCode
from whispr.rpc.call import set_current_call
from whispr.rpc.interceptors import Interceptor, intercepted
from whispr.rpc.limits import RpcLimits
from whispr.rpc.methods import Method, Refusal, RequestHead, read_head
from whispr.rpc.server_call import ServerCall
from whispr.rpc.statuses import status_of
from whispr.rpc.tls import identity_of
from whispr.rpc.transport import Transport

_DRAIN_PING = b"whsprdrn"

_log = structlog.get_logger("whispr.rpc")


class ServerConnection(Transport):
    """The server's end of one connection."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        peer: str,
        methods: Mapping[str, Method],
        interceptors: Sequence[Interceptor],
        limits: RpcLimits,
        compression: str | None = None,
    ) -> None:
        super().__init__(stream, Connection(Role.SERVER, limits.http2, trio.current_time), pauses=True)
        self.peer = peer
        self.identity = identity_of(stream)
        """Who the client is, by its certificate."""
        self.message_bytes_max = limits.message_bytes_max
        self._methods = methods
        self._compression = compression
        self._interceptors = interceptors
        self._calls_max = limits.http2.streams_max
        self._handshake = trio.CancelScope(deadline=trio.current_time() + limits.handshake_s)
        self._settled = trio.Event()
        self._calls: dict[int, ServerCall] = {}
        self._refused: dict[int, Refusal] = {}
        self._draining = False

    # --- Events -------------------------------------------------------------------------------------------

    def on_headers(self, event: events.HeadersReceived) -> None:
        """Start a call; its task runs once everything that came with the request has been read."""
        stream_id = event.stream_id
        if event.trailers:
            self._feed(stream_id, b"", True)
            return
        head = event.headers.parsed
        if not isinstance(head, RequestHead):
            head = event.headers.parsed = read_head(event.headers, self._methods)
        if isinstance(head, Refusal):
            self._refuse(stream_id, head, event.end_stream)
        elif len(self._calls) >= self._calls_max:
            # A reset call frees its stream at once, but its handler may take time to unwind.
            self.core.reset(stream_id, ErrorCode.REFUSED_STREAM)
        else:
            deadline = trio.current_time() + head.timeout_s if head.timeout_s is not None else float("inf")
            call = ServerCall(self, stream_id, head, deadline)
            if self._compression is not None:
                call.compression = self._compression
            self._calls[stream_id] = call
            self.nursery.start_soon(self._run_call, stream_id, call, name=head.method.name)
            if event.end_stream:
                self._feed(stream_id, b"", True)

    def on_data(self, event: events.DataReceived) -> None:
        """Hand bytes to their call."""
        self._feed(event.stream_id, event.data, event.end_stream)

    def _feed(self, stream_id: int, data: bytes, end: bool) -> None:
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
        self._settled.set()

    def on_ping_acknowledged(self, event: events.PingAcknowledged) -> None:
        """Second step of `shut_down`: whatever the client sent before it knew has arrived."""
        if event.data == _DRAIN_PING:
            self._refuse_new()

    def on_go_away(self, event: events.GoAwayReceived) -> None:
        """A client says it will open no more streams; it closes the connection itself."""

    def on_writable(self, stream_id: int) -> None:
        """Let the call go on sending."""
        call = self._calls.get(stream_id)
        if call is not None:
            call.has_room()

    def on_lost(self, reason: str) -> None:
        """Cancel every call at once."""
        self._settled.set()
        for call in self._calls.values():
            call.end(unavailable(reason), reason)

    # --- Calls --------------------------------------------------------------------------------------------

    async def _run_call(self, stream_id: int, call: ServerCall) -> None:
        set_current_call(call)
        try:
            with call.scope as scope:
                if call.ended_by is None:
                    await self._handle(call)
            if scope.cancelled_caught or call.ended_by is not None:
                call.finish(
                    call.ended_by or WhisprError(Code.DEADLINE_EXCEEDED, "the call's deadline passed")
                )
        except Exception as error:  # noqa: BLE001  # whatever a handler raises ends its call, not the server
            self._fail(call, error)
        finally:
            del self._calls[stream_id]
            self._close_if_drained()

    async def _handle(self, call: ServerCall) -> None:
        method = call.handler
        if self._interceptors:
            response: Any = await intercepted(self._interceptors, call, lambda: method.run(call))
        else:
            response = await method.run(call)
        if method.streams_response:
            call.finish()
        else:
            call.respond(response)

    def _fail(self, call: ServerCall, error: Exception) -> None:
        status = status_of(error)
        if status is None:
            call_id = call.metadata.text("x-request-id")
            _log.error("handler failed", method=call.method, peer=call.peer, call_id=call_id, exc_info=error)
            status = internal("the server failed to handle the call")
        call.finish(status)

    # --- The end ------------------------------------------------------------------------------------------

    async def serve(self) -> None:
        """Run the connection until it ends. A client that does not say it speaks HTTP/2 is cut off."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_handshake)
            await self.run()
            nursery.cancel_scope.cancel(reason="the connection ended")

    async def _watch_handshake(self) -> None:
        with self._handshake as scope:
            await self._settled.wait()
        if scope.cancelled_caught:
            self.kill("no HTTP/2 preface in time")

    def shut_down(self) -> None:
        """Begin a graceful end (RFC 9113 section 6.8): warn, and once the warning is seen refuse new calls."""
        self.core.announce_shutdown()
        self.core.ping(_DRAIN_PING)
        self.flush()

    def _refuse_new(self) -> None:
        self._draining = True
        self.core.go_away()
        self._close_if_drained()

    def abort(self) -> None:
        """End every call with UNAVAILABLE, then the connection."""
        for call in self._calls.values():
            call.end(unavailable("the server is shutting down"), "the server is shutting down")
        self._refuse_new()

    def _close_if_drained(self) -> None:
        if self._draining and not self._calls:
            self.close()
        self.flush()
