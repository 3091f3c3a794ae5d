"""What is told of a stream to whoever looks at its page."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

import trio

from tests.services.stream.hearing import STREAM, a_stream, ask
from whispr.errors import WhisprError, denied, not_found, unavailable
from whispr.services.stream.access import Shown
from whispr.services.stream.domain import Stream
from whispr.services.stream.listening.about import About


@dataclass
class Standing:
    """An audience and a live state that say what a test wants."""

    refused: WhisprError | None = None
    away: bool = False
    shown: Shown | None = None

    async def regard(self, stream_id: str, shown: Shown) -> tuple[Stream, WhisprError | None]:
        await trio.lowlevel.checkpoint()
        self.shown = shown
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
