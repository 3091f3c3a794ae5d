"""The WebRTC sessions of this process: by URLs that nobody guesses, each one a task that ends with its peer."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import structlog
import trio

from whispr.errors import not_found
from whispr.webrtc.endpoint import Endpoint
from whispr.webrtc.ice import Credentials
from whispr.webrtc.peer import Peer, State
from whispr.webrtc.sdp import Offer

PROCESS_CHARS: Final = 12
"""Of a process's name, with which the names of its sessions begin."""
_ID_BYTES: Final = 18
_ETAG_BYTES: Final = 9

log = structlog.get_logger("whispr.stream.webrtc")


class Session:
    """One client's session, in whichever direction."""

    def __init__(self, endpoint: Endpoint, offer: Offer, process: str) -> None:
        """Raises RESOURCE_EXHAUSTED when the endpoint has too many peers."""
        self._endpoint = endpoint
        self.id = process + secrets.token_urlsafe(_ID_BYTES)
        self.offer = offer
        self.remote = offer.credentials
        """The client's credentials of the present ICE session."""
        self.etag = _new_etag()
        """Of the present ICE session (RFC 9725, section 4.3.1)."""
        self.peer: Peer = endpoint.admit(offer)
        self.peer.on_change = self._changed
        self.connected = trio.Event()
        """Set once it is connected, or closed."""
        self.closed = trio.Event()
        self.over = trio.Event()
        """Set once its task has let go of everything."""
        self._began_at = trio.current_time()

    @property
    def age_s(self) -> float:
        """How long it has been there."""
        return trio.current_time() - self._began_at

    @property
    def silent_s(self) -> float:
        """How long nothing has come from its client."""
        return trio.current_time() - self.peer.heard_at

    def restart(self, remote: Credentials) -> str:
        """Begin ICE anew; returns our fragment."""
        self.remote, self.etag = remote, _new_etag()
        return self._endpoint.restart(self.peer, remote, self.offer.mid)

    def end(self, reason: str) -> None:
        """Close the peer; the session's task then ends."""
        self._endpoint.close(self.peer, reason)

    def _changed(self, peer: Peer) -> None:
        if peer.state in (State.CONNECTED, State.CLOSED):
            self.connected.set()
        if peer.state is State.CLOSED:
            self.closed.set()


class Sessions:
    """Those that run."""

    def __init__(self) -> None:
        self.process = secrets.token_hex(PROCESS_CHARS // 2)
        """The name of this process, as far as sessions go."""
        self._running: dict[tuple[str, str, str], Session] = {}

    def get(self, protocol: str, stream_id: str, session_id: str) -> Session:
        """Find one by its URL. Raises NOT_FOUND, also of one that has closed and is about to be gone."""
        found = self._running.get((protocol, stream_id, session_id))
        if found is None or found.closed.is_set():
            raise not_found("session", session_id)
        return found

    @contextmanager
    def holding(self, protocol: str, stream_id: str, session: Session) -> Iterator[None]:
        """Have one found for the length of a block."""
        key = (protocol, stream_id, session.id)
        self._running[key] = session
        try:
            yield
        finally:
            del self._running[key]


@contextmanager
def log_failures(protocol: str, stream_id: str) -> Iterator[None]:
    """Let a session that fails end alone: the others of its nursery are somebody else's."""
    try:
        yield
    except Exception as error:
        log.exception("webrtc_session_failed", protocol=protocol, stream_id=stream_id, error=repr(error))


def _new_etag() -> str:
    return f'"{secrets.token_urlsafe(_ETAG_BYTES)}"'
