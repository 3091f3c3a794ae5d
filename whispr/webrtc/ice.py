"""The lite side of ICE for one peer: answers connectivity checks, learns where the peer is, notices when it leaves.

A lite agent (RFC 8445, section 2.5) makes no checks: it has one component, host candidates alone, and is always the
controlled side. The pair that the peer nominates is used. Consent to send (RFC 7675) is the peer's own checks of it:
full agents repeat them every few seconds, and without any for 30 s nothing may be sent any more.
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
    nominated: bool = False


class LiteAgent:
    """ICE of one peer, time passed in."""

    def __init__(self, local: Credentials, remote: Credentials, now: float) -> None:
        self.local = local
        self.remote = remote
        self.address: Address | None = None
        """Where the peer is; None until a check has come from there."""
        self._heard_at = now
        self._previous: Credentials | None = None

    def restart(self, local: Credentials, remote: Credentials, now: float) -> None:
        """Begin anew (RFC 8445, section 9). The present address serves until the new credentials nominate one."""
        self._previous, self.local, self.remote = self.local, local, remote
        self._heard_at = now

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
        if local is self.local and theirs == self.remote.ufrag and (nominated or self.address is None):
            self.address = address
            self._previous = None
        mapped = stun.xor_mapped(address[0], address[1], message.transaction)
        reply = [(int(Attribute.XOR_MAPPED_ADDRESS), mapped)]
        answer = stun.build(Kind.SUCCESS, message.transaction, reply, password)
        return Checked(answer, valid=True, nominated=nominated)

    def consents(self, now: float) -> bool:
        """Whether we may go on sending (RFC 7675)."""
        return now - self._heard_at < CONSENT_S


def _refused(
    message: Message, code: int, password: bytes, more: list[tuple[int, bytes]] | None = None
) -> bytes:
    reply = [(int(Attribute.ERROR_CODE), stun.error_code(code)), *(more or [])]
    return stun.build(Kind.ERROR, message.transaction, reply, password)
