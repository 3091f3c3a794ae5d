"""Requests of a long-poll session that reach another process than the one that has it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from whispr.realtime.channel import Channel, Session
from whispr.realtime.hub import Hub
from whispr.realtime.limits import Limits
from whispr.realtime.longpoll.passes import KEY_BYTES, Passes
from whispr.realtime.longpoll.passing import ACK_S, Passing, Told
from whispr.realtime.longpoll.sessions import Sessions, placed
from whispr.realtime.testing import authenticate

KEY = b"k" * KEY_BYTES


class Echo(Channel):
    """Answers with how much it was sent, or with as much as it is asked for."""

    async def handle(self, event: str, payload: object) -> object:
        return "x" * payload if isinstance(payload, int) else len(str(payload))


class Deployment:
    """Processes that hear each other, but for what `loses` says is lost. They share a key."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.nursery = nursery
        self.processes: dict[str, Passing] = {}
        self.loses: Callable[[bytes], bool] = lambda _: False
        self.up = True
        self.messages = 0

    async def process(self, limits: Limits | None = None) -> Passing:
        hub = Hub(limits or Limits(operations_per_min=0))
        hub.mount("echo", Echo)
        passing = Passing(Sessions(hub), self.send)
        passing.sessions.passes.share(KEY)
        self.nursery.start_soon(hub.run)
        await self.nursery.start(passing.run)
        self.processes[passing.sessions.process] = passing
        return passing

    def send(self, process: str, data: bytes) -> bool:
        self.messages += 1
        if self.up and process in self.processes and not self.loses(data):
            self.processes[process].hear(data)
        return self.up


@asynccontextmanager
async def deployment() -> AsyncIterator[Deployment]:
    async with trio.open_nursery() as nursery:
        yield Deployment(nursery)
        nursery.cancel_scope.cancel(reason="the test is over")


async def opened(passing: Passing) -> str:
    async def admit() -> Session:
        return await authenticate("alice")

    token = (await passing.sessions.open(2, admit, authenticate)).token
    assert token is not None
    return token


async def polled(passing: Passing, token: str) -> dict[str, Any]:
    answer: dict[str, Any] = json.loads(await passing.poll(token))
    return answer


async def posted(passing: Passing, token: str, *messages: object) -> dict[str, Any]:
    body = "\n".join(json.dumps(message) for message in messages).encode()
    answer: dict[str, Any] = json.loads(await passing.post(token, body, lines=True))
    return answer


async def test_any_process_answers_for_a_session(autojump_clock: MockClock) -> None:
    """Posts and polls through the process that has it and through another have the same effect."""
    async with deployment() as world:
        owner, other = await world.process(), await world.process()
        token = await opened(owner)
        assert (await posted(other, token, ["1", "1", "echo:1", "phx_join", {}]))["status"] == 200
        answer = await polled(other, token)
        assert (answer["status"], answer["token"]) == (200, token)
        assert json.loads(answer["messages"][0])[4]["status"] == "ok"
        assert (await polled(other, token))["status"] == 204
        await posted(owner, token, ["1", "2", "echo:1", "any", "here"])
        assert json.loads((await polled(other, token))["messages"][0])[4]["response"] == 4
        assert len(owner.sessions.hub.sockets) == 1
        assert not other.sessions.hub.sockets


async def test_bodies_and_answers_larger_than_the_bus_carries_go_in_parts(autojump_clock: MockClock) -> None:
    """Three megabytes there and back arrive whole."""
    async with deployment() as world:
        owner, other = await world.process(), await world.process()
        token = await opened(owner)
        await posted(other, token, ["1", "1", "echo:1", "phx_join", {}])
        await polled(other, token)
        big = [["1", str(n), "echo:1", "any", "y" * 900_000] for n in range(2, 5)]
        assert (await posted(other, token, *big))["status"] == 200
        await posted(other, token, ["1", "9", "echo:1", "any", 3_000_000])
        replies = [json.loads(text)[4]["response"] for text in (await polled(other, token))["messages"]]
        assert replies[:3] == [900_000] * 3
        assert len(replies[3]) == 3_000_000


async def test_a_session_of_a_process_that_is_gone_is_gone(autojump_clock: MockClock) -> None:
    """410 within ACK_S, not after the time of a poll; so too for a session that its process has forgotten."""
    async with deployment() as world:
        owner, other = await world.process(), await world.process()
        token = await opened(owner)
        del world.processes[owner.sessions.process]
        began = trio.current_time()
        assert (await polled(other, token))["status"] == 410
        assert trio.current_time() - began <= ACK_S + 0.1
        world.processes[owner.sessions.process] = owner
        await trio.sleep(30)
        assert (await polled(other, token))["status"] == 410
        assert (await posted(other, token, []))["status"] == 410


