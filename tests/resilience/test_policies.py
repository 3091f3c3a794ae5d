"""The policies at work, on a clock that jumps."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing
from prometheus_client import REGISTRY

from whispr.errors import Code, WhisprError, denied, unavailable
from whispr.resilience.breaker import BreakerRules, State
from whispr.resilience.bulkhead import BulkheadRules
from whispr.resilience.fallback import Fallback, LastGood
from whispr.resilience.hedge import Hedge
from whispr.resilience.policy import Deadline, compose
from whispr.resilience.retry import BREAKER_OPEN, Backoff, Budget, RetryRules
from whispr.resilience.target import ONCE, CallRules, Target, TargetRules, Targets

AWAY = unavailable("away", retry_after_s=0)
FAST = RetryRules(attempts=3, backoff=Backoff(0.1, 0.2))


def failing(*outcomes: object) -> Callable[[], Awaitable[Any]]:
    """An operation that ends like this, one attempt after another."""
    left = list(outcomes)

    async def attempt() -> Any:
        await trio.lowlevel.checkpoint()
        outcome = left.pop(0)
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return attempt


def small(name: str, **rules: Any) -> Target:
    """A target whose breaker trips at the third failure."""
    breaker = BreakerRules(failures_in_a_row=3, window_len=10, open_s=1, open_s_max=1)
    return Target(name, TargetRules(breaker=breaker, **rules))


def state(target: Target) -> State:
    """The state of a target's breaker."""
    return target.breaker.state


def sample(name: str, **labels: str) -> float:
    """A metric as it is now."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


async def trip(target: Target) -> None:
    """Fail until the breaker opens."""
    for _ in range(3):
        with pytest.raises(WhisprError):
            await target.run(failing(AWAY), ONCE)
    assert state(target) is State.OPEN


async def test_a_retry_succeeds_and_is_counted(autojump_clock: trio.testing.MockClock) -> None:
    """Two failures and an answer are an answer; each attempt made again is counted by its target and code."""
    before = sample("whispr_call_retries_total", target="retried", code="UNAVAILABLE")
    assert await Target("retried").run(failing(AWAY, AWAY, "answer"), CallRules(retry=FAST)) == "answer"
    assert sample("whispr_call_retries_total", target="retried", code="UNAVAILABLE") == before + 2


async def test_what_cannot_help_is_not_tried_again(autojump_clock: trio.testing.MockClock) -> None:
    """A refusal comes back at once, and the last failure as it was when attempts are over."""
    with pytest.raises(WhisprError, match="no"):
        await Target("t").run(failing(denied("no"), "never"), CallRules(retry=FAST))
    with pytest.raises(WhisprError) as failed:
        await Target("t").run(failing(AWAY, AWAY, AWAY, "never"), CallRules(retry=FAST))
    assert failed.value is AWAY


async def test_a_pause_that_outlasts_the_deadline_is_not_begun(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Told to come back in an hour, an operation of five seconds fails at once."""
    with pytest.raises(WhisprError):
        await Target("t").run(failing(unavailable("in an hour", 3600), "never"), CallRules())
    assert trio.current_time() < 0.5


async def test_the_deadline_is_for_all_attempts(autojump_clock: trio.testing.MockClock) -> None:
    """However many attempts, the whole ends by DEADLINE_EXCEEDED; a nearer scope's Cancelled stays its own."""
    policy = Deadline("slow", 5)
    began = trio.current_time()
    with pytest.raises(WhisprError) as late:
        await policy.run(trio.sleep_forever)
    assert late.value.code is Code.DEADLINE_EXCEEDED
    assert trio.current_time() - began == pytest.approx(5)
    with trio.move_on_after(2) as scope:
        await policy.run(trio.sleep_forever)
    assert scope.cancelled_caught


async def test_tripping_ends_the_calls_that_wait(autojump_clock: trio.testing.MockClock) -> None:
    """What still waits as the breaker trips fails with UNAVAILABLE, reason breaker_open, and not as Cancelled."""
    target = small("tripped")
    reasons: list[str] = []

    async def wait() -> None:
        with pytest.raises(WhisprError) as ended:
            await target.run(trio.sleep_forever, CallRules(deadline_s=60))
        assert ended.value.code is Code.UNAVAILABLE
        reasons.append(ended.value.reason)

    rejected = sample("whispr_calls_rejected_total", target="tripped", reason="breaker_open")
    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        await trip(target)
    assert reasons == ["breaker_open"] * 4
    assert trio.current_time() < 1, "and at once"
    assert sample("whispr_breaker_state", target="tripped") == 2
    assert sample("whispr_calls_rejected_total", target="tripped", reason="breaker_open") == rejected + 4


