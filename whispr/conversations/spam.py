"""What looks like spam, and what follows from it. Pure: the clock is passed in.

Theory of operation. Whoever writes in a room has a score there, a leaky bucket: each message adds points and
they leak away with time. What adds points:

    rate         one point a message, so steady chatting below `leak_per_s` costs nothing and a burst adds up
    repetition   the same content again among the sender's last messages: more with every repeat
    mentions     each `@name` beyond the few that people use
    links        each link beyond a few

At `limit` points the sender is sanctioned and starts again at zero. The sanction is chosen by how many came
before it in the last day (`next_sanction`): a warning, five minutes of silence, an hour of silence, then out,
or a proposal to moderators to throw them out.

Content may be encrypted end to end; then rate and repetition are all there is to see. Scoring a message costs
about a microsecond: it counts, it does not parse.
"""

from __future__ import annotations

import enum
import re
from collections import OrderedDict
from dataclasses import dataclass
from datetime import timedelta

DAY = timedelta(days=1)
"""How far back earlier sanctions count."""

_MENTION = re.compile(rb"(?<![\w@.])@\w")
_LINK = re.compile(rb"https?://|\bwww\.", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class SpamRules:
    """What weighs how much. Points; times in seconds."""

    limit: float = 30.0
    leak_per_s: float = 1.0
    rate: float = 1.0
    repeat: float = 2.0
    """For the first repeat; the second weighs twice as much, up to `repeat_max`."""
    repeat_max: float = 8.0
    remembered: int = 8
    """Messages among which a repeat is looked for."""
    mentions_free: int = 5
    mention: float = 1.0
    mention_max: float = 20.0
    links_free: int = 2
    link: float = 3.0
    link_max: float = 20.0

    def __post_init__(self) -> None:
        assert self.limit > self.rate, "a single plain message is no spam"
        assert self.leak_per_s > 0


class Signal(enum.StrEnum):
    """What added most of the points."""

    RATE = "rate"
    REPETITION = "repetition"
    MENTIONS = "mentions"
    LINKS = "links"


_RATE = Signal.RATE


class Score:
    """One sender's score in one room."""

    __slots__ = ("at", "by_signal", "points", "recent", "unshared")

    def __init__(self, now: float) -> None:
        self.points = 0.0
        self.at = now
        self.recent: tuple[int, ...] = ()
        self.by_signal: dict[Signal, float] = {}
        self.unshared = 0.0
        """Points that other processes have not been told of."""


def weigh(content: bytes, recent: tuple[int, ...], rules: SpamRules) -> dict[Signal, float]:
    """Return the points one message adds, by signal; `recent` are hashes of the sender's last ones."""
    points = {Signal.RATE: rules.rate}
    if repeats := recent.count(hash(content)):
        points[Signal.REPETITION] = min(rules.repeat * repeats, rules.repeat_max)
    if b"@" in content:
        excess = len(_MENTION.findall(content)) - rules.mentions_free
        if excess > 0:
            points[Signal.MENTIONS] = min(excess * rules.mention, rules.mention_max)
    if _may_link(content):
        excess = len(_LINK.findall(content)) - rules.links_free
        if excess > 0:
            points[Signal.LINKS] = min(excess * rules.link, rules.link_max)
    return points


def _may_link(content: bytes) -> bool:
    return b"://" in content or b"www." in content or b"WWW." in content


def add(score: Score, content: bytes, now: float, rules: SpamRules) -> Signal | None:
    """Count a message. Returns what it was, mostly, when the sender is to be sanctioned, else None."""
    leak(score, now, rules)
    recent, mark = score.recent, hash(content)
    if mark in recent or b"@" in content or _may_link(content):
        points = weigh(content, recent, rules)
        added = sum(points.values())
        for signal, weight in points.items():
            score.by_signal[signal] = score.by_signal.get(signal, 0.0) + weight
    else:
        # Most messages are plain words, and scoring them must cost next to nothing.
        added = rules.rate
        score.by_signal[_RATE] = score.by_signal.get(_RATE, 0.0) + added
    score.recent = (*recent[1 - rules.remembered :], mark)
    score.points += added
    score.unshared += added
    return verdict(score, rules) if score.points >= rules.limit else None


def raise_to(score: Score, total: float, now: float, rules: SpamRules) -> Signal | None:
    """Take note of what the score is over all processes. Returns as `add`."""
    leak(score, now, rules)
    score.points = max(score.points, total)
    return verdict(score, rules)


def verdict(score: Score, rules: SpamRules) -> Signal | None:
    """Return the heaviest signal and start again at zero, when the limit is reached."""
    if score.points < rules.limit:
        return None
    heaviest = max(score.by_signal, key=lambda signal: score.by_signal[signal], default=Signal.RATE)
    score.points = 0.0
    score.by_signal = {}
    return heaviest


def leak(score: Score, now: float, rules: SpamRules) -> None:
    """Let points leak away for the time that has passed; a clock that steps back leaks nothing."""
    passed_s = now - score.at
    if passed_s <= 0:
        return
    score.at = now
    score.points -= passed_s * rules.leak_per_s
    if score.points <= 0.0:
        score.points = 0.0
        if score.by_signal:
            score.by_signal = {}


class Scores:
    """The scores of one process, by room and sender; the longest silent go first."""

    def __init__(self, rules: SpamRules, scores_max: int = 50_000) -> None:
        self.rules = rules
        self._scores: OrderedDict[tuple[str, str], Score] = OrderedDict()
        self._scores_max = scores_max

    def __len__(self) -> int:
        return len(self._scores)

    def of(self, room_id: str, user_id: str, now: float) -> Score:
        """Return a sender's score, a fresh one for a newcomer."""
        key = (room_id, user_id)
        score = self._scores.get(key)
        if score is None:
            score = self._scores[key] = Score(now)
            if len(self._scores) > self._scores_max:
                self._scores.popitem(last=False)
        else:
            self._scores.move_to_end(key)
        return score


# What follows


class Step(enum.StrEnum):
    """A sanction of the machine."""

    WARN = "warn"
    MUTE = "mute"
    BAN = "ban"
    PROPOSE_BAN = "ban_proposed"


@dataclass(frozen=True, slots=True)
class Sanction:
    """What is done, and for how long; None is for good, or until a moderator decides."""

    step: Step
    lasts: timedelta | None = None


LADDER = (
    Sanction(Step.WARN),
    Sanction(Step.MUTE, timedelta(minutes=5)),
    Sanction(Step.MUTE, timedelta(hours=1)),
)
BAN = Sanction(Step.BAN, timedelta(days=1))
PROPOSAL = Sanction(Step.PROPOSE_BAN, timedelta(hours=1))
"""The sender is silent for an hour, in which a moderator may decide."""


def next_sanction(earlier: int, *, bans: bool) -> Sanction:
    """Choose by how many sanctions of the machine came before within `DAY`; `bans`: it may ban by itself."""
    assert earlier >= 0
    if earlier < len(LADDER):
        return LADDER[earlier]
    return BAN if bans else PROPOSAL
