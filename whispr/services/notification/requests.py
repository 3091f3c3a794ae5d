"""From requests to what they mean, every field checked. Pure. All raise INVALID_ARGUMENT naming each bad field."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.timestamp_pb2 import Timestamp

from whispr.conversations.domain import MessageType
from whispr.errors import WhisprError, invalid
from whispr.ids import is_id, parse_id
from whispr.services.notification.devices import NewDevice
from whispr.services.notification.domain import (
    BODY_CHARS_MAX,
    DATA_BYTES_MAX,
    FOR_EVER,
    NAME_CHARS_MAX,
    TITLE_CHARS_MAX,
    TYPE_PATTERN,
    ConversationPreference,
    Level,
    Platform,
    Preferences,
    Priority,
    QuietHours,
    minute_of,
    one_line,
    size_of,
    zone_of,
)
from whispr.services.notification.entries import MESSAGE, Telling
from whispr.services.notification.notifier import RECIPIENTS_MAX
from whispr.services.notification.senders.addresses import is_public
from whispr.services.notification.senders.webpush import AUTH_BYTES, P256DH_BYTES
from whispr.v1 import notification_pb2 as pb

TOKEN_CHARS_MAX = 4096
PREFERENCES_MAX = 1000
TYPE_CHARS_MAX = 48

_APNS_TOKEN = re.compile(r"[0-9a-fA-F]{64,200}")
_FCM_TOKEN = re.compile(r"[A-Za-z0-9_:%.\-]{20,4096}")
_LEVELS = {
    pb.ConversationPreference.DEFAULT: Level.DEFAULT,
    pb.ConversationPreference.ALL: Level.ALL,
    pb.ConversationPreference.MENTIONS: Level.MENTIONS,
    pb.ConversationPreference.NONE: Level.NONE,
}


@dataclass(frozen=True, slots=True)
class Addresses:
    """Which addresses users may name."""

    private_allowed: bool = False
    http_allowed: bool = False


class _Faults:
    """Gathers what is wrong, so that a caller learns everything at once."""

    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    def check(self, holds: bool, field: str, why: str) -> None:
        if not holds:
            self.found.setdefault(field, why)

    def id(self, value: str, field: str) -> str:
        try:
            return parse_id(value, field)
        except WhisprError as error:
            self.found.setdefault(field, error.fields[field])
            return ""

    def raise_any(self) -> None:
        if self.found:
            raise invalid(self.found)


def message_telling(request: pb.SendMessageNotificationRequest) -> Telling:
    """Read SendMessageNotification."""
    faults = _Faults()
    telling = Telling(
        type=MESSAGE,
        message_id=faults.id(request.message_id, "message_id"),
        conversation_id=faults.id(request.conversation_id, "conversation_id"),
        actor_id=faults.id(request.sender_id, "sender_id"),
        recipient_ids=_recipients(faults, request.recipient_ids),
        preview=one_line(request.preview_text),
        data=_data(faults, request.metadata, "metadata"),
        priority=_priority(faults, request.priority),
        silent=request.silent,
    )
    kinds = ("", *MessageType)
    faults.check(request.message_type in kinds, "message_type", f"must be one of {', '.join(MessageType)}")
    faults.check(
        len(request.preview_text) <= BODY_CHARS_MAX, "preview_text", f"at most {BODY_CHARS_MAX} characters"
    )
    faults.raise_any()
    return telling


def conversation_telling(request: pb.SendConversationNotificationRequest) -> Telling:
    """Read SendConversationNotification."""
    faults = _Faults()
    faults.check(
        is_type(request.event_type) and request.event_type not in ("message", "mention", "clear", "read"),
        "event_type",
        "lower-case words joined by underscores, and none of message, mention, clear, read",
    )
    title = one_line(request.title, TITLE_CHARS_MAX)
    faults.check(bool(title), "title", "must not be empty")
    faults.check(len(request.title) <= TITLE_CHARS_MAX, "title", f"at most {TITLE_CHARS_MAX} characters")
    faults.check(len(request.body) <= BODY_CHARS_MAX, "body", f"at most {BODY_CHARS_MAX} characters")
    telling = Telling(
        type=request.event_type,
        conversation_id=faults.id(request.conversation_id, "conversation_id"),
        actor_id=faults.id(request.actor_id, "actor_id") if request.actor_id else "",
        recipient_ids=_recipients(faults, request.recipient_ids),
        title=title,
        body=one_line(request.body, BODY_CHARS_MAX),
        data=_data(faults, request.data, "data"),
        priority=_priority(faults, request.priority),
    )
    faults.raise_any()
    return telling


def is_type(name: str) -> bool:
    """Tell whether something may be the type of a notification."""
    return len(name) <= TYPE_CHARS_MAX and TYPE_PATTERN.fullmatch(name) is not None


def _recipients(faults: _Faults, ids: Iterable[str]) -> list[str]:
    found = list(dict.fromkeys(ids))
    faults.check(len(found) <= RECIPIENTS_MAX, "recipient_ids", f"at most {RECIPIENTS_MAX}")
    faults.check(all(is_id(each.lower()) for each in found), "recipient_ids", "must be UUIDs")
    return [each.lower() for each in found]


def _data(faults: _Faults, data: Mapping[str, str], field: str) -> dict[str, str]:
    own = dict(data)
    faults.check(size_of(own) <= DATA_BYTES_MAX, field, f"at most {DATA_BYTES_MAX} bytes as JSON")
    plain = all("\0" not in text for pair in own.items() for text in pair)
    faults.check(plain, field, "must hold no NUL characters")
    return own


def _priority(faults: _Faults, value: int) -> Priority:
    faults.check(value in (0, *Priority), "priority", "must be LOW, NORMAL, HIGH or URGENT")
    return Priority(value) if value in tuple(Priority) else Priority.NORMAL


# Devices


def new_device(request: pb.RegisterDeviceRequest, addresses: Addresses) -> NewDevice:
    """Read RegisterDevice."""
    faults = _Faults()
    try:
        platform = Platform(request.platform)
    except ValueError:
        raise invalid({"platform": f"must be one of {', '.join(Platform)}"}) from None
    token = request.token.strip()
    faults.check(0 < len(token) <= TOKEN_CHARS_MAX, "token", f"1 to {TOKEN_CHARS_MAX} characters")
    faults.check(len(request.name) <= NAME_CHARS_MAX, "name", f"at most {NAME_CHARS_MAX} characters")
    p256dh = auth = b""
    match platform:
        case Platform.WEBPUSH:
            p256dh = _key(faults, request.p256dh, "p256dh", P256DH_BYTES)
            auth = _key(faults, request.auth, "auth", AUTH_BYTES)
            faults.check("p256dh" in faults.found or _on_curve(p256dh), "p256dh", "is no point of P-256")
            _check_url(faults, token, addresses)
        case Platform.WEBHOOK:
            _check_url(faults, token, addresses)
        case Platform.FCM:
            faults.check(_FCM_TOKEN.fullmatch(token) is not None, "token", "is no registration token of FCM")
        case Platform.APNS:
            faults.check(
                _APNS_TOKEN.fullmatch(token) is not None, "token", "must be 64 or more hexadecimal digits"
            )
            token = token.lower()
    faults.raise_any()
    return NewDevice(
        platform=platform, token=token, p256dh=p256dh, auth=auth, name=one_line(request.name, NAME_CHARS_MAX)
    )


def _check_url(faults: _Faults, url: str, addresses: Addresses) -> None:
    """Check what can be known without asking anybody; the address itself is checked when it is called."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        faults.check(False, "token", "is no URL")
        return
    schemes = ("https", "http") if addresses.http_allowed else ("https",)
    faults.check(parts.scheme in schemes and bool(host), "token", f"must be a URL of {' or '.join(schemes)}")
    plain = url.isascii() and url.isprintable() and " " not in url and "\\" not in url
    faults.check(plain and not parts.username and not parts.fragment, "token", "is no plain URL")
    if not addresses.private_allowed:
        faults.check(not _is_private(host), "token", "must lead to the public internet")


