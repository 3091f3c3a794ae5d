"""What both directions of a connection share: its state, and how its streams end.

`incoming` adds what the peer's frames do to it, `connection` the commands of its owner.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from whispr.http2 import events, frames
from whispr.http2.errors import ErrorCode, StreamError
from whispr.http2.flow import ConnectionWindow
from whispr.http2.frames import Setting
from whispr.http2.headers import Decoder, SharedHeaders
from whispr.http2.limits import ControlBudget, Limits
from whispr.http2.partial import PartialBlock
from whispr.http2.sender import Sender
from whispr.http2.states import Input, Role, State, after
from whispr.http2.streams import Stream, Streams
from whispr.http2.whole import WholeMessages

_EARNED_BY_A_STREAM = 2
"""Control frames that a stream explains: a window update or ping, and a late RST_STREAM."""

DEBUG_BYTES_MAX = 200


class Core:
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

    # --- Its ends -----------------------------------------------------------------------------------------

    def go_away(self, code: ErrorCode = ErrorCode.NO_ERROR, debug: str = "") -> None:
        """Send GOAWAY: streams above the last one seen are refused from now on."""
        self._goaway_id = self._streams.last_peer_id
        octets = debug.encode()[:DEBUG_BYTES_MAX]
        self._sender.output += frames.goaway(self._goaway_id, code, octets)

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
