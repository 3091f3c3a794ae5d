"""The engine: sources in, aligned renditions out. Encoders are real, time is not."""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
import trio
from trio.testing import MockClock

from tests.services.stream.sounds import decoded, level_of, opus_packets, share_of, without_holes
from whispr.audio.opus import PACKET, SILENCE
from whispr.audio.packets import CLOCK_HZ, Codec, Packet, Quality, Rendition
from whispr.errors import Code, WhisprError
from whispr.services.stream.engine.ladder import Made
from whispr.services.stream.engine.live import Live, Sound
from whispr.services.stream.engine.lives import (
    DESCRIBED_MAX,
    DESCRIBED_S,
    EngineOptions,
    Feed,
    Lives,
    SourceOptions,
)

LOW, MEDIUM, HIGH, ULTRA = (Rendition(Codec.OPUS, quality) for quality in Quality)
AAC = Rendition(Codec.AAC, Quality.MEDIUM)
WHIP = SourceOptions(kind="whip")


class Inline(Lives):
    """Encodes in the event loop: no thread, for whose work a mocked clock would not wait."""

    async def climb(self, work: Callable[[], Made]) -> Made:
        await trio.lowlevel.checkpoint()
        return work()


@dataclass
class News:
    """Hooks that take notes."""

    told: list[str] = field(default_factory=list)

    async def started(self, live: Live) -> None:
        self.told.append("started")

    async def source_changed(self, live: Live) -> None:
        self.told.append("connected" if live.source.connected else "gone")

    async def described(self, live: Live, facts: Mapping[str, str]) -> None:
        self.told.append(f"described {dict(facts)}")

    async def released(self, live: Live) -> None:
        self.told.append("released")

    async def ended(self, live: Live) -> None:
        self.told.append(f"ended: {live.reason}")


class Ears:
    """Hears renditions of a stream."""

    def __init__(self) -> None:
        self.heard: dict[Rendition, list[Packet]] = defaultdict(list)

    def listen(self, live: Live, *renditions: Rendition, prompt: bool = False) -> None:
        for rendition in renditions:
            live.subscribe(rendition, self.heard[rendition].extend, prompt=prompt)

    def sound(self, rendition: Rendition, start_s: float, end_s: float) -> array[float]:
        """Return what is heard between two times of the stream's clock."""
        packets = self.heard[rendition]
        samples = decoded(packets, rendition.codec)
        begin = packets[0].pts
        return samples[int(start_s * CLOCK_HZ) - begin : int(end_s * CLOCK_HZ) - begin]

    def purest(self, rendition: Rendition, hz: float) -> float:
        """Return the share of a tone where it is greatest: in real time nobody knows where it begins."""
        samples = decoded(self.heard[rendition], rendition.codec)
        return max(share_of(hz, samples[at : at + 9600]) for at in range(0, len(samples) - 9600, 4800))


Start = Callable[..., Awaitable[Lives]]


@pytest.fixture
async def news() -> News:
    return News()


@pytest.fixture
async def start(nursery: trio.Nursery, news: News) -> Start:
    async def begin(**options: float) -> Lives:
        lives = Inline(EngineOptions(**{"grace_s": 2.0, "cores": 1, **options}), news)  # type: ignore[arg-type]
        await nursery.start(lives.run)
        return lives

    return begin


async def send(feed: Feed, packets: Sequence[bytes], start: int = 0) -> int:
    """Send packets as a microphone does; returns the timestamp after them."""
    for number, packet in enumerate(packets):
        feed.opus(packet, start + number * PACKET)
        await trio.sleep(0.02)
    return start + len(packets) * PACKET


async def refused(awaiting: object) -> WhisprError:
    with pytest.raises(WhisprError) as caught:
        async with awaiting:  # type: ignore[attr-defined]
            pytest.fail("it was let in")
    return caught.value


@asynccontextmanager
async def on_air(lives: Lives, stream_id: str = "s") -> AsyncIterator[Feed]:
    async with lives.source(stream_id, WHIP) as feed:
        yield feed


