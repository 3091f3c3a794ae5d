"""What listeners see of a live stream: renditions, and going from one to another."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.services.stream.sounds import without_holes
from whispr.audio.packets import CLOCK_HZ, Codec, Packet, Quality, Rendition
from whispr.services.stream.engine.live import LINGER_S, Live
from whispr.services.stream.engine.track import RECENT

LOW, HIGH = Rendition(Codec.OPUS, Quality.LOW), Rendition(Codec.OPUS, Quality.HIGH)
AAC = Rendition(Codec.AAC, Quality.LOW)


@pytest.fixture
def live() -> Live:
    return Live("s", datetime(2030, 1, 1, tzinfo=UTC))


def packets(start: int, count: int, mark: bytes = b"", size: int = 960) -> list[Packet]:
    return [Packet((start + n) * size, size, mark) for n in range(count)]


async def test_batches_and_prompt_packets(live: Live) -> None:
    """Most are told every 100 ms or so, where the thirds of HLS parts end; who asks for it, at once."""
    batched: list[int] = []
    prompt: list[int] = []
    live.subscribe(LOW, lambda some: batched.append(len(some)))
    live.subscribe(LOW, lambda some: prompt.append(len(some)), prompt=True)
    for number in range(12):
        live.publish(LOW, packets(number, 1))
    assert batched == [6, 5]
    assert prompt == [1] * 12
    live.end("stopped")
    assert batched == [6, 5, 1]
    assert live.ended.is_set()
    assert live.reason == "stopped"


async def test_the_last_seconds_are_kept(live: Live) -> None:
    """A listener can begin with more than 12 s, and memory does not grow past that."""
    live.publish(LOW, packets(0, 2000))
    recent = live.recent(LOW)
    assert 12 * CLOCK_HZ <= len(recent) * 960 <= RECENT
    assert without_holes(recent)
    assert recent[-1].pts == 1999 * 960
    assert live.recent(HIGH) == ()


async def test_a_rendition_is_made_while_somebody_hears_it(autojump_clock: MockClock, live: Live) -> None:
    """It is wanted from its first listener until some time after its last, and then rests."""
    assert live.wanted() == []
    asked = []
    live.on_demand = lambda: asked.append(1)
    first, second = (live.subscribe(LOW, lambda _: None) for _ in range(2))
    assert asked
    live.publish(LOW, packets(0, 10))
    first.close()
    second.close()
    second.close()
    assert live.wanted() == [LOW]
    autojump_clock.jump(LINGER_S + 1)
    assert live.wanted() == []
    assert live.next_pts(LOW) is None
    live.subscribe(LOW, lambda _: None)
    live.publish(LOW, packets(500, 5))
    assert live.recent(LOW)[0].pts == 500 * 960


async def test_a_change_of_rendition_has_no_gap(live: Live) -> None:
    """The old rendition is heard up to where the new one begins, whichever of them is further."""
    heard: list[Packet] = []
    subscription = live.subscribe(LOW, heard.extend, prompt=True)
    live.publish(LOW, packets(0, 10, b"low"))
    subscription.switch(HIGH)
    live.publish(LOW, packets(10, 3, b"low"))
    live.publish(HIGH, packets(15, 2, b"high"))
    live.publish(LOW, packets(13, 5, b"low"))
    live.publish(HIGH, packets(17, 5, b"high"))
    live.publish(LOW, packets(18, 5, b"low"))
    assert without_holes(heard)
    assert heard[-1].pts == 21 * 960
    assert [packet.data for packet in heard[-3:]] == [b"high"] * 3
    assert subscription.rendition == HIGH
    subscription.close()
    live.publish(HIGH, packets(22, 5, b"high"))
    assert heard[-1].pts == 21 * 960


async def test_a_change_back_and_a_change_of_mind(live: Live) -> None:
    """A change that has not come about is dropped for the next one, or for none."""
    heard: list[Packet] = []
    subscription = live.subscribe(LOW, heard.extend, prompt=True)
    live.publish(LOW, packets(0, 2, b"low"))
    subscription.switch(HIGH)
    subscription.switch(LOW)
    live.publish(HIGH, packets(0, 9, b"high"))
    live.publish(LOW, packets(2, 2, b"low"))
    assert {packet.data for packet in heard} == {b"low"}
    subscription.switch(AAC)
    live.publish(AAC, packets(2, 4, b"aac", 1024))
    live.publish(LOW, packets(4, 1, b"low"))
    assert heard[-1].data == b"aac"
    assert without_holes([packet for packet in heard if packet.data == b"low"])


async def test_a_hearers_mistake_is_its_own(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    """A listener that fails hears no more; the others do."""
    heard: list[int] = []

    def fail(_: object) -> None:
        raise RuntimeError("a defect")

    live.subscribe(LOW, fail, prompt=True)
    live.subscribe(LOW, lambda some: heard.append(len(some)), prompt=True)
    live.publish(LOW, packets(0, 1))
    live.publish(LOW, packets(1, 1))
    assert heard == [1, 1]


@given(st.lists(st.tuples(st.sampled_from("lhs"), st.integers(1, 2)), max_size=40))
def test_whatever_order_changes_and_packets_come_in(steps: list[tuple[str, int]]) -> None:
    """A listener never hears a time twice, nor misses one, while both renditions keep up."""
    heard: list[Packet] = []

    async def change_and_hear() -> None:
        await trio.lowlevel.checkpoint()
        live = Live("s", datetime(2030, 1, 1, tzinfo=UTC))
        subscription = live.subscribe(LOW, heard.extend, prompt=True)
        at = {LOW: 0, HIGH: 0}
        for step, count in steps:
            if step == "s":
                subscription.switch(HIGH if subscription.rendition == LOW else LOW)
            else:
                rendition = LOW if step == "l" else HIGH
                live.publish(rendition, packets(at[rendition], count))
                at[rendition] += count

    trio.run(change_and_hear)
    assert without_holes(heard)


async def test_no_rendition_above_the_source(live: Live) -> None:
    """What is offered ends at the first rendition that has all the source has; what is unknown is offered whole."""
    names = [rendition.quality for rendition in live.renditions(Codec.AAC)]
    assert names == list(Quality)
    live.source.bitrate_bps = 128_400
    assert live.best_for(None, Codec.OPUS) == Rendition(Codec.OPUS, Quality.MEDIUM)
    assert live.best_for(Quality.ULTRA, Codec.AAC) == Rendition(Codec.AAC, Quality.MEDIUM)
    assert live.best_for(Quality.LOW, Codec.AAC) == AAC
    live.source.lossless = True
    assert live.best_for(None, Codec.OPUS) == Rendition(Codec.OPUS, Quality.ULTRA)
    live.top = Quality.HIGH
    assert live.best_for(Quality.ULTRA, Codec.OPUS) == HIGH
