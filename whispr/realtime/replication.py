"""Presence over several nodes: what each tells the others, and what it makes of what it hears. Pure.

Every node owns the presences of its own sockets and nobody else changes them, so there is nothing to merge: a
node's presences are a map with one writer and a version that counts its changes, and each other node keeps a
copy. Copies converge as soon as messages come through again, whatever was lost, doubled or reordered:

    Delta     changes from version `base` to `version`; one that does not fit the copy shows that something is missing
    Beat      the version, every `beat_s`: shows it too, and that the node is alive
    Ask       sent when something is missing: "send me all of yours"
    Part      the answer: everything as of `version`, in parts that fit the bus
    Bye       the node stops; its people have `linger_s` to come back elsewhere

A node that has not been heard for `lost_s` is taken for dead and its presences leave. If it was only cut off, its
next beat asks for everything again.

A user whose socket broke usually returns within seconds, perhaps to another node, so a *lingering* presence stays
until `linger_s` have passed or the user is seen on the topic again: others see no leave, or see it together with
the join that replaces it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from whispr.realtime.presence import Meta, Presence

ENTRIES_MAX = 500
"""Presences in one message: a few hundred bytes each, well below what the bus carries."""

Place = tuple[str, str, str]
"""Topic, key and ref of a presence."""


class Timing(NamedTuple):
    """How long things take, in seconds."""

    beat_s: float = 2.0
    lost_s: float = 7.0
    ask_s: float = 1.0
    """A node is asked for everything at most this often."""
    linger_s: float = 5.0


class Delta(msgspec.Struct, array_like=True, frozen=True, tag="delta"):
    """Changes of the sender's presences."""

    node: str
    base: int
    version: int
    joins: list[tuple[str, str, str, dict[str, object]]]
    leaves: list[Place]


class Beat(msgspec.Struct, array_like=True, frozen=True, tag="beat"):
    """The sender is alive, and has come this far."""

    node: str
    version: int


class Ask(msgspec.Struct, array_like=True, frozen=True, tag="ask"):
    """The sender misses presences of `of`."""

    node: str
    of: str


class Part(msgspec.Struct, array_like=True, frozen=True, tag="part"):
    """One of `parts` parts of all the sender's presences as of `version`."""

    node: str
    version: int
    part: int
    parts: int
    entries: list[tuple[str, str, str, dict[str, object]]]


class Bye(msgspec.Struct, array_like=True, frozen=True, tag="bye"):
    """The sender stops."""

    node: str


Message = Delta | Beat | Ask | Part | Bye
_encode = msgspec.msgpack.Encoder().encode
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def pack(message: Message) -> bytes:
    """Encode for the bus."""
    return _encode(message)


def unpack(data: bytes) -> Message:
    """Decode from the bus. Raises msgspec.DecodeError."""
    return _decoder.decode(data)


@dataclass(slots=True)
class _Copy:
    """What is known of another node's presences."""

    heard_at: float
    version: int = -1
    """Of the copy; -1 before the first."""
    entries: dict[Place, dict[str, object]] = field(default_factory=dict)
    asked_at: float = float("-inf")
    parts: dict[int, Part] = field(default_factory=dict)
    """Of the newest snapshot that is not complete yet."""


