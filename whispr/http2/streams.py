"""The streams of one connection: those that are open, and what is remembered of those that are not.

An id says by itself whether its stream has ever existed: each side opens its own in increasing order (RFC
9113 section 5.1.1). How a stream closed is remembered for the last few only. That is enough to tell a peer
that goes on after its own END_STREAM or RST_STREAM, which is an error, from frames that crossed our
RST_STREAM on the way, which are not (section 5.1); forgotten streams get the benefit of the doubt.
"""

from __future__ import annotations

from collections.abc import Iterator

from whispr.http2.errors import ErrorCode, LocalError, ProtocolError, StreamError
from whispr.http2.flow import ReceiveWindow
from whispr.http2.frames import DEFAULT_WINDOW, MAX_STREAM_ID
from whispr.http2.limits import Limits
from whispr.http2.queued import DataQueue
from whispr.http2.states import Input, State, after

_REMEMBERED_MAX = 100


class Stream:
    """Everything this side knows of one open stream."""

    __slots__ = (
        "body_left",
        "ending",
        "headers_received",
        "id",
        "queue",
        "receive_window",
        "send_window",
        "state",
        "turning",
        "unread",
        "writer_waits",
    )

    def __init__(self, stream_id: int, send_window: int, receive_window: ReceiveWindow) -> None:
        self.id = stream_id
        self.state = State.IDLE
        self.send_window = send_window
        self.receive_window = receive_window
        self.headers_received = False
        """The peer's header section has come; more HEADERS are trailers."""
        self.body_left: int | None = None
        """What content-length still promises, in bytes."""
        self.unread = 0
        """Bytes reported and not yet consumed."""
        self.queue: DataQueue | None = None
        self.ending: bytes | None = None
        """What follows the queue: encoded trailers, or nothing but END_STREAM on the last DATA."""
        self.turning = False
        self.writer_waits = False

    def take_data(self, body: int, size: int) -> None:
        """Count a DATA frame of `size` bytes, of which `body` are not padding. Raises StreamError."""
        after(self.state, Input.RECEIVE_DATA, self.id)
        if not self.headers_received:
            raise StreamError(self.id, ErrorCode.PROTOCOL_ERROR, "DATA before HEADERS")
        self.receive_window.available -= size
        if self.receive_window.available < 0:
            raise StreamError(self.id, ErrorCode.FLOW_CONTROL_ERROR, "stream window exceeded")
        if self.body_left is not None:
            self.body_left -= body
            if self.body_left < 0:
                raise StreamError(self.id, ErrorCode.PROTOCOL_ERROR, "body longer than content-length")


_NOTHING_MORE = ReceiveWindow(0, 0)
"""For streams that the peer has ended: no frame that would be counted can come."""


def _remember(ids: list[int], stream_id: int) -> None:
    """Add to the last few."""
    ids.append(stream_id)
    if len(ids) > _REMEMBERED_MAX:
        del ids[0]


class Streams:
    """Streams by id."""

    __slots__ = (
        "_ended",
        "_limits",
        "_next_id",
        "_open",
        "_reset",
        "_server",
        "get",
        "last_peer_id",
        "send_window",
    )

    def __init__(self, server: bool, limits: Limits) -> None:
        self._server = server
        self._limits = limits
        self._open: dict[int, Stream] = {}
        # Lists, for an empty deque takes 0.7 KiB of every idle connection.
        self._ended: list[int] = []
        self._reset: list[int] = []
        self._next_id = 1
        self.get = self._open.get
        self.last_peer_id = 0
        """The highest stream id the peer has opened."""
        self.send_window = DEFAULT_WINDOW
        """The peer's INITIAL_WINDOW_SIZE."""

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._open.values())

    @property
    def exhausted(self) -> bool:
        """Whether this client has used every stream id there is."""
        return self._next_id > MAX_STREAM_ID

    def open(self) -> Stream:
        """A new stream of this client."""
        if self.exhausted:
            raise LocalError("stream ids are used up")
        stream = self._add(self._next_id)
        self._next_id += 2
        return stream

    def accept(self, stream_id: int) -> Stream | None:
        """The new stream of a client's request.

        None: the stream is an old one, whose frames are for `check_gone` to judge. Raises ProtocolError when
        the id is not one a client may use next.
        """
        if stream_id % 2 == 0:
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"even stream id {stream_id} from a client")
        if stream_id <= self.last_peer_id:
            if stream_id in self._reset or stream_id in self._ended:
                return None
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"stream id {stream_id} is not the next")
        self.last_peer_id = stream_id
        return self._add(stream_id)

    def accept_whole(self, stream_id: int, unread: int) -> None:
        """The new stream of a request that is already complete; its id is known to be the next."""
        self.last_peer_id = stream_id
        stream = self._open[stream_id] = Stream(stream_id, self.send_window, _NOTHING_MORE)
        stream.state = State.HALF_CLOSED_REMOTE
        stream.headers_received = True
        stream.unread = unread

    def close(self, stream: Stream, reset: bool) -> None:
        """Forget an open stream; `reset`: by our RST_STREAM, so that frames may still come for it."""
        del self._open[stream.id]
        stream.state = State.CLOSED
        _remember(self._reset if reset else self._ended, stream.id)

    def is_idle(self, stream_id: int) -> bool:
        """Whether a stream has never been opened; ids of the wrong parity never are."""
        if stream_id % 2 == 0:
            return True
        return stream_id > self.last_peer_id if self._server else stream_id >= self._next_id

    def check_gone(self, stream_id: int, what: str) -> None:
        """Judge a frame for a stream that is not open: returns to ignore it, or raises ProtocolError."""
        if self.is_idle(stream_id):
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"{what} on idle stream {stream_id}")
        if stream_id in self._ended:
            raise ProtocolError(ErrorCode.STREAM_CLOSED, f"{what} on closed stream {stream_id}")

    def reset_by_peer(self, stream_id: int) -> None:
        """RST_STREAM for a stream that is not open: nothing may follow it. Raises ProtocolError on an idle one."""
        if self.is_idle(stream_id):
            raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"RST_STREAM on idle stream {stream_id}")
        if stream_id in self._reset:
            self._reset.remove(stream_id)
            _remember(self._ended, stream_id)

    def _add(self, stream_id: int) -> Stream:
        limits = self._limits
        window = ReceiveWindow(limits.stream_window_bytes, limits.stream_window_bytes_max)
        stream = self._open[stream_id] = Stream(stream_id, self.send_window, window)
        return stream
