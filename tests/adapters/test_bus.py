from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from whispr.adapters import bus as bus_module
from whispr.adapters.bus import PAYLOAD_LEN_MAX, Bus, Message, open_bus
from whispr.bridge import Bridge
from whispr.embed import Backends
from whispr.errors import Code, WhisprError


@pytest.fixture
def url(backends: Backends) -> str:
    assert backends.nats_url is not None
    return backends.nats_url


@asynccontextmanager
async def node(bridge: Bridge, url: str) -> AsyncIterator[Bus]:
    """Open another node's connection, and wait until it is up."""
    async with open_bus(bridge, url) as other:
        await other.wait_connected()
        yield other


async def test_other_nodes_hear_and_the_sender_does_not(bridge: Bridge, bus: Bus, url: str) -> None:
    """A message reaches subscribers of other nodes, in order, and never its own node's."""
    async with node(bridge, url) as other, bus.subscribe("t.a") as own, other.subscribe("t.a") as theirs:
        for n in range(100):
            bus.publish("t.a", b"%d" % n)
        other.publish("t.a", b"from the other")
        with trio.fail_after(5):
            heard = [await anext(aiter(theirs)) for _ in range(100)]
            assert heard == [Message("t.a", b"%d" % n) for n in range(100)]
            assert await anext(aiter(own)) == Message("t.a", b"from the other")


async def test_wildcards(bridge: Bridge, bus: Bus, url: str) -> None:
    """`*` and `>` subscribe to families of subjects; messages say which they came by."""
    async with node(bridge, url) as other, other.subscribe("t.*.x") as some, other.subscribe("t.>") as every:
        for subject in ("t.1.x", "t.1.y", "u.1.x", "t.2.x"):
            bus.publish(subject, b"")
        with trio.fail_after(5):
            assert [(await anext(aiter(some))).subject for _ in range(2)] == ["t.1.x", "t.2.x"]
            assert [(await anext(aiter(every))).subject for _ in range(3)] == ["t.1.x", "t.1.y", "t.2.x"]


async def test_leaving_the_block_ends_the_subscription(bridge: Bridge, bus: Bus, url: str) -> None:
    """After the block nothing is delivered, and a reader that kept the iterator sees its end."""
    async with node(bridge, url) as other:
        async with other.subscribe("t.a") as messages:
            pass
        bus.publish("t.a", b"late")
        assert [message async for message in messages] == []


