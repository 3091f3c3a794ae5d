"""Live audio: how many full ladders a core encodes. Figures of listeners are in `bench_stream_*.py` beside this.

A full ladder is a source of Opus decoded, measured, and encoded as eight renditions: Opus and AAC at 64, 128, 256
and 320 kbps. What is reported is CPU time per second of sound, which other work on the machine hardly changes.
"""

from __future__ import annotations

import os
import random
import resource
import time
from array import array
from functools import partial
from typing import Any

import av
import trio

from whispr.audio.opus import PACKET
from whispr.audio.packets import Codec, Quality, Rendition
from whispr.services.stream.engine.encoders import frame_of
from whispr.services.stream.engine.ladder import Ladder
from whispr.services.stream.engine.line import Kind, Piece
from whispr.services.stream.engine.live import Sound
from whispr.services.stream.engine.lives import EngineOptions, Feed, Lives, SourceOptions

ASKED_PER_CORE = 12
RENDITIONS = [Rendition(codec, quality) for codec in Codec for quality in Quality]
SECONDS = 10


def music(seconds: int) -> list[bytes]:
    """Return sound with as much in it as music: chords that decay, over noise, as packets of 128 kbps."""
    dice, samples = random.Random(7), array("h")
    tones: list[float] = []
    for number in range(seconds * 48_000):
        if number % 12_000 == 0:
            tones = [dice.uniform(80, 4000) for _ in range(6)]
        fade = 1 - number % 12_000 / 14_000
        value = sum(((number * tone / 48_000) % 1.0 - 0.5) for tone in tones) * 3000 * fade
        left = int(value + dice.gauss(0, 300))
        samples.append(max(-32768, min(32767, left)))
        samples.append(max(-32768, min(32767, int(left * 0.7 + dice.gauss(0, 200)))))
    pcm = samples.tobytes()
    encoder: Any = av.CodecContext.create("libopus", "w")
    encoder.sample_rate, encoder.layout, encoder.format, encoder.bit_rate = 48_000, "stereo", "s16", 128_000
    packets: list[bytes] = []
    for at in range(0, len(pcm), PACKET * 4):
        packets += [bytes(packet) for packet in encoder.encode(frame_of(pcm[at : at + PACKET * 4], at // 4))]
    return packets


def ladder_cost(packets: list[bytes], renditions: list[Rendition], sound: Sound, hop: int = 5) -> float:
    """Return CPU seconds per second of sound, in one thread, that many packets at a time."""
    ladder = Ladder()
    pieces = [Piece(number * PACKET, PACKET, Kind.OPUS, data) for number, data in enumerate(packets)]
    wanted = dict.fromkeys(renditions)
    ladder.climb(pieces[:5], wanted, sound)
    began = time.thread_time()
    for at in range(5, len(pieces), hop):
        ladder.climb(pieces[at : at + hop], wanted, sound)
    return (time.thread_time() - began) / ((len(pieces) - 5) * PACKET / 48_000)


async def feed_it(feed: Feed, packets: list[bytes]) -> None:
    """Be a source in real time."""
    began = trio.current_time()
    for number, packet in enumerate(packets):
        feed.opus(packet, number * PACKET)
        await trio.sleep_until(began + (number + 1) * 0.02)


async def whole_engine(packets: list[bytes], streams: int) -> tuple[float, int]:
    """Run streams in real time; return CPU seconds of the process per stream and second, and pieces left out."""
    lives = Lives(EngineOptions(streams=streams, cores=len(os.sched_getaffinity(0))))

    async def stream(number: int) -> None:
        async with lives.source(str(number), SourceOptions(kind="bench")) as feed:
            for rendition in RENDITIONS:
                feed.live.subscribe(rendition, lambda _: None)
            await feed_it(feed, packets)
            lost.append(feed.live.source.lost)

    lost: list[int] = []
    async with trio.open_nursery() as nursery:
        await nursery.start(lives.run)
        before = resource.getrusage(resource.RUSAGE_SELF)
        async with trio.open_nursery() as streaming:
            for number in range(streams):
                streaming.start_soon(partial(stream, number))
        after = resource.getrusage(resource.RUSAGE_SELF)
        nursery.cancel_scope.cancel()
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return cpu_s / streams / (len(packets) / 50), sum(lost)


def main() -> None:
    """Measure and print."""
    packets = music(SECONDS)
    named: dict[str, tuple[list[Rendition], Sound] | tuple[list[Rendition], Sound, int]] = {
        "decoded and measured": ([], Sound()),
        "Opus, four renditions": (RENDITIONS[:4], Sound()),
        "AAC, four renditions": (RENDITIONS[4:], Sound()),
        "full ladder": (RENDITIONS, Sound()),
        "full ladder, normalised": (RENDITIONS, Sound(normalise=True)),
        "full ladder, hops of 20 ms": (RENDITIONS, Sound(), 1),
    }
    for name, given in named.items():
        cost = ladder_cost(packets, *given)
        print(f"{name:<26} {cost * 1000:6.1f} ms/s   {1 / cost:6.1f} a core")
    streams = 6
    cost, lost = trio.run(whole_engine, packets, streams)
    name = f"whole engine, {streams} streams"
    print(f"{name:<26} {cost * 1000:6.1f} ms/s   {1 / cost:6.1f} a core   {lost} pieces lost")
    met = "met" if 1 / cost >= ASKED_PER_CORE else "NOT met"
    print(f"asked: at least {ASKED_PER_CORE} full ladders a core: {met}")


if __name__ == "__main__":
    main()