async def test_every_rendition_is_the_same_sound_at_the_same_time(
    autojump_clock: MockClock, start: Start
) -> None:
    """Opus and AAC, encoded and passed through, are at the same place to 5 ms: none begins early or late."""
    lives, ears = await start(), Ears()
    async with on_air(lives) as feed:
        ears.listen(feed.live, LOW, HIGH, AAC)
        stamp = await send(feed, opus_packets(1.0, 440.0))
        await send(feed, opus_packets(1.0, 1200.0), stamp)
        await trio.sleep(0.3)
    edges = {}
    for rendition in (LOW, HIGH, AAC):
        assert without_holes(ears.heard[rendition])
        # Where the tone changes, seen in steps of 5 ms.
        shares = {
            at: share_of(1200.0, ears.sound(rendition, at / 1000, at / 1000 + 0.02))
            for at in range(960, 1041, 5)
        }
        edges[rendition] = next(at for at, share in shares.items() if share > 0.5)
    assert max(edges.values()) - min(edges.values()) <= 5, edges


async def test_a_sources_packets_pass_and_lesser_ones_are_encoded(
    autojump_clock: MockClock, start: Start
) -> None:
    """Who asks for the source's bitrate or more gets its very packets; who asks for less gets less."""
    lives, ears, packets = await start(), Ears(), opus_packets(3.0)
    async with on_air(lives) as feed:
        ears.listen(feed.live, LOW, MEDIUM, ULTRA, prompt=True)
        await send(feed, packets)
        assert feed.live.source.codec == "opus"
        assert 115_000 < feed.live.source.bitrate_bps < 160_000
        assert feed.live.best_for(None, Codec.OPUS) == MEDIUM
    for rendition in (MEDIUM, ULTRA):
        heard = ears.heard[rendition]
        assert without_holes(heard)
        assert [packet.data for packet in heard if packet.pts > 2 * CLOCK_HZ][:40] == list(packets[101:141])
    low = sum(len(packet.data) for packet in ears.heard[LOW]) * 8 / 3.0
    assert 50_000 < low < 80_000


async def test_passed_packets_do_not_wait(autojump_clock: MockClock, start: Start) -> None:
    """Who is prompt hears a packet in the moment in which it comes."""
    lives, ears = await start(), Ears()
    async with on_air(lives) as feed:
        ears.listen(feed.live, MEDIUM, prompt=True)
        stamp = await send(feed, opus_packets(2.0))
        before = len(ears.heard[MEDIUM])
        feed.opus(opus_packets(2.0)[7], stamp)
        assert len(ears.heard[MEDIUM]) == before + 1


async def test_a_source_passes_before_its_first_second_is_over(
    autojump_clock: MockClock, start: Start
) -> None:
    """Its bitrate is known only then, but a few packets tell whether they will do."""
    lives, ears, packets = await start(), Ears(), opus_packets(2.0)
    async with on_air(lives) as feed:
        ears.listen(feed.live, LOW, ULTRA, prompt=True)
        await send(feed, packets[:40])
        assert feed.live.source.bitrate_bps == 0
        assert [packet.data for packet in ears.heard[ULTRA]][-20:] == list(packets[20:40])
        assert ears.heard[LOW][-1].data not in packets
        assert without_holes(ears.heard[ULTRA])


@pytest.mark.parametrize("prompt", [True, False])
async def test_who_counts_milliseconds_waits_for_no_tick(
    autojump_clock: MockClock, start: Start, prompt: bool
) -> None:
    """What is encoded for them comes with the packet after it; for others in batches of 100 ms or so."""
    lives, behind = await start(), list[int]()
    async with on_air(lives) as feed:
        live = feed.live
        live.subscribe(LOW, lambda got: behind.append(live.now_pts - got[-1].pts - PACKET), prompt=prompt)
        await send(feed, opus_packets(2.0))
    if prompt:
        assert len(behind) > 80
        assert max(behind[-50:]) <= PACKET
    else:
        assert len(behind) < 25


async def test_loss_is_concealed_and_told(autojump_clock: MockClock, start: Start) -> None:
    """Lost packets leave no hole in any rendition, and the share of them is known."""
    lives, ears, packets = await start(), Ears(), opus_packets(4.0)
    async with on_air(lives) as feed:
        ears.listen(feed.live, LOW, MEDIUM, AAC)
        for number, packet in enumerate(packets):
            if number % 10:
                feed.opus(packet, number * PACKET, lost=int(number % 10 == 1))
            await trio.sleep(0.02)
        assert 0.04 < feed.live.source.loss < 0.15
        assert 17 <= feed.live.source.lost <= 20
    for rendition in (LOW, MEDIUM, AAC):
        assert without_holes(ears.heard[rendition])
        assert share_of(440.0, ears.sound(rendition, 2.0, 3.0)) > 0.8


