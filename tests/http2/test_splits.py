"""Any split of the bytes gives the same events, and no bytes at all raise."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from whispr.http2 import frames
from whispr.http2.connection import Connection, Role
from whispr.http2.errors import ErrorCode
from whispr.http2.frames import END_HEADERS, Type, frame
from whispr.http2.headers import encode

BLOCK = encode([(":method", "POST"), (":scheme", "http"), (":path", "/s/m")])

stream_ids = st.sampled_from([0, 1, 1, 3, 3, 5, 2])
anything = st.one_of(
    st.builds(
        lambda stream_id, flags: frame(Type.HEADERS, END_HEADERS | flags, stream_id, BLOCK),
        stream_ids,
        st.sampled_from([0, 1]),
    ),
    st.builds(
        lambda stream_id, flags, payload: frame(Type.DATA, flags, stream_id, payload),
        stream_ids,
        st.sampled_from([0, 0, 1, 8]),
        st.binary(max_size=50),
    ),
    st.builds(lambda stream_id: frames.rst_stream(stream_id, ErrorCode.CANCEL), stream_ids),
    st.builds(frames.window_update, stream_ids, st.sampled_from([0, 1, 1000, 2**31 - 1])),
    st.builds(lambda: frames.ping(b"12345678")),
    st.builds(lambda: frames.settings({})),
    st.builds(frame, st.integers(0, 12), st.integers(0, 255), stream_ids, st.binary(max_size=20)),
)


def outcome(pieces: list[bytes]) -> tuple[str, bytes]:
    """What a server reports and says, in full."""
    connection = Connection(Role.SERVER, clock=lambda: 0.0)
    reported = [event for piece in pieces for event in connection.receive(piece)]
    output, _ = connection.take_output()
    return repr(reported), b"".join(output)


@given(st.lists(anything, max_size=15), st.lists(st.integers(0, 1500), max_size=15))
def test_any_split_gives_the_same_events(sent: list[bytes], cuts: list[int]) -> None:
    """Good frames and bad, in whatever pieces: the same events in the same order, the same bytes in answer."""
    data = frames.PREFACE + frames.settings({}) + b"".join(sent)
    edges = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    pieces = [data[start:end] for start, end in pairwise(edges)]
    assert outcome(pieces) == outcome([data])


@given(st.binary(max_size=400), st.booleans())
def test_no_bytes_raise(noise: bytes, handshake: bool) -> None:
    """Noise, before or after the handshake, is reported and not raised."""
    start = frames.PREFACE + frames.settings({}) if handshake else b""
    outcome([start + noise])


def test_one_byte_at_a_time() -> None:
    """The extreme split: every byte alone."""
    data = frames.PREFACE + frames.settings({}) + frame(Type.HEADERS, END_HEADERS, 1, BLOCK)
    data += frame(Type.DATA, 1, 1, bytes(300))
    assert outcome([data[i : i + 1] for i in range(len(data))]) == outcome([data])
