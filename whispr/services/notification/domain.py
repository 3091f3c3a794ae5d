"""The rules of notifications: who is told, how loudly, and in which words. Pure."""

from __future__ import annotations

import enum
import random
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import msgspec

from whispr.resilience.retry import Backoff

PREVIEW_CHARS_MAX = 160
TITLE_CHARS_MAX = 256
BODY_CHARS_MAX = 512
DATA_BYTES_MAX = 2048
"""Title, body and data together leave room for the envelope in the 4,096 bytes that push services take."""
NAME_CHARS_MAX = 64
MENTIONS_MAX = 50
"""People mentioned by one message; more are not told apart."""
TYPES_MAX = 32
DAY_MIN = 24 * 60

TYPE_PATTERN = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
_TIME_OF_DAY = re.compile(r"([01][0-9]|2[0-3]):([0-5][0-9])")


class Platform(enum.StrEnum):
    """Where a device is pushed through."""

    WEBPUSH = "webpush"
    FCM = "fcm"
    APNS = "apns"
    WEBHOOK = "webhook"


class Priority(enum.IntEnum):
    """How much a notification matters; the numbers are those of the proto."""

    LOW = 1
    NORMAL = 2
    HIGH = 3
    URGENT = 4


class Level(enum.StrEnum):
    """What of a conversation a person wants to be told."""

    DEFAULT = "default"
    ALL = "all"
    MENTIONS = "mentions"
    NONE = "none"


class Why(enum.StrEnum):
    """Why nothing was pushed to somebody."""

    SENDER = "sender"
    NOT_A_MEMBER = "not_a_member"
    BLOCKED = "blocked"
    READING = "reading"
    MUTED = "muted"
    DISABLED = "disabled"
    QUIET_HOURS = "quiet_hours"
    NO_DEVICE = "no_device"

    @property
    def leaves_inbox(self) -> bool:
        """Whether the inbox gets an entry all the same: they want to know, only not now or not aloud."""
        return self in (Why.QUIET_HOURS, Why.NO_DEVICE, Why.DISABLED)


class QuietHours(msgspec.Struct, frozen=True):
    """A time of day without pushes, in minutes since midnight; `end` before `start` is on the next day."""

    start: int
    end: int
    time_zone: str
    days: tuple[int, ...] = ()
    """Days on which it begins, 1 Monday to 7 Sunday; empty for all."""
    also_urgent: bool = False

    def covers(self, now: datetime) -> bool:
        """Tell whether a moment falls into it. A zone that is unknown here counts as UTC."""
        local = now.astimezone(zone_of(self.time_zone) or UTC)
        minute, day = local.hour * 60 + local.minute, local.isoweekday()
        if self.start <= self.end:
            return self.start <= minute < self.end and self._begins_on(day)
        if minute >= self.start:
            return self._begins_on(day)
        return minute < self.end and self._begins_on(day - 1 or 7)

    def _begins_on(self, day: int) -> bool:
        return not self.days or day in self.days


class Preferences(msgspec.Struct, frozen=True):
    """What a person wants to be told, everywhere."""

    enabled: bool = True
    previews: bool = True
    quiet_hours: QuietHours | None = None
    types: Mapping[str, bool] = {}


class ConversationPreference(msgspec.Struct, frozen=True):
    """What a person wants to be told of one conversation. `muted_until` is the latest of all mutes."""

    level: Level = Level.DEFAULT
    muted_until: datetime | None = None


class Notice(msgspec.Struct, frozen=True):
    """What is to be told, as far as a person's wishes care."""

    type: str
    priority: Priority
    mentioned: bool = False
    from_conversation: bool = True
    large: bool = False
    """Whether the conversation is so large that by default only mentions are told."""


EVERYTHING = Preferences()
NOTHING_SPECIAL = ConversationPreference()


def why_not(notice: Notice, own: Preferences, there: ConversationPreference, now: datetime) -> Why | None:
    """Say why a person does not want to be pushed this now; None when they do."""
    if there.level is Level.NONE or (there.muted_until is not None and there.muted_until > now):
        return Why.MUTED
    only_mentions = there.level is Level.MENTIONS or (there.level is Level.DEFAULT and notice.large)
    if only_mentions and not notice.mentioned and notice.from_conversation:
        return Why.MUTED
    if not own.types.get(notice.type, True):
        return Why.MUTED
    if not own.enabled:
        return Why.DISABLED
    quiet = own.quiet_hours
    if quiet is not None and quiet.covers(now) and (quiet.also_urgent or notice.priority < Priority.URGENT):
        return Why.QUIET_HOURS
    return None