async def test_one_probe_decides(autojump_clock: trio.testing.MockClock) -> None:
    """While a probe is on its way the others are refused; its success lets everybody in again."""
    target = small("probed")
    await trip(target)
    with pytest.raises(WhisprError) as refused:
        await target.run(failing("never"))
    assert refused.value.reason == "breaker_open"
    assert 0 < (refused.value.retry_after_s or 0) <= 1
    await trio.sleep(1)
    go = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(target.run, go.wait)
        await trio.testing.wait_all_tasks_blocked()
        assert state(target) is State.HALF_OPEN
        with pytest.raises(WhisprError):
            await target.run(failing("never"))
        go.set()
    assert await target.run(failing("answer")) == "answer"
    assert state(target) is State.CLOSED


async def test_a_probe_that_is_cancelled_leaves_its_place(autojump_clock: trio.testing.MockClock) -> None:
    """A probe whose caller went away decides nothing, and the next to come is the probe."""
    target = small("left")
    await trip(target)
    await trio.sleep(1)
    with trio.move_on_after(0.1):
        await target.run(trio.sleep_forever)
    assert state(target) is State.HALF_OPEN
    assert await target.run(failing("answer")) == "answer"


@pytest.mark.parametrize("by_peer", [False, True])
async def test_a_probe_refused_by_another_breaker_leaves_its_place(
    autojump_clock: trio.testing.MockClock, by_peer: bool
) -> None:
    """Another breaker's refusal, further in or at the other end, must not keep this one half-open for ever."""
    target = small("elsewhere")
    await trip(target)
    await trio.sleep(1.1)
    elsewhere = unavailable("another is open", reason=BREAKER_OPEN)
    elsewhere.by_peer = by_peer
    with pytest.raises(WhisprError):
        await target.run(failing(elsewhere), ONCE)
    assert state(target) is (State.CLOSED if by_peer else State.HALF_OPEN)
    assert await target.run(failing("answer"), ONCE) == "answer"
    assert state(target) is State.CLOSED


async def test_silence_counts_when_it_was_long(autojump_clock: trio.testing.MockClock) -> None:
    """A target that does not answer trips by deadlines of a second or more; impatient callers do not trip it."""
    target = small("silent", hung_s=1.0)
    for _ in range(10):
        with trio.move_on_after(0.5):
            await target.run(trio.sleep_forever)
    assert state(target) is State.CLOSED
    for _ in range(3):
        with trio.move_on_after(1.0):
            await target.run(trio.sleep_forever)
    assert state(target) is State.OPEN
    assert target.last_failure is not None
    assert target.last_failure.code == "DEADLINE_EXCEEDED"


async def test_what_a_living_peer_says_does_not_trip() -> None:
    """UNAVAILABLE from a server that answers, for something behind it is away, is not held against the server."""
    target = small("alive")
    said = unavailable("my database is away", retry_after_s=0)
    said.by_peer = True
    for _ in range(20):
        with pytest.raises(WhisprError):
            await target.run(failing(said), ONCE)
    assert state(target) is State.CLOSED


async def test_a_full_bulkhead_refuses_and_a_place_is_handed_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """One inside, one in line, the third is refused; the one in line gets the place, and leaves none behind."""
    target = small("narrow", bulkhead=BulkheadRules(in_flight_max=1, queue_len_max=1))
    go, done = trio.Event(), []

    async def one(number: int) -> None:
        await target.run(go.wait)
        done.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(2):
            nursery.start_soon(one, number)
            await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(WhisprError) as refused:
            await target.run(failing("never"), ONCE)
        assert refused.value.reason == "bulkhead_full"
        assert refused.value.code is Code.RESOURCE_EXHAUSTED
        go.set()
    assert done == [0, 1]
    assert target.bulkhead.in_flight == 0


async def test_giving_up_in_line_loses_no_place(autojump_clock: trio.testing.MockClock) -> None:
    """Whoever is cancelled in line, or just as it is their turn, takes no place with them."""
    target = small("patient", bulkhead=BulkheadRules(in_flight_max=1, queue_len_max=5))
    go = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(target.run, go.wait)
        await trio.testing.wait_all_tasks_blocked()
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as waiters:
                waiters.start_soon(target.run, go.wait)
                await trio.testing.wait_all_tasks_blocked()
                go.set()
                scope.cancel()
    assert target.bulkhead.in_flight == 0
    assert target.bulkhead.queued == 0


async def test_a_hedge_overtakes_a_slow_attempt(autojump_clock: trio.testing.MockClock) -> None:
    """A second attempt is made after the delay, the first answer counts, and the other is cancelled."""
    calls: list[str] = []

    async def attempt() -> str:
        calls.append("begun")
        if len(calls) == 1:
            try:
                await trio.sleep_forever()
            finally:
                calls.append("cancelled")
        return "fast"

    assert await Hedge(0.2, Budget()).run(attempt) == "fast"
    assert calls == ["begun", "begun", "cancelled"]
    assert trio.current_time() == pytest.approx(0.2)


