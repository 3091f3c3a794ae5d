"""What a service says of an event consumer of its."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from whispr.adapters.postgres import Transaction
from whispr.events.envelope import Event, stream_of

_NAME = re.compile(r"[a-z][a-z0-9-]{1,62}")
RESERVED = "relay"
"""Names the relay among the dead letters."""


@dataclass(frozen=True, slots=True)
class Consumer:
    """Handles events of some subjects, each at least once, in order per `event.subject`.

    `handle` runs in a scope of its own with `deadline_s` seconds. When it returns, the event is done; when it
    raises or its deadline passes, it is tried again with growing pauses while later events about the same thing
    wait. After `attempts_max` attempts the event becomes a dead letter, for an operator to replay or drop. A
    handler must bear being run again for an event it has handled: `once` sees to that.

    `handle_many`, if there is one, gets what is waiting together, and then all of it is done or nothing: when it
    fails, the events are handled one by one, by which the one at fault is found.
    """

    name: str
    """Unique and for ever: its position is kept under it. Lower-case words joined by hyphens."""
    subjects: tuple[str, ...]
    """Such as "messaging.events.message_sent", or "user.events.*" for all of a stream. One that is added later is
    heard from then on; a replay brings what came before."""
    handle: Callable[[Event], Awaitable[None]]
    deadline_s: float = 30.0
    attempts_max: int = 8
    retry_min_s: float = 0.5
    """Before the second attempt; twice as long before each further one, less up to half of it at random."""
    retry_max_s: float = 60.0
    concurrency: int = 8
    """Handlers at work at once in the process that runs it; never two about the same thing."""
    handle_many: Callable[[Sequence[Event]], Awaitable[None]] | None = None
    """Handles several events, those about one thing in their order. What it emits carries no trace."""
    gather_s: float = 0.0
    """Pause after a handler was started, in which events gather that will be handled together."""
    reset: Callable[[Transaction], Awaitable[None]] | None = None
    """Empties what it derived, in the transaction that moves it back to the start of its streams for a replay."""
    from_start: bool = True
    """Whether it begins, when new, with all that its streams hold, or with what comes from then on."""

    def __post_init__(self) -> None:
        assert _NAME.fullmatch(self.name), f"{self.name!r} is no name of a consumer"
        assert self.name != RESERVED, f"{RESERVED!r} is taken"
        assert self.subjects, f"{self.name} listens to nothing"
        assert self.deadline_s > 0
        assert self.attempts_max > 0
        assert self.concurrency > 0
        assert 0 < self.retry_min_s <= self.retry_max_s
        assert self.gather_s == 0 or self.handle_many is not None, "what gathers is to be handled together"
        for subject in self.subjects:
            stream_of(subject)
