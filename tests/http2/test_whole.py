"""Messages that come in one piece are reported as one, and mean what their frames mean one by one."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from whispr.http2 import events, frames
from whispr.http2.connection import Connection, Role
from whispr.http2.errors import ErrorCode
from whispr.http2.frames import END_HEADERS, END_STREAM, PRIORITY, Type, frame
from whispr.http2.headers import encode
from whispr.http2.limits import Limits

REQUEST = encode([(":method", "POST"), (":scheme", "http"), (":path", "/s/m")])
WITH_LENGTH = encode([(":method", "POST"), (":scheme", "http"), (":path", "/s/m"), ("content-length", "3")])
BAD = encode([(":method", "POST"), (":path", "/s/m")])
LIMITS = Limits(streams_max=4)

requests = st.builds(
    lambda stream_id, block, priority, data_flags, same, data: (
        frame(
            Type.HEADERS,
            END_HEADERS | (PRIORITY if priority else 0),
            stream_id,
            (bytes(5) if priority else b"") + block,
        )
        + frame(Type.DATA, data_flags, stream_id if same else stream_id + 2, data)
    ),
    st.integers(0, 12),
    st.sampled_from([REQUEST, REQUEST, REQUEST, WITH_LENGTH, BAD]),
    st.booleans(),
    st.sampled_from([END_STREAM, END_STREAM, END_STREAM, 0, END_STREAM | frames.PADDED]),
    st.sampled_from([True, True, True, False]),
    st.binary(max_size=6),
)
others = st.one_of(
    st.builds(lambda stream_id: frames.rst_stream(stream_id, ErrorCode.CANCEL), st.integers(1, 9)),
    st.builds(lambda: frames.settings({})),
)


def expanded(reported: list[events.Event]) -> list[events.Event]:
    """The events that stand for single frames' instead."""
    result: list[events.Event] = []
    for event in reported:
        if isinstance(event, events.RequestReceived):
            result.append(events.HeadersReceived(event.stream_id, event.headers, False, False))
            result.append(events.DataReceived(event.stream_id, event.data, True))
        elif isinstance(event, events.ResponseReceived):
            result.append(events.HeadersReceived(event.stream_id, event.headers, False, False))
            result.append(events.DataReceived(event.stream_id, event.data, False))
            result.append(events.HeadersReceived(event.stream_id, event.trailers, True, True))
        else:
            result.append(event)
    return result


def outcome(pieces: list[bytes], whole: bool) -> tuple[str, bytes]:
    """What a server reports, frame by frame, and says."""
    connection = Connection(Role.SERVER, LIMITS, lambda: 0.0, whole_messages=whole)
    reported = [event for piece in pieces for event in connection.receive(piece)]
    output, _ = connection.take_output()
    return repr(expanded(reported)), b"".join(output)


@given(
    st.lists(st.one_of(requests, requests, others), max_size=12), st.lists(st.integers(0, 400), max_size=8)
)
def test_requests_mean_the_same_either_way(sent: list[bytes], cuts: list[int]) -> None:
    """Good requests and bad, in any split: the same events and answers as frame by frame."""
    data = frames.PREFACE + frames.settings({}) + b"".join(sent)
    edges = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    pieces = [data[start:end] for start, end in pairwise(edges)]
    assert outcome(pieces, True) == outcome([data], False)


def pair(whole: bool) -> tuple[Connection, Connection]:
    """A client and a server that have shaken hands."""
    client = Connection(Role.CLIENT, whole_messages=whole)
    server = Connection(Role.SERVER, whole_messages=whole)
    for _ in range(2):
        server.receive(b"".join(client.take_output()[0]))
        client.receive(b"".join(server.take_output()[0]))
    return client, server


def call(
    client: Connection, server: Connection, body: bytes
) -> tuple[list[events.Event], list[events.Event]]:
    """One unary call; what the server and the client were told."""
    head = encode([(":status", "200"), ("content-type", "application/grpc")])
    stream_id = client.request(REQUEST, body)
    at_server = server.receive(b"".join(client.take_output()[0]))
    server.respond(stream_id, head, body, encode([("grpc-status", "0")]))
    return at_server, client.receive(b"".join(server.take_output()[0]))


def test_a_call_seen_before_is_one_event_on_each_side() -> None:
    """The first goes frame by frame, for its header blocks are new; the next in one piece, and both alike."""
    client, server = pair(True)
    first = call(client, server, b"body")
    again = call(client, server, b"body")
    assert [type(event) for event in again[0]] == [events.RequestReceived]
    assert [type(event) for event in again[1]] == [events.ResponseReceived]
    for reported in (*first, *again):
        for event in reported:
            event.stream_id = 0  # type: ignore[union-attr]  # all of these have one
    assert [repr(expanded(side)) for side in again] == [repr(side) for side in first]
    assert client.open_streams == server.open_streams == 0


def test_windows_stay_open_however_many_calls() -> None:
    """What whole messages take from the connection's windows is given back, on both sides."""
    client, server = pair(True)
    for _ in range(400):
        at_server, at_client = call(client, server, bytes(16_000))
        assert at_server
        assert at_client
        server.receive(b"".join(client.take_output()[0]))
        client.receive(b"".join(server.take_output()[0]))
