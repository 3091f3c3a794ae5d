"""The channel: calls to one service, over connections made when needed and made again when lost.

    async with open_channel("chat.internal:50053") as channel:
        stub = AuthServiceStub(channel)
        with trio.fail_after(5):
            reply = await stub.Login(request, metadata=[("x-request-id", "…")])

There are no timeout parameters. The deadline sent is the effective one of the calling task; when it passes,
or the task is cancelled otherwise, the call is reset and Trio's Cancelled goes on to the scope it belongs
to. What a call itself fails with is WhisprError; the fact `processed` of UNAVAILABLE is "no" when the server
cannot have acted on the request, "maybe" when it can.

Theory of operation. A target stands for addresses, each with a `Subchannel`; calls take turns among those that
are connected. Everything a call can wait for (a connection, a free stream) it waits for in one line, and
whatever changes wakes it to look again. A call that finds an address unconnected, and not left alone
after a failure, has names looked up anew and a connection attempted. Nothing is done while nobody calls.

purerpc's own generated stubs work on a Channel too: `_host`, `_port` and `_grpc_socket` are what they need.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TypeVar

import trio
from google.protobuf.message import Message

from whispr import __version__
from whispr.errors import Code, WhisprError, exhausted, unavailable
from whispr.http2.headers import encode, list_bytes
from whispr.nurseries import own_nursery
from whispr.resilience.target import Rules, Target
from whispr.rpc import wire
from whispr.rpc.client_call import NOT_PROCESSED, ClientCall
from whispr.rpc.client_connection import ClientConnection
from whispr.rpc.common import Common
from whispr.rpc.compression import ACCEPTED, named
from whispr.rpc.guard import Guard, guard_of
from whispr.rpc.interceptors import Interceptor
from whispr.rpc.keepalive import PingInterval
from whispr.rpc.limits import RpcLimits
from whispr.rpc.memory import keep_large_blocks
from whispr.rpc.purerpc_socket import PurerpcSocket
from whispr.rpc.statistics import Census, Statistics, ids
from whispr.rpc.stubs import StreamStream, StreamUnary, UnaryStream, UnaryUnary
from whispr.rpc.subchannel import Connect, Shared, Subchannel, backoff_s
from whispr.rpc.targets import Address, Endpoint, look_up_all, parse_target
from whispr.rpc.tls import TlsFiles, connect_tls

RequestT = TypeVar("RequestT", bound=Message)
ResponseT = TypeVar("ResponseT", bound=Message)

_FAILURES_TOLD = 3
OVERDUE_EVERY_S = 0.5
"""How often a guarded channel looks for calls that are overdue."""


class Channel:
    """Made by `open_channel`."""

    def __init__(
        self,
        target: str,
        connect: Connect | None,
        nursery: trio.Nursery,
        interceptors: Sequence[Interceptor],
        limits: RpcLimits,
        wait_for_ready: bool,
        tls: TlsFiles | None,
        compression: str | None = None,
        guarding: Target | None = None,
        rules: Rules = Rules(),  # noqa: B008  # frozen
    ) -> None:
        keep_large_blocks(limits.message_bytes_max)
        self.id = next(ids)
        self.target = target
        self.encoding = named(compression)
        """Of requests, unless their call says otherwise."""
        self.interceptors = tuple(interceptors)
        self.wait_for_ready = wait_for_ready
        """What calls do that do not say."""
        if guarding is not None:
            limits = replace(limits, overdue_every_s=OVERDUE_EVERY_S)
        self._guarding = guarding
        self._rules = rules
        self._guards: dict[str, Guard | None] = {}
        self._cut_offs = 0
        if guarding is not None:
            guarding.on_trip = self._cut_off
        self.limits = limits
        self._nursery = nursery
        self.census = Census()
        self.counters = self.census.closed
        """For calls that have no connection."""
        self._tls = tls
        self._endpoints = () if connect is not None else parse_target(target)
        self._authority = self._endpoints[0].authority if self._endpoints else target
        self._line = trio.lowlevel.ParkingLot()
        pings = PingInterval(limits.keepalive.client_ping_s)
        self._shared = Shared(nursery, limits, self._line, pings, Common(), self.census)
        self.subchannels: list[Subchannel] = []
        """One for each address of the target that has been looked up."""
        self._addresses: list[Address] = []
        self._turn = random.randrange(1 << 16)  # noqa: S311  # so that many clients do not all begin with the same address
        self._looking_up = False
        self._look_ups_failed = 0
        self._look_up_failure = ""
        self._look_up_at = -float("inf")
        if connect is not None:
            named_host = Endpoint(target.rpartition(":")[0] or target)
            self.subchannels = [self._subchannel(target, partial(self._dial, connect, named_host))]
        self._heads: dict[str, tuple[bytes, int]] = {}
        self._host, _, self._port = self._authority.rpartition(":")
        self._grpc_socket = PurerpcSocket(self)

    # --- Typed methods, for generated stubs ---------------------------------------------------------------

    def unary_unary(
        self, method: str, request: type[RequestT], response: type[ResponseT]
    ) -> UnaryUnary[RequestT, ResponseT]:
        """One message each way."""
        return UnaryUnary(self, method, response)

    def unary_stream(
        self, method: str, request: type[RequestT], response: type[ResponseT]
    ) -> UnaryStream[RequestT, ResponseT]:
        """One message there, many back."""
        return UnaryStream(self, method, response)

    def stream_unary(
        self, method: str, request: type[RequestT], response: type[ResponseT]
    ) -> StreamUnary[RequestT, ResponseT]:
        """Many messages there, one back."""
        return StreamUnary(self, method, response)

    def stream_stream(
        self, method: str, request: type[RequestT], response: type[ResponseT]
    ) -> StreamStream[RequestT, ResponseT]:
        """Many messages each way."""
        return StreamStream(self, method, response)

    # --- For calls ----------------------------------------------------------------------------------------

    def guard(self, method: str) -> Guard | None:
        """What calls of a method go through; None for a channel without policies."""
        if method not in self._guards:
            self._guards[method] = guard_of(self._guarding, self._rules, method)
        return self._guards[method]

    def head_block(self, method: str) -> tuple[bytes, int]:
        """The part of a request's header block that is the same for every call of a method, and its list's size."""
        head = self._heads.get(method)
        if head is None:
            fields = [
                (":method", "POST"),
                (":scheme", "https" if self._tls is not None else "http"),
                (":path", method),
                (":authority", self._authority),
                ("te", "trailers"),
                ("content-type", wire.CONTENT_TYPE),
                ("grpc-accept-encoding", ACCEPTED),
                ("user-agent", f"whispr-rpc/{__version__}"),
            ]
            head = self._heads[method] = encode(fields), list_bytes(fields)
        return head

    def statistics(self) -> Statistics:
        """What has been called, and what is going on now."""
        return self.census.statistics()

    @property
    def connections(self) -> list[ClientConnection]:
        """Those that take calls."""
        return [one for sub in self.subchannels for one in sub.connections if one.usable]

    def connection_now(self) -> ClientConnection | None:
        """A connection on which a call may start at once, nobody being in line before it."""
        return None if self._line else self._pick()

    async def connection(self, wait_for_ready: bool) -> ClientConnection:
        """A connection on which a stream may be opened, which must be done before anything else.

        Raises WhisprError UNAVAILABLE when connecting fails or failed a moment ago, unless the call waits for
        ready; RESOURCE_EXHAUSTED when too many calls wait.
        """
        picked = self.connection_now()
        if picked is not None:
            return picked
        with trio.CancelScope() as scope:
            if self._guarding is not None and not wait_for_ready:
                scope.deadline = trio.current_time() + self._rules.call.deadline_s
            return await self._wait_for_connection(wait_for_ready)
        told = f"{self.target}: no connection within {self._rules.call.deadline_s:g} s"
        raise WhisprError(Code.DEADLINE_EXCEEDED, told)

    async def _wait_for_connection(self, wait_for_ready: bool) -> ClientConnection:
        picked = None
        tried = False
        while picked is None:
            if any(sub.usable for sub in self.subchannels):
                self._grow()
                await self._wait_in_line()
            elif self._busy or (self._due and (wait_for_ready or not tried)):
                if not self._busy:
                    self._connect()
                tried = True
                await self._wait_in_line()
            elif wait_for_ready:
                with trio.move_on_at(self._retry_at):
                    await self._wait_in_line()
            else:
                raise self._unreachable()
            picked = self._pick()
        return picked

    def make_again(self, call: ClientCall) -> None:
        """Start a call once more that no server has looked at."""
        connection = self.connection_now()
        if connection is not None:
            call.resume(connection)
        else:
            self._nursery.start_soon(call.find_another_connection, name=f"another attempt of {call.method}")

    # --- Connections --------------------------------------------------------------------------------------

    def _pick(self) -> ClientConnection | None:
        subchannels = self.subchannels
        if len(subchannels) == 1:
            return subchannels[0].free()
        for _ in subchannels:
            self._turn += 1
            subchannel = subchannels[self._turn % len(subchannels)]
            connection = subchannel.free()
            if connection is not None:
                return connection
            if subchannel.due and not self._busy:
                self._connect()
        return None

    async def _wait_in_line(self) -> None:
        if len(self._line) >= self.limits.waiting_calls_max:
            raise exhausted(f"too many calls wait for {self.target}", reason="too_many_calls")
        cut_offs = self._cut_offs
        await self._line.park()
        if cut_offs != self._cut_offs and self._guarding is not None:
            raise self._guarding.breaking.refusal()

    def _cut_off(self) -> None:
        """The breaker has tripped: end every call, those in progress and those in line."""
        assert self._guarding is not None
        self._cut_offs += 1
        for subchannel in self.subchannels:
            for connection in list(subchannel.connections):
                connection.cut_off(self._guarding.breaking.refusal)
        self._line.unpark_all()

    def _grow(self) -> None:
        for subchannel in self.subchannels:
            if subchannel.may_grow:
                subchannel.start_connecting()
                return

    @property
    def _busy(self) -> bool:
        return self._looking_up or any(sub.connecting for sub in self.subchannels)

    @property
    def _due(self) -> bool:
        return trio.current_time() >= self._retry_at

    @property
    def _retry_at(self) -> float:
        return min([sub.retry_at for sub in self.subchannels], default=self._look_up_at)

    def _connect(self) -> None:
        """Look up names, unless there are none or it was tried a moment ago, and connect what is due."""
        fixed = all(endpoint.fixed for endpoint in self._endpoints)
        if self.subchannels and (fixed or trio.current_time() < self._look_up_at):
            self._connect_due()
        else:
            self._looking_up = True
            self._nursery.start_soon(self._look_up, name=f"look up {self.target}")

    def _connect_due(self) -> None:
        for subchannel in self.subchannels:
            if subchannel.due:
                subchannel.start_connecting()

    async def _look_up(self) -> None:
        try:
            with trio.fail_after(self.limits.handshake_s):
                self._update(await look_up_all(self._endpoints))
            self._look_ups_failed = 0
        except trio.TooSlowError:
            self._not_found(f"no answer about its name within {self.limits.handshake_s:g} s")
        except OSError as error:
            self._not_found(str(error))
        finally:
            self._looking_up = False
            self._line.unpark_all()
        # Addresses known from before serve while names cannot be looked up.
        self._connect_due()

    def _not_found(self, failure: str) -> None:
        self._look_up_failure = failure
        self._look_up_at = trio.current_time() + backoff_s(self.limits, self._look_ups_failed)
        self._look_ups_failed += 1

    def _update(self, addresses: list[Address]) -> None:
        """Keep the subchannels of addresses that are still there; the others finish their calls."""
        known = dict(zip(self._addresses, self.subchannels, strict=True))
        for address, subchannel in known.items():
            if address not in addresses:
                subchannel.retire()
        self.subchannels = [
            known.get(address)
            or self._subchannel(str(address), partial(self._dial, address.dial, address.endpoint))
            for address in addresses
        ]
        self._addresses = addresses

    def _subchannel(self, name: str, connect: Connect) -> Subchannel:
        return Subchannel(name, connect, self._shared)

    async def _dial(self, connect: Connect, endpoint: Endpoint) -> trio.abc.Stream:
        stream = await connect()
        if self._tls is None:
            return stream
        try:
            return await connect_tls(stream, self._tls, endpoint.host)
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise

    def _unreachable(self) -> WhisprError:
        failures = [f"{sub.name}: {sub.last_failure}" for sub in self.subchannels if sub.last_failure]
        told = "; ".join(failures[:_FAILURES_TOLD]) or self._look_up_failure
        # Rounded up to the milliseconds that the detail carries: who waits that long must not be early.
        wait_s = max(0.0, self._retry_at - trio.current_time()) + 0.001
        return unavailable(f"{self.target}: {told}", retry_after_s=wait_s, facts=NOT_PROCESSED)


@asynccontextmanager
async def open_channel(
    target: str,
    *,
    interceptors: Sequence[Interceptor] = (),
    limits: RpcLimits = RpcLimits(),  # noqa: B008  # frozen
    wait_for_ready: bool = False,
    tls: TlsFiles | None = None,
    compression: str | None = None,
    connect: Connect | None = None,
    guarding: Target | None = None,
    rules: Rules = Rules(),  # noqa: B008  # frozen
) -> AsyncIterator[Channel]:
    """A channel to `target`, such as "host:port"; `targets` lists the forms there are.

    Connects with the first call. While the server cannot be reached calls fail with UNAVAILABLE, or, with
    `wait_for_ready`, wait as long as their scopes let them. `tls` encrypts, checks the server's certificate,
    and shows one if asked. `compression` of the requests: "gzip", "deflate", or none; each call may say otherwise.
    `guarding` is what calls go through, by the `rules` of their methods: deadlines, retries, a breaker, a bulkhead.
    `connect` replaces how a byte stream is had, and `target` is then only a name.
    Calls still going when the block ends fail with UNAVAILABLE. Raises ValueError for a target it cannot read,
    or an encoding that does not exist.
    """
    async with own_nursery("the channel was closed") as nursery:
        yield Channel(
            target, connect, nursery, interceptors, limits, wait_for_ready, tls, compression, guarding, rules
        )
