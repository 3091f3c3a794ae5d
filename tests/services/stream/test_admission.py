"""Who is let in: addresses that may not come back yet."""

from __future__ import annotations

from typing import Any, cast

import pytest

from whispr.errors import WhisprError
from whispr.services.stream import admission
from whispr.services.stream.admission import BARRED_MAX, BARRED_S, Admission, mark_of
from whispr.services.stream.domain import StreamLimits, Viewer

now = 0.0


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch) -> Admission:
    monkeypatch.setattr("tests.services.stream.test_admission.now", 0.0)
    return Admission(cast(Any, None), StreamLimits(), clock=lambda: now)


def test_a_barred_address_comes_back_in_time(door: Admission, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before; to other streams, and with an account, at once."""
    door.bar(mark_of("s", "192.0.2.1"))
    with pytest.raises(WhisprError) as told:
        door.come("s", "192.0.2.1", Viewer())
    assert told.value.reason == "removed"
    door.come("t", "192.0.2.1", Viewer())
    door.come("s", "192.0.2.1", Viewer("u"))
    monkeypatch.setattr("tests.services.stream.test_admission.now", BARRED_S)
    door.come("s", "192.0.2.1", Viewer())
    door.bar(mark_of("s", "192.0.2.2"))
    assert len(door._barred) == 1, "what is over is forgotten"


def test_so_many_are_remembered(door: Admission, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latest, whoever comes from how many addresses."""
    monkeypatch.setattr(admission, "BARRED_MAX", 3)
    for number in range(5):
        door.bar(mark_of("s", f"192.0.2.{number}"))
    barred = [number for number in range(5) if door.is_barred("s", f"192.0.2.{number}")]
    assert barred == [2, 3, 4]
    assert BARRED_MAX == 10_000


def test_one_household_has_the_listeners_of_one_address() -> None:
    """Of IPv6 anybody has as many addresses as they like: all of a /64 count as one, and leave as one."""
    door = Admission(cast(Any, None), StreamLimits(address_listeners=2))
    for number in range(2):
        door.come("s", f"2001:db8::{number}", Viewer())
    with pytest.raises(WhisprError) as told:
        door.come("s", "2001:db8::9", Viewer())
    assert told.value.reason == "too_many_listeners"
    door.come("s", "2001:db8:0:1::9", Viewer())
    for each in ("2001:db8::0", "2001:db8::1", "2001:db8:0:1::9"):
        door.go(each, "")
    assert not door._addresses


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, same: bool) -> None:
    """Of IPv6 what one household has; never the address itself is told."""
    assert (mark_of("s", one) == mark_of("s", other)) is same
    assert one not in mark_of("s", one)
    assert mark_of("s", "") == ""
