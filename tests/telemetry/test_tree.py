"""The task tree: read from Trio, grouped and bounded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from whispr.telemetry import tasks, tree
from whispr.telemetry.tasks import Facts, TaskTree, describe, follow
from whispr.telemetry.tree import Seen, as_json, drawn, duration

# --- Reading ----------------------------------------------------------------------------------------------


async def read(note: TaskTree | None = None) -> dict[str, Any]:
    return as_json(await (note or TaskTree()).read(), nodes_max=500)


def find(node: dict[str, Any], name: str) -> dict[str, Any]:
    """The node of that name, wherever it is."""
    found = list(_all(node, name))
    assert found, name
    return found[0]


def _all(node: dict[str, Any], name: str) -> Iterator[dict[str, Any]]:
    if node["name"] == name:
        yield node
    for child in node.get("children", node.get("examples", [])):
        yield from _all(child, name)


async def sleeper(seconds: float) -> None:
    await trio.sleep(seconds)


async def test_who_started_whom_and_what_they_wait_on(autojump_clock: trio.testing.MockClock) -> None:
    """A nursery's tasks are below the task that opened it, each with its function, deadline and wait."""

    async def parent() -> None:
        async with trio.open_nursery() as children:
            with trio.CancelScope(deadline=trio.current_time() + 5):
                children.start_soon(sleeper, 100, name="first child")
                children.start_soon(bounded, name="second child")
                await trio.sleep_forever()

    async def bounded() -> None:
        with trio.move_on_after(7):
            await trio.Event().wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(parent, name="a parent")
        await trio.testing.wait_all_tasks_blocked()
        shown = find(await read(), "a parent")
        assert [child["name"] for child in shown["children"]] == ["first child", "second child"]
        first, second = shown["children"]
        assert (shown["deadline_in_s"], first["deadline_in_s"], second["deadline_in_s"]) == (5, 100, 7)
        assert second["waits_on"] == "trio.Event.wait"
        nursery.cancel_scope.cancel(reason="seen")


async def test_a_task_is_what_its_function_says(autojump_clock: trio.testing.MockClock) -> None:
    """Owners say what a task is and how old; what runs further in is inside, with the nurseries it opened."""

    async def connection(peer: str) -> None:
        async with trio.open_nursery() as own:
            own.start_soon(sleeper, 50, name="of the connection")
            await handler(own)

    async def handler(own: trio.Nursery) -> None:
        async with trio.open_nursery() as beside:
            beside.start_soon(sleeper, 60, name="of the call")

    describe(connection, lambda here: Facts("connection", here["peer"], age_s=3.0, nursery=here.get("own")))
    describe(handler, lambda _: Facts("call", "a method", deadline=trio.current_time() + 9))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection, "somebody")
        await trio.testing.wait_all_tasks_blocked()
        shown = find(await read(), "somebody")
        assert (shown["kind"], shown["age_s"], shown["waits_on"]) == ("connection", 3.0, "")
        names = {child["name"]: child for child in shown["children"]}
        assert set(names) == {"a method", "of the connection"}
        call = names["a method"]
        assert (call["kind"], call["deadline_in_s"], call["waits_on"]) == ("call", 9, "its children")
        assert [child["name"] for child in call["children"]] == ["of the call"]
        nursery.cancel_scope.cancel(reason="seen")


async def test_a_coroutine_run_by_hand_is_seen_through(autojump_clock: trio.testing.MockClock) -> None:
    """What a generator drives shows as if the task ran it."""
    import types

    async def driven() -> None:
        await trio.sleep(5)

    @types.coroutine
    def driving(coroutine: Any) -> Iterator[Any]:
        trap = coroutine.send(None)
        while True:
            try:
                trap = coroutine.send((yield trap))
            except StopIteration:
                return

    describe(driven, lambda _: Facts("call", "by hand"))
    follow(driving, "coroutine")

    async def leader() -> None:
        await driving(driven())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(leader)
        await trio.testing.wait_all_tasks_blocked()
        shown = find(await read(), "by hand")
        assert (shown["kind"], shown["waits_on"]) == ("call", "trio.sleep")


