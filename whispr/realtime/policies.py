"""What happens to each kind of event when a reader is slow, and which kinds are said at most so often. Pure.

One table, `POLICIES`, for every event of the product that is not a matter of record. An event that is not in it must
arrive: while the kernel's buffer of a socket is full it waits, and a reader who lets more than
`Limits.buffer_bytes` wait is closed with 1013 (*disconnect*), to resume from the last seq it has. Of the others:

* *drop*: not sent to a reader who is behind. What it missed is made good by state, once it has caught up: presence
  by a `presence_state`. A typing indicator needs nothing, for it ends by itself.
* *conflate*: of each key only the latest waits, and goes out after what is queued. For events that say how things
  are now, not what happened: a reader who gets only the last one knows as much.

So slow clients lose typing and presence first, keep the latest of what has a latest, and are then closed. A paced
event is, besides, said at most once per topic and key in an interval, to everybody (`whispr.realtime.pacing`).
"""

from __future__ import annotations

import enum
from collections.abc import Hashable, Mapping
from typing import NamedTuple

import msgspec

from whispr.realtime import metrics


class Handling(enum.Enum):
    """What is done with an event for a reader who is behind; to disconnect is for events that have no policy."""

    DROP = "drop"
    CONFLATE = "conflate"


class Policy(NamedTuple):
    """One kind of event."""

    handling: Handling
    key: tuple[str, ...] = ()
    """Fields of its payload that tell what it is the latest of."""
    partial: bool = False
    """Whether each payload says a part of the whole: only one with the same fields takes another's place."""
    paced: bool = False
    """Whether it is said at most once per key in each `Limits.typing_s`."""


POLICIES: Mapping[str, Policy] = {
    "typing_indicator": Policy(Handling.DROP, ("user_id",), paced=True),
    "presence_diff": Policy(Handling.DROP),
    "presence_count": Policy(Handling.CONFLATE),
    "read_receipt": Policy(Handling.CONFLATE, ("user_id",)),
    "delivery_status": Policy(Handling.CONFLATE, ("conversation_id", "user_id")),
    "conversation_updated": Policy(Handling.CONFLATE, ("conversation_id",), partial=True),
}
"""Events that a slow reader may go without, by name; but not one that has the number of a `change` in its payload."""

_NOT_SOUGHT = object()


class Spareable:
    """One broadcast of a kind that a slow reader may go without. Made once for all of its receivers."""

    __slots__ = ("_event", "_key", "_payload", "_topic", "handling", "policy")

    def __init__(self, policy: Policy, topic: str, event: str, payload: object) -> None:
        self.policy = policy
        self.handling = policy.handling
        self._topic = topic
        self._event = event
        self._payload = payload
        self._key: Hashable = _NOT_SOUGHT

    @property
    def key(self) -> Hashable:
        """What it is the latest of, None when it must arrive after all. Sought when somebody is slow."""
        if self._key is _NOT_SOUGHT:
            self._key = key_of(self.policy, self._topic, self._event, self._payload)
        return self._key

    def spared(self) -> None:
        """Count one receiver who goes without it, or without the one before it."""
        metrics.SPARED.labels(self._event, self.handling.value).inc()


def spareable(topic: str, event: str, payload: object) -> Spareable | None:
    """Return how a broadcast is spared slow readers, None when it must arrive."""
    policy = POLICIES.get(event)
    return None if policy is None else Spareable(policy, topic, event, payload)


def key_of(policy: Policy, topic: str, event: str, payload: object) -> tuple[str, ...] | None:
    """Return what a broadcast is the latest of: its topic, its event, and what its policy names of the payload.

    None for a change, which is a matter of record.
    """
    if not policy.key:
        return topic, event
    if isinstance(payload, msgspec.Raw):
        payload = msgspec.json.decode(payload)
    fields = payload if isinstance(payload, Mapping) else {}
    if "change" in fields:
        return None
    shape = sorted(fields) if policy.partial else ()
    return topic, event, *(str(fields.get(name)) for name in policy.key), *shape
