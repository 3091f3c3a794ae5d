"""Header lists: HPACK with cached blocks (RFC 7541), and what makes a list malformed (RFC 9113 section 8).

Theory of operation. Peers send the same few header blocks over and over, and decoding one in Python costs
more than the rest of a call. A block always decodes to the same list as long as the dynamic table is
unchanged, so `Decoder` remembers lists by their raw block and forgets them all when the table changes. A
block that changes the table itself is never remembered. What is remembered includes the verdict of the
malformedness rules and, in `Headers.parsed`, whatever the layer above made of the list. Thousands of connections
whose peers say the same hold it once: what blocks mean that no dynamic table has a part in, they share.

`encode` never touches the peer's dynamic table, so the same list is always the same bytes: callers encode
constant headers once.
"""

from __future__ import annotations

import enum
import logging
import re
import sys
from collections.abc import Callable, Iterable, Mapping
from weakref import WeakValueDictionary

import hpack
from hpack.hpack import encode_integer
from hpack.table import HeaderTable

from whispr.http2.errors import ErrorCode, ProtocolError
from whispr.http2.plain import plain_fields

# At DEBUG it logs every field of every block: credentials among them, and at a cost even when nobody reads it.
logging.getLogger("hpack").setLevel(logging.WARNING)

Fields = tuple[tuple[str, str], ...]

_ENTRY_OVERHEAD = 32
"""What each entry counts beyond its octets (RFC 7541 section 4.1)."""

_CACHED_BLOCKS_MAX = 256
_CACHED_BLOCK_BYTES_MAX = 2048


class Kind(enum.Enum):
    """Which rules a header list is held to."""

    REQUEST = "request"
    RESPONSE = "response"
    TRAILERS = "trailers"
    IGNORED = "ignored"
    """Decoded only to keep the dynamic table right."""


class Headers:
    """A decoded header list. Shared between messages with the same block, so treat it as frozen."""

    __slots__ = (
        "__weakref__", "block", "content_length", "fields", "final", "list_bytes", "parsed", "plain", "problem"
    )  # fmt: skip

    def __init__(self, fields: Fields, kind: Kind) -> None:
        self.fields = fields
        self.block = b""
        """What it was decoded from, if it is shared."""
        self.list_bytes = list_bytes(fields)
        self.problem = _PROBLEM_OF[kind](fields)
        self.content_length = _content_length(fields)
        self.final = not (fields and fields[0][0] == ":status" and fields[0][1].startswith("1"))
        """Not an interim response (RFC 9110 section 15.2)."""
        self.plain = self.problem is None and self.content_length is None
        """Well-formed, and asks nothing of the body."""
        self.parsed: object = None
        """For the layer above: what it made of the list, computed once."""

    def get(self, name: str) -> str | None:
        """First value of `name`, or None."""
        return next((value for key, value in self.fields if key == name), None)

    def __repr__(self) -> str:
        return f"Headers({self.fields!r})"


class SharedHeaders:
    """Lists that connections have in common, as long as one of them remembers one."""

    __slots__ = ("_by_kind",)

    def __init__(self) -> None:
        self._by_kind: dict[Kind, WeakValueDictionary[bytes, Headers]] = {}

    def of(self, block: bytes, kind: Kind) -> Headers | None:
        """The list that a block means on every connection; None when that takes more to find out."""
        known = self._by_kind.get(kind)
        if known is None:
            known = self._by_kind[kind] = WeakValueDictionary()
        headers = known.get(block)
        if headers is None and len(block) <= _CACHED_BLOCK_BYTES_MAX:
            fields = plain_fields(block)
            if fields is not None:
                headers = known[block] = Headers(fields, kind)
                headers.block = block
        return headers


class _Table(HeaderTable):
    """The dynamic table, counting insertions so that a change can be seen."""

    insertions = 0

    def add(self, name: bytes, value: bytes) -> None:
        self.insertions += 1
        super().add(name, value)


