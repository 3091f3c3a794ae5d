"""The order in which events may run, and where a consumer has come to: the pure parts, against simple models."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from whispr.events.position import Position
from whispr.events.schedule import Schedule, Work


def work(key: str, seq: int = 0) -> Work:
    return Work(key, None, f"{key}{seq}", "user.events.x", b"", seq=seq)


def test_one_of_a_key_runs_at_a_time_and_others_beside_it() -> None:
    """The second of a key waits for the first; another key does not."""
    schedule = Schedule()
    a1, a2, b1 = work("a", 1), work("a", 2), work("b", 1)
    for each in (a1, a2, b1):
        schedule.add(each)
    assert [schedule.take(0), schedule.take(0), schedule.take(0)] == [[a1], [b1], []]
    schedule.done([a1])
    assert schedule.take(0) == [a2]
    assert len(schedule) == 2


def test_what_runs_together_is_taken_in_the_order_of_each_key() -> None:
    """Many are taken at once, up to a number; what is left of a key waits until they are done."""
    schedule = Schedule()
    a1, a2, a3, b1, b2 = work("a", 1), work("a", 2), work("a", 3), work("b", 1), work("b", 2)
    for each in (a1, b1, a2, b2, a3):
        schedule.add(each)
    assert schedule.take(0, 4) == [a1, a2, a3, b1]
    assert schedule.take(0, 4) == []
    schedule.done([a1, a2, a3, b1])
    assert schedule.take(0, 4) == [b2]


def test_what_is_to_run_alone_runs_alone_and_in_its_place() -> None:
    """What failed together is taken one by one, in order; so is what failed by itself."""
    schedule = Schedule()
    a1, a2, a3, b1 = work("a", 1), work("a", 2), work("a", 3), work("b", 1)
    for each in (a1, a2, b1):
        schedule.add(each)
    assert schedule.take(0, 2) == [a1, a2]
    schedule.apart([a1, a2])
    schedule.add(a3)
    assert [schedule.take(0, 9), schedule.take(0, 9), schedule.take(0, 9)] == [[b1], [a1], []]
    schedule.again(a1, 5)
    assert schedule.take(5, 9) == [a1]
    schedule.done([a1])
    assert schedule.take(5, 9) == [a2]
    schedule.done([a2])
    assert schedule.take(5, 9) == [a3]


def test_a_key_waits_with_its_failed_head_and_others_go_on() -> None:
    """What failed runs again at its time, before what came after it about the same thing."""
    schedule = Schedule()
    a1, a2, b1 = work("a", 1), work("a", 2), work("b", 1)
    for each in (a1, a2):
        schedule.add(each)
    assert schedule.take(0) == [a1]
    schedule.again(a1, 10)
    schedule.add(b1)
    assert schedule.next_due == 10
    assert [schedule.take(9), schedule.take(9)] == [[b1], []]
    assert schedule.take(10) == [a1]
    assert schedule.next_due == float("inf")
    schedule.done([a1])
    assert schedule.take(10) == [a2]


def test_failed_attempts_are_known_by_stream() -> None:
    """Only what has failed, of the stream asked for, is remembered over a failover."""
    schedule, here, there = Schedule(), Position("i"), Position("i")
    for n, (position, attempts) in enumerate([(here, 0), (here, 2), (there, 3)]):
        schedule.add(one := work(str(n), n))
        one.position, one.attempts = position, attempts
    assert schedule.attempts(here) == {"1": 2}


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["add", "take", "done", "fail"]), st.integers(0, 5)), max_size=60
)


@given(ACTIONS)
def test_any_interleaving_keeps_order_per_key_and_loses_nothing(actions: list[tuple[str, int]]) -> None:
    """However work fails, waits and is done, each key's comes to an end in order, and all of it does."""
    expected: dict[str, list[int]] = defaultdict(list)
    ended: dict[str, list[int]] = defaultdict(list)
    schedule, now = Schedule(), 0.0
    running: list[list[Work]] = []

    def act(action: str, choice: int) -> None:
        nonlocal now
        if action == "add":
            key = "abc"[choice % 3]
            expected[key].append(len(expected[key]) + 1)
            schedule.add(work(key, expected[key][-1]))
        elif action == "take":
            now = now if schedule.next_due == float("inf") else max(now, schedule.next_due)
            if taken := schedule.take(now, 1 + choice):
                assert not {one.key for one in taken} & {one.key for works in running for one in works}
                running.append(taken)
        elif running and action == "done":
            works = running.pop(choice % len(running))
            for one in works:
                ended[one.key].append(one.seq)
            schedule.done(works)
        elif running:
            works = running.pop(choice % len(running))
            if len(works) > 1:
                schedule.apart(works)
            else:
                schedule.again(works[0], now + choice)

    for action in actions:
        act(*action)
    while len(schedule):
        act("take", 0)
        act("done", 0)
    assert ended == expected


@given(st.data())
def test_the_floor_is_below_everything_open_and_nothing_done_is_lost(data: st.DataObject) -> None:
    """Resuming from what was kept takes up exactly what was not done, whatever finished in whatever order."""
    seqs = sorted(data.draw(st.sets(st.integers(1, 60), min_size=1, max_size=25)))
    position, left = Position("i"), list(seqs)
    open_: list[int] = []
    done: set[int] = set()
    for _ in range(data.draw(st.integers(0, 60))):
        begin: bool = data.draw(st.booleans())
        if left and begin:
            seq = left.pop(0)
            assert position.take_up(seq)
            open_.append(seq)
        elif open_:
            seq = open_.pop(data.draw(st.integers(0, len(open_) - 1)))
            position.finish(seq)
            done.add(seq)
        assert all(seq > position.floor for seq in open_)
        assert set(position.done_above) == {seq for seq in done if seq > position.floor}
    resumed = Position("i", position.floor, position.done_above)
    again = [seq for seq in seqs if seq > position.floor and resumed.take_up(seq)]
    assert again == [seq for seq in seqs if seq not in done]
    for seq in again:
        resumed.finish(seq)
    assert resumed.floor == max(seqs[-1], position.floor)
    assert resumed.done_above == []
