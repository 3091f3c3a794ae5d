"""Flow control and fair sending (RFC 9113 section 5.2 and 6.9)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from whispr.http2 import events, frames
from whispr.http2.connection import Connection, Role
from whispr.http2.errors import ErrorCode, LocalError
from whispr.http2.flow import ReceiveWindow
from whispr.http2.frames import END_HEADERS, END_STREAM, Setting, Type, frame
from whispr.http2.headers import encode
from whispr.http2.limits import Limits

Make = Callable[..., Any]

BLOCK = encode([(":method", "POST"), (":scheme", "http"), (":path", "/s/m")])
STATUS = encode([(":status", "200")])
TRAILERS = encode([("grpc-status", "0")])
HUGE = {Setting.INITIAL_WINDOW_SIZE: 2**30}


def open_(stream_id: int) -> bytes:
    return frame(Type.HEADERS, END_HEADERS, stream_id, BLOCK)


def sent_data(peer: Any) -> list[tuple[int, int]]:
    return [(stream_id, len(payload)) for kind, _, stream_id, payload in peer.said if kind == Type.DATA]


def test_a_window_is_announced_by_halves_and_grows() -> None:
    """Small reads announce nothing; half a window read announces it, doubled, up to the limit."""
    window = ReceiveWindow(100, 300)
    window.available -= 100
    assert [window.consume(20), window.consume(20), window.consume(20)] == [0, 0, 160]
    assert window.available == 160
    assert window.consume(100) == 200
    assert window.consume(150) == 150


def test_sending_stops_at_the_streams_window(raw_server: Make) -> None:
    """DATA beyond the peer's window waits for WINDOW_UPDATE, and trailers wait behind it."""
    peer = raw_server()
    peer.tell(open_(1))
    peer.connection.send_headers(1, STATUS)
    peer.connection.send_data(1, bytes(70_000))
    peer.connection.send_trailers(1, TRAILERS)
    peer.tell(frames.window_update(0, 100_000))
    assert sum(size for _, size in sent_data(peer)) == 65_535
    assert peer.connection.open_streams == 1
    peer.tell(frames.window_update(1, 100_000))
    peer.listen()
    assert sum(size for _, size in sent_data(peer)) == 70_000
    assert peer.said[-2][0:2] == (Type.HEADERS, END_HEADERS | END_STREAM)


def test_sending_stops_at_the_connections_window(raw_server: Make) -> None:
    """All streams together stay within the connection's window."""
    peer = raw_server()
    peer.tell(frames.settings(HUGE), open_(1), open_(3))
    for stream_id in (1, 3):
        peer.connection.send_headers(stream_id, STATUS)
        peer.connection.send_data(stream_id, bytes(50_000))
    while peer.listen():
        pass
    assert sum(size for _, size in sent_data(peer)) == 65_535
    peer.tell(frames.window_update(0, 50_000))
    assert sum(size for _, size in sent_data(peer)) == 100_000


def test_a_smaller_initial_window_can_be_negative(raw_server: Make) -> None:
    """Section 6.9.2: shrinking the initial window takes from streams what they have already used."""
    peer = raw_server()
    peer.tell(open_(1))
    peer.connection.send_headers(1, STATUS)
    peer.connection.send_data(1, bytes(10_000))
    peer.tell(frames.settings({Setting.INITIAL_WINDOW_SIZE: 0}))
    peer.connection.send_data(1, b"x")
    peer.tell(frames.window_update(1, 10_000))
    assert sum(size for _, size in sent_data(peer)) == 10_000
    peer.tell(frames.window_update(1, 1))
    assert sum(size for _, size in sent_data(peer)) == 10_001


def test_streams_take_turns(raw_server: Make) -> None:
    """With two streams queueing, frames alternate: the one that queued a megabyte first gains nothing."""
    peer = raw_server()
    peer.tell(frames.settings(HUGE), frames.window_update(0, 2**30), open_(1), open_(3))
    peer.connection.send_headers(1, STATUS)
    peer.connection.send_data(1, bytes(1_000_000))
    peer.connection.send_headers(3, STATUS)
    peer.connection.send_data(3, bytes(60_000))
    while peer.listen():
        pass
    order = [stream_id for stream_id, _ in sent_data(peer)]
    assert order[:8] == [1, 3, 1, 3, 1, 3, 1, 3]
    assert sum(size for _, size in sent_data(peer)) == 1_060_000


def test_a_lone_stream_sends_frames_as_large_as_the_peer_takes(raw_server: Make) -> None:
    """Frames grow to the peer's MAX_FRAME_SIZE, up to 256 KiB, and shrink to turns when another stream queues."""
    peer = raw_server()
    large = {**HUGE, Setting.MAX_FRAME_SIZE: 100_000}
    peer.tell(frames.settings(large), frames.window_update(0, 2**30), open_(1), open_(3))
    peer.connection.send_headers(1, STATUS)
    peer.connection.send_data(1, bytes(350_000))
    peer.listen()
    peer.connection.send_headers(3, STATUS)
    peer.connection.send_data(3, bytes(20_000))
    while peer.listen():
        pass
    assert sent_data(peer)[:4] == [(1, 100_000), (1, 16_384), (3, 16_384), (1, 16_384)]
    assert sent_data(peer)[4:] == [(3, 3_616), (1, 100_000), (1, 100_000), (1, 17_232)]


