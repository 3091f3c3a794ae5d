"""One HTTP/2 connection, either side (RFC 9113).

Theory of operation. `receive` splits bytes into frames and dispatches each, by type, to one method, which
updates streams and windows and appends events. Peers' mistakes are raised inside as ProtocolError or
StreamError and end in one place: a stream fault becomes RST_STREAM and a `StreamReset` event, a connection
fault becomes GOAWAY and a `ConnectionFailed` event, after which the connection is deaf.

Streams exist here from their first HEADERS until both sides have ended them or one has reset them. Frames
for a stream that is gone are an error if the peer itself ended it, and otherwise ignored, since they may
have crossed our RST_STREAM on the way (section 5.1). Header blocks are decoded in every case, for the
dynamic table's sake.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from functools import partial

from whispr.http2 import events, frames
from whispr.http2.errors import ErrorCode, LocalError, ProtocolError, StreamError
from whispr.http2.flow import ConnectionWindow
from whispr.http2.frames import Setting, Type
from whispr.http2.headers import Decoder, Headers, Kind, SharedHeaders
from whispr.http2.limits import ControlBudget, Limits
from whispr.http2.partial import PartialBlock
from whispr.http2.queued import Data, Octets
from whispr.http2.sender import FRAME_BYTES, Sender
from whispr.http2.states import Input, State, after
from whispr.http2.states import Role as Role
from whispr.http2.streams import Stream, Streams
from whispr.http2.whole import WholeMessages

_EARNED_BY_A_STREAM = 2
"""Control frames that a stream explains: a window update or ping, and a late RST_STREAM."""

_DEBUG_BYTES_MAX = 200


class Connection:
    """The state of one connection. Not reentrant, and belongs to one task at a time."""

    __slots__ = (
        "_budget",
        "_decoder",
        "_events",
        "_goaway_id",
        "_partial",
        "_peer_streams_max",
        "_reader",
        "_sender",
        "_server",
        "_settings_seen",
        "_streams",
        "_whole",
        "_window",
        "failed",
        "limits",
        "on_ping",
        "peer_going_away",
        "peer_header_list_bytes_max",
    )

    def __init__(
        self,
        role: Role,
        limits: Limits = Limits(),  # noqa: B008  # frozen
        clock: Callable[[], float] = time.monotonic,
        *,
        whole_messages: bool = False,
        shared: SharedHeaders | None = None,
    ) -> None:
        """`whole_messages`: report what came in one piece in one event; see `whispr.http2.whole`.

        `shared` with the owner's other connections; see `whispr.http2.headers`.
        """
        self.limits = limits
        self.failed = False
        """The peer broke the protocol: flush the output, then close."""
        self._server = role is Role.SERVER
        self._reader = frames.FrameReader(limits.frame_bytes_max, expect_preface=self._server)
        self._decoder = Decoder(limits.header_list_bytes_hard_max, shared)
        self._budget = ControlBudget(limits.control_frames_burst, limits.control_frames_per_s, clock)
        self._sender = Sender(self._sent_end, self._budget)
        self._window = ConnectionWindow(
            limits.connection_window_bytes, limits.connection_window_bytes_max, limits.unread_bytes_max
        )
        self._streams = Streams(self._server, limits)
        self._whole: Callable[[list[events.Event]], int] | None = None
        if whole_messages:
            whole = WholeMessages(
                self._server, self._reader, self._decoder, self._streams, self._window, self._budget, limits
            )
            self._whole = whole.requests if self._server else partial(whole.responses, self._finish)
        self._events: list[events.Event] = []
        self._partial: PartialBlock | None = None
        self._settings_seen = False
        self._peer_streams_max = frames.MAX_STREAM_ID
        self.peer_header_list_bytes_max = frames.MAX_WINDOW
        """The largest header list the peer says it takes (section 6.5.2); callers keep to it."""
        self.on_ping: Callable[[], None] | None = None
        """Told of each PING before it is answered; may raise ProtocolError."""
        self._goaway_id: int | None = None
        self.peer_going_away = False
        self._start()

    def _start(self) -> None:
        limits = self.limits
        settings = {
            Setting.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
            Setting.MAX_FRAME_SIZE: limits.frame_bytes_max,
            Setting.MAX_HEADER_LIST_SIZE: limits.header_list_bytes_max,
        }
        if self._server:
            settings[Setting.MAX_CONCURRENT_STREAMS] = limits.streams_max
        else:
            self._sender.output += frames.PREFACE
            settings[Setting.ENABLE_PUSH] = 0
        self._sender.output += frames.settings(settings)
        self._announce(0, limits.connection_window_bytes - frames.DEFAULT_WINDOW)

    # --- Bytes in, events out -----------------------------------------------------------------------------

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
                    _HANDLERS.get(kind, Connection._on_unknown)(self, flags, stream_id, payload)
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

    # --- Bytes out ----------------------------------------------------------------------------------------

    def take_output(self) -> tuple[list[Octets], list[int]]:
        """What to write to the socket now, one after the other, and the streams whose writers may go on."""
        return self._sender.take()

    @property
    def output_bytes(self) -> int:
        """Bytes ready to write, not counting DATA queued by stream."""
        return self._sender.output_bytes

    @property
    def sends_more(self) -> bool:
        """Whether `take_output` has something to give at once."""
        return self._sender.output_bytes > 0 or self._sender.waiting

    def queues(self, more: int) -> bool:
        """Whether `more` bytes of DATA may still be queued for a peer that takes none."""
        return self._sender.queued + more <= self.limits.queued_bytes_max

    @property
    def unfinished(self) -> object:
        """What the peer has begun and not completed, a header block or a frame, the same until it is; or None."""
        return self._partial or self._reader.unfinished

    def held_back(self) -> list[tuple[int, int]]:
        """Streams whose queued DATA a shut window holds back, and how many bytes of it have gone so far."""
        if not self._sender.queued:
            return []
        shut = self._sender.window <= 0
        return [
            (stream.id, stream.queue.taken)
            for stream in self._streams
            if stream.queue and (shut or stream.send_window <= 0)
        ]

    @property
    def receive_window(self) -> int:
        """Bytes of DATA that the peer may send now, over all streams."""
        return self._window.available

    @property
    def send_window(self) -> int:
        """Bytes of DATA that the peer takes now, over all streams."""
        return self._sender.window

    @property
    def unsent(self) -> bool:
        """Whether any stream still has DATA queued."""
        return any(stream.queue for stream in self._streams)

    # --- Commands -----------------------------------------------------------------------------------------

    @property
    def streams_allowed(self) -> bool:
        """Whether the peer lets this client open one more stream now."""
        return (
            len(self._streams) < self._peer_streams_max
            and not self.peer_going_away
            and not self.failed
            and not self._streams.exhausted
        )

    @property
    def exhausted(self) -> bool:
        """Whether this client has used up its stream ids, and needs another connection."""
        return self._streams.exhausted

    @property
    def open_streams(self) -> int:
        """How many streams are not yet closed."""
        return len(self._streams)

    @property
    def last_peer_id(self) -> int:
        """The highest stream id that the peer has opened."""
        return self._streams.last_peer_id

    def open_stream(self, block: bytes, end_stream: bool = False) -> int:
        """Send a request's header block on a new stream; returns its id. For clients."""
        stream = self._new_stream()
        self._send_headers(stream, block, end_stream)
        return stream.id

    def request(self, block: bytes, data: Data) -> int:
        """Send a whole request on a new stream: head, one piece of DATA, end; returns its id. For clients."""
        stream = self._new_stream()
        if (
            isinstance(data, bytes)
            and self._sender.takes_now(stream, len(data))
            and len(block) <= FRAME_BYTES
        ):
            self._sender.whole_request(stream, block, data)
            stream.state = State.HALF_CLOSED_LOCAL
        else:
            self._send_headers(stream, block, False)
            self.send_data(stream.id, data, True)
        return stream.id

    def send_headers(self, stream_id: int, block: bytes, end_stream: bool = False) -> None:
        """Send a response's header block. A stream already gone is no error: its end was reported."""
        if (stream := self._streams.get(stream_id)) is not None:
            self._send_headers(stream, block, end_stream)

    def send_data(self, stream_id: int, data: Data, end_stream: bool = False) -> None:
        """Send DATA, or queue it until windows and turns allow. Wait for `writable` between large pieces."""
        if (stream := self._sendable(stream_id)) is not None:
            self._sender.data(stream, data, end_stream)

    def send_trailers(self, stream_id: int, block: bytes) -> None:
        """End a response with trailers, after whatever it has queued."""
        if (stream := self._sendable(stream_id)) is not None:
            self._sender.trailers(stream, block)

    def respond(self, stream_id: int, block: bytes, data: Data, trailers: bytes) -> None:
        """Send a whole response: headers, one piece of DATA, trailers."""
        stream = self._streams.get(stream_id)
        # Nearly every unary response is small, wanted, and all that its stream waits for: no steps in between.
        if (
            stream is not None
            and stream.state is State.HALF_CLOSED_REMOTE
            and isinstance(data, bytes)
            and self._sender.takes_now(stream, len(data))
            and len(block) + len(trailers) <= FRAME_BYTES
        ):
            self._sender.whole_response(stream, block, data, trailers)
            self._finish(stream)
            return
        self.send_headers(stream_id, block)
        self.send_data(stream_id, data)
        self.send_trailers(stream_id, trailers)

    def writable(self, stream_id: int) -> bool:
        """Whether a writer should go on; if not, `take_output` will name the stream. True once it is gone."""
        stream = self._streams.get(stream_id)
        return stream is None or self._sender.writable(stream)

    def consume(self, stream_id: int, count: int) -> None:
        """Give `count` bytes of received DATA back to the windows."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        stream.unread -= count
        self._announce(0, self._window.release(count))
        if stream.state in (State.OPEN, State.HALF_CLOSED_LOCAL):
            self._announce(stream_id, stream.receive_window.consume(count))

    def reset(self, stream_id: int, code: ErrorCode) -> None:
        """End a stream now, dropping what it has queued."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return
        self._sender.output += frames.rst_stream(stream_id, code)
        if not self._server:
            # What the server had already sent will be ignored, and is not its fault.
            self._budget.earn(_EARNED_BY_A_STREAM)
        self._close(stream, reset=True)

    def ping(self, data: bytes) -> None:
        """Send PING with 8 bytes of data."""
        self._sender.output += frames.ping(data)

    def announce_shutdown(self) -> None:
        """First step of a graceful end: GOAWAY that refuses nothing yet (section 6.8)."""
        self._sender.output += frames.goaway(frames.MAX_STREAM_ID, ErrorCode.NO_ERROR)

    def go_away(self, code: ErrorCode = ErrorCode.NO_ERROR, debug: str = "") -> None:
        """Send GOAWAY: streams above the last one seen are refused from now on."""
        self._goaway_id = self._streams.last_peer_id
        octets = debug.encode()[:_DEBUG_BYTES_MAX]
        self._sender.output += frames.goaway(self._goaway_id, code, octets)

    def _new_stream(self) -> Stream:
        if not self.streams_allowed:
            raise LocalError("the peer allows no new stream")
        return self._streams.open()

    def _sendable(self, stream_id: int) -> Stream | None:
        stream = self._streams.get(stream_id)
        if stream is None:
            return None
        if stream.ending is not None:
            raise LocalError(f"stream {stream_id} has been ended")
        after(stream.state, Input.SEND_DATA, stream_id)
        return stream

    def _send_headers(self, stream: Stream, block: bytes, end_stream: bool) -> None:
        stream.state = after(stream.state, Input.SEND_HEADERS, stream.id)
        self._sender.output += frames.headers(stream.id, block, end_stream, FRAME_BYTES)
        if end_stream:
            self._sent_end(stream)

    # --- Streams ------------------------------------------------------------------------------------------

    def _close(self, stream: Stream, reset: bool) -> None:
        self._streams.close(stream, reset)
        self._sender.forget(stream)
        if stream.unread:
            self._announce(0, self._window.release(stream.unread))

    def _announce(self, stream_id: int, increment: int) -> None:
        if increment:
            self._sender.output += frames.window_update(stream_id, increment)

    def _sent_end(self, stream: Stream) -> None:
        stream.state = after(stream.state, Input.SEND_END, stream.id)
        if stream.state is State.CLOSED:
            self._finish(stream)
        elif self._server:
            # A complete response makes the rest of the request pointless; NO_ERROR says so (section 8.1).
            self.reset(stream.id, ErrorCode.NO_ERROR)

    def _received_end(self, stream: Stream) -> None:
        stream.state = after(stream.state, Input.RECEIVE_END, stream.id)
        if stream.body_left:
            raise StreamError(stream.id, ErrorCode.PROTOCOL_ERROR, "body shorter than content-length")
        if stream.state is State.CLOSED:
            self._finish(stream)

    def _finish(self, stream: Stream) -> None:
        self._budget.earn(_EARNED_BY_A_STREAM)
        self._close(stream, reset=False)

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
        self._events.append(events.GoAwayReceived(last_stream_id, code, debug[:_DEBUG_BYTES_MAX]))

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


_HANDLERS: Mapping[int, Callable[[Connection, int, int, bytes], None]] = {
    frames.DATA_BEGINS: Connection._on_data_begins,
    frames.DATA_GOES_ON: Connection._on_data_goes_on,
    **{kind: getattr(Connection, f"_on_{kind.name.lower()}") for kind in Type},
}
"""By frame type, such as `_on_data`."""