async def test_what_is_no_opus_is_concealed(autojump_clock: MockClock, start: Start) -> None:
    """A source that sends nonsense between its packets harms nobody."""
    lives, ears, packets = await start(), Ears(), opus_packets(2.0)
    async with on_air(lives) as feed:
        ears.listen(feed.live, LOW, ULTRA)
        for number, packet in enumerate(packets):
            feed.opus(b"\xff\xff\xff" if number % 10 == 5 else packet, number * PACKET)
            await trio.sleep(0.02)
        assert feed.live.source.lost >= 8
    assert without_holes(ears.heard[LOW])
    assert without_holes(ears.heard[ULTRA])


async def test_a_source_comes_back_within_the_grace(
    autojump_clock: MockClock, start: Start, news: News
) -> None:
    """The stream and its listeners stay: silence, then the sound, on one clock without a hole."""
    lives, ears = await start(), Ears()
    async with on_air(lives) as feed:
        live = feed.live
        ears.listen(live, LOW, MEDIUM, AAC)
        await send(feed, opus_packets(1.5))
    assert not live.source.connected
    assert live.source.away_since is not None
    await trio.sleep(1.0)
    async with on_air(lives) as feed:
        assert feed.live is live
        await send(feed, opus_packets(1.5), 777)
        assert live.source.connections == 2
    for rendition in (LOW, MEDIUM, AAC):
        assert without_holes(ears.heard[rendition])
        assert level_of(ears.sound(rendition, 0.5, 1.2)) > 0.1
        assert level_of(ears.sound(rendition, 1.8, 2.3)) < 0.01
        assert level_of(ears.sound(rendition, 2.8, 3.5)) > 0.1
    await trio.testing.wait_all_tasks_blocked()
    assert news.told == ["started", "connected", "gone", "connected", "gone"]


async def test_without_a_source_a_stream_ends(autojump_clock: MockClock, start: Start, news: News) -> None:
    """After the grace period it has ended, for listeners too, and the node has room for another."""
    lives = await start()
    async with on_air(lives) as feed:
        live = feed.live
        await trio.sleep(1)
    left_at = trio.current_time()
    await live.ended.wait()
    assert 2.0 <= trio.current_time() - left_at < 2.2
    assert live.reason == "source_gone"
    await trio.testing.wait_all_tasks_blocked()
    assert lives.get("s") is None
    assert len(lives) == 0
    assert news.told == ["started", "connected", "gone", "ended: source_gone"]


async def test_a_second_source_is_refused(autojump_clock: MockClock, start: Start) -> None:
    """One source at a time, by default."""
    lives = await start()
    async with on_air(lives):
        error = await refused(lives.source("s", WHIP))
        assert (error.code, error.reason) == (Code.FAILED_PRECONDITION, "source_connected")
        async with on_air(lives, "another"):
            assert len(lives) == 2


async def test_a_second_source_takes_over(
    autojump_clock: MockClock, start: Start, nursery: trio.Nursery
) -> None:
    """Where that is wanted the first one is put out, and told why; the sound goes on without a hole."""
    lives, ears, ended = await start(), Ears(), list[str]()

    async def first() -> None:
        async with on_air(lives) as feed:
            ears.listen(feed.live, MEDIUM, AAC)
            await send(feed, opus_packets(3.0))
            await trio.sleep_forever()
        ended.append(feed.reason)

    nursery.start_soon(first)
    await trio.sleep(1.5)
    async with lives.source("s", SourceOptions(kind="icecast", takeover=True)) as feed:
        await send(feed, opus_packets(1.5, 1200.0))
        assert feed.live.source.kind == "icecast"
        assert feed.live.source.connected
    assert ended == ["another source took over"]
    for rendition in (MEDIUM, AAC):
        assert without_holes(ears.heard[rendition])
        assert share_of(440.0, ears.sound(rendition, 0.5, 1.2)) > 0.9
        assert share_of(1200.0, ears.sound(rendition, 2.0, 2.7)) > 0.9


