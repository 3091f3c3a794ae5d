"""One HTTP/2 connection, either side (RFC 9113): what its owner may ask and tell it.

Streams exist here from their first HEADERS until both sides have ended them or one has reset them. Frames
for a stream that is gone are an error if the peer itself ended it, and otherwise ignored, since they may
have crossed our RST_STREAM on the way (section 5.1). Header blocks are decoded in every case, for the
dynamic table's sake.
"""

from __future__ import annotations

from whispr.http2 import frames
from whispr.http2.errors import ErrorCode, LocalError
from whispr.http2.incoming import Incoming
from whispr.http2.queued import Data, Octets
from whispr.http2.sender import FRAME_BYTES
from whispr.http2.states import Input, State, after
from whispr.http2.states import Role as Role
from whispr.http2.streams import Stream


class Connection(Incoming):
    """`receive` takes bytes and gives events; commands change it; `take_output` gives bytes."""

    __slots__ = ()

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

    def ping(self, data: bytes) -> None:
        """Send PING with 8 bytes of data."""
        self._sender.output += frames.ping(data)

    def announce_shutdown(self) -> None:
        """First step of a graceful end: GOAWAY that refuses nothing yet (section 6.8)."""
        self._sender.output += frames.goaway(frames.MAX_STREAM_ID, ErrorCode.NO_ERROR)

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
