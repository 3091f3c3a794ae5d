"""The task tree as an operator sees it: what was read of tasks, grouped, bounded and drawn. Pure.

Thousands of siblings that do the same are one line, with their number and a few of them as examples, the oldest
first; `expand` shows more of a kind. Nothing is larger than `NODES_MAX` tasks, whatever runs.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

GROUP_MIN = 5
"""Siblings of one kind that are a line each; more of them are a group."""
EXAMPLES = 3
EXPANDED_MAX = 200
"""Of a group that is asked for."""
NODES_MAX = 2000
DEPTH_MAX = 40


@dataclass(slots=True)
class Seen:
    """A task, or what one does for somebody: a call that runs in the task that reads its connection."""

    kind: str
    """Such as "socket"; "task" for what nobody has described."""
    name: str
    group: str = ""
    """Siblings of one group are alike; the kind when empty."""
    age_s: float | None = None
    """None when nobody knows."""
    at_least: bool = False
    """It may be older than that."""
    left_s: float | None = None
    """Until its deadline; None without one."""
    at: str = ""
    """The function of ours that it is in, with file and line."""
    on: str = ""
    """What that waits on."""
    children: list[Seen] = field(default_factory=list)

    @property
    def key(self) -> tuple[str, str]:
        """What it is grouped by."""
        return self.kind, self.group or (self.name if self.kind == "task" else "")


class _Budget:
    def __init__(self, nodes: int) -> None:
        self.nodes = nodes


def as_json(seen: Seen, expand: Collection[str] = (), *, nodes_max: int = NODES_MAX) -> dict[str, Any]:
    """Return a tree for JSON. `expand` names kinds, or groups by their names, that are shown as far as fits."""
    return _node(seen, frozenset(expand), _Budget(nodes_max), 0)


def _node(seen: Seen, expand: frozenset[str], budget: _Budget, depth: int) -> dict[str, Any]:
    budget.nodes -= 1
    node: dict[str, Any] = {"kind": seen.kind, "name": seen.name, "age_s": _rounded(seen.age_s)}
    if seen.at_least:
        node["at_least"] = True
    node["deadline_in_s"] = _rounded(seen.left_s)
    node["at"], node["waits_on"] = seen.at, seen.on
    if seen.children and (depth >= DEPTH_MAX or budget.nodes <= 0):
        node["omitted"] = _count(seen.children)
    elif seen.children:
        node["children"] = _children(seen.children, expand, budget, depth + 1)
    return node


def _children(
    children: Sequence[Seen], expand: frozenset[str], budget: _Budget, depth: int
) -> list[dict[str, Any]]:
    groups: dict[tuple[str, str], list[Seen]] = {}
    for child in children:
        groups.setdefault(child.key, []).append(child)
    shown: list[dict[str, Any]] = []
    # What is described comes first; and in one order, for Trio keeps none and people watch.
    for (kind, group), members in sorted(groups.items(), key=lambda each: (each[0][0] == "task", each[0])):
        members.sort(key=lambda each: (-(each.age_s or 0.0), each.name))
        if len(members) <= GROUP_MIN and budget.nodes >= len(members):
            shown += [_node(each, expand, budget, depth) for each in members]
            continue
        examples = _examples(members, kind, group, expand)[: max(0, budget.nodes)]
        shown.append(
            {
                "kind": kind,
                "name": group or kind,
                "count": len(members),
                "tasks": _count(members),
                "oldest_s": _rounded(max((each.age_s or 0.0) for each in members)),
                "examples": [_node(each, expand, budget, depth) for each in examples],
            }
        )
    return shown


def _examples(members: Sequence[Seen], kind: str, group: str, expand: Collection[str]) -> Sequence[Seen]:
    """Choose whom of a group to show: whoever holds what was asked for, however many siblings do not."""
    if not expand:
        return members[:EXAMPLES]
    if kind in expand or group in expand:
        return members[:EXPANDED_MAX]
    holding = [each for each in members if _holds(each, expand)]
    return holding[:EXPANDED_MAX] or members[:EXAMPLES]


def _holds(seen: Seen, expand: Collection[str]) -> bool:
    return any(each.kind in expand or each.group in expand or _holds(each, expand) for each in seen.children)


def _count(seen: Sequence[Seen]) -> int:
    return sum(1 + _count(each.children) for each in seen)


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 3)


# --- Drawing ----------------------------------------------------------------------------------------------


def drawn(node: dict[str, Any]) -> Iterator[str]:
    """Draw what `as_json` returned, a line a task."""
    yield _line(node)
    yield from _drawn_children(node, "")


def _drawn_children(node: dict[str, Any], indent: str) -> Iterator[str]:
    children = node.get("children", node.get("examples", []))
    hidden = node.get("omitted", 0) or max(0, node.get("count", 0) - len(node.get("examples", [])))
    for number, child in enumerate(children):
        last = number == len(children) - 1 and not hidden
        yield f"{indent}{'└─ ' if last else '├─ '}{_line(child)}"
        yield from _drawn_children(child, indent + ("   " if last else "│  "))
    if hidden:
        yield f"{indent}└─ … {hidden:,} more"


def _line(node: dict[str, Any]) -> str:
    if "count" in node:
        what = node["name"] if node["name"] == node["kind"] else f"{node['kind']} {node['name']}"
        return f"{node['count']:,} × {what} · oldest {duration(node['oldest_s'])}"  # noqa: RUF001  # it is meant
    parts = [node["name"] if node["kind"] in ("task", "process") else f"{node['kind']} {node['name']}"]
    if node["age_s"] is not None:
        parts.append(("≥ " if node.get("at_least") else "") + duration(node["age_s"]))
    if node["deadline_in_s"] is not None:
        parts.append(f"{duration(node['deadline_in_s'])} left")
    where = " → ".join(part for part in (node["at"], node["waits_on"]) if part)
    return " · ".join([*parts, where] if where else parts)


def duration(seconds: float) -> str:
    """Put seconds into words: 0.25 s, 12 s, 3 min, 5 h, 2 d."""
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 10:
        return f"{seconds:.2g} s" if seconds >= 0.001 else "0 s"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
