"""Clients that mean harm, or are broken: each kind costs the client, is counted, and nobody else suffers."""

from __future__ import annotations

import pytest
import trio
from prometheus_client import REGISTRY
from trio.testing import MockClock

from whispr.errors import denied, not_found, unavailable
from whispr.realtime import frames
from whispr.realtime.channel import Channel
from whispr.realtime.frames import CloseCode, Closed, FrameError, FrameReader
from whispr.realtime.limits import Limits
from whispr.realtime.refusals import Refusals
from whispr.realtime.testing import Wire, served

MASK = b"\x01\x02\x03\x04"


def counted(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"whispr_ws_{name}", labels) or 0.0


async def heartbeat(wire: Wire) -> object:
    await wire.send(None, "1", "phoenix", "heartbeat", {})
    return await wire.receive()


# ── floods ──


@pytest.mark.parametrize("opcode", [frames.PING, frames.PONG])
async def test_a_flood_of_control_frames_ends_the_socket(autojump_clock: MockClock, opcode: int) -> None:
    """Pings and pongs past `chatter_per_min` close with 1008; the others do not notice."""
    floods = counted("floods_total")
    async with (
        served({}, Limits(chatter_per_min=50)) as server,
        server.wire("eve") as eve,
        server.wire("alice") as alice,
    ):
        for _ in range(51):
            await eve.send_frame(opcode, b"x")
        assert (await eve.closed()).code == 1008
        assert await heartbeat(alice)
    assert counted("floods_total") == floods + 1


@pytest.mark.parametrize("event", ["heartbeat", "phx_leave"])
async def test_a_flood_of_what_is_no_operation_ends_the_socket(autojump_clock: MockClock, event: str) -> None:
    """Heartbeats and leaves of nothing are free within reason."""
    topic = "phoenix" if event == "heartbeat" else "room:1"
    async with served({}, Limits(chatter_per_min=50)) as server, server.wire("eve") as eve:
        for ref in range(51):
            await eve.send(None, ref, topic, event, {})
        assert (await eve.closed()).code == 1008


async def test_operations_past_the_budget_are_refused_and_then_the_socket_ends(
    autojump_clock: MockClock,
) -> None:
    """First `rate_limited`, as often as anybody may hear it, then 1008."""
    async with (
        served({"room": Channel}, Limits(operations_per_min=10, chatter_per_min=20)) as server,
        server.wire("eve") as eve,
    ):
        for ref in range(40):
            await eve.send(None, ref, "room:1", "x", {})
        refused = 0
        while not isinstance(item := await eve.receive(), Closed):
            assert isinstance(item, list)
            refused += item[4]["response"]["reason"] == "rate_limited"
        assert (item.code, refused) == (1008, 20)


async def test_a_polite_client_may_do_all_of_it_for_ever(autojump_clock: MockClock) -> None:
    """A ping and a heartbeat every second for ten minutes are no flood."""
    async with served({}) as server, server.wire("alice") as wire:
        for _ in range(600):
            await wire.send_frame(frames.PING, b"")
            await heartbeat(wire)
            await trio.sleep(1)
        assert len(server.hub.sockets) == 1


async def test_a_message_in_crumbs_is_refused(autojump_clock: MockClock) -> None:
    """More than `fragments` frames of one message close with 1009; as many are one message."""
    async with served({}, Limits(fragments=100)) as server:
        async with server.wire("eve") as eve:
            await eve.stream.send_all(b"\x01\x80" + MASK + (b"\x00\x80" + MASK) * 100)
            assert (await eve.closed()).code == 1009
        async with server.wire("alice") as alice:
            text = b'[null,"1","phoenix","heartbeat",{}]'
            first = frames.encode_masked_frame(frames.TEXT, text, MASK)
            await alice.stream.send_all(b"\x01" + first[1:] + (b"\x00\x80" + MASK) * 98 + b"\x80\x80" + MASK)
            assert await alice.receive() == [
                None,
                "1",
                "phoenix",
                "phx_reply",
                {"status": "ok", "response": {}},
            ]


def test_fragments_are_counted_for_each_message() -> None:
    """A count that went on from message to message would end honest clients."""
    reader = FrameReader(masked=False, message_bytes_max=100, fragments_max=3)
    for _ in range(5):
        assert reader.feed(b"\x01\x01a\x00\x01b\x80\x01c") == ["abc"]
    with pytest.raises(FrameError) as refused:
        reader.feed(b"\x01\x01a\x00\x01b\x00\x01c")
    assert refused.value.code is CloseCode.TOO_BIG


# ── handshakes ──


