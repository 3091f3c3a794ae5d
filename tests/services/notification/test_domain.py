"""The rules of notifications, without anything around them."""

from __future__ import annotations

import random
import re
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from whispr.ids import UUID_PATTERN, new_id
from whispr.services.notification import domain
from whispr.services.notification.domain import (
    ConversationPreference,
    Level,
    Notice,
    Preferences,
    Priority,
    QuietHours,
    Why,
    why_not,
)
from whispr.services.notification.senders.apns import payload_of as apns_payload
from whispr.services.notification.senders.fcm import message_of
from whispr.services.notification.senders.port import Push, fitted, payload_of
from whispr.services.notification.senders.webpush import RECORD_BYTES

PARIS = ZoneInfo("Europe/Paris")
NIGHT = QuietHours(22 * 60, 7 * 60, "Europe/Paris")


def at(text: str, zone: ZoneInfo = PARIS) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=zone).astimezone(UTC)


@pytest.mark.parametrize(
    ("moment", "quiet"),
    [
        ("2026-07-01 21:59", False),
        ("2026-07-01 22:00", True),
        ("2026-07-02 06:59", True),
        ("2026-07-02 07:00", False),
        ("2026-12-24 23:30", True),
        # The nights in which the clock is changed.
        ("2026-03-29 03:30", True),
        ("2026-10-25 02:30", True),
    ],
)
def test_quiet_hours_are_local_time(moment: str, quiet: bool) -> None:
    """From the first minute to before the last, over midnight, in the person's own zone, summer and winter."""
    assert NIGHT.covers(at(moment)) is quiet


def test_quiet_hours_begin_on_their_days() -> None:
    """A night that begins on a Friday lasts into Saturday, and the one after is not quiet."""
    friday = msgspec.structs.replace(NIGHT, days=(5,))
    assert friday.covers(at("2026-07-03 23:00"))
    assert friday.covers(at("2026-07-04 06:00"))
    assert not friday.covers(at("2026-07-03 06:00"))
    assert not friday.covers(at("2026-07-04 23:00"))
    sunday = msgspec.structs.replace(NIGHT, days=(7,))
    assert sunday.covers(at("2026-07-06 01:00"))
    noon = QuietHours(12 * 60, 14 * 60, "Asia/Tokyo")
    assert noon.covers(at("2026-07-06 13:00", ZoneInfo("Asia/Tokyo")))
    assert not noon.covers(at("2026-07-06 13:00"))


@given(st.integers(0, 1439), st.integers(0, 1439), st.datetimes(timezones=st.just(UTC)))
def test_quiet_hours_and_their_complement_share_no_moment(start: int, end: int, moment: datetime) -> None:
    """Every moment is in one of them, unless both are empty or all day."""
    if start != end:
        day = QuietHours(start, end, "Etc/UTC")
        assert day.covers(moment) != QuietHours(end, start, "Etc/UTC").covers(moment)


def test_a_zone_that_is_unknown_here_counts_as_utc() -> None:
    """A server with older time zone data than the one that took the setting must not fail."""
    assert QuietHours(0, 60, "Mars/Base").covers(datetime(2026, 1, 1, 0, 30, tzinfo=UTC))


NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
Wish = ConversationPreference
ALL_DAY = QuietHours(0, 1439, "Etc/UTC")


@pytest.mark.parametrize(
    ("own", "there", "notice", "expected"),
    [
        (Preferences(), Wish(), Notice("message", Priority.NORMAL), None),
        (Preferences(), Wish(Level.NONE), Notice("message", Priority.URGENT, mentioned=True), Why.MUTED),
        (Preferences(), Wish(muted_until=NOW + timedelta(1)), Notice("message", Priority.URGENT), Why.MUTED),
        (Preferences(), Wish(muted_until=NOW), Notice("message", Priority.LOW), None),
        (Preferences(), Wish(Level.MENTIONS), Notice("message", Priority.HIGH), Why.MUTED),
        (Preferences(), Wish(Level.MENTIONS), Notice("mention", Priority.HIGH, mentioned=True), None),
        (Preferences(), Wish(Level.MENTIONS), Notice("poll", Priority.LOW, from_conversation=False), None),
        (Preferences(), Wish(), Notice("message", Priority.NORMAL, large=True), Why.MUTED),
        (Preferences(), Wish(Level.ALL), Notice("message", Priority.NORMAL, large=True), None),
        (Preferences(types={"poll": False}), Wish(), Notice("poll", Priority.URGENT), Why.MUTED),
        (Preferences(enabled=False), Wish(), Notice("message", Priority.URGENT), Why.DISABLED),
        (Preferences(quiet_hours=ALL_DAY), Wish(), Notice("message", Priority.HIGH), Why.QUIET_HOURS),
        (Preferences(quiet_hours=ALL_DAY), Wish(), Notice("message", Priority.URGENT), None),
    ],
)  # fmt: skip
def test_who_wants_what(
    own: Preferences, there: ConversationPreference, notice: Notice, expected: Why | None
) -> None:
    """Mutes and levels first, then types, then whether anything may ring at all, then the time of day."""
    assert why_not(notice, own, there, NOW) is expected


