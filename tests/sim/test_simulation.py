"""Client and server over a network that misbehaves: every call ends exactly once, and nothing is left over."""

from __future__ import annotations

import os

import pytest

from tests.sim.simulation import CALLS, GENTLE, ROUGH, Trace, simulate
from whispr.errors import Code
from whispr.testing import Faults

SEEDS = range(3)
MANY_SEEDS = range(int(os.environ.get("WHISPR_SIM_SEEDS", "150")))

NAMES = {code.name for code in Code}


def check(trace: Trace) -> None:
    """What holds of every run."""
    assert trace.unexpected == []
    assert sorted(trace.ended) == list(range(CALLS))
    for how in trace.ended.values():
        assert how in ("ok", "deadline") or set(how.split(",")) <= NAMES, how
    assert trace.handlers_started == trace.handlers_ended
    assert trace.errors_logged == trace.crashed
    assert trace.tasks_left == 0


def check_gentle(faults: Faults, seed: int) -> None:
    trace = simulate(seed, faults, orderly=True)
    check(trace)
    assert set(trace.ended.values()) == {"ok"}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("faults", GENTLE, ids=repr)
def test_late_and_split_bytes_change_nothing(faults: Faults, seed: int) -> None:
    """Every call that could succeed succeeds, with the right answer."""
    check_gentle(faults, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("faults", [*GENTLE, *ROUGH], ids=repr)
def test_every_call_ends_once(faults: Faults, seed: int) -> None:
    """With a status or its deadline, never with another exception; every handler ends, and no task is left."""
    check(simulate(seed, faults))


def test_a_seed_repeats_itself() -> None:
    """The same seed gives the same endings at the same time, which is what makes a failure worth reporting."""
    assert simulate(1, ROUGH[3]) == simulate(1, ROUGH[3])


@pytest.mark.slow
@pytest.mark.parametrize("seed", MANY_SEEDS)
def test_many_seeds(seed: int) -> None:
    """The same promises, for as many seeds as WHISPR_SIM_SEEDS says."""
    for faults in GENTLE:
        check_gentle(faults, seed)
    for faults in (*GENTLE, *ROUGH):
        check(simulate(seed, faults))
