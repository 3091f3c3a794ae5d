"""The output of a connection: ready bytes, and a fair queue of streams with DATA to send.

Frames that flow control does not govern go straight into the output. So does DATA that fits: windows open,
nobody queueing, output short; that is nearly every unary call. Other DATA waits in its stream's queue, and
the streams take turns, one frame each, whenever the socket asks for more. A stream without a window leaves
the turn-taking until WINDOW_UPDATE brings it back; an exhausted connection window stops it for all.

Long pieces of DATA are never copied: the output is a list of what to write one after the other.

Memory: output stays near `OUTPUT_BYTES` plus control frames; a stream's queue is the writer's to bound, by
waiting while `writable` says no.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from whispr.http2 import frames
from whispr.http2.errors import ErrorCode, ProtocolError, StreamError
from whispr.http2.limits import ControlBudget
from whispr.http2.queued import PIECE_BYTES, Data, DataQueue, Octets, size_of
from whispr.http2.streams import Stream

OUTPUT_BYTES = 64 * 1024
"""Output that DATA may fill before it queues by stream: about what one socket write takes."""

FRAME_BYTES = frames.MIN_MAX_FRAME_SIZE
"""Payload of the frames we send, and so the length of a stream's turn."""

LONE_FRAME_BYTES = 256 * 1024
"""Payload of a DATA frame while no other stream waits for its turn, to a peer that takes such frames."""

QUEUE_BYTES = 64 * 1024
"""Queued bytes of one stream, past which its writer should wait."""

_EARNED_BY_A_FRAME = 2
"""Control frames that DATA sent explains: a window update of the stream, and one of the connection."""