async def test_what_arrives_in_part_is_gone_and_not_shortened(autojump_clock: MockClock) -> None:
    """When the bus loses a part of an answer the client is told 410, and never a part of its messages."""
    async with deployment() as world:
        owner, other = await world.process(), await world.process()
        token = await opened(owner)
        await posted(
            other, token, ["1", "1", "echo:1", "phx_join", {}], ["1", "2", "echo:1", "any", 2_000_000]
        )
        lost: list[bytes] = []

        def loses(data: bytes) -> bool:
            if b"xxxx" in data and not lost:
                lost.append(data)
                return True
            return False

        world.loses = loses
        assert (await polled(other, token))["status"] == 410
        assert lost


async def test_a_client_that_leaves_takes_nothing_with_it(autojump_clock: MockClock) -> None:
    """A poll whose client hung up at the other process ends at the owner; the next one gets the message."""
    async with deployment() as world:
        owner, other = await world.process(), await world.process()
        token = await opened(owner)
        await posted(other, token, ["1", "1", "echo:1", "phx_join", {}])
        await polled(other, token)
        with trio.move_on_after(1):
            await polled(other, token)
        await wait_all_tasks_blocked()
        owner.sessions.hub.broadcast("echo:1", "news", 1)
        assert (await polled(other, token))["messages"] == ['[null,null,"echo:1","news",1]']


async def test_without_the_bus_a_poll_comes_again(autojump_clock: MockClock) -> None:
    """While the bus is away a poll is answered with nothing, so that the session outlives it; a post fails."""
    async with deployment() as world:
        owner, other = await world.process(), await world.process()
        token = await opened(owner)
        world.up = False
        assert (await polled(other, token))["status"] == 204
        assert (await posted(other, token, []))["status"] == 500
        world.up = True
        assert (await posted(other, token, ["1", "1", "echo:1", "phx_join", {}]))["status"] == 200


async def test_nonsense_from_the_bus_is_survived(autojump_clock: MockClock) -> None:
    """An answer to no question, and a question from nowhere, change nothing."""
    async with deployment() as world:
        owner = await world.process()
        owner.hear(msgspec.msgpack.encode(Told(99, 0, b"?", last=True)))
        token = await opened(owner)
        assert (await posted(owner, token, ["1", "1", "echo:1", "phx_join", {}]))["status"] == 200


async def test_a_forged_token_costs_the_bus_nothing(autojump_clock: MockClock) -> None:
    """A token of another process that no process has signed is answered with 410 at once, and nobody is asked."""
    async with deployment() as world:
        owner, other = await world.process(), await world.process()
        name = owner.sessions.process
        token = await opened(owner)
        forged = [
            Passes().sign(f"lp1.{name}.guessed"),
            Passes().sign(f"lp1.nobody.{'x' * 16}"),
            f"lp1.{name}.guessed.{token.rpartition('.')[2]}",
            f"{token[:-4]}AAAA",
            f"lp1.{name}.{'y' * 16}.-",
        ]
        began = trio.current_time()
        for each in forged:
            assert (await polled(other, each))["reason"] == "session_gone"
            assert (await posted(other, each, []))["status"] == 410
            assert (await polled(owner, each))["status"] == 410
        assert (world.messages, trio.current_time()) == (0, began)
        assert (await posted(other, token, ["1", "1", "echo:1", "phx_join", {}]))["status"] == 200
        assert world.messages > 0


def test_a_key_may_change_once_while_a_token_lives() -> None:
    """Tokens under the key before are good, older ones are not; who knows no shared key lets others judge."""
    one, two, new = Passes(), Passes(), Passes()
    for passes in (one, two):
        passes.share(b"1" * KEY_BYTES)
    token = one.sign("lp1.a.b")
    two.share(b"2" * KEY_BYTES)
    two.share(b"2" * KEY_BYTES)
    assert two.may_be_ours(token)
    assert two.key == b"2" * KEY_BYTES
    two.share(b"3" * KEY_BYTES)
    assert not two.may_be_ours(token)
    assert new.may_be_ours(token)
    assert not one.may_be_ours(new.sign("lp1.a.b"))


@given(st.text())
def test_a_token_is_read_or_not_at_all(text: str) -> None:
    """Whatever is shown as a token, its parts can be parts of a bus's subject or it is no token."""
    place = placed(text)
    if place is not None:
        assert all(character.isalnum() or character in "-_" for character in place.process + place.session)
