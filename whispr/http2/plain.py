"""The quick way of decoding header blocks that leave the dynamic table alone (RFC 7541).

Our own encoder, and those of many others for what differs from call to call, use static entries and literals
that are neither indexed nor Huffman-coded. Such a block means the same on every connection, and taking it apart
needs a tenth of what all of HPACK needs. Anything else is left to all of HPACK, errors too.
"""

from __future__ import annotations

import sys

from hpack.table import HeaderTable

_PAIRS = tuple((name.decode(), value.decode()) for name, value in HeaderTable.STATIC_TABLE)
_NAMES = tuple(name for name, _ in _PAIRS)
_LENGTH_BYTES_MAX = 3
"""Of a length over 126: more than two million bytes are no header."""


def plain_fields(block: bytes) -> tuple[tuple[str, str], ...] | None:
    """The fields of such a block, None if it is another."""
    fields: list[tuple[str, str]] = []
    at, end = 0, len(block)
    try:
        while at < end:
            first = block[at]
            at += 1
            if first & 0x80:
                if first == 0x80:
                    return None
                fields.append(_PAIRS[first - 0x81])  # beyond the table: IndexError
                continue
            if first >= 0x20:  # to be indexed, or a change of the table's size
                return None
            index = first & 0x0F
            if index == 0x0F:
                index += block[at]
                at += 1
            if index:
                name = _NAMES[index - 1]
            else:
                octets, at = _string(block, at)
                name = sys.intern(octets.decode("latin-1"))
            octets, at = _string(block, at)
            fields.append((name, octets.decode("latin-1")))
    except (IndexError, _NotPlainError):
        return None
    return tuple(fields)


class _NotPlainError(Exception):
    """Huffman-coded, or cut short."""


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    """A string literal (section 5.2), and where it ends."""
    size = block[at]
    at += 1
    if size >= 0x7F:
        if size != 0x7F:
            raise _NotPlainError
        size, at = _long(block, at)
    end = at + size
    if end > len(block):
        raise _NotPlainError
    return block[at:end], end


def _long(block: bytes, at: int) -> tuple[int, int]:
    """A length that goes on (section 5.1), and where it ends."""
    size = 0x7F
    for shift in range(0, 7 * _LENGTH_BYTES_MAX, 7):
        octet = block[at]
        at += 1
        size += (octet & 0x7F) << shift
        if octet < 0x80:
            return size, at
    raise _NotPlainError