class Decoder:
    """Decodes the header blocks of one connection, in the order they arrive."""

    __slots__ = ("_cache", "_hpack", "_list_bytes_max", "_shared", "_table")

    def __init__(self, list_bytes_max: int, shared: SharedHeaders | None = None) -> None:
        """Lists over `list_bytes_max` are an error of the connection; smaller limits are the caller's.

        `shared` with connections whose owner makes the same of a list.
        """
        self._list_bytes_max = list_bytes_max
        self._shared = shared or SharedHeaders()
        self._hpack: hpack.Decoder | None = None
        """Made when there is need of it: many connections never have any."""
        self._table: _Table | None = None
        self._cache: dict[Kind, dict[bytes, Headers]] = {}

    def known(self, kind: Kind) -> Mapping[bytes, Headers]:
        """The lists remembered by their block, as they are at any time."""
        return self._known(kind)

    def _known(self, kind: Kind) -> dict[bytes, Headers]:
        known = self._cache.get(kind)
        if known is None:
            known = self._cache[kind] = {}
        return known

    def decode(self, block: bytes, kind: Kind) -> Headers:
        """Decode one block. Raises ProtocolError, since the dynamic table is then no longer shared."""
        cache = self._known(kind)
        headers = cache.get(block)
        if headers is not None:
            return headers
        headers = self._shared.of(block, kind)
        if headers is None:
            headers, lasting = self._decode(block, kind)
        else:
            # The block as others hold it, too.
            block, lasting = headers.block, True
            if headers.list_bytes > self._list_bytes_max:
                raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, "header list too large")
        if lasting and len(block) <= _CACHED_BLOCK_BYTES_MAX:
            if len(cache) >= _CACHED_BLOCKS_MAX:
                cache.clear()
            cache[block] = headers
        return headers

    def _decode(self, block: bytes, kind: Kind) -> tuple[Headers, bool]:
        """A list, and whether its block goes on meaning it."""
        if self._hpack is None or self._table is None:
            self._hpack = hpack.Decoder(self._list_bytes_max)
            self._table = self._hpack.header_table = _Table()
        insertions = self._table.insertions
        headers = Headers(_fields(self._hpack, block), kind)
        # A table size update (RFC 7541 section 6.3) stands first in its block and evicts without inserting.
        resized = bool(block) and block[0] & 0xE0 == 0x20
        if not resized and self._table.insertions == insertions:
            return headers, True
        for stale in self._cache.values():
            stale.clear()
        return headers, False


def _fields(decoder: hpack.Decoder, block: bytes) -> Fields:
    try:
        decoded = decoder.decode(block, raw=True)
    except hpack.OversizedHeaderListError as error:
        raise ProtocolError(ErrorCode.ENHANCE_YOUR_CALM, str(error)) from error
    except hpack.HPACKError as error:
        raise ProtocolError(ErrorCode.COMPRESSION_ERROR, "header block does not decode") from error
    # Values may hold any octet (RFC 9110 section 5.5); Latin-1 keeps each and never fails.
    # Names are interned, for many connections remember the same ones.
    return tuple(
        (sys.intern(bytes(name).decode("latin-1")), bytes(value).decode("latin-1")) for name, value in decoded
    )


# --- Encoding ---------------------------------------------------------------------------------------------

_STATIC_PAIR = {pair: index for index, pair in enumerate(HeaderTable.STATIC_TABLE, 1)}
_STATIC_NAME = {name: index for (name, _), index in reversed(_STATIC_PAIR.items())}


