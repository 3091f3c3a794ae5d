"""Several nodes over a bus that misbehaves, and that die: order, completeness and presence come right again."""

from __future__ import annotations

import os

import pytest

from tests.sim.nodes import Faults, simulate

QUICK = (
    Faults(drop=0.1, double=0.1, delay_s=0.3),
    Faults(drop=0.05, delay_s=0.1, cut_every_s=6, kill_every_s=8),
)
ALL = (
    Faults(),
    Faults(drop=0.3),
    Faults(double=0.5),
    Faults(delay_s=2),
    Faults(cut_every_s=4),
    Faults(kill_every_s=3),
    Faults(drain_every_s=4),
    Faults(drop=0.2, double=0.2, delay_s=0.5, cut_every_s=5, kill_every_s=6, drain_every_s=9),
)
MANY_SEEDS = range(int(os.environ.get("WHISPR_SIM_SEEDS", "150")))


def check(seed: int, faults: Faults) -> None:
    """What holds of every run."""
    outcome = simulate(seed, faults)
    assert all(outcome.connected)
    for reader in outcome.readers:
        room = outcome.rooms[reader.topic]
        assert reader.seqs == list(range(1, len(room) + 1)), f"{reader.user} misses some, or has some twice"
        assert reader.acked, f"{reader.user} could send nothing"
        assert all(room[seq - 1] == text for text, seq in reader.acked.items()), "acknowledged, and not there"
    for room in outcome.rooms.values():
        assert len(room) == len(set(room)), "a message is there twice"
    for seen in outcome.present:
        assert seen == outcome.expected


@pytest.mark.parametrize("faults", QUICK, ids=repr)
def test_order_completeness_and_presence(faults: Faults) -> None:
    """Each client has every message once and in order, and each node knows who is there, without ghosts."""
    check(1, faults)


@pytest.mark.slow
@pytest.mark.parametrize("seed", MANY_SEEDS)
def test_many_seeds_of_nodes(seed: int) -> None:
    """The same promises, for as many seeds as WHISPR_SIM_SEEDS says."""
    check(seed, ALL[seed % len(ALL)])
