"""The rules of profiles. Pure but for the machine's list of time zones."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping
from functools import cache
from zoneinfo import available_timezones

import msgspec

from whispr.errors import invalid
from whispr.ids import is_id

DISPLAY_NAME_CHARS_MAX = 64
BIO_CHARS_MAX = 500
STATUS_TEXT_CHARS_MAX = 140
LOCALE_CHARS_MAX = 35
"""Enough for any tag in use (RFC 5646, section 4.4.1)."""

PRIVACY = ("everyone", "contacts", "nobody")

_LOCALE = re.compile(r"[A-Za-z]{2,8}(-[A-Za-z0-9]{1,8})*")
_UNSEEN = frozenset({"Cc", "Cs", "Zl", "Zp"})
_DIRECTION_OVERRIDES = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Changes(msgspec.Struct, frozen=True, omit_defaults=True):
    """What to change of a profile; None leaves a thing as it is."""

    display_name: str | None = None
    bio: str | None = None
    avatar_media_id: str | None = None
    status_text: str | None = None
    locale: str | None = None
    time_zone: str | None = None
    message_privacy: str | None = None
    presence_privacy: str | None = None

    def given(self) -> dict[str, str]:
        """Return what is to be changed, by name."""
        each = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: value for name, value in each.items() if value is not None}


def changes(given: Mapping[str, str]) -> Changes:
    """Check what is to be changed. Raises INVALID_ARGUMENT naming every field at fault, not the first alone."""
    cleaned = {name: _canonical(name, value) for name, value in given.items()}
    faults = {name: _CHECKS[name](value) for name, value in cleaned.items()}
    if found := {name: fault for name, fault in faults.items() if fault}:
        raise invalid(found)
    return Changes(**cleaned)


def _canonical(name: str, value: str) -> str:
    if name in ("display_name", "bio", "status_text"):
        return value.replace("\r\n", "\n").strip()
    return value.lower() if name == "avatar_media_id" else value


def _text(chars_max: int, *, lines: bool = False) -> Callable[[str], str]:
    def fault(text: str) -> str:
        if len(text) > chars_max:
            return f"at most {chars_max} characters"
        seen = text.replace("\n", "") if lines else text
        if any(char in _DIRECTION_OVERRIDES or unicodedata.category(char) in _UNSEEN for char in seen):
            return "must not contain control characters"
        return ""

    return fault


def _avatar_fault(value: str) -> str:
    return "" if not value or is_id(value) else "must be the id of a medium, or empty"


def _locale_fault(value: str) -> str:
    if not value or (len(value) <= LOCALE_CHARS_MAX and _LOCALE.fullmatch(value)):
        return ""
    return "must be a language tag such as fr-CH, or empty"


def _time_zone_fault(value: str) -> str:
    return (
        "" if not value or value in _time_zones() else "must be a time zone such as Europe/Zurich, or empty"
    )


@cache
def _time_zones() -> frozenset[str]:
    return frozenset(available_timezones())


def _privacy_fault(value: str) -> str:
    return "" if value in PRIVACY else f"must be one of {', '.join(PRIVACY)}"


_CHECKS: Mapping[str, Callable[[str], str]] = {
    "display_name": _text(DISPLAY_NAME_CHARS_MAX),
    "bio": _text(BIO_CHARS_MAX, lines=True),
    "avatar_media_id": _avatar_fault,
    "status_text": _text(STATUS_TEXT_CHARS_MAX),
    "locale": _locale_fault,
    "time_zone": _time_zone_fault,
    "message_privacy": _privacy_fault,
    "presence_privacy": _privacy_fault,
}


def prefix_range(prefix: str) -> tuple[str, str | None]:
    """Return the range of texts, in code point order, that begin with `prefix`: from it up to but not the second.

    None is no upper end. Of a range, unlike of LIKE, PostgreSQL knows at planning that an index serves it.
    """
    for length in range(len(prefix), 0, -1):
        last = ord(prefix[length - 1])
        if last < 0x10FFFF:
            after = 0xE000 if last + 1 == 0xD800 else last + 1  # surrogates are no characters
            return prefix, prefix[: length - 1] + chr(after)
    return prefix, None
