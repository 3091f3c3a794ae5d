"""The stream state machine (RFC 9113 section 5.1): every transition is in `TRANSITIONS`.

The machine does not know which side it is on: "local" is this side, "remote" the peer. Pushed streams do
not exist here, so neither do the reserved states. PRIORITY and WINDOW_UPDATE change no state.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from whispr.http2.errors import ErrorCode, LocalError, ProtocolError, StreamError


class Role(enum.Enum):
    """Which end of the connection this is."""

    CLIENT = "client"
    SERVER = "server"


class State(enum.IntEnum):
    """Where a stream is in its life."""

    IDLE = 0
    OPEN = 1
    HALF_CLOSED_LOCAL = 2
    """We have sent END_STREAM."""
    HALF_CLOSED_REMOTE = 3
    """The peer has sent END_STREAM."""
    CLOSED = 4


class Input(enum.IntEnum):
    """What can happen to a stream. END is END_STREAM, applied after the frame that carries it."""

    SEND_HEADERS = 0
    SEND_DATA = 1
    SEND_END = 2
    SEND_RESET = 3
    RECEIVE_HEADERS = 4
    RECEIVE_DATA = 5
    RECEIVE_END = 6
    RECEIVE_RESET = 7


TRANSITIONS: Mapping[State, Mapping[Input, State]] = {
    State.IDLE: {
        Input.SEND_HEADERS: State.OPEN,
        Input.RECEIVE_HEADERS: State.OPEN,
    },
    State.OPEN: {
        Input.SEND_HEADERS: State.OPEN,
        Input.SEND_DATA: State.OPEN,
        Input.SEND_END: State.HALF_CLOSED_LOCAL,
        Input.SEND_RESET: State.CLOSED,
        Input.RECEIVE_HEADERS: State.OPEN,
        Input.RECEIVE_DATA: State.OPEN,
        Input.RECEIVE_END: State.HALF_CLOSED_REMOTE,
        Input.RECEIVE_RESET: State.CLOSED,
    },
    State.HALF_CLOSED_LOCAL: {
        Input.SEND_RESET: State.CLOSED,
        Input.RECEIVE_HEADERS: State.HALF_CLOSED_LOCAL,
        Input.RECEIVE_DATA: State.HALF_CLOSED_LOCAL,
        Input.RECEIVE_END: State.CLOSED,
        Input.RECEIVE_RESET: State.CLOSED,
    },
    State.HALF_CLOSED_REMOTE: {
        Input.SEND_HEADERS: State.HALF_CLOSED_REMOTE,
        Input.SEND_DATA: State.HALF_CLOSED_REMOTE,
        Input.SEND_END: State.CLOSED,
        Input.SEND_RESET: State.CLOSED,
        Input.RECEIVE_RESET: State.CLOSED,
    },
    State.CLOSED: {},
}


def after(state: State, event: Input, stream_id: int) -> State:
    """The next state. Raises what the section says an input that is not in the table means.

    LocalError for our own mistakes; ProtocolError for frames on an idle stream; StreamError with
    STREAM_CLOSED for frames after END_STREAM.
    """
    following = TRANSITIONS[state].get(event)
    if following is not None:
        return following
    if event <= Input.SEND_RESET:
        raise LocalError(f"{event.name} on stream {stream_id}, which is {state.name}")
    if state is State.IDLE:
        raise ProtocolError(ErrorCode.PROTOCOL_ERROR, f"{event.name} on idle stream {stream_id}")
    raise StreamError(stream_id, ErrorCode.STREAM_CLOSED, f"{event.name} when {state.name}")