async def test_hedges_fail_only_together(autojump_clock: trio.testing.MockClock) -> None:
    """A failed attempt has the next made at once; when all have failed the last error is told, without a group."""
    assert await Hedge(10, Budget()).run(failing(AWAY, "answer")) == "answer"
    with pytest.raises(WhisprError) as failed:
        await Hedge(10, Budget()).run(failing(AWAY, AWAY))
    assert failed.value is AWAY
    assert trio.current_time() == 0


async def test_no_hedge_without_a_budget(autojump_clock: trio.testing.MockClock) -> None:
    """A target in trouble is not asked twice."""
    budget = Budget(2)
    budget.failed()
    with pytest.raises(WhisprError):
        await Hedge(10, budget).run(failing(AWAY, "never"))


async def test_a_target_hedges_when_its_rules_say_so(autojump_clock: trio.testing.MockClock) -> None:
    """`hedge_s` alone turns it on, and hedges are counted."""
    before = sample("whispr_call_hedges_total", target="hedged")
    slow = iter([60.0, 0.1])

    async def attempt() -> str:
        await trio.sleep(next(slow))
        return "answer"

    assert await Target("hedged").run(attempt, CallRules(hedge_s=0.5)) == "answer"
    assert trio.current_time() == pytest.approx(0.6)
    assert sample("whispr_call_hedges_total", target="hedged") == before + 1


async def test_a_fallback_stands_in_for_what_is_away_alone() -> None:
    """UNAVAILABLE is answered by something else; what was refused stays refused. Policies compose outside in."""

    async def stand_in(error: WhisprError) -> str:
        return f"instead of {error.code.name}"

    policy = compose(Fallback(stand_in), small("composed").policy(ONCE))
    assert await policy.run(failing(AWAY)) == "instead of UNAVAILABLE"
    with pytest.raises(WhisprError, match="no"):
        await policy.run(failing(denied("no")))


async def test_the_last_good_answer_stands_in(autojump_clock: trio.testing.MockClock) -> None:
    """Fresh answers spare the question; the last good one serves while nobody answers; forgotten ones do not."""
    kept: LastGood[str, str] = LastGood("test", trio.current_time, len_max=2, age_s_max=60)
    ask = failing(("one", 10.0), AWAY, AWAY, ("two", 10.0), AWAY)
    assert await kept.ask("k", ask, ["name"]) == "one"
    assert await kept.ask("k", ask, ["name"]) == "one"
    await trio.sleep(11)
    before = sample("whispr_last_good_answers_total", of="test")
    assert await kept.ask("k", ask, ["name"]) == "one"
    assert kept.fresh("k") == "one", "for a moment nobody else asks"
    assert sample("whispr_last_good_answers_total", of="test") == before + 1
    kept.forget("name")
    with pytest.raises(WhisprError):
        await kept.ask("k", ask, ["name"])
    assert await kept.ask("k", ask, ["name"]) == "two"
    kept.forget_all()
    with pytest.raises(WhisprError):
        await kept.ask("k", ask)


async def test_an_answer_from_before_a_change_is_not_kept(autojump_clock: trio.testing.MockClock) -> None:
    """What is forgotten while it is asked about is used once; and the last good one does not outlive it either."""
    kept: LastGood[str, str] = LastGood("test", trio.current_time, len_max=10, age_s_max=60)

    async def ask() -> tuple[str, float]:
        await trio.lowlevel.checkpoint()
        kept.forget("name")
        return "old", 10.0

    assert await kept.ask("k", ask, ["name"]) == "old"
    assert kept.fresh("k") is None
    await kept.ask("k", failing(("new", 1.0)), ["name"])
    await trio.sleep(2)

    async def fail() -> tuple[str, float]:
        await trio.lowlevel.checkpoint()
        kept.forget("name")
        raise AWAY

    with pytest.raises(WhisprError):
        await kept.ask("k", fail, ["name"])


async def test_answers_and_targets_are_bounded() -> None:
    """The least recently used goes; a target with something in flight stays."""
    kept: LastGood[int, int] = LastGood("test", trio.current_time, len_max=2, age_s_max=60)
    for number in range(5):
        await kept.ask(number, failing((number, 10.0)), [str(number)])
    assert len(kept) == 2
    large: LastGood[int, int] = LastGood("test", trio.current_time, len_max=999, age_s_max=60, bytes_max=1000)
    for number in range(200):
        large.keep(number, number, 1.0, [], large.changes, size=10)
    assert (len(large), large.bytes) == (100, 1000)
    assert large.fresh(100) == 100
    assert large.fresh(99) is None
    targets = Targets("hosts", TargetRules(), len_max=2)
    targets.of("busy").bulkhead.enter()
    for number in range(5):
        targets.of(str(number))
    assert sorted(target.name for target in targets) == ["4", "busy"]
