"""The terminal client outlives its access token."""

from __future__ import annotations

from typing import cast

import pytest
import trio
import trio.testing

from whispr.chat.account import Account, Person
from whispr.chat.screen import Screen
from whispr.chat.session import Conversation
from whispr.realtime.channel import Channel, Joined
from whispr.realtime.hub import Hub
from whispr.realtime.limits import Limits
from whispr.realtime.testing import served


class Talk(Channel):
    """A conversation in which nothing was said."""

    async def join(self, payload: object) -> object:
        return Joined({"seq": 0, "messages": []})


class Silent:
    """A screen that shows nothing."""

    def say(self, text: str, *, dim: bool = False) -> None:
        """Say nothing."""

    def prompt(self, text: str) -> None:
        """Ask for nothing."""


async def test_it_hands_in_a_new_token_when_told(autojump_clock: trio.testing.MockClock) -> None:
    """`token_expiring` makes it fetch a token and push it; the connection goes on past the old expiry."""
    wall = [1000.0]
    hub = Hub(Limits(), wall_clock=lambda: wall[0])
    me, peer = (Person(user_id, user_id, user_id) for user_id in ("alice", "bob"))

    async def new_token() -> str:
        return "alice/s/9000"

    async with served({"conversation": Talk}, hub=hub) as server, server.connect("alice/s/1900") as phoenix:
        conversation = Conversation(cast("Screen", Silent()), me, peer, "1")
        channel = await phoenix.join("conversation:1")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(conversation.follow, channel, new_token)
            await trio.sleep(2)
            wall[0] = 1850.0
            await trio.sleep(2)
            wall[0] = 1950.0
            await trio.sleep(5)
            assert phoenix.closed is None
            (socket,) = hub.sockets
            assert socket.session.expires_at == 9000.0
            nursery.cancel_scope.cancel(reason="the test is over")


async def test_two_refreshes_at_once_spend_the_token_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refresh token that is shown twice ends the session, so whoever comes second takes what the first got."""
    spent: list[str] = []
    account = Account(
        "http://127.0.0.1:1",
        {"user": {"id": "1", "username": "a"}, "access_token": "a", "refresh_token": "r0"},
    )

    async def call(url: str, method: str, path: str, body: dict[str, str]) -> object:
        spent.append(body["refresh_token"])
        await trio.lowlevel.checkpoint()
        number = len(spent)
        return {
            "user": {"id": "1", "username": "a"},
            "access_token": f"a{number}",
            "refresh_token": f"r{number}",
        }

    monkeypatch.setattr("whispr.chat.account.call", call)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(account.refresh)
        nursery.start_soon(account.refresh)
    assert spent == ["r0"]
    assert await account.new_token() == "a2"
