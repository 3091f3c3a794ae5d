"""What of a file a request is to be given: ranges and preconditions of HTTP (RFC 9110, 13 and 14). Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from urllib.parse import quote

_RANGE = re.compile(r"bytes=(?:(\d{1,18})-(\d{1,18})?|-(\d{1,18}))")
_TAG = re.compile(r'(W/)?("[^"]*")')


@dataclass(frozen=True, slots=True)
class Plan:
    """The answer's status, and which bytes go with it: from `start` up to `end`."""

    status: int
    start: int = 0
    end: int = 0


def plan(headers: Mapping[str, str], etag: str, modified: datetime, size: int) -> Plan:
    """Decide about a GET or HEAD of a file of that strong `etag` (with its quotes) and `size`.

    One range is honoured. Several are answered with all of the file, as RFC 9110, section 14.2, allows.
    """
    modified = modified.astimezone(UTC).replace(microsecond=0)
    status = _precondition(headers, etag, modified)
    if status:
        return Plan(status)
    asked = headers.get("range", "")
    if not asked or not _same_file(headers.get("if-range", ""), etag, modified):
        return Plan(200, 0, size)
    match = _RANGE.fullmatch(asked.strip().replace(" ", ""))
    if match is None:
        return Plan(200, 0, size)
    first, last, suffix = match.groups()
    if suffix is not None:
        start, end = max(0, size - int(suffix)), size
    else:
        start, end = int(first), min(size, int(last) + 1 if last else size)
        if last and int(last) < start:
            return Plan(200, 0, size)  # Not a range at all (section 14.1.2).
    return Plan(416) if start >= end else Plan(206, start, end)


def _precondition(headers: Mapping[str, str], etag: str, modified: datetime) -> int:
    """Return 304 or 412 if one fails, in the order of section 13.2.2; 0 if none does."""
    if "if-match" in headers:
        if not matches(headers["if-match"], etag, strong=True):
            return 412
    elif (since := _date(headers.get("if-unmodified-since", ""))) is not None and modified > since:
        return 412
    if "if-none-match" in headers:
        return 304 if matches(headers["if-none-match"], etag) else 0
    since = _date(headers.get("if-modified-since", ""))
    return 304 if since is not None and modified <= since else 0


def matches(given: str, etag: str, *, strong: bool = False) -> bool:
    """Whether an `If-None-Match`, or a `strong` `If-Match`, names a tag (sections 8.8.3.2, 13.1.1 and 13.1.2)."""
    if given.strip() == "*":
        return True
    return any(tag == etag and not (strong and weak) for weak, tag in _TAG.findall(given))


def _same_file(if_range: str, etag: str, modified: datetime) -> bool:
    """Whether the file is the one that the client has a part of (section 13.1.5); so if it does not ask."""
    if not if_range:
        return True
    return if_range == etag or _date(if_range) == modified


def _date(text: str) -> datetime | None:
    try:
        parsed = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    return parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)


def http_date(at: datetime) -> str:
    """Write a time as HTTP does (RFC 9110, section 5.6.7)."""
    return format_datetime(at.astimezone(UTC).replace(microsecond=0), usegmt=True)


def disposition(filename: str, *, inline: bool) -> str:
    """Write a Content-Disposition that any client reads safely (RFC 6266, section 4.3 and appendix D)."""
    plain = "".join(c if c.isascii() and c.isprintable() and c not in '"\\%' else "_" for c in filename)
    kind = "inline" if inline else "attachment"
    return f"{kind}; filename=\"{plain}\"; filename*=UTF-8''{quote(filename, safe='')}"
