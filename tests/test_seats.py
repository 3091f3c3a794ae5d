"""A user's sockets are limited over all nodes: through Valkey, by each node alone when it is away."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
import trio
from prometheus_client import REGISTRY

from tests.realtime.polling import Polling, poll_served
from whispr import seats as module
from whispr.adapters.cache import Cache, open_cache
from whispr.bridge import Bridge
from whispr.errors import WhisprError, exhausted
from whispr.realtime.limits import Limits
from whispr.realtime.seats import Seats
from whispr.realtime.testing import Server
from whispr.realtime.upgrade import Rejected
from whispr.seats import Commands, SharedSeats


@asynccontextmanager
async def a_node(cache: Cache, most: int) -> AsyncIterator[Server]:
    """A node with a hub that both kinds of clients reach."""
    async with poll_served({}, Limits(user_sockets=most)) as server, trio.open_nursery() as nursery:
        await nursery.start(SharedSeats(cache, server.hub.seats).run)
        yield server
        nursery.cancel_scope.cancel(reason="the test is over")


@asynccontextmanager
async def running(commands: Commands, most: int = 20) -> AsyncIterator[Seats]:
    """A node's seats without sockets."""
    seats = Seats(most)
    async with trio.open_nursery() as nursery:
        await nursery.start(SharedSeats(commands, seats).run)
        yield seats
        nursery.cancel_scope.cancel(reason="the test is over")


async def refused(seats: Seats, user_id: str) -> bool:
    """Try to take a seat."""
    try:
        await seats.take(user_id)
    except WhisprError as error:
        return error.reason == "too_many_sockets"
    return False


async def until_admitted(seats: Seats, user_id: str) -> None:
    """Try until there is a seat."""
    with trio.fail_after(10):
        while await refused(seats, user_id):
            pass


async def written(cache: Cache, user_id: str) -> int:
    """Add up what the nodes have written of a user."""
    keys = await cache.command("KEYS", "{whispr:seats}:*")
    hashes = [key for key in keys if not key.endswith(b":nodes")]
    return sum([int(await cache.command("HGET", key, user_id) or 0) for key in hashes])


async def test_the_21st_socket_of_a_user_is_refused_on_whichever_node(cache: Cache) -> None:
    """WebSockets and long polls of all nodes count together; one that closes makes room on any of them."""
    async with a_node(cache, 20) as one, a_node(cache, 20) as two, AsyncExitStack() as stack:
        sockets = [await stack.enter_async_context((one if n % 3 else two).connect("ann")) for n in range(18)]
        for node in (one, two):
            assert (await Polling(node.port, "ann").open())["status"] == 410
        for node in (one, two):
            with pytest.raises(Rejected) as raised:
                await stack.enter_async_context(node.connect("ann"))
            assert (raised.value.status, raised.value.reason) == (429, "too_many_sockets")
            assert (await Polling(node.port, "ann").open())["reason"] == "too_many_sockets"
            await stack.enter_async_context(node.connect("bob"))
        await sockets[0].close()  # a socket of node two
        await until_admitted(one.hub.seats, "ann")
        assert await refused(two.hub.seats, "ann")


async def test_two_nodes_do_not_both_give_away_the_last_seats(cache: Cache) -> None:
    """Of many at once on two nodes exactly as many are let in as there are seats."""
    async with running(cache, 7) as one, running(cache, 7) as two:
        outcomes: list[bool] = []

        async def take(seats: Seats) -> None:
            outcomes.append(await refused(seats, "ann"))

        async with trio.open_nursery() as nursery:
            for _ in range(10):
                nursery.start_soon(take, one)
                nursery.start_soon(take, two)
        assert outcomes.count(False) == 7
        assert one.taken.get("ann", 0) + two.taken.get("ann", 0) == 7
        with trio.fail_after(10):  # those refused were counted for a moment
            while await written(cache, "ann") != 7:
                pass


