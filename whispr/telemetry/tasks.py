"""Reads Trio's own tasks: who started whom, how long ago, until when, and what each waits on.

Nothing is noted while nobody looks. A task is what the outermost of its functions is that somebody has *described*:

    describe(Socket.run, lambda here: Facts("socket", here["self"].session.user_id))

gets the local variables of that function in the task, where the owner's own times are. Functions described that are
further in are shown inside, as a call is that runs in the task which reads its connection. Of tasks that nobody
describes, the age is the time since they were first seen; a process looks once when it has started.

Reading is done in stretches with checkpoints between them, so that ten thousand tasks hold up nobody; a task
that ends meanwhile is shown as it was.
"""

from __future__ import annotations

import gc
import itertools
import math
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePath
from types import CodeType, FrameType
from typing import Any

import trio

import whispr
from whispr.telemetry.tree import Seen

STRETCH = 100
"""Tasks read without a checkpoint: about a millisecond."""

_OURS = str(PurePath(whispr.__file__).parent)
_TRAPS = frozenset({"_real_async_yield", "_async_yield"})
"""Where Trio's own tasks are while they wait: the end of every stack."""
_PLUMBING = frozenset(
    {"bridge.py", "adapters/postgres.py", "rpc/driving.py", "rpc/inbox.py", "rpc/interceptors.py"}
)
"""Where so many wait that to say so says nothing: their caller does."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a function says of the task it runs in."""

    kind: str
    name: str
    group: str = ""
    """As `Seen.group`."""
    age_s: float | None = None
    deadline: float | None = None
    """On Trio's clock, in place of that of the task's scopes."""
    nursery: trio.Nursery | None = None
    """The last one that is its own; those opened later belong to what runs further in."""


Here = Mapping[str, Any]
Describer = Callable[[Here], Facts | None]

_describers: dict[CodeType, Describer] = {}
_followed: dict[CodeType, str] = {}


def describe(function: Callable[..., Any], facts: Describer) -> None:
    """Have `facts` say, from the function's local variables, what a task is that runs it; None for nothing."""
    _describers[function.__code__] = facts


def follow(function: Callable[..., Any], variable: str) -> None:
    """Say that a generator runs the coroutine in one of its variables by hand, which nobody else can see."""
    _followed[function.__code__] = variable


class TaskTree:
    """Reads the tree of the running loop."""

    def __init__(self) -> None:
        self._first_seen: weakref.WeakKeyDictionary[trio.lowlevel.Task, tuple[float, bool]] = (
            weakref.WeakKeyDictionary()
        )

    async def note(self) -> None:
        """Remember when the tasks there are began: about now."""
        await self._read(fresh=True)

    async def read(self) -> Seen:
        """Read all tasks, the root's first."""
        return await self._read(fresh=False)

    async def _read(self, *, fresh: bool) -> Seen:
        root = trio.lowlevel.current_root_task()
        assert root is not None, "in a running loop"
        top, tops = self._seen(root, fresh)
        left = [(root, tops)]
        count = 0
        while left:
            task, owners = left.pop()
            for number, nursery in enumerate(list(task.child_nurseries)):
                owner = owners[min(number, len(owners) - 1)]
                for child in list(nursery.child_tasks):
                    seen, inner = self._seen(child, fresh)
                    owner.children.append(seen)
                    left.append((child, inner))
                    count += 1
                    if count % STRETCH == 0:
                        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        top.kind, top.name = "process", "whispr"
        return top

    def _seen(self, task: trio.lowlevel.Task, fresh: bool) -> tuple[Seen, list[Seen]]:
        """Read one task; returns it, and for each of its nurseries whose that is."""
        frames = _own_frames(task) if task is trio.lowlevel.current_task() else list(_frames(task.coro))
        at, on = _waits(frames)
        left_s = _left_s(task)
        found = [facts for frame in frames if (facts := _facts(frame)) is not None]
        if not found:
            age_s, at_least = self._age(task, fresh)
            seen = Seen("task", _name(task), "", age_s, at_least, left_s, at, on)
            return seen, [seen]
        layers = [_layer(facts, left_s, at, on) for facts in found]
        if layers[0].age_s is None:
            layers[0].age_s, layers[0].at_least = self._age(task, fresh)
        for outer, inner in itertools.pairwise(layers):
            outer.children.append(inner)
            outer.at = outer.on = ""
        return layers[0], _owners(task, found, layers)

    def _age(self, task: trio.lowlevel.Task, fresh: bool) -> tuple[float | None, bool]:
        now = time.monotonic()
        known = self._first_seen.get(task)
        if known is None:
            self._first_seen[task] = now, not fresh
            return None, False
        return now - known[0], known[1]