class Tracker:
    """All presences, as one node sees them. `node` must differ between nodes, and between runs of one node.

    Callers tell the time. What is to be sent to the other nodes gathers until `take_output`.
    """

    def __init__(self, node: str, timing: Timing | None = None) -> None:
        self.node = node
        self.view = Presence()
        """Everybody, here and elsewhere."""
        self._timing = timing or Timing()
        self._refs_made = 0
        self._own: dict[Place, dict[str, object]] = {}
        self._version = 0
        self._joined: dict[Place, dict[str, object]] = {}
        self._left: dict[Place, None] = {}
        self._lingering: dict[Place, float] = {}
        self._beat_at = float("-inf")
        self._copies: dict[str, _Copy] = {}
        self._output: list[Message] = []

    # This node's own

    def track(self, topic: str, key: str, meta: Meta) -> str:
        """Add a presence and return its ref."""
        self._refs_made += 1
        ref = f"{self.node}{self._refs_made:x}"
        self._enter((topic, key, ref), {**meta, "phx_ref": ref})
        self._replace_lingering(topic, key)
        return ref

    def update(self, topic: str, key: str, ref: str, meta: Meta) -> str:
        """Replace the meta of a presence and return its new ref. Raises KeyError when it is not tracked."""
        self._leave((topic, key, ref))
        return self.track(topic, key, {**meta, "phx_ref_prev": ref})

    def untrack(self, topic: str, key: str, ref: str) -> None:
        """Remove a presence at once. Raises KeyError when it is not tracked."""
        self._leave((topic, key, ref))

    def linger(self, topic: str, key: str, ref: str, now: float) -> None:
        """Remove a presence soon, unless its user is seen before. Raises KeyError when it is not tracked."""
        place = (topic, key, ref)
        if place not in self._own:
            raise KeyError(place)
        if any(other != ref for other in self.view.refs(topic, key)):
            self._leave(place)
        else:
            self._lingering[place] = now + self._timing.linger_s

    def own(self) -> Mapping[Place, Mapping[str, object]]:
        """This node's presences, lingering ones too."""
        return self._own

    # Other nodes

    def hear(self, message: Message, now: float) -> None:
        """Take in what another node said."""
        if message.node == self.node:
            return
        if isinstance(message, Ask):
            if message.of == self.node:
                self._answer()
            return
        copy = self._copies.get(message.node)
        if copy is None:
            copy = self._copies[message.node] = _Copy(now)
        copy.heard_at = now
        match message:
            case Delta():
                self._apply_delta(copy, message, now)
            case Part():
                self._apply_part(copy, message)
            case Beat() if message.version > copy.version:
                self._ask(copy, message.node, now)
            case Bye():
                copy.heard_at = now - self._timing.lost_s + self._timing.linger_s

    def tick(self, now: float) -> None:
        """Let time pass: end what lingers, bury who is silent, say what changed and that we are alive."""
        for place in [place for place, until in self._lingering.items() if until <= now]:
            self._leave(place)
        for node in [n for n, copy in self._copies.items() if copy.heard_at + self._timing.lost_s <= now]:
            self._forget(node)
        self.flush()
        if self._beat_at + self._timing.beat_s <= now:
            self._beat_at = now
            self._output.append(Beat(self.node, self._version))

    def flush(self) -> None:
        """Say what changed since the last time."""
        joins = [(*place, meta) for place, meta in self._joined.items()]
        leaves = list(self._left)
        self._joined, self._left = {}, {}
        while joins or leaves:
            base, self._version = self._version, self._version + 1
            now_joins, joins = joins[:ENTRIES_MAX], joins[ENTRIES_MAX:]
            room = ENTRIES_MAX - len(now_joins)
            now_leaves, leaves = leaves[:room], leaves[room:]
            self._output.append(Delta(self.node, base, self._version, now_joins, now_leaves))

    def stop(self) -> None:
        """Say goodbye."""
        self._output.append(Bye(self.node))

    def take_output(self) -> list[Message]:
        """What to send to every other node, in this order."""
        output, self._output = self._output, []
        return output

    @property
    def nodes(self) -> frozenset[str]:
        """The other nodes that are alive."""
        return frozenset(self._copies)

    # What changes

    def _enter(self, place: Place, meta: dict[str, object]) -> None:
        self._own[place] = meta
        self._joined[place] = meta
        self.view.add(*place, meta)

    def _leave(self, place: Place) -> None:
        del self._own[place]
        self._lingering.pop(place, None)
        if self._joined.pop(place, None) is None:
            self._left[place] = None
        self.view.remove(*place)

    def _replace_lingering(self, topic: str, key: str) -> None:
        """End what lingers of a user who is there again."""
        if self._lingering:
            for place in [place for place in self._lingering if place[:2] == (topic, key)]:
                self._leave(place)

    def _apply_delta(self, copy: _Copy, delta: Delta, now: float) -> None:
        if delta.version <= copy.version:
            return
        if delta.base != copy.version and not (copy.version < 0 and delta.base == 0):
            self._ask(copy, delta.node, now)
            return
        for place in delta.leaves:
            self._drop(copy, place)
        self._take(copy, delta.joins)
        copy.version = delta.version

    def _apply_part(self, copy: _Copy, part: Part) -> None:
        if part.version <= copy.version:
            return
        known = next(iter(copy.parts.values()), None)
        if known is not None and known.version != part.version:
            if known.version > part.version:
                return
            copy.parts.clear()
        copy.parts[part.part] = part
        if len(copy.parts) < part.parts:
            return
        entries = [entry for number in sorted(copy.parts) for entry in copy.parts[number].entries]
        copy.parts.clear()
        kept = {entry[:3] for entry in entries}
        for place in [place for place in copy.entries if place not in kept]:
            self._drop(copy, place)
        self._take(copy, (entry for entry in entries if entry[:3] not in copy.entries))
        copy.version = part.version

    def _take(self, copy: _Copy, entries: Iterable[tuple[str, str, str, dict[str, object]]]) -> None:
        for topic, key, ref, meta in entries:
            copy.entries[topic, key, ref] = meta
            self.view.add(topic, key, ref, meta)
            self._replace_lingering(topic, key)

    def _drop(self, copy: _Copy, place: Place) -> None:
        if copy.entries.pop(place, None) is not None:
            self.view.remove(*place)

    def _forget(self, node: str) -> None:
        copy = self._copies.pop(node, None)
        for place in list(copy.entries) if copy is not None else ():
            self.view.remove(*place)

    def _ask(self, copy: _Copy, node: str, now: float) -> None:
        if copy.asked_at + self._timing.ask_s <= now:
            copy.asked_at = now
            self._output.append(Ask(self.node, node))

    def _answer(self) -> None:
        """Say everything, as of the version that this message makes known."""
        self.flush()
        entries = [(*place, meta) for place, meta in self._own.items()]
        parts = max(1, -(-len(entries) // ENTRIES_MAX))
        for number in range(parts):
            some = entries[number * ENTRIES_MAX : (number + 1) * ENTRIES_MAX]
            self._output.append(Part(self.node, self._version, number, parts, some))