class Sender:
    """Owns the output of one connection and its send windows."""

    __slots__ = (
        "_before",
        "_before_bytes",
        "_budget",
        "_ended",
        "_turns",
        "_writable",
        "output",
        "peer_frame_bytes_max",
        "queued",
        "window",
    )

    def __init__(self, ended: Callable[[Stream], None], budget: ControlBudget) -> None:
        """`ended` is called when a stream's END_STREAM has gone into the output."""
        self.output = bytearray()
        """What goes out last. Frames are added to it."""
        self._before: list[Octets] = []
        """What goes out before it."""
        self._before_bytes = 0
        self._budget = budget
        self.window = frames.DEFAULT_WINDOW
        self.peer_frame_bytes_max = FRAME_BYTES
        """The peer's MAX_FRAME_SIZE."""
        self.queued = 0
        """Bytes of DATA that wait in all streams' queues."""
        self._ended = ended
        self._turns: deque[Stream] | None = None
        """Streams with DATA to send, windows permitting. None, rather than an empty one of 0.7 KiB, while idle."""
        self._writable: list[int] = []

    @property
    def output_bytes(self) -> int:
        """Bytes that `take` would find ready, without any from queues."""
        return self._before_bytes + len(self.output)

    def data(self, stream: Stream, data: Data, end: bool) -> None:
        """Send or queue DATA, the last if `end`."""
        size = size_of(data)
        if not stream.queue:
            if isinstance(data, bytes) and self.takes_now(stream, size):
                self._begin_frame(stream, size, end)
                self.output += data
                self._budget.earn(_EARNED_BY_A_FRAME)
                if end:
                    self._ended(stream)
                return
            stream.queue = DataQueue()
        stream.queue.add(data)
        self.queued += size
        if end:
            stream.ending = b""
        self._join_turns(stream)

    def whole_response(self, stream: Stream, block: bytes, data: bytes, trailers: bytes) -> None:
        """Send a whole response at once; only when `takes_now` says its data may go."""
        self.window -= len(data)
        stream.send_window -= len(data)
        self.output += frames.whole_response(stream.id, block, data, trailers)

    def whole_request(self, stream: Stream, block: bytes, data: bytes) -> None:
        """Send a whole request at once; only when `takes_now` says its data may go."""
        self.window -= len(data)
        stream.send_window -= len(data)
        self.output += frames.whole_request(stream.id, block, data)

    @property
    def waiting(self) -> bool:
        """Whether `take` would find queued DATA that may go."""
        return bool(self._turns) and self.window > 0

    def takes_now(self, stream: Stream, size: int) -> bool:
        """Whether `size` bytes of DATA can go out as one frame, before anything queued."""
        if size == 0:
            return True
        return (
            size <= FRAME_BYTES
            and size <= self.window
            and size <= stream.send_window
            and not self._turns
            and self.output_bytes < OUTPUT_BYTES
        )

    def trailers(self, stream: Stream, block: bytes) -> None:
        """End a stream with trailers, after whatever it has queued."""
        encoded = frames.headers(stream.id, block, True, FRAME_BYTES)
        if stream.queue:
            stream.ending = encoded
        else:
            self.output += encoded
            self._ended(stream)

    def writable(self, stream: Stream) -> bool:
        """Whether more should be written now; if not, `take` will report the stream once it should."""
        writable = not stream.queue or len(stream.queue) < QUEUE_BYTES
        stream.writer_waits = not writable
        return writable

    def forget(self, stream: Stream) -> None:
        """Drop what a closed stream had queued."""
        if stream.queue:
            self.queued -= stream.queue.held
        stream.queue = None
        if stream.turning:
            stream.turning = False
            assert self._turns is not None
            self._turns.remove(stream)

    def take(self) -> tuple[list[Octets], list[int]]:
        """Hand over the output, topped up with queued DATA, and the streams that became writable."""
        turns = self._turns
        while turns and self.window > 0 and self.output_bytes < OUTPUT_BYTES:
            stream = turns.popleft()
            stream.turning = False
            self._send_queued(stream)
            self._join_turns(stream)
        if not turns:
            self._turns = None
        output: list[Octets] = [self.output] if self.output else []
        self.output = bytearray()
        if self._before:
            output = self._before + output
            self._before, self._before_bytes = [], 0
        writable, self._writable = self._writable, []
        return output, writable

    def _send_queued(self, stream: Stream) -> None:
        """Send one frame of a stream's queue; its windows are open."""
        queue = stream.queue
        assert queue, "only streams with something queued take turns"
        frame_bytes = FRAME_BYTES if self._turns else min(LONE_FRAME_BYTES, self.peer_frame_bytes_max)
        count = min(len(queue), frame_bytes, self.window, stream.send_window)
        last = count == len(queue) and stream.ending is not None
        self._begin_frame(stream, count, last and stream.ending == b"")
        held = queue.held
        for piece in queue.take(count):
            self._put(piece)
        self.queued -= held - queue.held
        if count == len(queue) or count >= FRAME_BYTES:
            # Window updates answer what is sent: not what a peer makes us send by the byte, though.
            self._budget.earn(_EARNED_BY_A_FRAME)
        if stream.writer_waits and len(queue) < QUEUE_BYTES:
            stream.writer_waits = False
            self._writable.append(stream.id)
        if last:
            self.output += stream.ending or b""
            self._ended(stream)

    def _begin_frame(self, stream: Stream, size: int, end: bool) -> None:
        self.window -= size
        stream.send_window -= size
        self.output += frames.data_header(stream.id, size, end)

    def _put(self, piece: Octets) -> None:
        if len(piece) < PIECE_BYTES:
            self.output += piece
            return
        self._before += (self.output, piece)
        self._before_bytes += len(self.output) + len(piece)
        self.output = bytearray()

    def _join_turns(self, stream: Stream) -> None:
        if stream.queue and stream.send_window > 0 and not stream.turning:
            stream.turning = True
            if self._turns is None:
                self._turns = deque()
            self._turns.append(stream)

    def grow_connection(self, increment: int) -> None:
        """WINDOW_UPDATE on stream 0. Raises ProtocolError on overflow (section 6.9.1)."""
        self.window += increment
        if self.window > frames.MAX_WINDOW:
            raise ProtocolError(ErrorCode.FLOW_CONTROL_ERROR, "connection window overflow")

    def grow_stream(self, stream: Stream, increment: int) -> None:
        """WINDOW_UPDATE. Raises StreamError on overflow (section 6.9.1)."""
        stream.send_window += increment
        if stream.send_window > frames.MAX_WINDOW:
            raise StreamError(stream.id, ErrorCode.FLOW_CONTROL_ERROR, "stream window overflow")
        self._join_turns(stream)

    def grow_streams(self, streams: Iterable[Stream], change: int) -> None:
        """A new INITIAL_WINDOW_SIZE. An overflow is then an error of the connection (section 6.9.2)."""
        for stream in streams:
            try:
                self.grow_stream(stream, change)
            except StreamError as fault:
                raise ProtocolError(fault.code, fault.message) from fault
