"""The fuzz target on a few inputs of fixed seeds; `just fuzz` goes on from there."""

from __future__ import annotations

from random import Random

import pytest

from tests.fuzz.target import corpus, mutated, try_one


@pytest.mark.parametrize("seed", range(4))
def test_mutated_conversations(seed: int) -> None:
    """A hundred inputs of a seed break no promise."""
    seeds, chance = corpus(), Random(seed)
    for _ in range(100):
        try_one(mutated(seeds, chance), chance)


def test_the_corpus_is_the_conformance_suite() -> None:
    """Every conversation of it is there to be mutated."""
    assert len(corpus()) > 350