async def test_a_node_that_dies_takes_its_counts_with_it(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed, it is believed for TTL_S, which is under ten seconds; stopped in order, no longer."""
    assert module.TTL_S < 10 - module.TOUCH_EVERY_S / 2
    monkeypatch.setattr(module, "TTL_S", 0.3)
    monkeypatch.setattr(module, "TOUCH_EVERY_S", 0.05)
    async with running(cache, 2) as other:
        dead = Seats(2)
        shared = SharedSeats(cache, dead)
        await shared._reach()  # and never again
        for _ in range(2):
            dead._taken["ann"] = dead._taken.get("ann", 0) + 1
        shared.changed("ann")
        await shared._reach()
        assert await refused(other, "ann")
        await until_admitted(other, "ann")
        other.leave("ann")
        async with running(cache, 2) as stopped:
            assert [await refused(stopped, "ann") for _ in range(3)] == [False, False, True]
        assert await refused(other, "ann") is False


async def test_a_redis_that_forgot_is_told_everything_again(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a restart of Redis the next touch notices, and counts are written anew, also many."""
    monkeypatch.setattr(module, "TOUCH_EVERY_S", 0.05)
    monkeypatch.setattr(module, "TOGETHER", 3)
    async with running(cache, 2) as one, running(cache, 2) as two:
        for n in range(10):
            await one.take(f"user{n}")
            await one.take(f"user{n}")
        await cache.command("FLUSHDB")
        with trio.fail_after(10):
            while await written(cache, "user9") != 2 or await written(cache, "user0") != 2:
                pass
        assert [await refused(two, f"user{n}") for n in range(10)] == [True] * 10


async def test_without_redis_a_nodes_own_limit_holds(bridge: Bridge) -> None:
    """Redis away: nobody waits for it, and the node counts its own."""
    async with open_cache(bridge, "unix:///nowhere/valkey.sock") as cache, running(cache, 3) as seats:
        assert [await refused(seats, "ann") for _ in range(4)] == [False, False, False, True]


class Hesitant:
    """A Redis that answers when it is told to, or fails; it counts questions."""

    def __init__(self, cache: Cache) -> None:
        self.asked: list[Sequence[str | float]] = []
        self.go = trio.Event()
        self._cache = cache

    async def script(self, sha: str, source: str, keys: Sequence[str], args: Sequence[str | float]) -> Any:
        self.asked.append(args)
        await self.go.wait()
        return await self._cache.script(sha, source, keys, args)

    async def command(self, *words: bytes | str | float) -> Any:
        return await self._cache.command(*words)


async def test_a_storm_is_asked_about_together(cache: Cache) -> None:
    """A thousand sockets that open while a question is under way cost as many more as hold them, not a thousand."""
    commands = Hesitant(cache)
    commands.go.set()
    async with running(commands) as seats:
        commands.asked.clear()
        commands.go = trio.Event()
        async with trio.open_nursery() as nursery:
            for n in range(1000):
                nursery.start_soon(seats.take, f"user{n}")
            await trio.testing.wait_all_tasks_blocked()
            commands.go.set()
        assert len(seats.taken) == 1000
        assert len(commands.asked) <= 4


async def test_a_redis_that_stops_answering_is_waited_for_once(
    cache: Cache, autojump_clock: trio.testing.MockClock
) -> None:
    """Who waits is let in after PATIENCE_S, who comes then at once; the counts are right when it is back."""
    commands = Hesitant(cache)
    commands.go.set()
    async with running(commands, 2) as seats:
        commands.go = trio.Event()
        began = trio.current_time()
        assert not await refused(seats, "ann")
        assert trio.current_time() - began <= module.PATIENCE_S + 0.1
        began = trio.current_time()
        assert [await refused(seats, "ann") for _ in range(2)] == [False, True]
        assert trio.current_time() == began


class Crowded:
    """A Redis for which too many wait already."""

    def __init__(self) -> None:
        self.crowded = False

    async def script(self, sha: str, source: str, keys: Sequence[str], args: Sequence[str | float]) -> Any:
        await trio.lowlevel.checkpoint()
        if self.crowded:
            raise exhausted("too many operations wait for redis", 1.0, reason="bulkhead_full")
        return [1] + [0] * len(args)

    async def command(self, *words: bytes | str | float) -> Any:
        await trio.lowlevel.checkpoint()


def unasked() -> float:
    """Return how many have been let in without an answer."""
    return REGISTRY.get_sample_value("whispr_seats_unasked_total") or 0.0


async def test_too_many_waiting_for_redis_end_nothing(autojump_clock: trio.testing.MockClock) -> None:
    """It is as if Redis were away for a moment: the own limit holds, which is counted, and the node goes on."""
    commands = Crowded()
    async with running(commands, 2) as seats:
        commands.crowded, before = True, unasked()
        assert [await refused(seats, "ann") for _ in range(3)] == [False, False, True]
        assert unasked() == before + 2
        await trio.sleep(5)
        commands.crowded = False
        await trio.sleep(5)
        assert not await refused(seats, "bob")
        assert unasked() == before + 2


async def test_who_comes_during_a_slow_question_gets_an_answer_too(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A socket waits for the end of the question before its own: to be slow is not to be away."""

    class Slow(Crowded):
        async def script(
            self, sha: str, source: str, keys: Sequence[str], args: Sequence[str | float]
        ) -> Any:
            await trio.sleep(0.9 * module.PATIENCE_S)
            return [1] + [1 if args[at] == "eve" else 0 for at in range(5, len(args), 3)]

    before = unasked()
    async with running(Slow(), 2) as seats, trio.open_nursery() as nursery:
        nursery.start_soon(seats.take, "ann")
        await trio.sleep(0.1)
        assert await refused(seats, "eve")
    assert unasked() == before


async def test_a_client_that_hangs_up_while_it_waits_leaves_no_seat(cache: Cache) -> None:
    """A handshake cancelled while Redis is asked gives its seat back, here and there."""
    commands = Hesitant(cache)
    commands.go.set()
    async with running(commands, 1) as seats:
        commands.go = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(seats.take, "ann")
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel(reason="the client has hung up")
        assert not seats.taken
        commands.go.set()
        await until_admitted(seats, "ann")
        assert seats.taken == {"ann": 1}