async def test_ages_of_what_nobody_describes(monkeypatch: pytest.MonkeyPatch) -> None:
    """From when the process had started, or at least from when a task was first seen."""
    now = 1000.0
    monkeypatch.setattr("whispr.telemetry.tasks.time.monotonic", lambda: now)
    looked = TaskTree()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sleeper, 100, name="from the start")
        await looked.note()
        nursery.start_soon(sleeper, 100, name="later")
        assert find(await read(looked), "later")["age_s"] is None
        now = 1004.0
        shown = await read(looked)
        assert find(shown, "from the start")["age_s"] == 4.0
        assert "at_least" not in find(shown, "from the start")
        assert (find(shown, "later")["age_s"], find(shown, "later")["at_least"]) == (4.0, True)
        nursery.cancel_scope.cancel(reason="seen")


async def test_the_task_that_looks_is_seen_too() -> None:
    """It runs, and so awaits nothing: its stack is read instead."""
    shown = list(drawn(await read()))
    assert any("TaskTree" in line for line in shown)


async def test_thousands_of_tasks_hold_up_nobody() -> None:
    """The tree of 3,000 tasks is read in stretches, between which others run."""
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        for _ in range(3000):
            nursery.start_soon(trio.sleep_forever, name="one of many")
        nursery.start_soon(others)
        await trio.lowlevel.checkpoint()
        before = turns
        seen = await TaskTree().read()
        assert turns - before >= 3000 // tasks.STRETCH
        shown = find(as_json(seen), "one of many")
        assert (shown["count"], len(shown["examples"])) == (3000, tree.EXAMPLES)
        nursery.cancel_scope.cancel(reason="seen")


# --- Drawing ----------------------------------------------------------------------------------------------


def sockets(count: int) -> Seen:
    return Seen(
        "process", "whispr", children=[Seen("socket", f"of {n}", age_s=float(n)) for n in range(count)]
    )


def test_many_alike_are_one_line() -> None:
    """With their number and the oldest of them as examples; expanded, more of them."""
    (group,) = as_json(sockets(4812))["children"]
    assert (group["count"], group["oldest_s"]) == (4812, 4811.0)
    assert [example["name"] for example in group["examples"]] == ["of 4811", "of 4810", "of 4809"]
    assert next(line for line in drawn(as_json(sockets(4812))) if "×" in line) == (  # noqa: RUF001  # as drawn
        "└─ 4,812 × socket · oldest 80 min"  # noqa: RUF001  # as drawn
    )
    (expanded,) = as_json(sockets(4812), ["socket"])["children"]
    assert len(expanded["examples"]) == tree.EXPANDED_MAX
    assert len(as_json(sockets(tree.GROUP_MIN))["children"]) == tree.GROUP_MIN


def test_what_is_asked_for_is_shown_wherever_it_is() -> None:
    """A call on one of many connections, none of the oldest, is shown when calls are asked for."""
    connections = [Seen("connection", f"of {n}", "gRPC", age_s=100.0 - n) for n in range(20)]
    connections[15].children.append(Seen("call", "Watch"))
    top = Seen("process", "whispr", children=[Seen("listener", "here", children=connections)])
    assert not list(_all(as_json(top), "Watch"))
    shown = as_json(top, {"call"})
    assert find(shown, "Watch")["kind"] == "call"
    assert find(shown, "gRPC")["count"] == 20


@given(
    st.recursive(
        st.builds(Seen, kind=st.sampled_from(["socket", "task"]), name=st.sampled_from("abc")),
        lambda inner: st.builds(
            Seen,
            kind=st.sampled_from(["socket", "task"]),
            name=st.sampled_from("abc"),
            children=st.lists(inner, max_size=30),
        ),
        max_leaves=200,
    ),
    st.integers(1, 50),
    st.booleans(),
)
@settings(max_examples=30)
def test_the_answer_is_bounded(seen: Seen, nodes_max: int, expand: bool) -> None:
    """However many tasks there are, no more nodes than asked for, and all can be drawn."""
    shown = as_json(seen, ["socket"] if expand else [], nodes_max=nodes_max)

    def count(node: dict[str, Any]) -> int:
        inner = sum(count(child) for child in node.get("children", node.get("examples", [])))
        return inner + ("count" not in node)

    assert count(shown) <= nodes_max + tree.DEPTH_MAX
    assert list(drawn(shown))


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0, "0 s"),
        (0.25, "0.25 s"),
        (12.3, "12 s"),
        (180, "3 min"),
        (7200, "2 h"),
        (200000, "2 d"),
        (-1, "-1 s"),
    ],
)
def test_durations(seconds: float, words: str) -> None:
    """In the unit that a person would take."""
    assert duration(seconds) == words
