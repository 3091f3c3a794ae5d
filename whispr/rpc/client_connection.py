"""A channel's connection to a server: calls become streams, and every end of a stream ends its call."""

from __future__ import annotations

import trio

from whispr.errors import Code, WhisprError, exhausted, unavailable
from whispr.http2 import events
from whispr.http2.connection import Connection, Role
from whispr.http2.errors import ErrorCode
from whispr.rpc import wire
from whispr.rpc.client_call import ClientCall
from whispr.rpc.limits import RpcLimits
from whispr.rpc.transport import Transport


class ClientConnection(Transport):
    """The client's end of one connection."""

    def __init__(self, stream: trio.abc.Stream, target: str, limits: RpcLimits) -> None:
        super().__init__(stream, Connection(Role.CLIENT, limits.http2, trio.current_time), pauses=False)
        self.settled = trio.Event()
        """The server's SETTINGS have come, or the connection was lost before."""
        self._target = target
        self._waiting_calls_max = limits.waiting_calls_max
        self._calls: dict[int, ClientCall] = {}
        self._waiting = trio.lowlevel.ParkingLot()

    @property
    def usable(self) -> bool:
        """Whether new calls may start here, now or when a stream is free."""
        return self.lost is None and not self.core.peer_going_away and not self.core.exhausted

    def free(self) -> bool:
        """Whether a call may start at once, nobody being in line before it."""
        return not self._waiting and self.usable and self.core.streams_allowed

    async def wait_for_stream(self) -> bool:
        """Wait in line for a stream; True when it is there and must be opened before anything else.

        False: look again for a connection. Raises WhisprError RESOURCE_EXHAUSTED when the line is too long.
        """
        if len(self._waiting) >= self._waiting_calls_max:
            raise exhausted(f"too many calls wait for a stream to {self._target}", reason="too_many_calls")
        await self._waiting.park()
        return self.usable and self.core.streams_allowed

    def open(self, call: ClientCall, block: bytes) -> int:
        """Start a call; returns its stream's id. The caller has seen that a stream may be opened."""
        stream_id = self.core.open_stream(block)
        self._calls[stream_id] = call
        self.flush()
        return stream_id

    def forget(self, stream_id: int) -> None:
        """Reset a call's stream; nothing more of it will be reported."""
        self.core.reset(stream_id, ErrorCode.CANCEL)
        self._call_ended(stream_id)
        self.flush()

    def _call_ended(self, stream_id: int) -> None:
        del self._calls[stream_id]
        self._waiting.unpark()
        if not self.usable and not self._calls:
            self.close()

    def _fail(self, stream_id: int, error: WhisprError) -> None:
        call = self._calls.get(stream_id)
        if call is not None:
            self._call_ended(stream_id)
            call.fail(error)

    # --- Events -------------------------------------------------------------------------------------------

    def on_headers(self, event: events.HeadersReceived) -> None:
        """The head of a response, its trailers, or both in one."""
        call = self._calls.get(event.stream_id)
        if call is None:
            return
        try:
            if not event.trailers:
                call.receive_head_fields(event.headers)
            if event.end_stream:
                call.receive_trailers(event.headers)
                self._call_ended(event.stream_id)
        except WhisprError as error:
            self._refuse(event.stream_id, error)

    def on_data(self, event: events.DataReceived) -> None:
        """Bytes of messages."""
        call = self._calls.get(event.stream_id)
        if call is None:
            return
        try:
            call.receive_data(event.data)
        except WhisprError as error:
            self._refuse(event.stream_id, error)
            return
        if event.end_stream:
            self._refuse(
                event.stream_id, WhisprError(Code.INTERNAL, "the server ended a call without trailers")
            )

    def _refuse(self, stream_id: int, error: WhisprError) -> None:
        """The server answers badly: want no more of it."""
        self.core.reset(stream_id, ErrorCode.CANCEL)
        self._fail(stream_id, error)

    def on_reset(self, event: events.StreamReset) -> None:
        """The stream is gone, by the server's wish or its mistake."""
        self._fail(event.stream_id, wire.reset_error(event.code, event.message))

    def on_settings(self, event: events.SettingsReceived) -> None:
        """The server may allow more streams than before."""
        self.settled.set()
        self._waiting.unpark_all()

    def on_ping_acknowledged(self, event: events.PingAcknowledged) -> None:
        """A client sends no pings."""

    def on_go_away(self, event: events.GoAwayReceived) -> None:
        """Calls the server has not looked at fail; the others go on; new ones go elsewhere."""
        refused = unavailable(f"{self._target} is going away and did not process the call")
        for stream_id in [known for known in self._calls if known > event.last_stream_id]:
            self._fail(stream_id, refused)
        self._waiting.unpark_all()
        if not self._calls:
            self.close()

    def on_writable(self, stream_id: int) -> None:
        """Let the call go on sending."""
        call = self._calls.get(stream_id)
        if call is not None:
            call.has_room()

    def on_lost(self, reason: str) -> None:
        """Every call fails at once; whether the server processed it cannot be known."""
        calls, self._calls = self._calls, {}
        for call in calls.values():
            call.fail(unavailable(f"{self._target}: {reason}; the call may have been processed"))
        self.settled.set()
        self._waiting.unpark_all()
