"""A client's core against a server's, by random commands and random deliveries: they never disagree."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from whispr.http2 import events
from whispr.http2.connection import Connection, Role
from whispr.http2.errors import ErrorCode, LocalError
from whispr.http2.headers import encode
from whispr.http2.limits import Limits

REQUEST = encode([(":method", "POST"), (":scheme", "http"), (":path", "/s/m")])
RESPONSE = encode([(":status", "200")])
TRAILERS = encode([("grpc-status", "0")])

sizes = st.sampled_from([0, 1, 5, 1000, 16_384, 70_000])
chances = st.randoms(use_true_random=False)


@dataclass
class Way:
    """One direction of a stream, as the model has it."""

    sent: int = 0
    received: int = 0
    ended: bool = False
    """By its sender."""
    end_received: bool = False


@dataclass
class End:
    """One end of the connection, and what is on its way to it."""

    core: Connection
    arriving: bytearray = field(default_factory=bytearray)
    unread: list[tuple[int, int]] = field(default_factory=list)


class TwoCores(RuleBasedStateMachine):
    """Commands at either end, and bytes carried in any pieces, in any order of the two directions."""

    @initialize(small=st.booleans(), whole=st.booleans())
    def connect(self, small: bool, whole: bool) -> None:
        # The budget counts what commands give rise to, and no traffic explains what a test makes up.
        limits = Limits(streams_max=3 if small else 1000, control_frames_burst=10**6)
        clock = lambda: 0.0  # noqa: E731
        self.client = End(Connection(Role.CLIENT, limits, clock, whole_messages=whole))
        self.server = End(Connection(Role.SERVER, limits, clock, whole_messages=whole))
        self.requests: dict[int, Way] = {}
        self.responses: dict[int, Way] = {}
        self.answered: set[int] = set()
        self.seen: set[int] = set()
        self.reset: set[int] = set()
        # Until the server's settings have come a client may well open too many streams.
        while any((self._deliver(self.client, 10**9), self._deliver(self.server, 10**9))):
            pass

    # --- Commands -----------------------------------------------------------------------------------------

    @rule(end=st.booleans())
    def open(self, end: bool) -> None:
        if self.client.core.streams_allowed:
            stream_id = self.client.core.open_stream(REQUEST, end)
            self.requests[stream_id] = Way(ended=end)
            self.responses[stream_id] = Way()

    @rule(chance=chances, size=sizes, end=st.booleans())
    def send(self, chance: Random, size: int, end: bool) -> None:
        open_ = [
            stream for stream, way in self.requests.items() if not way.ended and stream not in self.reset
        ]
        self._send(self.client, self.requests, open_, chance, size, end)

    @rule(chance=chances)
    def answer(self, chance: Random) -> None:
        waiting = sorted(self.seen - self.answered - self.reset)
        if waiting:
            stream_id = _choose(chance, waiting)
            self.server.core.send_headers(stream_id, RESPONSE)
            self.answered.add(stream_id)

    @rule(chance=chances, size=sizes, end=st.booleans())
    def respond(self, chance: Random, size: int, end: bool) -> None:
        open_ = [s for s in sorted(self.answered - self.reset) if not self.responses[s].ended]
        self._send(self.server, self.responses, open_, chance, size, end)

    @rule(chance=chances)
    def end_with_trailers(self, chance: Random) -> None:
        open_ = [s for s in sorted(self.answered - self.reset) if not self.responses[s].ended]
        if open_:
            stream_id = _choose(chance, open_)
            self.server.core.send_trailers(stream_id, TRAILERS)
            self.responses[stream_id].ended = True

    @rule(chance=chances, by_client=st.booleans())
    def reset_one(self, chance: Random, by_client: bool) -> None:
        known = sorted(self.requests if by_client else self.seen)
        if known:
            stream_id = _choose(chance, known)
            (self.client if by_client else self.server).core.reset(stream_id, ErrorCode.CANCEL)
            self.reset.add(stream_id)

    @rule(by_client=st.booleans())
    def ping(self, by_client: bool) -> None:
        (self.client if by_client else self.server).core.ping(b"12345678")

    @rule(at_client=st.booleans())
    def consume(self, at_client: bool) -> None:
        end = self.client if at_client else self.server
        unread, end.unread = end.unread, []
        for stream_id, size in unread:
            end.core.consume(stream_id, size)

    def _send(
        self, end: End, ways: dict[int, Way], open_: list[int], chance: Random, size: int, last: bool
    ) -> None:
        if not open_:
            return
        stream_id = _choose(chance, open_)
        way = ways[stream_id]
        if end.core.writable(stream_id):
            try:
                end.core.send_data(stream_id, bytes(size), last)
            except LocalError as error:
                raise AssertionError(f"the model allows it: {error}") from error
            way.sent += size
            way.ended = way.ended or last

    # --- The wire -----------------------------------------------------------------------------------------

    @rule(to_client=st.booleans(), count=st.sampled_from([1, 8, 9, 100, 10_000, 10**6]))
    def carry(self, to_client: bool, count: int) -> None:
        self._deliver(self.client if to_client else self.server, count)

    def _deliver(self, here: End, count: int) -> int:
        """Carry up to `count` bytes to one end; returns how many there were."""
        there = self.server if here is self.client else self.client
        output, _ = there.core.take_output()
        here.arriving += b"".join(output)
        piece = bytes(here.arriving[:count])
        del here.arriving[:count]
        for event in here.core.receive(piece):
            self._happened(event, here)
        return len(piece)

    def _happened(self, event: events.Event, at: End) -> None:
        ways = self.responses if at is self.client else self.requests
        if isinstance(event, events.RequestReceived):
            self.seen.add(event.stream_id)
            self._got(ways[event.stream_id], event.stream_id, len(event.data), True, at)
        elif isinstance(event, events.ResponseReceived):
            self._got(ways[event.stream_id], event.stream_id, len(event.data), True, None)
        elif isinstance(event, events.HeadersReceived):
            self.seen.add(event.stream_id)
            self._got(ways[event.stream_id], event.stream_id, 0, event.end_stream, at)
        elif isinstance(event, events.DataReceived):
            self._got(ways[event.stream_id], event.stream_id, len(event.data), event.end_stream, at)
        elif isinstance(event, events.StreamReset):
            assert event.remote, f"one end finds fault with the other: {event}"
            self.reset.add(event.stream_id)
        else:
            assert not isinstance(event, events.ConnectionFailed), event

    def _got(self, way: Way, stream_id: int, size: int, end: bool, at: End | None) -> None:
        assert not way.end_received, "something follows the end"
        way.received += size
        way.end_received = end
        if at is not None and size:
            at.unread.append((stream_id, size))

    # --- Promises -----------------------------------------------------------------------------------------

    @invariant()
    def nothing_is_made_up(self) -> None:
        for way in (*self.requests.values(), *self.responses.values()):
            assert way.received <= way.sent
            assert way.ended or not way.end_received
        assert not self.client.core.failed
        assert not self.server.core.failed

    def teardown(self) -> None:
        """With everything carried and read, what was not reset has arrived, and both count the same streams."""
        if not hasattr(self, "client"):
            return
        while any((self._deliver(self.client, 10**9), self._deliver(self.server, 10**9))):
            self.consume(True)
            self.consume(False)
        for stream_id in self.requests.keys() - self.reset:
            request, response = self.requests[stream_id], self.responses[stream_id]
            assert (response.received, response.end_received) == (response.sent, response.ended)
            # A complete response makes the rest of the request pointless: nobody has to hear it (section 8.1).
            if request.end_received or not response.end_received:
                assert (request.received, request.end_received) == (request.sent, request.ended)
        assert self.client.core.open_streams == self.server.core.open_streams


def _choose(chance: Random, among: list[int]) -> int:
    return chance.choice(among)


TestTwoCores = TwoCores.TestCase
TestTwoCores.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
