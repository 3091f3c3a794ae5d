"""Who is on a topic and with which metas, in `Phoenix.Presence`'s form. Pure: no clock, no I/O.

A *presence* is (topic, key, ref): the key is a user id, the ref names one channel of that user, so a user on two
sockets has two metas under one key. Changes gather in the tracker until `take_diffs` hands them out, so that a burst
costs one diff per topic:

    state   {key: {"metas": [{…meta, "phx_ref": ref}, …]}}
    diff    {"joins": state of what came, "leaves": state of what went}

An update is a leave of the old ref and a join of a new one that names it as `phx_ref_prev`. A presence that came and
went between two diffs is in neither, unless somebody took the state in between: they must hear that it went.
Refs are unique over all nodes (`whispr.realtime.replication`), for phoenix.js tells metas apart by them alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TypedDict

Meta = Mapping[str, object]


class Metas(TypedDict):
    """All metas under one key."""

    metas: list[dict[str, object]]


State = dict[str, Metas]


class Diff(TypedDict):
    """What came and what went on one topic since the last diff."""

    joins: State
    leaves: State


class _Topic:
    """Present metas by key and ref, and those that came or went since the last diff."""

    __slots__ = ("came", "observed", "present", "went")

    def __init__(self) -> None:
        self.present: dict[str, dict[str, dict[str, object]]] = {}
        self.came: dict[tuple[str, str], dict[str, object]] = {}
        self.went: dict[tuple[str, str], dict[str, object]] = {}
        self.observed = False  # the state was taken since the last diff


class Presence:
    """Everybody who is present, and what changed since the last diffs."""

    def __init__(self) -> None:
        self._topics: dict[str, _Topic] = {}
        self._changed: set[str] = set()

    def add(self, topic: str, key: str, ref: str, meta: dict[str, object]) -> None:
        """Add a presence; its meta holds the ref as `phx_ref`."""
        held = self._topics.setdefault(topic, _Topic())
        held.present.setdefault(key, {})[ref] = meta
        # One that went and is back is no news, as a node's people are after a break, but to who saw it gone.
        if held.went.pop((key, ref), None) is None or held.observed:
            held.came[key, ref] = meta
        self._changed.add(topic)

    def remove(self, topic: str, key: str, ref: str) -> None:
        """Remove a presence. Raises KeyError when it is not there."""
        held = self._topics[topic]
        metas = held.present[key]
        meta = metas.pop(ref)
        if not metas:
            del held.present[key]
        if held.came.pop((key, ref), None) is None or held.observed:
            held.went[key, ref] = meta
        self._changed.add(topic)

    def refs(self, topic: str, key: str) -> tuple[str, ...]:
        """Return the refs under a key."""
        held = self._topics.get(topic)
        return tuple(held.present.get(key, ())) if held is not None else ()

    def state(self, topic: str) -> State:
        """Return everyone present now: the payload of `presence_state`."""
        held = self._topics.get(topic)
        if held is None:
            return {}
        held.observed = True
        return {key: {"metas": list(metas.values())} for key, metas in held.present.items()}

    def count(self, topic: str) -> int:
        """Return the number of keys present."""
        held = self._topics.get(topic)
        return len(held.present) if held is not None else 0

    def is_present(self, topic: str, key: str) -> bool:
        """Tell whether the key has a meta on the topic."""
        held = self._topics.get(topic)
        return held is not None and key in held.present

    @property
    def changed(self) -> bool:
        """Whether there are changes to take."""
        return bool(self._changed)

    def take_diffs(self, but: Collection[str] = ()) -> dict[str, Diff]:
        """Return the changes since the last call, by topic, and forget them; `but` for these topics."""
        diffs: dict[str, Diff] = {}
        for name in self._changed.difference(but):
            topic = self._topics[name]
            if topic.came or topic.went:
                diffs[name] = {"joins": _grouped(topic.came), "leaves": _grouped(topic.went)}
            topic.came, topic.went, topic.observed = {}, {}, False
            if not topic.present:
                del self._topics[name]
        self._changed.intersection_update(but)
        return diffs


def _grouped(changes: Mapping[tuple[str, str], dict[str, object]]) -> State:
    state: State = {}
    for (key, _), meta in changes.items():
        state.setdefault(key, {"metas": []})["metas"].append(meta)
    return state