@settings(max_examples=60)
@given(st.text(max_size=400), st.integers(1, 80))
def test_one_line_is_one_short_line(text: str, chars_max: int) -> None:
    """Whatever people write, a lock screen gets one line of printable characters, cut where it is too long."""
    line = domain.one_line(text, chars_max)
    assert len(line) <= chars_max
    assert line == line.strip()
    assert not re.search(r"[\x00-\x1f\x7f\u200e\u202e\u2066-\u2069\n\r]", line)
    assert domain.one_line(line, chars_max) == line


def test_one_line_keeps_what_people_wrote() -> None:
    """Scripts and emoji with joiners stay; turning the direction of what follows does not work."""
    assert domain.one_line(" héllo\n\twörld  👨‍👩‍👧 ") == "héllo wörld 👨‍👩‍👧"
    assert domain.one_line("pay\u202egnp.exe") == "pay gnp.exe"
    assert domain.one_line("abcdef", 4) == "abc…"


@pytest.mark.parametrize(
    ("count", "senders", "preview", "group", "words"),
    [
        (1, ["Ann"], "hi", "", ("Ann", "hi")),
        (1, ["Ann"], None, "", ("Ann", "New message")),
        (1, ["Ann"], "hi", "Chess", ("Chess", "Ann: hi")),
        (3, ["Ann"], "hi", "", ("Ann", "3 new messages")),
        (3, ["Ann", "Bob"], "hi", "", ("Ann and 1 more", "3 new messages")),
        (3, ["Ann", "Bob"], "hi", "Chess", ("Chess", "3 new messages")),
        (1, [], None, "", ("Somebody", "New message")),
    ],
)
def test_words(
    count: int, senders: list[str], preview: str | None, group: str, words: tuple[str, str]
) -> None:
    """Who and what of one message, how many of several."""
    assert domain.words_for(count, senders, preview, group) == words


@pytest.mark.parametrize(
    ("kind", "text", "encrypted", "preview"),
    [
        ("text", " hi ", False, "hi"),
        ("text", "hi", True, None),
        ("text", None, False, None),
        ("text", "\n", False, None),
        ("system", "hi", False, None),
        ("media", "a caption", False, "a caption"),
        ("media", "", False, "Sent an attachment"),
        ("media", "x", True, None),
    ],
)
def test_previews(kind: str, text: str | None, encrypted: bool, preview: str | None) -> None:
    """Text is shown when it is text; of what is encrypted nothing is said."""
    assert domain.preview_of(kind, text, encrypted=encrypted) == preview


def test_mentions_are_read_and_bounded() -> None:
    """Ids in any case, separated by commas or spaces, each once, so many at most."""
    pattern = re.compile(UUID_PATTERN)
    one, two = sorted([new_id(), new_id()])
    found = domain.mentioned_in({"mentions": f"{two},{one.upper()} {one} @bob"}, pattern)
    assert found == [one, two]
    crowd = ",".join(new_id() for _ in range(200))
    assert len(domain.mentioned_in({"mentions": crowd}, pattern)) <= domain.MENTIONS_MAX
    assert domain.mentioned_in({}, pattern) == []


@given(st.integers(1, 40), st.one_of(st.none(), st.floats(0, 1e9)), st.integers())
def test_pauses_grow_and_end(attempts: int, retry_after_s: float | None, seed: int) -> None:
    """Full jitter over a doubling span with a ceiling; what we were told is honoured, up to an hour."""
    pause = domain.pause_s(attempts, retry_after_s, random.Random(seed))
    ceiling = max(domain.BACKOFF_MAX_S, (min(retry_after_s or 0, domain.RETRY_AFTER_MAX_S)) * 1.1)
    assert 0 < pause <= ceiling
    if retry_after_s is not None:
        assert pause >= min(retry_after_s, domain.RETRY_AFTER_MAX_S)


@given(
    st.text(max_size=256), st.text(max_size=512), st.dictionaries(st.text(max_size=20), st.text(max_size=90))
)
@settings(max_examples=30)
@example("漢" * 256, "\U0001f600" * 512, {"k": "v" * 2036})
@example('"' * 256, "\\" * 512, {"k": '"' * 1018})
def test_the_largest_push_fits(title: str, body: str, data: dict[str, str]) -> None:
    """What the limits allow fits into the 4,096 bytes that push services take."""
    if domain.size_of(data) > domain.DATA_BYTES_MAX:
        return
    own = {name: new_id() for name in ("conversation_id", "actor_id", "message_id")}
    data = {**data, **own, "count": "100000", "seq": "4294967295", "conversation_kind": "direct"}
    push = Push(
        type="x" * 48, notification_id=new_id(), title=title, body=body, data=data,
        collapse_key="c" * 64, priority=Priority.URGENT, badge=10_000,
    )  # fmt: skip
    overhead = 86 + 1 + 16  # RFC 8188's header with the sender's key, the delimiter, the tag
    assert len(payload_of(fitted(push))) + overhead <= RECORD_BYTES
    assert len(msgspec.json.encode(apns_payload(fitted(push)))) <= 4096
    sized = {**message_of("t", fitted(push), 60), "token": ""}
    assert len(msgspec.json.encode({key: sized.get(key) for key in ("data", "notification")})) <= 4096


def test_times_of_day() -> None:
    """Minutes since midnight, and back."""
    assert [domain.minute_of(each) for each in ("00:00", "23:59", "24:00", "7:00", "07:60", "")] == [
        0, 1439, None, None, None, None,
    ]  # fmt: skip
    assert domain.time_of(1350) == "22:30"
