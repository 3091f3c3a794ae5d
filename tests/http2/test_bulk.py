"""Long DATA: handed on as it comes, and sent without copies."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from whispr.http2 import events, frames
from whispr.http2.connection import Connection, Role
from whispr.http2.errors import ErrorCode
from whispr.http2.frames import END_HEADERS, END_STREAM, PADDED, Setting, Type, frame
from whispr.http2.headers import encode
from whispr.http2.limits import Limits
from whispr.http2.queued import PIECE_BYTES, DataQueue, size_of

Make = Callable[..., Any]

FIELDS = [(":method", "POST"), (":scheme", "http"), (":path", "/s/m")]
BLOCK = encode(FIELDS)
STATUS = encode([(":status", "200")])
LIMITS = Limits(frame_bytes_max=100_000)


def open_(stream_id: int, *more: tuple[str, str]) -> bytes:
    return frame(Type.HEADERS, END_HEADERS, stream_id, encode([*FIELDS, *more]))


def joined(reported: list[events.Event]) -> str:
    """Events, in which DATA of one stream that follows each other is one."""
    whole: list[events.Event] = []
    for event in reported:
        before = whole[-1] if whole else None
        if (
            isinstance(event, events.DataReceived)
            and isinstance(before, events.DataReceived)
            and before.stream_id == event.stream_id
        ):
            both = bytes(before.data) + bytes(event.data)
            whole[-1] = events.DataReceived(event.stream_id, both, event.end_stream)
        elif isinstance(event, events.DataReceived):
            whole.append(events.DataReceived(event.stream_id, bytes(event.data), event.end_stream))
        else:
            whole.append(event)
    return repr(whole)


long_frames = st.one_of(
    st.builds(
        lambda stream_id, flags, size: frame(Type.DATA, flags, stream_id, bytes(size)),
        st.sampled_from([1, 1, 3, 5, 2]),
        st.sampled_from([0, 0, 0, END_STREAM, PADDED]),
        st.sampled_from([0, 1, 4095, 4096, 5000, 20_000, 70_000]),
    ),
    st.builds(lambda stream_id: frames.rst_stream(stream_id, ErrorCode.CANCEL), st.sampled_from([1, 3, 5])),
    st.just(frames.ping(b"12345678")),
)


@given(st.lists(long_frames, max_size=8), st.lists(st.integers(0, 200_000), max_size=12))
def test_any_split_of_long_frames_means_the_same(sent: list[bytes], cuts: list[int]) -> None:
    """What a long frame breaks it breaks at its first byte: windows, lengths, states, wherever reads end."""
    start = frames.PREFACE + frames.settings({}) + open_(1) + open_(3, ("content-length", "25000"))
    octets = start + b"".join(sent)
    edges = sorted({min(cut, len(octets)) for cut in cuts} | {0, len(octets)})
    outcomes = []
    for pieces in ([octets], [octets[begin:end] for begin, end in pairwise(edges)]):
        connection = Connection(Role.SERVER, LIMITS, lambda: 0.0)
        reported = [event for piece in pieces for event in connection.receive(piece)]
        said = b"".join(connection.take_output()[0])
        faults = [
            raw[:3] for raw in frames.FrameReader(100_000, False).feed(said) if raw[0] != Type.WINDOW_UPDATE
        ]
        outcomes.append((joined(reported), faults, connection._window.available))
    assert outcomes[0] == outcomes[1]


def test_long_data_is_reported_before_its_frame_is_complete(raw_server: Make) -> None:
    """Of a frame of 100,000 bytes each read is reported, and only the last ends the stream."""
    peer = raw_server(Limits(frame_bytes_max=100_000, stream_window_bytes=200_000))
    octets = open_(1) + frame(Type.DATA, END_STREAM, 1, bytes(100_000))
    told = [event for at in range(0, len(octets), 30_000) for event in peer.tell(octets[at : at + 30_000])]
    data = [(len(event.data), event.end_stream) for event in told if isinstance(event, events.DataReceived)]
    assert [end for _, end in data] == [False, False, False, True]
    assert sum(size for size, _ in data) == 100_000


def test_a_long_frame_earns_once(raw_server: Make) -> None:
    """However many reads a frame comes in, it explains no more control frames than if it came in one."""
    peer = raw_server(Limits(control_frames_burst=10))
    for _ in range(9):
        peer.tell(frames.ping(bytes(8)))
    octets = open_(1) + frame(Type.DATA, 0, 1, bytes(10_000))
    for at in range(0, len(octets), 100):
        peer.tell(octets[at : at + 100])
    peer.tell(*[frames.ping(bytes(8))] * 3)
    assert peer.goaway() == "ENHANCE_YOUR_CALM"


def test_window_updates_of_a_download_are_no_flood(raw_server: Make) -> None:
    """A client that only receives answers each frame with two updates, for ever, and is welcome to."""
    peer = raw_server(Limits(control_frames_burst=20, control_frames_per_s=0.0001))
    peer.tell(open_(1))
    peer.connection.send_headers(1, STATUS)
    for _ in range(500):
        peer.connection.send_data(1, bytes(16_384))
        peer.listen()
        peer.tell(frames.window_update(0, 16_384), frames.window_update(1, 16_384))
    assert peer.goaway() is None


def test_a_window_opened_by_the_byte_is_a_flood(raw_server: Make) -> None:
    """A peer that makes us send one byte a frame explains nothing by it (CVE-2019-9511)."""
    peer = raw_server(Limits(control_frames_burst=20, control_frames_per_s=0.0001))
    peer.tell(frames.settings({Setting.INITIAL_WINDOW_SIZE: 0}), open_(1))
    peer.connection.send_headers(1, STATUS)
    peer.connection.send_data(1, bytes(10_000))
    for _ in range(30):
        peer.tell(frames.window_update(1, 1))
    assert peer.goaway() == "ENHANCE_YOUR_CALM"


def test_a_long_message_is_not_copied(raw_server: Make) -> None:
    """What goes to the socket are views of the message itself."""
    peer = raw_server()
    huge = {Setting.INITIAL_WINDOW_SIZE: 2**30, Setting.MAX_FRAME_SIZE: 2**20}
    peer.tell(frames.settings(huge), frames.window_update(0, 2**30), open_(1))
    peer.connection.send_headers(1, STATUS)
    message = bytes(1_000_000)
    peer.connection.send_data(1, (b"short", message))
    views = []
    while output := peer.connection.take_output()[0]:
        views += [piece for piece in output if isinstance(piece, memoryview)]
    assert all(view.obj is message for view in views)
    assert sum(map(len, views)) == 1_000_000


pieces = st.lists(st.sampled_from([0, 1, 100, PIECE_BYTES - 1, PIECE_BYTES, 3 * PIECE_BYTES]), max_size=8)


@given(pieces, st.lists(st.integers(1, 4 * PIECE_BYTES), max_size=30))
def test_a_queue_gives_what_was_added(sizes: list[int], takes: list[int]) -> None:
    """Pieces short and long come out in order, in whatever amounts, and what is held is held until it has gone."""
    queue, added, taken = DataQueue(), b"", b""
    for number, size in enumerate(sizes):
        piece = bytes([number]) * size
        queue.add((piece, b"end") if number % 2 else piece)
        added += piece + (b"end" if number % 2 else b"")
    for count in takes:
        taken += b"".join(queue.take(min(count, len(queue))))
        assert len(queue) == len(added) - len(taken)
        assert len(queue) <= queue.held <= len(queue) + 3 * PIECE_BYTES
    taken += b"".join(queue.take(len(queue)))
    assert taken == added
    assert (len(queue), queue.held) == (0, 0)


def test_a_message_counts_until_the_last_of_it_has_gone(raw_server: Make) -> None:
    """Nobody holds a megabyte in our memory for the price of its last byte."""
    peer = raw_server(Limits(queued_bytes_max=1_500_000))
    peer.tell(frames.window_update(0, 2**30), open_(1))
    peer.connection.send_headers(1, STATUS)
    message = (b"prefix", bytes(1_000_000))
    peer.connection.send_data(1, message)
    peer.tell(frames.window_update(1, size_of(message) - 65_535 - 1))
    while peer.listen():
        pass
    assert sum(len(raw[3]) for raw in peer.said if raw[0] == Type.DATA) == size_of(message) - 1
    assert not peer.connection.queues(1_000_000)
    peer.tell(frames.window_update(1, 1))
    assert peer.connection.queues(1_000_000)
