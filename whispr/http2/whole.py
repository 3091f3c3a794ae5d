"""Whole messages at once: the frames of nearly every unary call, taken off a read in one go.

Almost every request of a unary call is one HEADERS and one DATA that ends the stream, one after the other in
the same read, with a header block seen before; its response is HEADERS, DATA and trailers. Going through
them frame by frame, state by state, costs more than everything else a call does. What is taken here breaks
no rule by construction: each condition below is one that the frame-by-frame way checks too. Whatever does
not fulfil all of them is left in the reader for that way, so this one never raises and never refuses.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from whispr.http2 import events
from whispr.http2.flow import ConnectionWindow
from whispr.http2.frames import END_HEADERS, END_STREAM, MAX_STREAM_ID, PRIORITY, FrameReader, Type
from whispr.http2.headers import Decoder, Kind
from whispr.http2.limits import ControlBudget, Limits
from whispr.http2.states import State
from whispr.http2.streams import Stream, Streams

_START = struct.Struct(">HBHL")
"""A frame's header, with type and flags in one: lengths are 16 + 8 bits."""

_HEADERS = Type.HEADERS << 8 | END_HEADERS
_HEADERS_WITH_PRIORITY = _HEADERS | PRIORITY
_TRAILERS = _HEADERS | END_STREAM
_DATA = Type.DATA << 8
_LAST_DATA = _DATA | END_STREAM


class WholeMessages:
    """Takes whole messages off a connection's reader. `requests` is a server's, `responses` a client's."""

    __slots__ = (
        "_budget",
        "_limits",
        "_reader",
        "_request_lists",
        "_response_lists",
        "_streams",
        "_trailers_lists",
        "_window",
    )

    def __init__(
        self,
        server: bool,
        reader: FrameReader,
        decoder: Decoder,
        streams: Streams,
        window: ConnectionWindow,
        budget: ControlBudget,
        limits: Limits,
    ) -> None:
        self._reader = reader
        self._streams = streams
        self._window = window
        self._budget = budget
        self._limits = limits
        if server:
            self._request_lists = decoder.known(Kind.REQUEST)
        else:
            self._response_lists = decoder.known(Kind.RESPONSE)
            self._trailers_lists = decoder.known(Kind.TRAILERS)

    def requests(self, reported: list[events.Event]) -> int:
        """Report the whole requests that come next; returns by how much to open the connection's window."""
        reader, streams, limits = self._reader, self._streams, self._limits
        data, at = reader.data, reader.at
        available, unpack = len(data), _START.unpack_from
        held, room = 0, self._window.available
        while available - at >= 18:
            high, low, kind, stream_id = unpack(data, at)
            if kind == _HEADERS:
                block_at = at + 9
            elif kind == _HEADERS_WITH_PRIORITY and not _depends_on_itself(data, at, stream_id):
                block_at = at + 14
            else:
                break
            data_at = at + 9 + (high << 8 | low)
            if available - data_at < 9:
                break
            high, low, kind, same_id = unpack(data, data_at)
            size = high << 8 | low
            end = data_at + 9 + size
            if kind != _LAST_DATA or same_id != stream_id or end > available:
                break
            headers = self._request_lists.get(data[block_at:data_at])
            if (
                headers is None
                or not headers.plain
                or headers.list_bytes > limits.header_list_bytes_max
                or not 0 < size <= limits.frame_bytes_max
                or size > limits.stream_window_bytes
                or held + size > room
                or not streams.last_peer_id < stream_id <= MAX_STREAM_ID
                or stream_id & 1 == 0
                or len(streams) >= limits.streams_max
            ):
                break
            streams.accept_whole(stream_id, size)
            reported.append(events.RequestReceived(stream_id, headers, data[data_at + 9 : end]))
            held += size
            at = end
            self._budget.earn(1)
        reader.at = at
        return self._hold(held)

    def responses(self, finish: Callable[[Stream], None], reported: list[events.Event]) -> int:
        """Report the whole responses that come next; returns by how much to open the connection's window.

        `finish` closes a stream. The bodies do not count as unread: their windows are no more.
        """
        reader, streams, limits = self._reader, self._streams, self._limits
        data, at = reader.data, reader.at
        available, unpack = len(data), _START.unpack_from
        held, room = 0, self._window.available
        while available - at >= 27:
            high, low, kind, stream_id = unpack(data, at)
            data_at = at + 9 + (high << 8 | low)
            if kind != _HEADERS or available - data_at < 18:
                break
            high, low, kind, data_id = unpack(data, data_at)
            size = high << 8 | low
            trailers_at = data_at + 9 + size
            if kind != _DATA or data_id != stream_id or available - trailers_at < 9:
                break
            high, low, kind, trailers_id = unpack(data, trailers_at)
            end = trailers_at + 9 + (high << 8 | low)
            stream = streams.get(stream_id)
            if kind != _TRAILERS or trailers_id != stream_id or end > available or stream is None:
                break
            headers = self._response_lists.get(data[at + 9 : data_at])
            trailers = self._trailers_lists.get(data[trailers_at + 9 : end])
            if (
                headers is None
                or trailers is None
                or not (headers.plain and trailers.plain and headers.final)
                or max(headers.list_bytes, trailers.list_bytes) > limits.header_list_bytes_max
                or not 0 < size <= limits.frame_bytes_max
                or size > stream.receive_window.available
                or held + size > room
                or stream.headers_received
                or stream.state is not State.HALF_CLOSED_LOCAL
            ):
                break
            finish(stream)
            reported.append(
                events.ResponseReceived(stream_id, headers, data[data_at + 9 : trailers_at], trailers)
            )
            held += size
            at = end
            self._budget.earn(1)
        reader.at = at
        return self._hold(held) + self._window.release(held)

    def _hold(self, size: int) -> int:
        self._window.arrive(size)
        return self._window.hold(size)


def _depends_on_itself(data: bytes, at: int, stream_id: int) -> bool:
    return int.from_bytes(data[at + 9 : at + 13], "big") & MAX_STREAM_ID == stream_id