def encode(fields: Iterable[tuple[str, str]]) -> bytes:
    """Encode a list as indexed static entries and literals without indexing (RFC 7541 section 6.2.2).

    Raises ValueError on a name or value that does not fit Latin-1.
    """
    return b"".join(
        [_encode_field(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]
    )


def _encode_field(name: bytes, value: bytes) -> bytes:
    index = _STATIC_PAIR.get((name, value))
    if index is not None:
        return bytes((0x80 | index,))
    index = _STATIC_NAME.get(name)
    if index is not None:
        return bytes(encode_integer(index, 4)) + _literal(value)
    return b"\0" + _literal(name) + _literal(value)


def _literal(octets: bytes) -> bytes:
    size = len(octets)
    prefix = bytes((size,)) if size < 0x7F else bytes(encode_integer(size, 7))
    return prefix + octets


def list_bytes(fields: Iterable[tuple[str, str]]) -> int:
    """The size of a list as SETTINGS_MAX_HEADER_LIST_SIZE counts it (RFC 9113 section 6.5.2)."""
    return sum(len(name) + len(value) + _ENTRY_OVERHEAD for name, value in fields)


# --- Malformed messages (RFC 9113 sections 8.1.1, 8.2, 8.3) -----------------------------------------------

_BAD_NAME = re.compile(r"[^\x21-\x39\x3b-\x40\x5b-\x7e]|^$")
"""Not visible ASCII, or upper case, or a colon, or empty (section 8.2.1)."""

_BAD_VALUE = re.compile(r"[\0\r\n]|^[ \t]|[ \t]$")

_CONNECTION_FIELDS = frozenset(
    {"connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade"}
)
_NAMES_REMEMBERED_MAX = 256
_good_names: set[str] = set()
"""Names that have passed, for most come again and again."""

_REQUEST_PSEUDO = frozenset({":method", ":scheme", ":path", ":authority"})
_RESPONSE_PSEUDO = frozenset({":status"})


def _field_problem(fields: Fields, pseudo: frozenset[str]) -> str | None:
    """Rules of section 8.2, and the placing of pseudo-fields (section 8.3)."""
    seen: set[str] = set()
    regular = False
    for name, value in fields:
        if name.startswith(":"):
            if regular or name not in pseudo or name in seen:
                return f"misplaced, unknown or repeated pseudo-field {name!r}"
            seen.add(name)
        else:
            regular = True
            if name not in _good_names and (problem := _name_problem(name)) is not None:
                return problem
            if name == "te" and value != "trailers":
                return "connection-specific field 'te'"
        # What can be printed has no control characters; that is most values, and much quicker to see.
        if (not value.isprintable() or value[:1] == " " or value[-1:] == " ") and _BAD_VALUE.search(value):
            return f"bad value of {name!r}"
    return None


def _name_problem(name: str) -> str | None:
    if _BAD_NAME.search(name):
        return f"bad field name {name!r}"
    if name in _CONNECTION_FIELDS:
        return f"connection-specific field {name!r}"
    if len(_good_names) < _NAMES_REMEMBERED_MAX:
        _good_names.add(name)
    return None


def _request_problem(fields: Fields) -> str | None:
    problem = _field_problem(fields, _REQUEST_PSEUDO)
    if problem is not None:
        return problem
    pseudo = {name: value for name, value in fields if name.startswith(":")}
    if pseudo.get(":method") == "CONNECT":
        # CONNECT names an authority and nothing else (section 8.5).
        return None if pseudo.keys() == {":method", ":authority"} else "malformed CONNECT"
    missing = [name for name in (":method", ":scheme", ":path") if not pseudo.get(name)]
    return f"missing or empty {missing[0]}" if missing else None


def _response_problem(fields: Fields) -> str | None:
    problem = _field_problem(fields, _RESPONSE_PSEUDO)
    if problem is not None:
        return problem
    status = dict(fields).get(":status", "")
    return None if len(status) == 3 and status.isdecimal() else "missing or bad :status"


def _trailers_problem(fields: Fields) -> str | None:
    return _field_problem(fields, frozenset())


def _no_problem(fields: Fields) -> str | None:
    return None


_PROBLEM_OF: Mapping[Kind, Callable[[Fields], str | None]] = {
    Kind.REQUEST: _request_problem,
    Kind.RESPONSE: _response_problem,
    Kind.TRAILERS: _trailers_problem,
    Kind.IGNORED: _no_problem,
}


def _content_length(fields: Fields) -> int | None:
    """The announced body length in bytes; None without one, -1 when it is not a number or ambiguous."""
    values = {value for name, value in fields if name == "content-length"}
    if not values:
        return None
    value = values.pop()
    return int(value) if not values and value.isascii() and value.isdecimal() and len(value) < 19 else -1
