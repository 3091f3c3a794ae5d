"""SRTP (RFC 3711, RFC 7714) with the keys of a DTLS handshake (RFC 5764, section 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from pylibsrtp import ERRORS, SRTP_MAX_SRTCP_TRAILER_LEN, Error, Policy, Session
from pylibsrtp._binding import ffi, lib

_BUFFER_BYTES: Final = 2048
PACKET_BYTES_MAX: Final = 1400
"""Of what is protected: with libsrtp's trailer it fits the buffer, and a datagram."""
assert PACKET_BYTES_MAX + SRTP_MAX_SRTCP_TRAILER_LEN <= _BUFFER_BYTES, (
    "libsrtp writes the trailer behind the packet"
)
REPLAY_WINDOW: Final = 1024
"""Packets: about 20 s of sound."""
SOURCES_MAX: Final = 16
"""Synchronisation sources of one peer, each of which libsrtp keeps for good. A client has one, seldom another."""


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


_data = ffi.new("char[]", _BUFFER_BYTES)
_buffer = ffi.buffer(_data)
_length = ffi.new("int *")


def _protector(session: Session, function: Any) -> Callable[[bytes], bytes]:
    """Return a function that protects packets of a session, to be called in one thread.

    What pylibsrtp does for every packet, but in one buffer for all sessions, which stays in the processor's cache:
    for thousands of listeners that is the half of the time. Raises SrtpError.
    """
    srtp = session._srtp[0]

    def protect(packet: bytes) -> bytes:
        size = len(packet)
        if size > PACKET_BYTES_MAX:
            raise SrtpError(f"{size} bytes are more than a datagram holds")
        _length[0] = size
        _buffer[0:size] = packet
        if status := function(srtp, _data, _length):
            raise SrtpError(ERRORS[status])
        made: bytes = _buffer[0 : _length[0]]
        return made

    return protect


class Protection:
    """Both directions of one peer."""

    __slots__ = ("_inbound", "_outbound", "_sources", "protect", "protect_rtcp")

    protect: Callable[[bytes], bytes]
    """Encrypts an RTP packet. Raises SrtpError."""
    protect_rtcp: Callable[[bytes], bytes]
    """Encrypts an RTCP compound. Raises SrtpError."""

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
        self._outbound = Session(sending)
        self._inbound = Session(receiving)
        self._sources: set[bytes] = set()
        """Of packets that were the peer's own."""
        self.protect = _protector(self._outbound, lib.srtp_protect)
        self.protect_rtcp = _protector(self._outbound, lib.srtp_protect_rtcp)

    def unprotect(self, packet: bytes) -> bytes:
        """Return an RTP packet in the clear. Raises SrtpError."""
        return self._unprotected(packet, packet[8:12], self._inbound.unprotect)

    def unprotect_rtcp(self, packet: bytes) -> bytes:
        """Return an RTCP compound in the clear. Raises SrtpError."""
        return self._unprotected(packet, packet[4:8], self._inbound.unprotect_rtcp)

    def _unprotected(self, packet: bytes, source: bytes, unprotect: Callable[[bytes], bytes]) -> bytes:
        if source not in self._sources and len(self._sources) >= SOURCES_MAX:
            raise SrtpError(f"more than {SOURCES_MAX} sources")
        try:
            clear = unprotect(packet)
        except (Error, ValueError) as error:
            raise SrtpError(str(error)) from error
        self._sources.add(source)
        return clear
