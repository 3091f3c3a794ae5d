"""SRTP (RFC 3711, RFC 7714) with the keys of a DTLS handshake (RFC 5764, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from pylibsrtp import Error, Policy, Session

PACKET_BYTES_MAX: Final = 1500 - 144
"""What libsrtp takes, its own trailer aside."""
REPLAY_WINDOW: Final = 1024
"""Packets: about 20 s of sound."""


@dataclass(frozen=True, slots=True)
class _Profile:
    number: int
    key_bytes: int
    salt_bytes: int


PROFILES: Final[Mapping[bytes, _Profile]] = {
    b"SRTP_AEAD_AES_128_GCM": _Profile(Policy.SRTP_PROFILE_AEAD_AES_128_GCM, 16, 12),
    b"SRTP_AES128_CM_SHA1_80": _Profile(Policy.SRTP_PROFILE_AES128_CM_SHA1_80, 16, 14),
}
"""By the names that OpenSSL has for them, the preferred first: GCM takes half the time."""


class SrtpError(ValueError):
    """A packet that is forged, replayed, or none."""


@dataclass(frozen=True, slots=True)
class Keys:
    """Master keys with their salts, by who writes with them."""

    profile: bytes
    client: bytes
    server: bytes

    @staticmethod
    def size(profile: bytes) -> int:
        """How many bytes the handshake has to give."""
        chosen = PROFILES[profile]
        return 2 * (chosen.key_bytes + chosen.salt_bytes)

    @classmethod
    def of_server(cls, profile: bytes, material: bytes) -> Keys:
        """Split the handshake's material: both keys, then both salts (RFC 5764, section 4.2)."""
        key, salt = PROFILES[profile].key_bytes, PROFILES[profile].salt_bytes
        salts = 2 * key
        return cls(
            profile,
            client=material[:key] + material[salts : salts + salt],
            server=material[key:salts] + material[salts + salt : salts + 2 * salt],
        )


class Protection:
    """Both directions of one peer. The methods that protect are libsrtp's own: they are called for every packet."""

    __slots__ = ("_inbound", "protect", "protect_rtcp")

    protect: Callable[[bytes], bytes]
    protect_rtcp: Callable[[bytes], bytes]

    def __init__(self, keys: Keys, *, as_client: bool = False) -> None:
        """`as_client`: for a peer of our own, in tests."""
        profile = PROFILES[keys.profile].number
        own, theirs = (keys.client, keys.server) if as_client else (keys.server, keys.client)
        sending = Policy(key=own, ssrc_type=Policy.SSRC_ANY_OUTBOUND, srtp_profile=profile)
        # The same packet may go out again when the peer asks for it: the same bytes, so nothing is given away.
        sending.allow_repeat_tx = True
        sending.window_size = REPLAY_WINDOW
        receiving = Policy(key=theirs, ssrc_type=Policy.SSRC_ANY_INBOUND, srtp_profile=profile)
        receiving.window_size = REPLAY_WINDOW
        outbound = Session(sending)
        self._inbound = Session(receiving)
        self.protect, self.protect_rtcp = outbound.protect, outbound.protect_rtcp

    def unprotect(self, packet: bytes) -> bytes:
        """Return an RTP packet in the clear. Raises SrtpError."""
        try:
            return self._inbound.unprotect(packet)
        except (Error, ValueError) as error:
            raise SrtpError(str(error)) from error

    def unprotect_rtcp(self, packet: bytes) -> bytes:
        """Return an RTCP compound in the clear. Raises SrtpError."""
        try:
            return self._inbound.unprotect_rtcp(packet)
        except (Error, ValueError) as error:
            raise SrtpError(str(error)) from error
