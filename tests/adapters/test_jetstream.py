"""JetStream: streams as asked, publishing in order, reading without gaps; on a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import msgspec
import pytest
import trio

from whispr.adapters.bus import Bus, open_bus
from whispr.adapters.jetstream import JetStream, Outgoing, Stored, StreamLimits
from whispr.bridge import Bridge
from whispr.errors import Code, WhisprError

LIMITS = StreamLimits(age_s=3600, bytes_max=1 << 20, duplicates_s=600)


@pytest.fixture
async def jetstream(bus: Bus) -> AsyncIterator[JetStream]:
    """JetStream with an empty stream TEST of test.>."""
    jetstream = JetStream(bus)
    await jetstream.ensure_stream("TEST", ["test.>"], LIMITS)
    yield jetstream
    with trio.CancelScope(shield=True):
        await api(bus, "STREAM.DELETE.TEST")


async def api(bus: Bus, what: str) -> dict[str, object]:
    """Ask the server itself."""
    answer = await bus.bridge.call(bus.client.request, f"$JS.API.{what}", b"", timeout=5)
    decoded: dict[str, object] = msgspec.json.decode(answer.data)
    return decoded


def messages(*numbers: int, subject: str = "test.a", size: int = 0) -> list[Outgoing]:
    return [Outgoing("TEST", subject, f"id-{n}", str(n).encode() + b" " * size) for n in numbers]


async def taken(
    jetstream: JetStream, count: int, subjects: Sequence[str] = ("test.>",), at: int = 1
) -> list[Stored]:
    """Read that many messages."""
    async with jetstream.read("TEST", "reader", subjects, at) as reader:
        with trio.fail_after(5):
            return [await anext(reader) for _ in range(count)]


async def test_a_stream_is_made_once_and_changed_to_what_is_asked(jetstream: JetStream, bus: Bus) -> None:
    """Asking again changes nothing; other limits are put in force on the same stream."""
    await jetstream.publish(messages(1))
    first = await jetstream.ensure_stream("TEST", ["test.>"], LIMITS)
    changed = await jetstream.ensure_stream("TEST", ["test.>"], StreamLimits(60, 1 << 19, 30))
    assert first == changed
    assert (changed.first_seq, changed.last_seq) == (1, 1)
    assert await jetstream.state("TEST") == changed
    assert await jetstream.state("NONE") is None
    info: dict[str, dict[str, int]] = await api(bus, "STREAM.INFO.TEST")  # type: ignore[assignment]
    assert info["config"]["max_age"] == 60 * 10**9
    assert info["config"]["duplicate_window"] == 30 * 10**9


async def test_what_is_published_is_read_in_order_and_stored_once(jetstream: JetStream) -> None:
    """Ids that are stored already are not stored again, nor do they break the order of what follows."""
    assert await jetstream.publish(messages(*range(500))) == [None] * 500
    assert await jetstream.publish(messages(*range(490, 510))) == [None] * 20
    assert await jetstream.publish(messages(*range(500, 520))) == [None] * 20
    got = await taken(jetstream, 520)
    assert [int(message.payload) for message in got] == list(range(520))
    assert [message.seq for message in got] == list(range(1, 521))
    assert got[0].message_id == "id-0"
    assert got[-1].pending == 0


async def test_a_message_lost_on_the_way_holds_back_those_behind_it(jetstream: JetStream) -> None:
    """Nothing overtakes what was not stored: the rest is refused, and stored by the next attempt."""
    one, two, three = messages(1, 2, 3)
    lost = two._replace(subject="nowhere.a")
    outcomes = await jetstream.publish([one, lost, three])
    assert outcomes[0] is None
    assert [outcome.code for outcome in outcomes[1:] if outcome] == [Code.UNAVAILABLE] * 2
    assert await jetstream.publish([one, two, three]) == [None] * 3
    assert [message.payload for message in await taken(jetstream, 3)] == [b"1", b"2", b"3"]


async def test_a_message_no_attempt_will_store_is_told_from_the_others(jetstream: JetStream) -> None:
    """A message larger than the server takes is its own fault, said by `event_too_large`."""
    large = messages(2, size=2 << 20)
    outcomes = await jetstream.publish([*messages(1), *large, *messages(3)])
    assert outcomes[0] is None
    assert [outcome.reason for outcome in outcomes[1:] if outcome] == ["event_too_large", "unavailable"]


async def test_a_reader_gets_its_subjects_from_a_number_on(jetstream: JetStream) -> None:
    """Only the subjects asked for, from the sequence number given, and later what is published meanwhile."""
    await jetstream.publish([*messages(1, 3), *messages(2, subject="test.b"), *messages(4)])
    assert await jetstream.count("TEST", ["test.a"], 1) == 2
    assert [m.payload for m in await taken(jetstream, 2, ["test.a"], at=2)] == [b"3", b"4"]
    async with jetstream.read("TEST", "reader", ["test.b", "test.c"], 1) as reader:
        assert (await anext(reader)).payload == b"2"
        await jetstream.publish(messages(5, subject="test.c"))
        with trio.fail_after(5):
            assert (await anext(reader)).payload == b"5"


async def test_a_reader_whose_stream_goes_ends(jetstream: JetStream, bus: Bus) -> None:
    """A deleted stream ends its readers with UNAVAILABLE rather than leaving them waiting."""
    async with jetstream.read("TEST", "reader", ["test.>"], 1) as reader, trio.open_nursery() as nursery:

        async def read() -> None:
            with pytest.raises(WhisprError) as error, trio.fail_after(10):
                await anext(reader)
            assert error.value.code is Code.UNAVAILABLE

        nursery.start_soon(read)
        await api(bus, "STREAM.DELETE.TEST")
    await jetstream.ensure_stream("TEST", ["test.>"], LIMITS)


async def test_nats_away_is_said_at_once(bridge: Bridge) -> None:
    """Without a server every operation raises UNAVAILABLE and waits for nothing."""
    async with open_bus(bridge, "nats://127.0.0.1:1") as bus:
        jetstream = JetStream(bus)
        with trio.fail_after(5), pytest.raises(WhisprError) as error:
            await jetstream.publish(messages(1))
        assert error.value.code is Code.UNAVAILABLE
        with trio.fail_after(5), pytest.raises(WhisprError) as error:
            await jetstream.ensure_stream("TEST", ["test.>"], LIMITS)
        assert error.value.code is Code.UNAVAILABLE
