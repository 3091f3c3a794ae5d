"""A channel's connection to a server: calls become streams, and every end of a stream ends its call.

Theory of operation. The connection's own task reads, and wakes the callers of what came: that costs each a round of
Trio's loop. A caller by itself, that makes one call after another, need not pay it: it finds its connection's reader
about to read again, and *leads*, which is to read in its own task until its call is over. Nobody else is kept
waiting by that, since whoever reads handles everything that comes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from math import inf

import trio

from whispr.errors import Code, WhisprError, unavailable
from whispr.http2 import events
from whispr.http2.connection import Connection, Role
from whispr.http2.errors import ErrorCode
from whispr.http2.headers import SharedHeaders
from whispr.http2.limits import Limits
from whispr.http2.queued import Data, Octets
from whispr.rpc import wire
from whispr.rpc.client_call import NOT_PROCESSED, ClientCall
from whispr.rpc.common import Common
from whispr.rpc.inbox import Waker
from whispr.rpc.keepalive import PingInterval, Silence
from whispr.rpc.limits import RpcLimits
from whispr.rpc.tls import PeerIdentity, identity_of
from whispr.rpc.transport import Transport
from whispr.rpc.watchman import Watch


class _Core(Connection):
    """Knows which streams have not even been handed to the socket."""

    __slots__ = ("handed_id", "opened_id")

    def __init__(self, limits: Limits, shared: SharedHeaders) -> None:
        super().__init__(Role.CLIENT, limits, trio.current_time, whole_messages=True, shared=shared)
        self.opened_id = 0
        self.handed_id = 0

    def take_output(self) -> tuple[list[Octets], list[int]]:
        self.handed_id = self.opened_id
        return super().take_output()


class Overdue:
    """Looks for calls that are overdue, one by one."""

    def __init__(self, connection: ClientConnection, every_s: float) -> None:
        self._connection = connection
        self._every_s = every_s
        self.due = trio.current_time() + every_s

    def look(self, now: float) -> float:
        """End what is overdue; returns when to look again."""
        self._connection.end_overdue(now)
        return now + self._every_s


class ClientConnection(Transport[ClientCall]):
    """The client's end of one connection."""

    core: _Core

    def __init__(
        self,
        stream: trio.abc.Stream,
        target: str,
        limits: RpcLimits,
        line: trio.lowlevel.ParkingLot,
        pings: PingInterval,
        common: Common,
    ) -> None:
        """`line`: where calls wait for streams."""
        http2 = replace(limits.http2, frame_bytes_max=limits.response_frame_bytes_max)
        core = _Core(http2, common.headers)
        super().__init__(stream, core, common, pauses=False)
        self.settled = trio.Event()
        """The server's SETTINGS have come, or the connection was lost before."""
        self.identity: PeerIdentity | None = identity_of(stream)
        """Who the server is, by its certificate."""
        self.target = target
        """The address, as errors name it."""
        self._keepalive = limits.keepalive
        self._pings = pings
        self._overdue_every_s = limits.overdue_every_s
        self._retired = False
        self._ended_together = 1
        """Calls that ended with what was read last, which callers may follow with as many."""
        self._ended_at = 0.0
        self._line = line
        self._reading = False
        """The connection's own task waits for something to read."""
        self._led = False
        """The caller of a call reads in its place."""
        self._no_longer_led = Waker()

    @property
    def usable(self) -> bool:
        """Whether new calls may start here, now or when a stream is free."""
        return (
            self.lost is None
            and not self._retired
            and not self.core.peer_going_away
            and not self.core.exhausted
        )

    def free(self) -> bool:
        """Whether a call may start at once."""
        return self.lost is None and not self._retired and self.core.streams_allowed

    def watches(self) -> Iterable[Watch]:
        """Whether the server is silent for too long."""
        keepalive = self._keepalive
        always = keepalive.client_pings_without_calls
        yield Silence(self, self._pings.seconds, keepalive.ping_timeout_s, always)
        if self._overdue_every_s < inf:
            yield Overdue(self, self._overdue_every_s)

    def end_overdue(self, now: float) -> None:
        """End the calls whose limit has passed, and which no scope of their callers' has ended."""
        for stream_id, call in list(self._calls.items()):
            if call.limit_s < inf and call.deadline <= now:
                told = f"{self.target} did not answer within {call.limit_s:g} s"
                self._refuse(stream_id, WhisprError(Code.DEADLINE_EXCEEDED, told))
        self.flush()

    async def read(self) -> None:
        """Until the server closes, breaks the connection, or breaks the protocol."""
        self.write_now()
        alive = True
        while alive:
            self._reading = True
            alive = await self._read_once()
            self._reading = False
            if not self._calls and self._ended_together == 1:
                # The caller of the one call there was goes on now, perhaps with another, and may lead.
                await trio.lowlevel.cancel_shielded_checkpoint()
            while self._led:
                await self._no_longer_led.wait()

    async def lead(self, stream_id: int) -> None:
        """Read until this call has ended here, if it is by itself and nobody else is reading."""
        if self._reading or self._led or self._socket is None or len(self._calls) > 1:
            return
        self._led = True
        try:
            while stream_id in self._calls and await self._read_once():
                pass
        finally:
            self._led = False
            self._no_longer_led.wake()

    async def _read_once(self) -> bool:
        """Wait for something to read, and handle it. False when the connection is over."""
        if self.core.failed or self._silent:
            return False
        try:
            await self.readable()
        except (OSError, trio.ClosedResourceError):
            self.broken()
            return False
        alive = self.receive()
        self.handling = False
        self.write_now()
        return alive

    @property
    def calls_begun(self) -> int:
        """A number that grows with each call."""
        return self.core.opened_id

    def retire(self) -> None:
        """Take no more calls, and close after the last."""
        self._retired = True
        if not self._calls:
            self.close()

    def open(self, call: ClientCall, block: bytes, last: Data | None = None) -> int:
        """Start a call; returns its stream's id. The caller has seen that a stream may be opened.

        `last` is its only message, framed, and its end.
        """
        core, calls = self.core, self._calls
        stream_id = core.open_stream(block) if last is None else core.request(block, last)
        core.opened_id = stream_id
        calls[stream_id] = call
        # A call by itself goes out at once. Among many, those that begin in this round go out together.
        if len(calls) == 1 and self._ended_together == 1 and last is not None:
            self.write_now()
        else:
            self.flush()
        return stream_id

    def unused(self) -> None:
        """A call that was to start here will not: let the next in line."""
        self._line.unpark()

    def forget(self, stream_id: int) -> None:
        """Reset a call's stream; nothing more of it will be reported."""
        self.core.reset(stream_id, ErrorCode.CANCEL)
        self._call_ended(stream_id)
        self.flush()

    def _call_ended(self, stream_id: int) -> None:
        self._ended_together = self._ended_together + 1 if self._ended_at == self.read_at else 1
        self._ended_at = self.read_at
        del self._calls[stream_id]
        if self._line:
            self._line.unpark()
        if not self._calls:
            self.calls_over()
            if not self.usable:
                self.close()

    def cut_off(self, make_error: Callable[[], WhisprError]) -> None:
        """End every call in progress, here and at the server."""
        for stream_id in list(self._calls):
            self._refuse(stream_id, make_error())
        self.flush()

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

    def on_response(self, event: events.ResponseReceived) -> None:
        """All of a response."""
        call = self._calls.get(event.stream_id)
        if call is None:
            return
        try:
            call.receive_whole(event.headers, event.data, event.trailers)
        except WhisprError as error:
            self._fail(event.stream_id, error)
        else:
            self._call_ended(event.stream_id)

    def _refuse(self, stream_id: int, error: WhisprError) -> None:
        """The server answers badly: want no more of it."""
        self.core.reset(stream_id, ErrorCode.CANCEL)
        self._fail(stream_id, error)

    def on_reset(self, event: events.StreamReset) -> None:
        """The stream is gone, by the server's wish or its mistake."""
        if event.remote and event.code is ErrorCode.REFUSED_STREAM:
            refused = unavailable(f"{self.target} refused the call unprocessed", facts=NOT_PROCESSED)
            self._refused(event.stream_id, refused)
        else:
            self._fail(event.stream_id, wire.reset_error(event.code, event.message))

    def _refused(self, stream_id: int, error: WhisprError) -> None:
        """The server has not looked at a call, which may therefore be made again."""
        call = self._calls.get(stream_id)
        if call is not None:
            self._call_ended(stream_id)
            call.not_processed(error, left=True)

    def on_settings(self, event: events.SettingsReceived) -> None:
        """The server may allow more streams than before."""
        self.settled.set()
        self._line.unpark_all()

    def on_ping_acknowledged(self, event: events.PingAcknowledged) -> None:
        """A client sends no pings."""

    def on_go_away(self, event: events.GoAwayReceived) -> None:
        """Calls the server has not looked at go elsewhere, as new ones do; the others go on."""
        if event.code is ErrorCode.ENHANCE_YOUR_CALM and event.debug == b"too_many_pings":
            self._pings.lengthen()
        going = unavailable(f"{self.target} is going away and did not process the call", facts=NOT_PROCESSED)
        for stream_id in [known for known in self._calls if known > event.last_stream_id]:
            # Says nothing new to the server, but frees what the stream holds here.
            self.core.reset(stream_id, ErrorCode.CANCEL)
            self._refused(stream_id, going)
        self._line.unpark_all()
        if not self._calls:
            self.close()

    def on_lost(self, reason: str) -> None:
        """Every call ends at once, or is made again if not even its head was sent."""
        calls, self._calls = self._calls, {}
        told = f"{self.target}: {reason}"
        for stream_id, call in calls.items():
            if stream_id > self.core.handed_id:
                call.not_processed(unavailable(told, facts=NOT_PROCESSED), left=False)
            else:
                maybe = f"{told}; the call may have been processed"
                call.fail(unavailable(maybe, facts={"processed": "maybe"}))
        self.settled.set()
        self._line.unpark_all()