def _layer(facts: Facts, left_s: float | None, at: str, on: str) -> Seen:
    if facts.deadline is not None:
        left_s = None if math.isinf(facts.deadline) else facts.deadline - trio.current_time()
    return Seen(facts.kind, facts.name, facts.group, facts.age_s, False, left_s, at, on)


def _owners(task: trio.lowlevel.Task, found: list[Facts], layers: list[Seen]) -> list[Seen]:
    """Say for each nursery of a task which of its layers opened it."""
    owners: list[Seen] = []
    layer = 0
    for nursery in task.child_nurseries:
        owners.append(layers[layer])
        if layer < len(layers) - 1 and (found[layer].nursery is nursery):
            layer += 1
    return owners or [layers[-1]]


def _facts(frame: FrameType) -> Facts | None:
    describer = _describers.get(frame.f_code)
    return None if describer is None else describer(frame.f_locals)


def _frames(awaited: Any) -> Iterator[FrameType]:
    """The frames of a coroutine, outermost first, through what `follow` has named.

    As `Task.iter_await_frames` has it, which cannot see into what a generator runs by hand.
    """
    while awaited is not None:
        frame: FrameType | None
        if hasattr(awaited, "cr_frame"):
            frame, inner = awaited.cr_frame, awaited.cr_await
        elif hasattr(awaited, "gi_frame"):
            frame, inner = awaited.gi_frame, awaited.gi_yieldfrom
        elif generators := [each for each in gc.get_referents(awaited) if hasattr(each, "ag_frame")]:
            # `__anext__` of an async generator names it to nobody but the collector (python/cpython#76991).
            frame, inner = generators[0].ag_frame, generators[0].ag_await
        else:
            return
        if frame is not None:
            yield frame
            if inner is None and (variable := _followed.get(frame.f_code)) is not None:
                inner = frame.f_locals.get(variable)
        awaited = inner


def _own_frames(task: trio.lowlevel.Task) -> list[FrameType]:
    """The frames of the task that is reading: it runs, and so awaits nothing that could be asked for."""
    frames: list[FrameType] = []
    frame: FrameType | None = sys._getframe(1)
    first = getattr(task.coro, "cr_frame", None)
    while frame is not None:
        frames.append(frame)
        frame = None if frame is first else frame.f_back
    return frames[::-1]


def _left_s(task: trio.lowlevel.Task) -> float | None:
    # Trio tells a task its own effective deadline and nobody else's: this is where it keeps it.
    status = getattr(task, "_cancel_status", None)
    deadline = math.inf if status is None else status.effective_deadline()
    if math.isinf(deadline):
        return None if deadline > 0 else 0.0
    return float(deadline - trio.current_time())


def _name(task: trio.lowlevel.Task) -> str:
    """A task's name; of one that was given none, its function's: by class if it has one, else by module."""
    name = task.name
    if name.startswith(("functools.partial", "<")):
        name = getattr(task.coro, "__qualname__", name)
    qualname = getattr(task.coro, "__qualname__", "")
    if name.endswith(f".{qualname}"):
        modules = name.removesuffix(f".{qualname}")
        name = qualname if "." in qualname else f"{modules.rpartition('.')[2]}.{qualname}"
    return name.replace(".<locals>", "")


def _waits(frames: list[FrameType]) -> tuple[str, str]:
    """Where the innermost function of ours is, and what it waits on."""
    here = elsewhere = -1
    for number, frame in enumerate(frames):
        path = frame.f_code.co_filename
        if path.startswith(_OURS) and path[len(_OURS) + 1 :] not in _PLUMBING:
            here = number
        elif _module(frame) != "trio":
            elsewhere = number
    here = elsewhere if here < 0 else here
    if here < 0:
        return "", _called(frames[-1]) if frames else ""
    frame = frames[here]
    function = frame.f_code.co_qualname.replace(".<locals>", "")
    at = f"{function} {PurePath(frame.f_code.co_filename).name}:{frame.f_lineno}"
    return at, _called(frames[here + 1]) if here + 1 < len(frames) else ""


def _called(frame: FrameType) -> str:
    name = frame.f_code.co_qualname
    if name.startswith(("NurseryManager.", "Nursery.")):
        return "its children"
    if name in _TRAPS:
        return ""
    module = _module(frame)
    return name.replace(".<locals>", "") if module in ("whispr", "") else f"{module}.{name}"


def _module(frame: FrameType) -> str:
    """The package a frame's function is of."""
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