async def test_a_node_takes_as_many_streams_as_it_is_set(autojump_clock: MockClock, start: Start) -> None:
    """One more is refused, and says when to come back."""
    lives = await start(streams=1)
    async with on_air(lives):
        error = await refused(lives.source("another", WHIP))
        assert (error.code, error.reason) == (Code.RESOURCE_EXHAUSTED, "too_many_streams")
        assert error.retry_after_s


async def test_a_busy_node_takes_no_more(autojump_clock: MockClock, start: Start) -> None:
    """Encoders that are busy most of the time leave no room for another stream, whatever the limit."""
    lives = await start()

    def heavy() -> Made:
        return Made(cpu_s=9.5)

    await lives.climb(heavy)
    lives._note_busy(9.5)
    error = await refused(lives.source("s", WHIP))
    assert error.reason == "too_many_streams"
    await trio.sleep(30)
    assert lives.busy < 0.2
    async with on_air(lives):
        pass


async def test_ending_a_stream_puts_its_source_out(
    autojump_clock: MockClock, start: Start, news: News
) -> None:
    """The source's block ends and says why, at once."""
    lives = await start()
    async with on_air(lives) as feed:
        lives.end("s", "stopped")
        await trio.sleep_forever()
    assert feed.reason == "the stream ended: stopped"
    feed.opus(opus_packets(0.2)[0])
    await trio.testing.wait_all_tasks_blocked()
    assert news.told[-1] == "ended: stopped"


async def test_a_pause_is_silence(autojump_clock: MockClock, start: Start) -> None:
    """While it is paused listeners hear nothing, in the source's packets neither; then the source again."""
    lives, ears = await start(), Ears()
    async with on_air(lives) as feed:
        ears.listen(feed.live, MEDIUM, AAC)
        stamp = await send(feed, opus_packets(1.5))
        feed.live.paused = True
        stamp = await send(feed, opus_packets(1.0), stamp)
        feed.live.paused = False
        await send(feed, opus_packets(1.0), stamp)
    for rendition in (MEDIUM, AAC):
        assert without_holes(ears.heard[rendition])
        assert level_of(ears.sound(rendition, 1.9, 2.4)) < 0.01
        assert level_of(ears.sound(rendition, 2.8, 3.3)) > 0.1


async def test_volume_acts_without_a_gap(autojump_clock: MockClock, start: Start) -> None:
    """Half the volume is half the level in every rendition, and full volume passes the source's packets again."""
    lives, ears, packets = await start(), Ears(), opus_packets(2.0)
    async with on_air(lives) as feed:
        ears.listen(feed.live, MEDIUM, AAC)
        stamp = await send(feed, packets)
        feed.live.sound = Sound(volume=50)
        stamp = await send(feed, packets, stamp)
        feed.live.sound = Sound()
        await send(feed, packets, stamp)
    for rendition in (MEDIUM, AAC):
        assert without_holes(ears.heard[rendition])
        whole = level_of(ears.sound(rendition, 1.0, 1.8))
        assert level_of(ears.sound(rendition, 2.5, 3.5)) == pytest.approx(whole / 2, rel=0.1)
        assert level_of(ears.sound(rendition, 4.5, 5.5)) == pytest.approx(whole, rel=0.1)
    assert ears.heard[MEDIUM][-10].data in packets


async def test_loudness_is_brought_to_one_level(autojump_clock: MockClock, start: Start) -> None:
    """A quiet source becomes louder, slowly; what is measured is what listeners hear."""
    lives, ears, packets = await start(), Ears(), opus_packets(10.0, 1000.0)
    async with lives.source("s", SourceOptions(kind="whip", sound=Sound(normalise=True))) as feed:
        ears.listen(feed.live, LOW)
        feed.live.sound = Sound(volume=100, normalise=True)
        await send(feed, packets)
        first = feed.live.levels
    assert first.short_lufs == pytest.approx(-16.0, abs=2.0)
    assert level_of(ears.sound(LOW, 8.0, 9.0)) < level_of(ears.sound(LOW, 0.5, 1.0))


