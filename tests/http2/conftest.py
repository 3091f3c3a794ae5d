"""Two connections wired together, and a peer that speaks raw frames."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest

from whispr.http2 import events, frames
from whispr.http2.connection import Connection, Role
from whispr.http2.errors import ErrorCode
from whispr.http2.frames import Type
from whispr.http2.headers import encode
from whispr.http2.limits import Limits

REQUEST = encode(
    [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/s/m"),
        (":authority", "x"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ]
)


@dataclass
class RawPeer:
    """A connection under test, and what it says, cut into frames."""

    connection: Connection
    clock: list[float]
    reported: list[events.Event] = field(default_factory=list)
    said: list[frames.RawFrame] = field(default_factory=list)
    _reader: frames.FrameReader = field(default_factory=lambda: frames.FrameReader(2**24 - 1, False))

    def tell(self, *octets: bytes) -> list[events.Event]:
        """Feed bytes; returns the new events, and collects what is answered in `said`."""
        new: list[events.Event] = []
        for piece in octets:
            new += self.connection.receive(piece)
        self.reported += new
        self.listen()
        return new

    def listen(self) -> list[frames.RawFrame]:
        """Collect and return what the connection has to say."""
        output, _ = self.connection.take_output()
        new = list(self._reader.feed(b"".join(output)))
        self.said += new
        return new

    def goaway(self) -> str | None:
        """The code of the last GOAWAY said."""
        sent = [payload for kind, _, _, payload in self.said if kind == Type.GOAWAY]
        return frames.parse_goaway(sent[-1])[1].name if sent else None

    def resets(self) -> dict[int, str]:
        """Code of RST_STREAM by stream."""
        return {
            stream_id: ErrorCode.of(int.from_bytes(payload, "big")).name
            for kind, _, stream_id, payload in self.said
            if kind == Type.RST_STREAM
        }


RawPeerFactory = Callable[..., RawPeer]


@pytest.fixture
def raw_server() -> RawPeerFactory:
    """A server past its handshake, driven by raw client frames."""

    def make(limits: Limits | None = None) -> RawPeer:
        clock = [0.0]
        peer = RawPeer(Connection(Role.SERVER, limits or Limits(), lambda: clock[0]), clock)
        peer.tell(frames.PREFACE + frames.settings({}))
        peer.said.clear()
        peer.reported.clear()
        return peer

    return make


@pytest.fixture
def raw_client() -> RawPeerFactory:
    """A client past its handshake, driven by raw server frames."""

    def make(limits: Limits | None = None, settings: dict[frames.Setting, int] | None = None) -> RawPeer:
        clock = [0.0]
        peer = RawPeer(Connection(Role.CLIENT, limits or Limits(), lambda: clock[0]), clock)
        preface, _ = peer.connection.take_output()
        assert preface[0][: len(frames.PREFACE)] == frames.PREFACE
        peer.tell(frames.settings(settings or {}))
        peer.said.clear()
        peer.reported.clear()
        return peer

    return make


def exchange(client: Connection, server: Connection) -> tuple[list[events.Event], list[events.Event]]:
    """Carry bytes both ways until neither has more to say; returns what each reported."""
    at_client: list[events.Event] = []
    at_server: list[events.Event] = []
    while True:
        there, _ = client.take_output()
        back, _ = server.take_output()
        if not there and not back:
            return at_client, at_server
        at_server += server.receive(b"".join(there))
        at_client += client.receive(b"".join(back))


@pytest.fixture
def request_block() -> bytes:
    """The header block of a well-formed request."""
    return REQUEST


@pytest.fixture
def carry() -> Callable[[Connection, Connection], tuple[Sequence[events.Event], Sequence[events.Event]]]:
    """`exchange`, for tests."""
    return exchange
