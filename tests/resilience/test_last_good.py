"""Last good answers against a model, step by step."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from whispr.errors import WhisprError, denied, unavailable
from whispr.resilience.fallback import LastGood

LEN_MAX, BYTES_MAX, AGE_S, FRESH_S, STAND_IN_S = 3, 1000, 30.0, 5.0, 1.0
KEYS = st.sampled_from("abcde")
NAMES = st.sets(st.sampled_from("xyz"), max_size=2)


@dataclass
class Known:
    """What the model remembers of a key."""

    value: int
    at: float
    until: float
    names: set[str]
    size: int


class LastGoodModel(RuleBasedStateMachine):
    """Beside a list of answers in the order of their use, searched from end to end."""

    @initialize()
    def begin(self) -> None:
        self.now = 0.0
        self.kept: LastGood[str, int] = LastGood(
            "model",
            lambda: self.now,
            len_max=LEN_MAX,
            age_s_max=AGE_S,
            bytes_max=BYTES_MAX,
            stand_in_s=STAND_IN_S,
        )
        self.known: dict[str, Known] = {}
        """The least recently used first."""
        self.number = 0
        self.changed = 0

    def put(self, key: str, known: Known) -> None:
        self.known.pop(key, None)
        self.known[key] = known
        while len(self.known) > LEN_MAX or sum(each.size for each in self.known.values()) > BYTES_MAX:
            del self.known[next(iter(self.known))]

    def use(self, key: str) -> None:
        self.known[key] = self.known.pop(key)

    @rule(seconds=st.sampled_from([0.5, 1.0, 4.0, 10.0, 30.0]))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @rule(key=KEYS, names=NAMES, outcome=st.sampled_from(["answer", "away", "denied"]), forgets=st.booleans())
    def ask(self, key: str, names: set[str], outcome: str, forgets: bool) -> None:
        """Ask, by hand: the coroutine waits for nobody. `forgets`: x changes while the answer is on its way."""
        asked = False

        async def ask() -> tuple[int, float]:
            nonlocal asked
            asked = True
            if forgets:
                self.kept.forget("x")
            if outcome != "answer":
                raise unavailable("away") if outcome == "away" else denied("no")
            return self.number, FRESH_S

        self.number += 1
        before = self.known.get(key)
        fresh = before is not None and before.until > self.now
        if not fresh and forgets:
            self.known = {each: known for each, known in self.known.items() if "x" not in known.names}
        got = self.run(self.kept.ask(key, ask, names))
        assert asked is not fresh
        if before is not None and fresh:
            assert got == before.value
            self.use(key)
        elif outcome == "answer":
            assert got == self.number
            if not forgets:
                self.put(key, Known(self.number, self.now, self.now + FRESH_S, names, 0))
        else:
            self.stood_in(key, got, may=outcome == "away")

    def stood_in(self, key: str, got: int | None, *, may: bool) -> None:
        """The last good answer, if there is one that is not too old; what is too old is gone."""
        last = self.known.get(key)
        if not may or last is None:
            assert got is None
        elif self.now - last.at >= AGE_S:
            assert got is None
            del self.known[key]
        else:
            assert got == last.value
            last.until = min(self.now + STAND_IN_S, last.at + AGE_S)
            self.put(key, last)

    @rule(key=KEYS, names=NAMES, size=st.sampled_from([1, 5, 10, 11]))
    def keep(self, key: str, names: set[str], size: int) -> None:
        """Of more than a hundredth of all room nothing is kept, nor what was known before."""
        self.number += 1
        self.kept.keep(key, self.number, 0.0, names, self.kept.changes, size=size)
        if size > BYTES_MAX / 100:
            self.known.pop(key, None)
        else:
            self.put(key, Known(self.number, self.now, self.now, names, size))

    @rule(key=KEYS)
    def stand_in(self, key: str) -> None:
        found = self.kept.stand_in(key)
        last = self.known.get(key)
        if last is None:
            assert found is None
        elif self.now - last.at >= AGE_S:
            assert found is None
            del self.known[key]
        else:
            assert found == (last.value, self.now - last.at)
            self.use(key)

    @rule(name=st.sampled_from("xyz"))
    def forget(self, name: str) -> None:
        self.kept.forget(name)
        self.known = {key: known for key, known in self.known.items() if name not in known.names}

    @rule()
    def forget_all(self) -> None:
        self.kept.forget_all()
        self.known = {}

    @invariant()
    def agrees(self) -> None:
        assert len(self.kept) == len(self.known) <= LEN_MAX
        assert self.kept.bytes == sum(known.size for known in self.known.values()) <= BYTES_MAX

    @staticmethod
    def run(coroutine: object) -> int | None:
        """The outcome of a coroutine that never waits; None for an error."""
        try:
            coroutine.send(None)  # type: ignore[attr-defined]  # a coroutine
        except StopIteration as done:
            return int(done.value)
        except WhisprError:
            return None
        raise AssertionError("it waited")


LastGoodModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
test_last_good_agrees_with_its_model = LastGoodModel.TestCase
