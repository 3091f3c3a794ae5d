"""Whichever worker is met, an operator sees the one they name, or all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import trio

from whispr.errors import Code, WhisprError
from whispr.gateway.operations import merged_topics
from whispr.gateway.processes import Processes
from whispr.worker_questions import ask, serve_answers, socket_name


def processes(folder: Path, own: str) -> Processes:
    """One of two workers, whose third has gone."""

    async def name(parameters: Mapping[str, Any]) -> Any:
        return {"i am": own, "asked": parameters["what"]}

    async def others(worker: str, question: str, parameters: Mapping[str, Any]) -> Any | None:
        return await ask(folder / socket_name(worker), question, parameters)

    return Processes({"name": name}, own=own, names=("1", "2", "3"), ask=others)


async def test_each_answers_for_itself_whoever_is_asked(tmp_path: Path) -> None:
    """By its number, or all at once; who has gone is told apart from who does not exist."""
    first, second = processes(tmp_path, "1"), processes(tmp_path, "2")
    async with trio.open_nursery() as nursery:
        await nursery.start(serve_answers, tmp_path / socket_name("2"), second.answer)
        asked = {"what": "x" * 3000}
        assert await first.ask("", "name", asked) == {"i am": "1", "asked": asked["what"]}
        assert (await first.ask("2", "name", asked))["i am"] == "2"
        everyone = await first.ask_all("name", {"what": 1})
        assert everyone == {"1": {"i am": "1", "asked": 1}, "2": {"i am": "2", "asked": 1}, "3": None}
        for worker, question, code in (
            ("3", "name", Code.UNAVAILABLE),
            ("4", "name", Code.NOT_FOUND),
            ("1", "nonsense", Code.NOT_FOUND),
            ("2", "nonsense", Code.UNAVAILABLE),
        ):
            with pytest.raises(WhisprError) as refused:
                await first.ask(worker, question, {})
            assert refused.value.code is code
        nursery.cancel_scope.cancel(reason="asked enough")


def test_topics_of_all_workers_are_one_list() -> None:
    """A topic's members are added up over workers; one that did not answer has no figures."""
    one = {"sockets": 3, "users": 2, "channels": 5, "topics": 2, "largest": [("room:a", 2), ("room:b", 3)]}
    two = {"sockets": 1, "users": 1, "channels": 2, "topics": 1, "largest": [("room:a", 2)]}
    shown = merged_topics({"1": one, "2": two, "3": None})
    assert shown["topics"] == [{"topic": "room:a", "members": 4}, {"topic": "room:b", "members": 3}]
    assert [each.get("sockets") for each in shown["workers"]] == [3, 1, None]
