"""What the peer's frames do to a connection.

Theory of operation. `receive` splits bytes into frames and dispatches each, by type, to one method, which
updates streams and windows and appends events. Peers' mistakes are raised inside as ProtocolError or
StreamError and end in one place: a stream fault becomes RST_STREAM and a `StreamReset` event, a connection
fault becomes GOAWAY and a `ConnectionFailed` event, after which the connection is deaf.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from whispr.http2 import events, frames
from whispr.http2.core import DEBUG_BYTES_MAX, Core
from whispr.http2.errors import ErrorCode, ProtocolError, StreamError
from whispr.http2.frames import Setting, Type
from whispr.http2.headers import Headers, Kind
from whispr.http2.partial import PartialBlock
from whispr.http2.states import Input, after
from whispr.http2.streams import Stream


class Incoming(Core):
    """A connection that listens."""

    __slots__ = ()

    def receive(self, data: bytes) -> list[events.Event]:
        """Take what the peer sent, in any split, and report what it means. Never raises for its sake."""
        if self.failed:
            return []
        reported: list[events.Event] = []
        self._events = reported
        try:
            self._reader.push(data)
            self._take_whole()
            while (raw := self._reader.next()) is not None:
                kind, flags, stream_id, payload = raw
                if self._partial is not None and kind != Type.CONTINUATION:
                    raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "header block interrupted")
                if not self._settings_seen and kind != Type.SETTINGS:
                    raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "first frame is not SETTINGS")
                try:
                    _HANDLERS.get(kind, Incoming._on_unknown)(self, flags, stream_id, payload)
                except StreamError as fault:
                    self._fail_stream(fault)
                self._take_whole()
        except ProtocolError as fault:
            self._fail(fault)
        self._events = []  # what has been reported is not held until something else comes
        return reported

    def _take_whole(self) -> None:
        """Take what comes in one piece the short way, unless there is more to consider than it does."""
        if (
            self._whole is not None
            and self._settings_seen
            and self._partial is None
            and self._goaway_id is None
            and not self._reader.within_data
        ):
            self._announce(0, self._whole(self._events))

    def _fail_stream(self, fault: StreamError) -> None:
        self._budget.spend()
        stream = self._streams.get(fault.stream_id)
        if stream is None and self._streams.is_idle(fault.stream_id):
            raise ProtocolError(fault.code, fault.message)  # there is no stream yet to reset
        self._sender.output += frames.rst_stream(fault.stream_id, fault.code)
        if stream is not None:
            self._close(stream, reset=True)
            self._events.append(events.StreamReset(stream.id, fault.code, False, fault.message))

    def _fail(self, fault: ProtocolError) -> None:
        self.failed = True
        self.go_away(fault.code, fault.message)
        self._events.append(events.ConnectionFailed(fault.code, fault.message))

    # --- Frames -------------------------------------------------------------------------------------------

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        data = frames.unpad(payload) if flags & frames.PADDED else payload
        if data:
            self._budget.earn(1)
        elif not flags & frames.END_STREAM:
            self._budget.spend()
        stream = self._begin_data(stream_id, size, size, len(data))
        if stream is not None:
            if size > len(data):
                self.consume(stream_id, size - len(data))
            self._deliver(stream, data, flags)

    def _on_data_begins(self, flags: int, stream_id: int, payload: bytes) -> None:
        """The beginning of a long DATA frame, the whole of which is judged by it."""
        self._budget.earn(1)
        size = self._reader.data_bytes
        stream = self._begin_data(stream_id, len(payload), size, size)
        if stream is not None:
            self._deliver(stream, payload, flags)

    def _on_data_goes_on(self, flags: int, stream_id: int, payload: bytes) -> None:
        stream = self._hold(stream_id, len(payload))
        if stream is not None:
            self._deliver(stream, payload, flags)

    def _begin_data(self, stream_id: int, arrived: int, size: int, body: int) -> Stream | None:
        """Judge a DATA frame of `size` bytes, `body` of which are not padding, and of which `arrived` are there."""
        if not self._window.arrive(size):
            raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "connection window exceeded")
        stream = self._hold(stream_id, arrived)
        if stream is None:
            self._streams.check_gone(stream_id, "DATA")
        else:
            stream.take_data(body, size)
        return stream

    def _hold(self, stream_id: int, count: int) -> Stream | None:
        """Count what has come of a DATA frame; returns its stream, None if that is gone."""
        # Whatever becomes of the bytes, the connection's window has to open again for them.
        self._announce(0, self._window.hold(count))
        stream = self._streams.get(stream_id)
        if stream is None:
            self._announce(0, self._window.release(count))
        else:
            stream.unread += count
        return stream

    def _deliver(self, stream: Stream, data: bytes, flags: int) -> None:
        end = bool(flags & frames.END_STREAM)
        if data or end:
            self._events.append(events.DataReceived(stream.id, data, end))
        if end:
            self._received_end(stream)

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if flags & (frames.PADDED | frames.PRIORITY):
            payload = frames.block_of(flags, stream_id, payload)
        end_stream = bool(flags & frames.END_STREAM)
        if flags & frames.END_HEADERS:
            self._block_complete(stream_id, payload, end_stream)
        else:
            self._partial = PartialBlock(stream_id, end_stream, bytearray(payload))

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        begun = self._partial
        if begun is None or begun.stream_id != stream_id:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "CONTINUATION without its HEADERS")
        begun.add(payload, self.limits)
        if flags & frames.END_HEADERS:
            self._partial = None
            self._block_complete(stream_id, bytes(begun.fragments), begun.end_stream)

    def _block_complete(self, stream_id: int, block: bytes, end_stream: bool) -> None:
        stream = self._streams.get(stream_id)
        if stream is not None and stream.headers_received:
            headers = self._decoder.decode(block, Kind.TRAILERS)
            if not end_stream:
                raise StreamError(stream_id, ErrorCode.PROTOCOL_ERROR, "trailers without END_STREAM")
        elif self._server:
            headers = self._decoder.decode(block, Kind.REQUEST)
            stream = self._accept_stream(stream_id)
        else:
            headers = self._decoder.decode(block, Kind.IGNORED if stream is None else Kind.RESPONSE)
        if stream is None:
            self._streams.check_gone(stream_id, "HEADERS")
            self._budget.spend()
        else:
            self._take_headers(stream, headers, end_stream)

    def _accept_stream(self, stream_id: int) -> Stream | None:
        stream = self._streams.accept(stream_id)
        if stream is not None and self._goaway_id is not None:
            raise StreamError(stream_id, ErrorCode.REFUSED_STREAM, "going away")
        if len(self._streams) > self.limits.streams_max:
            raise StreamError(stream_id, ErrorCode.REFUSED_STREAM, "too many streams")
        return stream

    def _take_headers(self, stream: Stream, headers: Headers, end_stream: bool) -> None:
        stream.state = after(stream.state, Input.RECEIVE_HEADERS, stream.id)
        if headers.list_bytes > self.limits.header_list_bytes_max:
            raise StreamError(stream.id, ErrorCode.ENHANCE_YOUR_CALM, "header list too large")
        if headers.problem is not None:
            raise StreamError(stream.id, ErrorCode.PROTOCOL_ERROR, headers.problem)
        trailers = stream.headers_received
        if not trailers and not self._server and headers.fields[0][1].startswith("1"):
            # An interim response (RFC 9110 section 15.2) precedes the real one and may not end the stream.
            if end_stream:
                raise StreamError(stream.id, ErrorCode.PROTOCOL_ERROR, "interim response ends the stream")
            self._budget.spend()
            return
        stream.headers_received = True
        if not trailers:
            stream.body_left = headers.content_length
        self._events.append(events.HeadersReceived(stream.id, headers, end_stream, trailers))
        if end_stream:
            self._received_end(stream)

    def _on_rst_stream(self, flags: int, stream_id: int, payload: bytes) -> None:
        stream = self._streams.get(stream_id)
        self._budget.spend()
        if stream is None:
            self._streams.reset_by_peer(stream_id)
        else:
            self._close(stream, reset=False)
            code = ErrorCode.of(int.from_bytes(payload, "big"))
            self._events.append(events.StreamReset(stream_id, code, True, f"reset by peer: {code.name}"))

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._budget.spend()
        if flags & frames.ACK:
            if payload:
                raise ProtocolError(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS acknowledgement with a payload")
            if not self._settings_seen:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "first frame is not SETTINGS")
            return
        self._settings_seen = True
        for name, value in frames.parse_settings(payload):
            self._apply_setting(name, value)
        self._sender.output += frames.SETTINGS_ACK
        self._events.append(events.SettingsReceived())

    def _apply_setting(self, name: int, value: int) -> None:
        """Our encoder uses no dynamic table, so its size limit changes nothing here."""
        frames.check_setting(name, value, by_client=self._server)
        if name == Setting.INITIAL_WINDOW_SIZE:
            change = value - self._streams.send_window
            self._streams.send_window = value
            self._sender.grow_streams(self._streams, change)
        elif name == Setting.MAX_CONCURRENT_STREAMS:
            self._peer_streams_max = value
        elif name == Setting.MAX_FRAME_SIZE:
            self._sender.peer_frame_bytes_max = value
        elif name == Setting.MAX_HEADER_LIST_SIZE:
            self.peer_header_list_bytes_max = value

    def _on_push_promise(self, flags: int, stream_id: int, payload: bytes) -> None:
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE, which is disabled")

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._budget.spend()
        if flags & frames.ACK:
            self._events.append(events.PingAcknowledged(payload))
        else:
            if self.on_ping is not None:
                self.on_ping()
            self._sender.output += frames.ping(payload, ack=True)

    def _on_goaway(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._budget.spend()
        last_stream_id, code, debug = frames.parse_goaway(payload)
        self.peer_going_away = True
        self._events.append(events.GoAwayReceived(last_stream_id, code, debug[:DEBUG_BYTES_MAX]))

    def _on_window_update(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._budget.spend()
        increment = int.from_bytes(payload, "big") & frames.MAX_WINDOW
        if stream_id == 0:
            if increment == 0:
                raise ProtocolError(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            self._sender.grow_connection(increment)
            return
        stream = self._streams.get(stream_id)
        if stream is not None:
            if increment == 0:
                raise StreamError(stream_id, ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE of 0")
            self._sender.grow_stream(stream, increment)
        elif self._streams.is_idle(stream_id):
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"WINDOW_UPDATE on idle stream {stream_id}")

    def _on_priority(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Deprecated (section 5.3.2), and ignored once its shape has been checked."""
        self._budget.spend()
        frames.check_priority(stream_id, payload)

    def _on_unknown(self, flags: int, stream_id: int, payload: bytes) -> None:
        """Frames of unknown types are ignored (section 5.5), but not for ever."""
        self._budget.spend()


_HANDLERS: Mapping[int, Callable[[Incoming, int, int, bytes], None]] = {
    frames.DATA_BEGINS: Incoming._on_data_begins,
    frames.DATA_GOES_ON: Incoming._on_data_goes_on,
    **{kind: getattr(Incoming, f"_on_{kind.name.lower()}") for kind in Type},
}
"""By frame type, such as `_on_data`."""
