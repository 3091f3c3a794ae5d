"""The rules of accounts: what a good name, password and address look like. Pure."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from whispr.errors import invalid

PASSWORD_CHARS_MIN = 8
PASSWORD_BYTES_MAX = 1024
"""argon2 takes any length; hashing megabytes for strangers is what this refuses."""
DISPLAY_NAME_CHARS_MAX = 64
EMAIL_CHARS_MAX = 254
"""RFC 5321, section 4.5.3.1.3, less the angle brackets."""
DEVICE_CHARS_MAX = 128
REASON_CHARS_MAX = 128

_USERNAME = re.compile(r"[A-Za-z0-9._-]{3,32}")
# An address is proved by mail that arrives, not by a pattern: this refuses only what cannot be one.
_EMAIL = re.compile(r"[^@\s]{1,64}@[^@\s.]+(\.[^@\s.]+)+")


@dataclass(frozen=True, slots=True)
class Account:
    """A row of auth.accounts."""

    id: UUID
    username: str
    email: str | None
    display_name: str
    role: str
    is_active: bool
    is_verified: bool
    password_hash: str
    created_at: datetime
    last_login_at: datetime | None
    deleted_at: datetime | None


@dataclass(frozen=True, slots=True)
class Registration:
    """A sign-up whose every field has been checked."""

    username: str
    password: str
    display_name: str
    email: str | None


@dataclass(frozen=True, slots=True)
class Session:
    """A row of auth.sessions that is alive."""

    id: str
    device: str
    address: str
    created_at: datetime
    last_seen_at: datetime
    expires_at: datetime


def registration(username: str, password: str, display_name: str, email: str) -> Registration:
    """Check a sign-up. Raises INVALID_ARGUMENT naming every field at fault, not the first alone."""
    display_name = display_name.strip()
    faults = {
        "username": username_fault(username),
        "password": password_fault(password),
        "display_name": _display_name_fault(display_name),
        "email": _email_fault(email) if email else None,
    }
    if found := {field: fault for field, fault in faults.items() if fault is not None}:
        raise invalid(found)
    return Registration(username, password, display_name or username, email or None)


def display_name(name: str, username: str) -> str:
    """Check a new display name; an empty one is the username. Raises INVALID_ARGUMENT."""
    name = name.strip()
    if fault := _display_name_fault(name):
        raise invalid({"display_name": fault})
    return name or username


def new_password(password: str) -> str:
    """Check a new password. Raises INVALID_ARGUMENT."""
    if fault := password_fault(password):
        raise invalid({"new_password": fault})
    return password


def reason(text: str) -> str:
    """Check a reason that is kept and shown. Raises INVALID_ARGUMENT."""
    text = text.strip()
    if len(text) > REASON_CHARS_MAX or has_control_characters(text):
        raise invalid({"reason": f"at most {REASON_CHARS_MAX} characters, none of them control characters"})
    return text


def username_fault(username: str) -> str | None:
    """Say what is wrong with a username, if anything."""
    if _USERNAME.fullmatch(username):
        return None
    return "3 to 32 characters of a-z, 0-9, dot, dash and underscore"


def password_fault(password: str) -> str | None:
    """Say what is wrong with a new password, if anything."""
    if len(password) < PASSWORD_CHARS_MIN:
        return f"at least {PASSWORD_CHARS_MIN} characters"
    if len(password.encode()) > PASSWORD_BYTES_MAX:
        return f"at most {PASSWORD_BYTES_MAX} bytes"
    return None


def _display_name_fault(name: str) -> str | None:
    if len(name) > DISPLAY_NAME_CHARS_MAX:
        return f"at most {DISPLAY_NAME_CHARS_MAX} characters"
    if has_control_characters(name):
        return "must not contain control characters"
    return None


def _email_fault(email: str) -> str | None:
    if len(email) > EMAIL_CHARS_MAX:
        return f"at most {EMAIL_CHARS_MAX} characters"
    if not _EMAIL.fullmatch(email) or has_control_characters(email):
        return "not an e-mail address"
    return None


_DIRECTION_OVERRIDES = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_UNSEEN = frozenset({"Cc", "Cs", "Zl", "Zp"})


def has_control_characters(text: str) -> bool:
    """Whether `text` could break a line, a terminal or the order in which the text around it is read."""
    return any(char in _DIRECTION_OVERRIDES or unicodedata.category(char) in _UNSEEN for char in text)


def device_name(device: str) -> str:
    """Return a session's label as it is kept: a client's free text, cleaned and cut rather than refused."""
    visible = "".join(" " if has_control_characters(char) else char for char in device)
    return visible.strip()[:DEVICE_CHARS_MAX]