async def test_publishing_without_a_server_drops_the_oldest(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the server away publish still returns at once; the queue is bounded and losses are counted."""
    monkeypatch.setattr(bus_module, "OUTBOX_LEN_MAX", 3)
    async with open_bus(bridge, "nats://127.0.0.1:1") as bus:
        for n in range(5):
            bus.publish("t.a", b"%d" % n)
        assert not bus.connected
        assert (bus.queued, bus.dropped) == (3, 2)


async def test_a_slow_subscriber_loses_the_oldest(bridge: Bridge, bus: Bus, url: str) -> None:
    """A reader that lags behind its bound gets the newest messages, and can see how many it lost."""
    async with (
        node(bridge, url) as other,
        other.subscribe("t.a", len_max=2) as messages,
        other.subscribe("t.end") as end,
    ):
        for n in range(10):
            bus.publish("t.a", b"%d" % n)
        bus.publish("t.end", b"")
        with trio.fail_after(5):
            await anext(aiter(end))
            assert [(await anext(aiter(messages))).payload for _ in range(2)] == [b"8", b"9"]
        assert messages.dropped == 8


@pytest.mark.parametrize("subject", ["", "a b", "a..b", ".a", "a.", "a.*", "a.>", "a\r\nPUB x 0\r\n"])
async def test_malformed_subjects_are_refused(bus: Bus, subject: str) -> None:
    """Nobody injects protocol text or publishes to a wildcard."""
    with pytest.raises(WhisprError) as caught:
        bus.publish(subject, b"")
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert "subject" in caught.value.fields


async def test_a_slow_server_confirms_a_subscription_before_its_block_begins(
    bridge: Bridge, bus: Bus, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A confirmation that does not come in time is asked for again: what is published then is not lost."""
    async with node(bridge, url) as other:
        confirmed, answers = other._confirmed, [False, False]

        async def slow(client: Any) -> bool:
            return answers.pop() if answers else await confirmed(client)

        monkeypatch.setattr(other, "_confirmed", slow)
        async with other.subscribe("t.a") as messages:
            assert not answers
            bus.publish("t.a", b"heard")
            with trio.fail_after(5):
                assert (await anext(aiter(messages))).payload == b"heard"


async def test_oversized_payloads_are_refused(bridge: Bridge, bus: Bus, url: str) -> None:
    """The largest payload passes; one byte more is an error at the sender, not a closed connection."""
    async with node(bridge, url) as other, other.subscribe("t.big") as messages:
        with pytest.raises(WhisprError, match="at most 1048576"):
            bus.publish("t.big", bytes(PAYLOAD_LEN_MAX + 1))
        bus.publish("t.big", bytes(PAYLOAD_LEN_MAX))
        with trio.fail_after(20):
            assert len((await anext(aiter(messages))).payload) == PAYLOAD_LEN_MAX


async def test_what_is_queued_is_sent_at_close(bridge: Bridge, bus: Bus, url: str) -> None:
    """Publishing and closing right away loses nothing while the server is there."""
    async with bus.subscribe("t.a") as messages:
        async with node(bridge, url) as other:
            for n in range(50):
                other.publish("t.a", b"%d" % n)
        with trio.fail_after(5):
            assert [(await anext(aiter(messages))).payload for _ in range(50)] == [
                b"%d" % n for n in range(50)
            ]


async def test_a_wrong_token_never_connects_and_never_shows(bridge: Bridge, url: str) -> None:
    """Refused credentials keep the bus down, and are told of once, without a secret; close is clean."""
    secret = "wrong-token-5309"
    wrong = f"nats://{secret}@{url.rpartition('@')[2]}"
    with capture_logs() as logs:
        async with open_bus(bridge, wrong) as bus:
            with trio.fail_after(10):
                while not any("WHISPR_NATS_URL" in e.get("why", "") for e in logs):  # noqa: ASYNC110  # only a log
                    await trio.sleep(0.02)
            with trio.move_on_after(0.4):
                await bus.wait_connected()
            assert not bus.connected
    told = [entry["why"] for entry in logs if entry["event"] == "bus_refused"]
    assert len(told) == len(set(told))
    assert secret not in repr(logs)


async def test_a_server_that_is_not_there_is_named(bridge: Bridge) -> None:
    """A bus that never comes up says which server it looks for, once."""
    with capture_logs() as logs:
        async with open_bus(bridge, "nats://token@127.0.0.1:1"):
            with trio.fail_after(10):
                while not any(e["event"] == "bus_refused" for e in logs):  # noqa: ASYNC110  # only a log
                    await trio.sleep(0.02)
    (told,) = [entry for entry in logs if entry["event"] == "bus_refused"]
    assert told["server"] == "nats://127.0.0.1:1"
    assert "cannot be reached" in told["why"]


async def test_the_error_of_the_block_comes_out_alone(bridge: Bridge, url: str) -> None:
    """An exception in the block is raised as it is, not in a group."""
    with pytest.raises(KeyError):
        async with open_bus(bridge, url):
            raise KeyError("mine")


async def test_an_answer_that_nobody_waits_for_any_more_does_not_deafen(
    bridge: Bridge, bus: Bus, url: str
) -> None:
    """A probe is given up, its answer comes all the same, and messages still arrive, on the same connection."""
    client = bus.client

    async def ask_and_leave() -> None:
        answer = bridge.loop.create_future()
        await client._send_ping(answer)
        answer.cancel()

    async with node(bridge, url) as other, bus.subscribe("t.a") as messages:
        await bridge.call(ask_and_leave)
        await bus.probe()
        other.publish("t.a", b"heard")
        with trio.fail_after(5):
            assert await anext(aiter(messages)) == Message("t.a", b"heard")
        assert bus.ups == 1
