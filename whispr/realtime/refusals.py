"""Joins that were refused moments ago, so that asking again and again costs the one who asks. Pure.

Whether a user may join is a question to the database, and a client can ask it as fast as it can send. So what is
refused twice within `_LOOP_S` is refused without asking for the next `remembered_s`, with the same answer; and a user
with more than `per_min` refusals a minute, over all topics and sockets, is told to wait before anybody is asked
again. The first refusal is not remembered: whoever was just let in gets in.

At most `_LEN_MAX` of each are kept; the oldest goes first.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

from whispr.errors import Code, WhisprError, exhausted
from whispr.realtime.limits import OperationBudget

_LOOP_S = 10.0
_LEN_MAX = 10_000
_FINAL = frozenset({Code.PERMISSION_DENIED, Code.NOT_FOUND})
"""What is worth remembering: anything else may be another moment later."""


class _Refused(NamedTuple):
    at: float
    until: float
    error: WhisprError


class Refusals:
    """Of one hub. Times are the caller's, in seconds."""

    def __init__(self, remembered_s: float, per_min: int) -> None:
        self._remembered_s = remembered_s
        self._per_min = per_min
        self._refused: OrderedDict[tuple[str, str], _Refused] = OrderedDict()
        self._budgets: OrderedDict[str, OperationBudget] = OrderedDict()
        self._waits: dict[str, float] = {}

    def find(self, user_id: str, topic: str, now_s: float) -> WhisprError | None:
        """Return what a join is to be refused with unasked, None when it may be asked about."""
        wait_s = self._waits.get(user_id, now_s) - now_s
        if wait_s > 0:
            return exhausted("too many joins that were refused", wait_s)
        refused = self._refused.get((user_id, topic))
        return refused.error if refused is not None and now_s < refused.until else None

    def note(self, user_id: str, topic: str, error: WhisprError, now_s: float) -> None:
        """Take note of a join that was asked about and refused."""
        if error.code not in _FINAL:
            return
        key = (user_id, topic)
        before = self._refused.pop(key, None)
        again = before is not None and now_s - before.at < _LOOP_S
        self._refused[key] = _Refused(now_s, now_s + self._remembered_s if again else now_s, error)
        if len(self._refused) > _LEN_MAX:
            self._refused.popitem(last=False)
        self._charge(user_id, now_s)

    def _charge(self, user_id: str, now_s: float) -> None:
        if not self._per_min:
            return
        budget = self._budgets.pop(user_id, None) or OperationBudget(self._per_min)
        self._budgets[user_id] = budget
        wait_s = budget.take(now_s)
        self._waits.pop(user_id, None)
        if wait_s > 0:
            self._waits[user_id] = now_s + wait_s
        if len(self._budgets) > _LEN_MAX:
            forgotten, _ = self._budgets.popitem(last=False)
            self._waits.pop(forgotten, None)