def _is_private(host: str) -> bool:
    """Tell whether a host is private by its name alone; names are resolved when they are called."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        name = host.rstrip(".").lower()
        local = ("localhost", ".localhost", ".local", ".internal", ".home.arpa")
        # Such as 127.1 or 0x7f000001, which resolvers read as addresses.
        numeric = name.rpartition(".")[2].isdigit() or name.startswith("0x")
        return name == "localhost" or name.endswith(local[1:]) or "." not in name or numeric
    return not is_public(host)


def _key(faults: _Faults, text: str, field: str, length: int) -> bytes:
    try:
        key = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except (ValueError, binascii.Error):
        key = b""
    faults.check(len(key) == length, field, f"must be {length} bytes in URL-safe base64")
    return key


def _on_curve(point: bytes) -> bool:
    try:
        ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
    except ValueError:
        return False
    return True


# Preferences


def changed(own: Preferences, request: pb.UpdatePreferencesRequest) -> Preferences:
    """Apply UpdatePreferences to what a person's preferences are."""
    faults = _Faults()
    faults.check(
        not (request.clear_quiet_hours and request.HasField("quiet_hours")),
        "clear_quiet_hours",
        "contradicts quiet_hours",
    )
    faults.check(
        all(is_type(name) for name in request.types), "types", "lower-case words joined by underscores"
    )
    quiet = own.quiet_hours
    if request.clear_quiet_hours:
        quiet = None
    elif request.HasField("quiet_hours"):
        quiet = _quiet_hours(faults, request.quiet_hours)
    faults.raise_any()
    return Preferences(
        enabled=request.enabled if request.HasField("enabled") else own.enabled,
        previews=request.previews if request.HasField("previews") else own.previews,
        quiet_hours=quiet,
        types={**own.types, **request.types},
    )


