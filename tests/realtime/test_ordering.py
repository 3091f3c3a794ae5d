"""The order of numbered broadcasts, over a bus that loses, repeats and reorders them. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from whispr.realtime.ordering import Gap, Numbered, Order

Event = tuple[str, int]


def history(steps: Sequence[int]) -> list[Numbered[Event]]:
    """What happened, in order: 0 is a message, n > 0 a change of the n-th last message, -1 a change of none."""
    events: list[Numbered[Event]] = []
    seq = change = 0
    for step in steps:
        if step == 0:
            seq += 1
            events.append(Numbered(("seq", seq), seq))
        else:
            change += 1
            about = max(seq - step + 1, 0) if step > 0 else 0
            events.append(Numbered(("change", change), None, change, about))
    return events


def check(out: Sequence[Event], events: Sequence[Numbered[Event]], base: tuple[int, int]) -> None:
    """Each number after the base once, in order, and no change before its message."""
    about = {each.item: each.about for each in events}
    at = dict(zip(("seq", "change"), base, strict=True))
    for kind, number in out:
        assert number == at[kind] + 1
        assert about[kind, number] <= at["seq"]
        at[kind] = number


def stored(events: Sequence[Numbered[Event]], gap: Gap, most: int) -> tuple[list[Numbered[Event]], int, int]:
    """Read a gap as the database would: at most so many of each, everything up to the numbers returned."""
    last = {"seq": 0, "change": 0}
    for each in events:
        last[each.item[0]] = each.item[1]
    seq_upto, change_upto = (
        min(gap.seq_after + most, last["seq"]),
        min(gap.change_after + most, last["change"]),
    )
    found = [
        each
        for each in events
        if (each.change is None and gap.seq_after < each.item[1] <= seq_upto)
        or (each.change is not None and gap.change_after < each.item[1] <= change_upto)
    ]
    return found, seq_upto, change_upto


@given(
    steps=st.lists(st.integers(-1, 4), min_size=1, max_size=40),
    cut=st.integers(0, 40),
    chaos=st.lists(st.tuples(st.integers(0, 39), st.booleans()), max_size=80),
    held_max=st.integers(1, 8),
    most=st.integers(1, 10),
    based_at=st.integers(0, 80),
)
def test_whatever_the_bus_does_everything_comes_once_and_in_order(
    steps: list[int], cut: int, chaos: list[tuple[int, bool]], held_max: int, most: int, based_at: int
) -> None:
    """Any subset, any repeats, any order, reads in between: what goes out is the history from the base, whole."""
    events = history(steps)
    before = events[: min(cut, len(events))]
    base = (sum(e.change is None for e in before), sum(e.change is not None for e in before))
    order: Order[Event] = Order(held_max)
    out: list[Event] = []

    def fill() -> None:
        gap = order.gap
        if gap is not None:
            out.extend(order.fill(*stored(events, gap, most)))

    for step, (index, reads) in enumerate(chaos):
        if step == based_at:
            out.extend(order.base(*base))
        if index < len(events):
            out.extend(order.offer(events[index]))
        if reads:
            fill()
        check(out, events, base)
    if not order.based:
        assert out == []
        out.extend(order.base(*base))
    order.known(sum(e.change is None for e in events), sum(e.change is not None for e in events))
    for _ in range(2 * len(events) + 1):
        fill()
    assert order.gap is None
    check(out, events, base)
    assert len(out) == len(events) - len(before)


@given(steps=st.lists(st.integers(-1, 4), max_size=30), order_of=st.randoms(use_true_random=False))
def test_what_is_only_late_needs_no_read(steps: list[int], order_of: object) -> None:
    """When all broadcasts arrive, however crossed and repeated, everything goes out without asking anybody."""
    events = history(steps)
    arriving = [*events, *events]
    order_of.shuffle(arriving)  # type: ignore[attr-defined]  # Hypothesis's Random has it
    order: Order[Event] = Order()
    out = [item for each in order.base(0, 0) for item in [each]]
    for each in arriving:
        out += order.offer(each)
    assert order.gap is None
    check(out, events, (0, 0))
    assert len(out) == len(events)


def test_a_number_without_a_row_holds_nothing_up() -> None:
    """What the database does not have up to the numbers it read does not exist any more: the rest goes on."""
    order: Order[str] = Order()
    assert order.base(0, 0) == []
    assert order.offer(Numbered("three", 3)) == []
    assert order.gap == Gap(0, 3, 0, 0)
    assert order.fill([Numbered("one", 1)], 2, 0) == ["one", "three"]
    assert order.offer(Numbered("late", 2)) == []
    assert order.gap is None
