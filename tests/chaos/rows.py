"""One fault under load, and what became of it: a row of the report."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from tests.chaos.books import Books
from tests.chaos.faults import Fault
from tests.chaos.load import Crowd
from tests.chaos.machine import NotHere
from tests.chaos.rig import Rig

RECOVERY_S = 5.0
"""Within which everybody is to be served after a fault has ended."""
GIVE_UP_S = 40.0


@dataclass
class Row:
    """One fault, done to one target."""

    target: str
    fault: str
    tried: int = 0
    failed: int = 0
    unclean: int = 0
    retried: int = 0
    lost: int = 0
    duplicated: int = 0
    hung: int = 0
    recovery_s: float = 0.0
    skipped: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether it was survived; also when it could not be injected."""
        wrong = self.unclean + self.lost + self.duplicated + self.hung
        return not wrong and self.recovery_s < RECOVERY_S

    def line(self) -> str:
        """As a line of the table."""
        if self.skipped:
            return f"{self.target:<18}{self.fault:<26}skipped: {self.skipped}"
        numbers = (self.tried, self.failed, self.retried, self.unclean, self.lost, self.duplicated, self.hung)
        said = "ok" if self.passed else "FAILED"
        return (
            f"{self.target:<18}{self.fault:<26}"
            + "".join(f"{n:>9,}" for n in numbers)
            + f"{self.recovery_s:>9.2f} s  {said}"
        )


HEAD = (
    f"{'':<44}"
    + "".join(f"{name:>9}" for name in ("tried", "failed", "retried", "unclean", "lost", "doubled", "hung"))
    + f"{'recovery':>11}"
)


async def one_row(rig: Rig, crowd: Crowd, books: Books, row: Row, target: str, fault: Fault) -> None:
    """Inject one fault under load and see what became of it."""
    crowd.go_on()
    crowd.expect_new_streaks()
    with trio.move_on_after(GIVE_UP_S) as patience:
        await crowd.until_served(trio.current_time())
    if patience.cancelled_caught:
        raise AssertionError(f"nobody is served before the fault: {crowd.counts}")
    before = crowd.counts.copy()
    try:
        ended = await fault(rig, target)
    except NotHere as why:
        row.skipped = str(why)
        return
    crowd.expect_new_streaks()
    with trio.move_on_after(GIVE_UP_S) as patience:
        row.recovery_s = await crowd.until_served(ended) - ended
    if patience.cancelled_caught:
        row.recovery_s = GIVE_UP_S
    await crowd.hush()
    found = await books.check()
    counts = crowd.counts.since(before)
    row.tried, row.failed, row.unclean, row.retried = (
        counts.tried,
        counts.failed,
        counts.unclean,
        counts.retried,
    )
    row.hung, row.lost, row.duplicated = counts.hung, found.lost, found.duplicated
    row.notes = [f"{n} x {what}" for what, n in counts.said.most_common(6)]
    if found.told:
        row.notes.append(found.told)
