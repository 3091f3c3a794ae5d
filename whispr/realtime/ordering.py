"""The order of a topic's numbered broadcasts, whichever node they come from. Pure: numbers in, what may go out.

Broadcasts between nodes are at most once: some are lost, some come twice, and those of two nodes cross. What is
numbered is put right here. A topic has two counters, both without gaps in the database: `seq` of new messages and
`change` of everything that happens to the conversation. A broadcast goes out when every number before it has;
until then it is held. A change of a message (`Numbered.about`) waits for the message as well. Numbers that are
already out are dropped.

An `Order` begins without knowing where it stands and holds everything; `base`, from the first join's snapshot,
tells it. `known` tells of numbers that exist though their broadcasts have not come. `gap` says what is missing, and
`fill` takes what was read from the database instead: all that there is up to some numbers, so that a number without
a row holds nothing up.

Held broadcasts are bounded. What does not fit is forgotten, but not that it exists: it is missing, and will be read.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")

HELD_MAX = 1000
"""Broadcasts of one topic that wait for earlier ones, of either counter."""


class Gap(NamedTuple):
    """What is missing: the numbers after the first of each pair, up to the second."""

    seq_after: int
    seq_upto: int
    change_after: int
    change_upto: int

    @property
    def size(self) -> int:
        """How many numbers it may be at most."""
        return self.seq_upto - self.seq_after + self.change_upto - self.change_after


class Numbered(NamedTuple, Generic[T]):
    """A broadcast with its number: `change`, or else `seq`. `about` is the seq of the message that changed, or 0."""

    item: T
    seq: int | None
    change: int | None = None
    about: int = 0


class _Counter(Generic[T]):
    __slots__ = ("head", "held", "out")

    def __init__(self) -> None:
        self.out = 0
        """Everything up to here is out."""
        self.head = 0
        """The highest number known to exist."""
        self.held: dict[int, Numbered[T]] = {}

    def hold(self, number: int, numbered: Numbered[T], held_max: int) -> None:
        self.held[number] = numbered
        if len(self.held) > held_max:
            del self.held[max(self.held)]

    def advance(self, number: int) -> None:
        """Count everything up to a number as out."""
        self.out = max(self.out, number)
        self.head = max(self.head, self.out)
        for early in [held for held in self.held if held <= self.out]:
            del self.held[early]


class Order(Generic[T]):
    """One topic's order."""

    __slots__ = ("_changes", "_held_max", "_seqs", "based")

    def __init__(self, held_max: int = HELD_MAX) -> None:
        self.based = False
        """Whether it knows where it stands."""
        self._held_max = held_max
        self._seqs: _Counter[T] = _Counter()
        self._changes: _Counter[T] = _Counter()

    @property
    def place(self) -> tuple[int, int]:
        """The seq and the change up to which everything is out."""
        return self._seqs.out, self._changes.out

    @property
    def gap(self) -> Gap | None:
        """What is missing of what is known to exist, or None."""
        seqs, changes = self._seqs, self._changes
        if not self.based or (seqs.head <= seqs.out and changes.head <= changes.out):
            return None
        return Gap(seqs.out, max(seqs.head, seqs.out), changes.out, max(changes.head, changes.out))

    def base(self, seq: int, change: int) -> list[T]:
        """Begin after these numbers; return what may go out of what came before."""
        self._seqs.advance(seq)
        self._changes.advance(change)
        self.based = True
        return self._drain()

    def known(self, seq: int, change: int) -> None:
        """Note that these numbers exist."""
        self._seqs.head = max(self._seqs.head, seq)
        self._changes.head = max(self._changes.head, change)

    def offer(self, numbered: Numbered[T]) -> list[T]:
        """Take a broadcast; return what may go out now, in order."""
        number = numbered.change if numbered.change is not None else numbered.seq
        assert number is not None, "only numbered broadcasts have an order"
        counter = self._seqs if numbered.change is None else self._changes
        if number <= counter.out:
            return []
        counter.head = max(counter.head, number)
        self._seqs.head = max(self._seqs.head, numbered.about)
        if (
            self.based
            and number == counter.out + 1
            and not counter.held
            and not (counter is self._seqs and self._changes.held)
            and numbered.about <= self._seqs.out
        ):
            counter.out = number
            return [numbered.item]
        counter.hold(number, numbered, self._held_max)
        return self._drain()

    def fill(self, found: Iterable[Numbered[T]], seq_upto: int, change_upto: int) -> list[T]:
        """Take what the database has up to these numbers; return what may go out now, in order.

        Where `found` reaches less far than the numbers, those in between do not exist any more.
        """
        by_seq: dict[int, Numbered[T]] = {}
        by_change: dict[int, Numbered[T]] = {}
        for each in found:
            if each.change is not None:
                by_change[each.change] = each
            else:
                assert each.seq is not None
                by_seq[each.seq] = each
        out = _filled(self._seqs, by_seq, seq_upto)
        out += self._drain_seqs()
        # A change whose message is newer than what was read waits for the message.
        waits = [n for n, each in by_change.items() if each.about > self._seqs.out and n > self._changes.out]
        if waits:
            change_upto = min(waits) - 1
            self._seqs.head = max(self._seqs.head, by_change[min(waits)].about)
        out += _filled(self._changes, by_change, change_upto)
        return out + self._drain()

    def _drain(self) -> list[T]:
        if not self.based:
            return []
        out = self._drain_seqs()
        changes = self._changes
        while (following := changes.held.get(changes.out + 1)) is not None:
            if following.about > self._seqs.out:
                break
            changes.out += 1
            out.append(changes.held.pop(changes.out).item)
        return out

    def _drain_seqs(self) -> list[T]:
        out: list[T] = []
        seqs = self._seqs
        while (following := seqs.held.pop(seqs.out + 1, None)) is not None:
            seqs.out += 1
            out.append(following.item)
        return out


def _filled(counter: _Counter[T], found: dict[int, Numbered[T]], upto: int) -> list[T]:
    """Let out what was found or held up to a number; what is neither does not exist."""
    known = found | {n: each for n, each in counter.held.items() if n <= upto}
    out = [known[n].item for n in sorted(known) if counter.out < n <= upto]
    counter.advance(upto)
    return out