def _quiet_hours(faults: _Faults, wanted: pb.QuietHours) -> QuietHours:
    start, end = minute_of(getattr(wanted, "from")), minute_of(wanted.to)
    faults.check(start is not None, "quiet_hours.from", 'a time of day such as "22:00"')
    faults.check(end is not None, "quiet_hours.to", 'a time of day such as "07:00"')
    faults.check(start is None or start != end, "quiet_hours.to", "must differ from `from`")
    known = bool(wanted.time_zone) and zone_of(wanted.time_zone) is not None
    faults.check(known, "quiet_hours.time_zone", "must be a name such as Europe/Paris")
    faults.check(
        all(1 <= day <= 7 for day in wanted.days), "quiet_hours.days", "1 for Monday to 7 for Sunday"
    )
    return QuietHours(
        start or 0, end or 0, wanted.time_zone, tuple(sorted(set(wanted.days))), wanted.also_urgent
    )


def conversation_wishes(request: pb.UpdatePreferencesRequest) -> dict[str, ConversationPreference]:
    """Read the conversations of UpdatePreferences."""
    faults = _Faults()
    faults.check(len(request.conversations) <= PREFERENCES_MAX, "conversations", f"at most {PREFERENCES_MAX}")
    wishes = {}
    for index, each in enumerate(request.conversations[: PREFERENCES_MAX + 1]):
        where = f"conversations[{index}]"
        conversation_id = faults.id(each.conversation_id, f"{where}.conversation_id")
        level = _LEVELS.get(each.level)
        faults.check(level is not None, f"{where}.level", "must be DEFAULT, ALL, MENTIONS or NONE")
        until = moment_of(each.muted_until, f"{where}.muted_until") if each.HasField("muted_until") else None
        if until is not None and until >= FOR_EVER.replace(month=1, day=1):
            until = FOR_EVER
        wishes[conversation_id] = ConversationPreference(level or Level.DEFAULT, until)
    faults.raise_any()
    return wishes


def moment_of(stamp: Timestamp, field: str) -> datetime:
    """Read a time. Raises INVALID_ARGUMENT."""
    try:
        return stamp.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise invalid({field: "is out of range"}) from None


__all__ = [
    "Addresses",
    "changed",
    "conversation_telling",
    "conversation_wishes",
    "message_telling",
    "new_device",
]
