"""STUN (RFC 8489) as far as a server of connectivity checks needs it (RFC 8445, section 7.3): bytes and values."""

from __future__ import annotations

import hmac
import ipaddress
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

MAGIC: Final = 0x2112A442
HEADER_BYTES: Final = 20
MESSAGE_BYTES_MAX: Final = 1280
"""A check of a client has about 100 bytes; nobody needs more than a datagram that passes anywhere (RFC 8489, 6.1)."""
INTEGRITY_BYTES: Final = 20
_FINGERPRINT_XOR: Final = 0x5354554E
_HEADER = struct.Struct(">HHI12s")
_ATTRIBUTE = struct.Struct(">HH")


class Kind(IntEnum):
    """Message types: method Binding with each class (RFC 8489, section 5)."""

    REQUEST = 0x0001
    INDICATION = 0x0011
    SUCCESS = 0x0101
    ERROR = 0x0111


class Attribute(IntEnum):
    """Attributes that are known here (RFC 8489, section 18.3; RFC 8445, section 16.1)."""

    USERNAME = 0x0006
    MESSAGE_INTEGRITY = 0x0008
    ERROR_CODE = 0x0009
    UNKNOWN_ATTRIBUTES = 0x000A
    XOR_MAPPED_ADDRESS = 0x0020
    PRIORITY = 0x0024
    USE_CANDIDATE = 0x0025
    FINGERPRINT = 0x8028
    ICE_CONTROLLED = 0x8029
    ICE_CONTROLLING = 0x802A


_KNOWN = frozenset(int(attribute) for attribute in Attribute)
REASONS: Final = {400: "Bad Request", 401: "Unauthenticated", 420: "Unknown Attribute", 487: "Role Conflict"}


class StunError(ValueError):
    """Bytes that are not a STUN message; the message says in what."""


@dataclass(frozen=True, slots=True)
class Message:
    """A STUN message whose form and fingerprint were checked, its integrity not yet."""

    kind: int
    transaction: bytes
    attributes: Sequence[tuple[int, bytes]]
    """Those that count: what follows MESSAGE-INTEGRITY, but for FINGERPRINT, is left out (RFC 8489, section 14.5)."""
    signed: bytes = b""
    """What MESSAGE-INTEGRITY is computed over; empty without one."""

    def get(self, attribute: Attribute) -> bytes | None:
        """Return the first value of an attribute, None without one."""
        return next((value for number, value in self.attributes if number == attribute), None)

    def unknown(self) -> list[int]:
        """Comprehension-required attributes that nothing is known of (RFC 8489, section 14)."""
        return [number for number, _ in self.attributes if number < 0x8000 and number not in _KNOWN]

    def proves(self, password: bytes) -> bool:
        """Whether who sent it knows this password (short-term credentials: RFC 8489, section 9.1)."""
        given = self.get(Attribute.MESSAGE_INTEGRITY)
        if given is None or len(given) != INTEGRITY_BYTES:
            return False
        return hmac.compare_digest(given, hmac.digest(password, self.signed, "sha1"))


def parse(data: bytes) -> Message:
    """Read a message. Raises StunError."""
    if not HEADER_BYTES <= len(data) <= MESSAGE_BYTES_MAX:
        raise StunError(f"{len(data)} bytes are not a message")
    kind, length, magic, transaction = _HEADER.unpack_from(data)
    if kind & 0xC000 or magic != MAGIC:
        raise StunError("not STUN")
    if length % 4 or length + HEADER_BYTES != len(data):
        raise StunError(f"the length {length} does not fit {len(data)} bytes")
    attributes: list[tuple[int, bytes]] = []
    signed = b""
    at = HEADER_BYTES
    while at < len(data):
        number, size = _ATTRIBUTE.unpack_from(data, at)
        end = at + 4 + size
        if end > len(data):
            raise StunError(f"attribute {number:#06x} is cut short")
        if number == Attribute.FINGERPRINT:
            _check_fingerprint(data, at, size)
            break
        if not signed:
            attributes.append((number, data[at + 4 : end]))
        if number == Attribute.MESSAGE_INTEGRITY and not signed:
            # Computed as if it were the last attribute, whatever follows.
            signed = _with_length(data[:at], at + 4 + INTEGRITY_BYTES - HEADER_BYTES)
        at = end + (-size % 4)
    return Message(kind, transaction, attributes, signed)


def _with_length(data: bytes, length: int) -> bytes:
    return data[:2] + struct.pack(">H", length) + data[4:]


def _check_fingerprint(data: bytes, at: int, size: int) -> None:
    if size != 4 or at + 8 != len(data):
        raise StunError("the fingerprint is not the last attribute")
    if struct.unpack_from(">I", data, at + 4)[0] != zlib.crc32(data[:at]) ^ _FINGERPRINT_XOR:
        raise StunError("the fingerprint is wrong")


def build(
    kind: Kind, transaction: bytes, attributes: Sequence[tuple[int, bytes]], password: bytes | None = None
) -> bytes:
    """Write a message with FINGERPRINT and, with a password, MESSAGE-INTEGRITY."""
    body = b"".join(_attribute(number, value) for number, value in attributes)
    if password is not None:
        header = _HEADER.pack(kind, len(body) + 4 + INTEGRITY_BYTES, MAGIC, transaction)
        body += _attribute(Attribute.MESSAGE_INTEGRITY, hmac.digest(password, header + body, "sha1"))
    signed = _HEADER.pack(kind, len(body) + 8, MAGIC, transaction) + body
    return signed + _attribute(
        Attribute.FINGERPRINT, struct.pack(">I", zlib.crc32(signed) ^ _FINGERPRINT_XOR)
    )


def _attribute(number: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(number, len(value)) + value + bytes(-len(value) % 4)


def xor_mapped(host: str, port: int, transaction: bytes) -> bytes:
    """XOR-MAPPED-ADDRESS of a client (RFC 8489, section 14.2); an IPv4 address in IPv6's clothes is an IPv4 one."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    family = 1 if address.version == 4 else 2
    mask = (struct.pack(">I", MAGIC) + transaction)[: len(address.packed)]
    hidden = bytes(a ^ b for a, b in zip(address.packed, mask, strict=True))
    return struct.pack(">BBH", 0, family, port ^ (MAGIC >> 16)) + hidden


def error_code(code: int) -> bytes:
    """ERROR-CODE with the reason that the RFCs give it (RFC 8489, section 14.8)."""
    return struct.pack(">HBB", 0, code // 100, code % 100) + REASONS[code].encode()
