"""One WebRTC peer without I/O: ICE, DTLS and SRTP put together, in the states of one table.

Datagrams of the peer go in by `check` and the `receive_…`, with the time; what comes back is to be sent. What the
peer sends goes to `on_rtp` and `on_rtcp` in the clear; they must not block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Final

from whispr.webrtc import rtcp
from whispr.webrtc.dtls import Dtls, DtlsError, Identity
from whispr.webrtc.ice import Address, Credentials, LiteAgent
from whispr.webrtc.rtcp import Item, RtcpError
from whispr.webrtc.srtp import Protection, SrtpError
from whispr.webrtc.stun import Message

CONNECT_S: Final = 30.0
"""From the answer until the handshake is through."""


class State(StrEnum):
    """Where a peer is."""

    NEW = "new"
    REACHED = "reached"
    HANDSHAKING = "handshaking"
    CONNECTED = "connected"
    CLOSED = "closed"


class _Event(StrEnum):
    CHECK = "check"
    HELLO = "hello"
    KEYS = "keys"
    END = "end"


_NEXT: Mapping[tuple[State, _Event], State] = {
    (State.NEW, _Event.CHECK): State.REACHED,
    (State.REACHED, _Event.CHECK): State.REACHED,
    (State.HANDSHAKING, _Event.CHECK): State.HANDSHAKING,
    (State.CONNECTED, _Event.CHECK): State.CONNECTED,
    (State.REACHED, _Event.HELLO): State.HANDSHAKING,
    (State.HANDSHAKING, _Event.KEYS): State.CONNECTED,
    **{(state, _Event.END): State.CLOSED for state in State},
}
"""What is not in it cannot happen."""


def _nobody(*_: object) -> None:
    """Nobody wants to know."""


class Peer:
    """One client of the endpoint."""

    def __init__(
        self, identity: Identity, remote: Credentials, fingerprints: Mapping[str, Sequence[str]], now: float
    ) -> None:
        self._identity = identity
        self._fingerprints = fingerprints
        self._made_at = now
        self._dtls: Dtls | None = None
        self.state = State.NEW
        self.ice = LiteAgent(Credentials.new(), remote, now)
        self.protection: Protection | None = None
        """Once connected."""
        self.reason = ""
        """Why it is closed, once it is."""
        self.on_rtp: Callable[[bytes, float], None] = _nobody
        """An RTP packet in the clear, and when it came."""
        self.on_rtcp: Callable[[Sequence[Item], float], None] = _nobody
        self.on_state: Callable[[Peer], None] = _nobody
        """For the endpoint, which tells `on_change` in turn."""
        self.on_change: Callable[[Peer], None] = _nobody
        """Its state is another."""
        self.on_moved: Callable[[Peer], None] = _nobody
        """Its address is another."""
        self.heard_at = now
        """When something came that only this peer can have sent."""
        self.bad_packets = 0
        """Forged, replayed or malformed."""

    @property
    def address(self) -> Address | None:
        """Where it is."""
        return self.ice.address

    def check(self, message: Message, address: Address, now: float) -> Sequence[bytes]:
        """Answer a connectivity check; nothing for one that does not prove to be this peer's."""
        before = self.ice.address
        checked = self.ice.check(message, address, now)
        if checked is None:
            return ()
        if checked.valid and self.state is not State.CLOSED:
            self.heard_at = now
            self._go(_Event.CHECK)
            if self.ice.address != before:
                self.on_moved(self)
        return [checked.answer] if checked.challenge is None else [checked.answer, checked.challenge]

    def confirm(self, message: Message, address: Address, now: float) -> bool:
        """Take what may be the answer to a check of ours; returns whether it is."""
        if self.state is State.CLOSED or not self.ice.confirm(message, address):
            return False
        self.heard_at = now
        self.on_moved(self)
        return True

    def receive_dtls(self, datagram: bytes, now: float, *, cookie: bool = False) -> Sequence[bytes]:
        """Take a datagram of DTLS in; `cookie`: whether a handshake that begins with it needs one."""
        if self.state in (State.NEW, State.CLOSED) or self.ice.address is None:
            return ()
        if self._dtls is None:
            self._dtls = Dtls(self._identity, self.ice.address, self._fingerprints, cookie=cookie)
            self._go(_Event.HELLO)
        try:
            outcome = self._dtls.receive(datagram)
        except DtlsError as error:
            self.close(str(error))
            return ()
        if outcome.keys is not None:
            self.protection = Protection(outcome.keys)
            self.ice.settled = True
            self._go(_Event.KEYS)
        return outcome.send

    def receive_rtp(self, datagram: bytes, now: float) -> None:
        """Take a datagram of SRTP or SRTCP in; which, RFC 5761 says (section 4)."""
        if self.protection is None or self.state is not State.CONNECTED or len(datagram) < 2:
            return
        try:
            if 192 <= datagram[1] <= 223:
                control = self.protection.unprotect_rtcp(datagram)
                self.heard_at = now
                self.on_rtcp(rtcp.parse(control), now)
            else:
                packet = self.protection.unprotect(datagram)
                self.heard_at = now
                self.on_rtp(packet, now)
        except (SrtpError, RtcpError):
            self.bad_packets += 1

    def tick(self, now: float) -> Sequence[bytes]:
        """Return what to send because of the time; closes the peer when its time is up."""
        if self.state is State.CLOSED:
            return ()
        if not self.ice.consents(now):
            self.close("the peer is gone")
            return ()
        if self.state is State.CONNECTED:
            return ()
        if now - self._made_at > CONNECT_S:
            self.close("not connected in time")
            return ()
        try:
            return self._dtls.timed_out() if self._dtls is not None else ()
        except DtlsError as error:
            self.close(str(error))
            return ()

    def close(self, reason: str) -> Sequence[bytes]:
        """End it; returns what to send as a farewell."""
        if self.state is State.CLOSED:
            return ()
        farewell = self._dtls.close() if self._dtls is not None else ()
        self.reason = reason
        self._go(_Event.END)
        return farewell

    def _go(self, event: _Event) -> None:
        before, self.state = self.state, _NEXT[self.state, event]
        if self.state is not before:
            self.on_state(self)