async def test_levels_and_silence_of_a_source(autojump_clock: MockClock, start: Start) -> None:
    """Loudness and peaks are measured; a source that says nothing for long is silent since then."""
    lives = await start()
    async with on_air(lives) as feed:
        stamp = await send(feed, opus_packets(4.0, 1000.0))
        levels = feed.live.levels
        # A tone of 8000/32768 in both channels: 12.2 dB below full scale, and 0.7 dB louder by K-weighting at 1 kHz.
        assert levels.peak_dbfs == pytest.approx(-12.2, abs=0.5)
        assert levels.short_lufs == pytest.approx(-12.2, abs=0.7)
        assert feed.live.source.silent_since is None
        stamp = await send(feed, [SILENCE] * 400, stamp)
        assert feed.live.source.silent_since is not None
        await send(feed, opus_packets(1.0), stamp)
        assert feed.live.source.silent_since is None


async def test_encoders_run_while_somebody_hears_them(autojump_clock: MockClock, start: Start) -> None:
    """Nothing is encoded for nobody, and a rendition that is heard again begins anew, on the same clock."""
    lives, ears = await start(), Ears()
    async with on_air(lives) as feed:
        live = feed.live
        production = lives._held["s"].production
        stamp = await send(feed, opus_packets(1.0))
        assert production._ladder is not None
        assert not production._ladder._encoders
        subscription = live.subscribe(AAC, ears.heard[AAC].extend)
        stamp = await send(feed, opus_packets(1.0), stamp)
        assert list(production._ladder._encoders) == [AAC]
        assert ears.heard[AAC][0].pts % 1024 == 0
        subscription.close()
        for _ in range(12):
            stamp = await send(feed, opus_packets(1.0), stamp)
        assert not production._ladder._encoders
        assert not live.recent(AAC)
        ears.heard.clear()
        ears.listen(live, AAC)
        await send(feed, opus_packets(1.0), stamp)
    assert ears.heard[AAC][0].pts >= 13.5 * CLOCK_HZ
    assert share_of(440.0, ears.sound(AAC, 14.3, 14.6)) > 0.9


async def test_a_machine_that_is_too_slow_leaves_out_and_goes_on(
    autojump_clock: MockClock, start: Start
) -> None:
    """What could not be encoded in time is silence in the renditions, whose clocks stay whole."""
    lives, ears = await start(), Ears()
    async with on_air(lives) as feed:
        ears.listen(feed.live, LOW, AAC)
        stamp = await send(feed, opus_packets(1.0))
        for packet in opus_packets(10.0)[:400]:
            feed.opus(packet, stamp)
            stamp += PACKET
        await send(feed, opus_packets(1.0), stamp)
    for rendition in (LOW, AAC):
        assert without_holes(ears.heard[rendition])
        assert level_of(ears.sound(rendition, 3.0, 5.0)) < 0.01
        assert level_of(ears.sound(rendition, 9.2, 9.8)) > 0.1


async def test_relayed_streams_are_found(autojump_clock: MockClock, start: Start) -> None:
    """What another node makes can be heard here, until it is taken away, or made here."""
    lives = await start()
    live = Live("far", datetime.now(UTC))
    lives.add(live)
    assert lives.get("far") is live
    assert list(lives) == [live]
    assert not lives.made_here("far")
    lives.remove(live)
    assert lives.get("far") is None


async def test_a_source_that_says_without_end_what_it_plays(
    autojump_clock: MockClock, start: Start, news: News
) -> None:
    """Each title is told to everybody: so many may follow each other, and none is in the way of other news."""
    lives = await start()
    async with on_air(lives) as feed:
        for number in range(1000):
            feed.describe({"title": str(number)})
        await trio.sleep(DESCRIBED_S)
        feed.describe({"title": "later"})
        await trio.sleep(1)
    told = [each for each in news.told if each.startswith("described")]
    assert told == [f"described {{'title': '{each}'}}" for each in (*range(DESCRIBED_MAX), "later")]
    assert news.told[:2] == ["started", "connected"]


async def test_packets_that_come_faster_than_heard_wait(autojump_clock: MockClock, start: Start) -> None:
    """Whoever sends them over TCP is held back to what is heard, but for what may be ahead."""
    lives = await start()
    async with on_air(lives) as feed:
        began = trio.current_time()
        for number, packet in enumerate(opus_packets(1.0) * 8):
            feed.opus(packet, number * PACKET)
            await feed.keep_pace()
        assert 5.5 < trio.current_time() - began < 6.5