async def test_slow_handshakes_do_not_keep_others_out(autojump_clock: MockClock) -> None:
    """With every place taken by clients that say nothing, a good one gets in within about a second."""
    crowded = counted("upgrades_total", outcome="crowded_out")
    async with served({}, Limits(handshakes=8)) as server:
        silent = [await trio.open_tcp_stream("127.0.0.1", server.port) for _ in range(20)]
        began = trio.current_time()
        async with server.wire("alice") as wire:
            assert await heartbeat(wire)
        assert trio.current_time() - began < 5
        assert counted("upgrades_total", outcome="crowded_out") > crowded
        assert counted("handshakes") <= 8
        for stream in silent:
            await stream.aclose()


async def test_a_storm_of_good_handshakes_is_served_in_turn(autojump_clock: MockClock) -> None:
    """More at once than there are places: all get in."""
    async with served({}, Limits(handshakes=4)) as server, trio.open_nursery() as nursery:

        async def visit(n: int) -> None:
            async with server.wire(f"visitor{n}") as wire:
                assert await heartbeat(wire)

        for n in range(50):
            nursery.start_soon(visit, n)
    assert counted("handshakes") == 0


# ── joins that are refused ──


class Guarded(Channel):
    """Refuses, after asking what would be the database."""

    asked = 0
    answer: Exception | None = None

    async def join(self, payload: object) -> object:
        Guarded.asked += 1
        if Guarded.answer is not None:
            raise Guarded.answer
        return None


def guarded(answer: Exception | None) -> type[Channel]:
    Guarded.asked, Guarded.answer = 0, answer
    return Guarded


async def joined(wire: Wire, topic: str) -> str:
    """Join; return "ok" or the reason."""
    await wire.send("1", "1", topic, "phx_join", {})
    reply = await wire.receive()
    assert isinstance(reply, list)
    return "ok" if reply[4]["status"] == "ok" else str(reply[4]["response"]["reason"])


async def test_a_loop_of_refused_joins_asks_seldom(autojump_clock: MockClock) -> None:
    """A hundred joins of a topic that refuses ask the database a few times; the answer stays the same."""
    unasked = counted("joins_unasked_total")
    async with served({"room": guarded(denied("no", "not_a_member"))}) as server, server.wire("eve") as eve:
        for _ in range(100):
            assert await joined(eve, "room:1") == "not_a_member"
        assert Guarded.asked <= 3
    assert counted("joins_unasked_total") >= unasked + 97


async def test_who_was_let_in_meanwhile_gets_in(autojump_clock: MockClock) -> None:
    """One refusal is not held against anybody, and many only for seconds."""
    async with served({"room": guarded(denied("no"))}) as server, server.wire("bob") as bob:
        assert await joined(bob, "room:1") == "forbidden"
        Guarded.answer = None
        assert await joined(bob, "room:1") == "ok"
        Guarded.answer = denied("no")
        for _ in range(5):
            await joined(bob, "room:2")
        Guarded.answer = None
        await trio.sleep(2.1)
        assert await joined(bob, "room:2") == "ok"


async def test_a_walk_over_many_topics_is_slowed_down(autojump_clock: MockClock) -> None:
    """Past `refused_joins_per_min` a user's joins are `rate_limited`, on every socket of theirs; others join."""
    limits = Limits(refused_joins_per_min=5, operations_per_min=0)
    async with (
        served({"room": guarded(not_found("room", "x"))}, limits) as server,
        server.wire("eve") as eve,
        server.wire("eve") as again,
        server.wire("bob") as bob,
    ):
        reasons = [await joined(eve, f"room:{n}") for n in range(20)]
        assert reasons[-1] == "rate_limited"
        assert Guarded.asked == 6
        assert await joined(again, "room:77") == "rate_limited"
        assert await joined(bob, "room:1") == "not_found"


def test_what_may_change_by_itself_is_not_remembered() -> None:
    """A dependency that was away is asked again at once."""
    refusals = Refusals(2.0, 60)
    for _ in range(3):
        refusals.note("a", "room:1", unavailable("away"), 0.0)
    assert refusals.find("a", "room:1", 0.0) is None


def test_memory_of_refusals_is_bounded() -> None:
    """However many users and topics are refused, the oldest are forgotten."""
    refusals = Refusals(2.0, 1)
    for n in range(10_500):
        for _ in range(2):
            refusals.note(f"u{n}", f"room:{n}", denied("no"), 0.0)
    assert refusals.find("u0", "room:0", 0.1) is None
    assert refusals.find("u10499", "room:10499", 0.1) is not None
    assert len(refusals._refused) == len(refusals._budgets) == 10_000
    assert len(refusals._waits) <= 10_000


# ── half-open ──


async def test_a_connection_that_is_only_half_there_is_found(autojump_clock: MockClock) -> None:
    """A peer that went without a word holds its socket, links and seat for no longer than `idle_s`."""
    async with served({"room": guarded(None)}) as server, server.wire("ghost") as ghost:
        await ghost.join("room:1")
        await trio.sleep(65)
        assert not server.hub.sockets
        assert not server.hub.subscribers("room:1")
