"""The lite side of ICE for one peer: answers connectivity checks, learns where the peer is, notices when it leaves.

A lite agent (RFC 8445, section 2.5) makes no checks: it has one component, host candidates alone, and is always the
controlled side. The pair that the peer nominates is used. Where a peer is at first, the handshake shows. When it
moves, a check proves only who wrote it, and its source may be anybody's: the new address has to answer a check of
ours before media goes there, or a listener could point a stream at somebody else (the voice hammer of RFC 5245,
section 18.5.1). A full agent answers checks, whatever the other side is.

Consent to send (RFC 7675) is the peer's own checks of it: full agents repeat them every few seconds, and without any
for 30 s nothing may be sent any more.
"""

from __future__ import annotations

import secrets
import struct
from dataclasses import dataclass
from typing import Final

from whispr.webrtc import stun
from whispr.webrtc.stun import Attribute, Kind, Message

Address = tuple[str, int] | tuple[str, int, int, int]
"""As sockets give it: host and port, of IPv6 with flow and scope."""

CONSENT_S: Final = 30.0
"""RFC 7675, section 5.1."""
_PRIORITY: Final = struct.pack(">I", (110 << 24) | (65535 << 8) | 255)
"""Of a peer-reflexive candidate, as every check says (RFC 8445, sections 5.1.2.1 and 7.1.1)."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """One side's user name fragment and password (RFC 8445, section 5.3)."""

    ufrag: str
    password: str

    @classmethod
    def new(cls) -> Credentials:
        """Make some: 48 bits of fragment, so that none come twice, and 144 of password."""
        return cls(secrets.token_hex(6), secrets.token_urlsafe(18).replace("_", "+").replace("-", "/"))


@dataclass(frozen=True, slots=True)
class Checked:
    """What came of a check: an answer to send back, and whether it shows that the peer is there."""

    answer: bytes
    valid: bool = False
    challenge: bytes | None = None
    """A check of ours for the same address, which is to become the peer's."""


class LiteAgent:
    """ICE of one peer, time passed in."""

    def __init__(self, local: Credentials, remote: Credentials, now: float) -> None:
        self.local = local
        self.remote = remote
        self.address: Address | None = None
        """Where the peer is; None until a check has come from there."""
        self.settled = False
        """Whether media goes to the address, which then changes to one alone that has answered."""
        self._heard_at = now
        self._previous: Credentials | None = None
        self._challenged: tuple[Address, bytes] | None = None
        """The address that is asked whether it is the peer's, and the transaction in which it is."""

    def restart(self, local: Credentials, remote: Credentials, now: float) -> None:
        """Begin anew (RFC 8445, section 9). The present address serves until the new credentials nominate one."""
        self._previous, self.local, self.remote = self.local, local, remote
        self._heard_at = now
        self._challenged = None

    def owns(self, ufrag: str) -> bool:
        """Whether checks to this fragment are this agent's."""
        return ufrag == self.local.ufrag or (self._previous is not None and ufrag == self._previous.ufrag)

    def check(self, message: Message, address: Address, now: float) -> Checked | None:
        """Answer a Binding request from an address; None for what proves nothing, and is not answered at all.

        RFC 8489 would have 401 sent to strangers. They get nothing: an answer is of use to those alone who look for
        something to reflect off us.
        """
        username = (message.get(Attribute.USERNAME) or b"").decode("utf-8", "replace")
        ufrag, _, theirs = username.partition(":")
        local = self.local if ufrag == self.local.ufrag else self._previous
        if local is None or ufrag != local.ufrag or not message.proves(local.password.encode()):
            return None
        password = local.password.encode()
        if unknown := message.unknown():
            listed = b"".join(struct.pack(">H", number) for number in unknown)
            more = [(int(Attribute.UNKNOWN_ATTRIBUTES), listed)]
            return Checked(_refused(message, 420, password, more))
        if message.get(Attribute.ICE_CONTROLLED) is not None:
            return Checked(_refused(message, 487, password))
        self._heard_at = now
        nominated = message.get(Attribute.USE_CANDIDATE) is not None
        challenge = None
        if local is self.local and theirs == self.remote.ufrag and (nominated or self.address is None):
            challenge = self._choose(address)
        mapped = stun.xor_mapped(address[0], address[1], message.transaction)
        reply = [(int(Attribute.XOR_MAPPED_ADDRESS), mapped)]
        answer = stun.build(Kind.SUCCESS, message.transaction, reply, password)
        return Checked(answer, valid=True, challenge=challenge)

    def _choose(self, address: Address) -> bytes | None:
        """Use an address that the peer has nominated, or return what it is to answer first."""
        if not self.settled or address == self.address:
            self._use(address)
            return None
        if self._challenged is None or self._challenged[0] != address:
            self._challenged = address, secrets.token_bytes(12)
        attributes = [
            (int(Attribute.USERNAME), f"{self.remote.ufrag}:{self.local.ufrag}".encode()),
            (int(Attribute.PRIORITY), _PRIORITY),
            (int(Attribute.ICE_CONTROLLED), bytes(8)),
        ]
        return stun.build(Kind.REQUEST, self._challenged[1], attributes, self.remote.password.encode())

    def _use(self, address: Address) -> None:
        self.address = address
        self._previous = self._challenged = None

    def confirm(self, message: Message, address: Address) -> bool:
        """Take an answer to a check of ours, if it is one: the peer is where it came from."""
        if self._challenged != (address, message.transaction) or message.kind != Kind.SUCCESS:
            return False
        if not message.proves(self.remote.password.encode()):
            return False
        self._use(address)
        return True

    def consents(self, now: float) -> bool:
        """Whether we may go on sending (RFC 7675)."""
        return now - self._heard_at < CONSENT_S


def _refused(
    message: Message, code: int, password: bytes, more: list[tuple[int, bytes]] | None = None
) -> bytes:
    reply = [(int(Attribute.ERROR_CODE), stun.error_code(code)), *(more or [])]
    return stun.build(Kind.ERROR, message.transaction, reply, password)
