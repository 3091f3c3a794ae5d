"""What is told of a stream to whoever looks at its page."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from tests.services.stream.hearing import STREAM, Answer, a_stream, ask
from whispr.errors import WhisprError, denied, not_found, unavailable
from whispr.services.stream.access import Shown
from whispr.services.stream.domain import Stream
from whispr.services.stream.listening.about import KNOWN_S, About


@dataclass
class Standing:
    """An audience and a live state that say what a test wants."""

    refused: WhisprError | None = None
    away: bool = False
    shown: Shown | None = None
    looks: int = 0
    asked: WhisprError | None = None

    async def regard(self, stream_id: str, shown: Shown) -> tuple[Stream, WhisprError | None]:
        self.shown = shown
        self.looks += 1
        await trio.sleep(0.01)
        if self.asked is not None:
            raise self.asked
        if stream_id != STREAM:
            raise not_found("stream", stream_id)
        return a_stream(), self.refused

    async def counts(self, stream_ids: Iterable[str]) -> dict[str, int]:
        await trio.lowlevel.checkpoint()
        if self.away:
            raise unavailable("no Redis")
        return dict.fromkeys(stream_ids, 3)

    async def with_source(self, stream_ids: Iterable[str]) -> set[str]:
        await trio.lowlevel.checkpoint()
        return set(stream_ids)


def about(standing: Standing) -> About:
    return About(cast(Any, standing), cast(Any, standing))


async def test_what_a_page_shows_of_a_stream() -> None:
    """What it is, who listens, whether anything is sent; asked for by the credentials that listening takes."""
    standing = Standing()
    answer = await ask(about(standing), f"/listen/{STREAM}/about?expires=1&signature=x")
    said = json.loads(answer.body)
    assert (answer.status, answer.headers["cache-control"]) == (200, "no-store")
    assert (said["stream"]["title"], said["listener_count"], said["has_source"]) == ("a tone", 3, True)
    assert said["refused"] is None
    assert standing.shown == Shown(query="expires=1&signature=x")


async def test_who_may_not_listen_is_told_why() -> None:
    """And what is not known while Redis is away is null; a stream nobody may know of is none."""
    standing = Standing(denied("not for you", reason="premium_required"), away=True)
    said = json.loads((await ask(about(standing), f"/listen/{STREAM}/about")).body)
    assert said["refused"] == {
        "code": "PERMISSION_DENIED",
        "reason": "premium_required",
        "message": "not for you",
    }
    assert (said["listener_count"], said["has_source"]) == (None, None)
    answer = await ask(about(standing), "/listen/another/about")
    assert answer.error is not None
    assert answer.error.reason == "not_found"
    posted = await ask(about(standing), f"/listen/{STREAM}/about", "POST")
    assert posted.error is not None
    assert posted.error.reason == "method_not_allowed"


async def test_strangers_who_ask_often_are_told_what_was_looked_up_once(autojump_clock: MockClock) -> None:
    """All at once, within a second, and of a stream that is none; who shows something is looked up for themselves."""
    standing = Standing()
    app = about(standing)

    async def poll(path: str, times: int) -> list[Answer]:
        answers: list[Answer] = []

        async def one() -> None:
            answers.append(await ask(app, path))

        async with trio.open_nursery() as nursery:
            for _ in range(times):
                nursery.start_soon(one)
        return answers

    path = f"/listen/{STREAM}/about"
    answers = await poll(path, 20) + await poll(path, 20)
    assert ({each.status for each in answers}, standing.looks) == ({200}, 1)
    await trio.sleep(KNOWN_S)
    await poll(path, 20)
    assert standing.looks == 2
    answers = await poll("/listen/another/about", 20)
    assert {each.error.reason for each in answers if each.error is not None} == {"not_found"}
    assert (len(answers), standing.looks) == (20, 3)
    await poll(f"{path}?signature=x", 3)
    assert standing.looks == 6


async def test_what_could_not_be_looked_up_is_not_remembered(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is who gave up waiting in anybody's way; and only so many streams are remembered."""
    standing = Standing(asked=unavailable("no PostgreSQL"))
    app, path = about(standing), f"/listen/{STREAM}/about"
    assert (await ask(app, path)).error is not None
    standing.asked = None
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(0.005):
            nursery.start_soon(ask, app, path)
            await ask(app, path)
    assert (await ask(app, path)).status == 200
    monkeypatch.setattr("whispr.services.stream.listening.about.KNOWN_MAX", 3)
    for number in range(10):
        await ask(app, f"/listen/{number}/about")
    assert len(app._known) <= 3
