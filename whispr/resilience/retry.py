"""When to try again, and when to let it be. Pure: nothing here waits, and randomness is passed in.

Full jitter (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/): the pause after a failure is
anything from nothing to a span that grows with every failure, so that many who failed together do not come back
together. The budget is gRPC's retry throttle (gRFC A6): while a target fails, tokens go; once half of them are gone
nobody tries again until enough has succeeded. Without it, retries make of a slow service a dead one.
"""

from __future__ import annotations

import random
from collections.abc import Collection
from dataclasses import dataclass
from math import inf

from whispr.errors import Code, WhisprError

BREAKER_OPEN = "breaker_open"
"""The reason of calls that a breaker refuses or ends; trying again is what it is there to prevent."""

_chance = random.Random()  # noqa: S311  # spreads load, keeps no secret


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses in seconds, each a part of a span that grows from `base_s` to `max_s`."""

    base_s: float
    max_s: float
    multiplier: float = 2.0
    low: float = 0.0
    """The least part of the span; more than nothing for a loop that nobody else shares."""
    high: float = 1.0

    def __post_init__(self) -> None:
        assert 0 < self.base_s <= self.max_s < inf
        assert self.multiplier >= 1
        assert 0 <= self.low <= self.high

    def span_s(self, failures: int) -> float:
        """The span after so many failures in a row, the first being 1."""
        # The exponent stops growing long before a float overflows.
        return min(self.max_s, self.base_s * self.multiplier ** min(max(0, failures - 1), 60))

    def pause_s(self, failures: int, chance: random.Random = _chance) -> float:
        """How long to wait after so many failures in a row."""
        return self.span_s(failures) * chance.uniform(self.low, self.high)


class Budget:
    """Tokens of one target: a failure takes one, a success gives back `ratio` of one (gRFC A6, throttling)."""

    __slots__ = ("_ratio", "_tokens_max", "tokens")

    def __init__(self, tokens_max: float = 20.0, ratio: float = 0.1) -> None:
        assert tokens_max > 0
        assert 0 < ratio <= tokens_max
        self._tokens_max = tokens_max
        self._ratio = ratio
        self.tokens = tokens_max

    @property
    def allows(self) -> bool:
        """Whether another attempt may be made."""
        return self.tokens > self._tokens_max / 2

    @property
    def full(self) -> bool:
        """Whether a success would change nothing."""
        return self.tokens >= self._tokens_max

    def succeeded(self) -> None:
        """An attempt has succeeded."""
        self.tokens = min(self._tokens_max, self.tokens + self._ratio)

    def failed(self) -> None:
        """An attempt has failed in a way that may be tried again."""
        self.tokens = max(0.0, self.tokens - 1)


@dataclass(frozen=True, slots=True)
class RetryRules:
    """How often an operation is tried, and after which failures."""

    attempts: int = 3
    """All together; 1 never tries again."""
    backoff: Backoff = Backoff(0.1, 1.0)  # frozen
    codes: Collection[Code] = frozenset({Code.UNAVAILABLE})

    def __post_init__(self) -> None:
        assert 1 <= self.attempts <= 5, "gRFC A6 allows no more"

    def retryable(self, error: WhisprError) -> bool:
        """Whether trying again may help at all."""
        return error.code in self.codes and error.reason != BREAKER_OPEN

    def pause_s(
        self,
        error: WhisprError,
        attempts: int,
        left_s: float,
        budget: Budget,
        chance: random.Random = _chance,
    ) -> float | None:
        """How long to wait before the next attempt after so many; None to let it be.

        The server's word goes first: a pushback is obeyed to the letter, a negative one is a no (gRFC A6), and
        RetryInfo is the least. A pause that outlasts the `left_s` of the operation is not begun.
        """
        if not self.retryable(error):
            return None
        budget.failed()
        if attempts >= self.attempts or not budget.allows:
            return None
        pushback_s = error.pushback_s
        if pushback_s is not None:
            pause_s = pushback_s
        else:
            pause_s = max(self.backoff.pause_s(attempts, chance), error.retry_after_s or 0.0)
        return pause_s if 0 <= pause_s < left_s else None