def zone_of(name: str) -> ZoneInfo | None:
    """Return a time zone of the IANA database, None for an unknown name."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


def minute_of(text: str) -> int | None:
    """`22:30` → 1350; None for anything else."""
    match = _TIME_OF_DAY.fullmatch(text)
    return int(match[1]) * 60 + int(match[2]) if match else None


def time_of(minute: int) -> str:
    """1350 → `22:30`."""
    return f"{minute // 60:02d}:{minute % 60:02d}"


# Words


def one_line(text: str, chars_max: int = PREVIEW_CHARS_MAX) -> str:
    """Fit text for a lock screen: one line, nothing that draws over its surroundings, at most `chars_max`."""
    # Format characters include the marks that turn the direction of what follows; joiners make emoji.
    clean = "".join(
        char if char == "\u200d" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Co", "Cn") else " "
        for char in text[: chars_max * 8]
    )
    line = " ".join(clean.split())
    return line if len(line) <= chars_max else f"{line[: chars_max - 1].rstrip()}…"


def words_for(count: int, senders: Sequence[str], preview: str | None, group: str) -> tuple[str, str]:
    """Compose title and body of `count` messages: who, and the latest preview or how many.

    `senders` are the names of who sent them, the latest first; `group` the conversation's name, empty when direct.
    """
    who = senders[0] if senders else "Somebody"
    if len(senders) > 1 and not group:
        who = f"{who} and {len(senders) - 1} more"
    title = one_line(group or who, TITLE_CHARS_MAX)
    if count > 1:
        return title, f"{count} new messages"
    text = preview or "New message"
    return title, f"{one_line(who, NAME_CHARS_MAX)}: {text}" if group else text


def preview_of(message_type: str, text: str | None, *, encrypted: bool) -> str | None:
    """Return what may be shown of a message; None for what only its recipients can read, and for no text."""
    if encrypted or message_type == "system":
        return None
    if message_type == "media":
        return one_line(text) if text and one_line(text) else "Sent an attachment"
    return (one_line(text) or None) if text else None


def mentioned_in(metadata: Mapping[str, str], is_id: re.Pattern[str]) -> list[str]:
    """Read the ids of those a message mentions: `metadata.mentions`, separated by commas or spaces."""
    words = metadata.get("mentions", "")[: MENTIONS_MAX * 40].replace(",", " ").split()
    return sorted({word.lower() for word in words if is_id.fullmatch(word.lower())})[:MENTIONS_MAX]


def size_of(data: Mapping[str, str]) -> int:
    """Count the bytes that a map of strings takes in a payload."""
    return len(msgspec.json.encode(dict(data)))


# Trying again


BACKOFF_MAX_S = 15 * 60.0
BACKOFF = Backoff(2.0, BACKOFF_MAX_S, low=0.1)
RETRY_AFTER_MAX_S = 3600.0
"""How long a push service may make us wait."""


def pause_s(attempts: int, retry_after_s: float | None, jitter: random.Random) -> float:
    """Return the seconds before the next attempt: full jitter over a doubling span, or what we were told."""
    pause = BACKOFF.pause_s(attempts, jitter)
    if retry_after_s is None:
        return pause
    # A little more than told, so that all who were told the same do not come back together.
    return max(pause, min(retry_after_s, RETRY_AFTER_MAX_S) * jitter.uniform(1.0, 1.1))


def latest(moments: Iterable[datetime | None]) -> datetime | None:
    """Return the latest of some moments, None when there is none."""
    return max((moment for moment in moments if moment is not None), default=None)


FOR_EVER = datetime(9999, 12, 31, tzinfo=UTC)
"""How a mute without an end is written; `infinity` in the database."""


def ttl_until(now: datetime, ttl_s: float) -> datetime:
    """Return when a push is of no use any more."""
    return now + timedelta(seconds=ttl_s)