@pytest.mark.parametrize("limit", [2**18, 2**24 - 1])
def test_no_frame_is_longer_than_a_lone_turn(raw_server: Make, limit: int) -> None:
    """A peer that takes frames of 16 MiB gets them of 256 KiB, so that other streams never wait for more."""
    peer = raw_server()
    peer.tell(frames.settings({**HUGE, Setting.MAX_FRAME_SIZE: limit}))
    peer.tell(frames.window_update(0, 2**30), open_(1))
    peer.connection.send_headers(1, STATUS)
    peer.connection.send_data(1, bytes(600_000))
    while peer.listen():
        pass
    assert sent_data(peer) == [(1, 262_144), (1, 262_144), (1, 75_712)]


def test_a_writer_is_told_when_to_wait_and_when_to_go_on(raw_server: Make) -> None:
    """Past 64 KiB queued a stream is not writable; it is named once that has drained."""
    peer = raw_server()
    peer.tell(open_(1))
    peer.connection.send_headers(1, STATUS)
    assert peer.connection.writable(1)
    peer.connection.send_data(1, bytes(200_000))
    assert not peer.connection.writable(1)
    assert peer.connection.take_output()[1] == []
    peer.connection.receive(frames.window_update(0, 10**6) + frames.window_update(1, 10**6))
    assert peer.connection.take_output()[1] == []
    drained = [stream_id for _ in range(3) for stream_id in peer.connection.take_output()[1]]
    assert drained == [1]


def test_a_peer_that_exceeds_a_streams_window_loses_the_stream(raw_server: Make) -> None:
    """Section 6.9.1: a stream error of type FLOW_CONTROL_ERROR, and the connection's window is made good."""
    peer = raw_server()
    peer.tell(open_(1), *[frame(Type.DATA, 0, 1, bytes(16_000))] * 5)
    assert peer.resets() == {1: "FLOW_CONTROL_ERROR"}
    assert peer.goaway() is None


def test_a_peer_that_exceeds_the_connections_window_loses_it(raw_server: Make) -> None:
    """Section 6.9.1: a connection error of type FLOW_CONTROL_ERROR."""
    limits = Limits(connection_window_bytes=65_535, connection_window_bytes_max=65_535, unread_bytes_max=0)
    peer = raw_server(limits)
    peer.tell(open_(1), open_(3))
    peer.tell(*[frame(Type.DATA, 0, stream_id, bytes(16_384)) for stream_id in (1, 1, 3, 3)])
    assert peer.goaway() == "FLOW_CONTROL_ERROR"


def test_an_unread_stream_does_not_stop_the_others(raw_server: Make) -> None:
    """The connection's window opens as bytes arrive; the unread stream is stopped by its own."""
    peer = raw_server(Limits(connection_window_bytes=65_535, connection_window_bytes_max=65_535))
    peer.tell(open_(1), frame(Type.DATA, 0, 1, bytes(16_384)) * 3)
    peer.tell(open_(3))
    for _ in range(20):
        peer.tell(frame(Type.DATA, 0, 3, bytes(10_000)))
        peer.connection.consume(3, 10_000)
    assert peer.goaway() is None
    assert peer.resets() == {}


def test_padding_is_given_back_at_once(raw_server: Make) -> None:
    """Section 6.9.1: padding counts against the window, and nobody will ever consume it."""
    peer = raw_server()
    peer.tell(open_(1))
    for _ in range(1000):
        peer.tell(frame(Type.DATA, frames.PADDED, 1, b"\xff" + b"x" + bytes(255)))
        peer.connection.consume(1, 1)
    assert peer.resets() == {}


def test_a_transfer_larger_than_any_window(carry: Make) -> None:
    """Ten megabytes arrive, in order, as long as they are consumed; the windows have grown on the way."""
    client, server = Connection(Role.CLIENT), Connection(Role.SERVER)
    stream_id = client.open_stream(BLOCK)
    body = bytes(range(256)) * 40_960
    client.send_data(stream_id, body, end_stream=True)
    received = bytearray()
    rounds = 0
    while len(received) < len(body):
        _, reported = carry(client, server)
        for event in reported:
            if isinstance(event, events.DataReceived):
                received += event.data
                server.consume(stream_id, len(event.data))
        rounds += 1
    assert received == body
    assert rounds < 60


def test_commands_out_of_order_are_our_own_mistake(raw_server: Make) -> None:
    """DATA after the end is LocalError; commands for a stream that is gone are not."""
    peer = raw_server()
    peer.tell(open_(1))
    peer.connection.send_headers(1, STATUS)
    peer.connection.send_data(1, bytes(100_000), end_stream=True)
    with pytest.raises(LocalError):
        peer.connection.send_data(1, b"more")
    peer.tell(frames.rst_stream(1, ErrorCode.CANCEL))
    peer.connection.send_data(1, b"more")
    peer.connection.send_trailers(1, TRAILERS)
    assert not peer.connection.unsent
