"""Containers that sources send, taken apart while they grow. FFmpeg's threads and the time are real."""

from __future__ import annotations

import struct

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.services.stream.sounds import CONTAINERS, contained, pieces, without_holes
from tests.services.stream.test_engine import Ears, News
from whispr.audio.packets import CLOCK_HZ, Codec, Quality, Rendition
from whispr.errors import WhisprError
from whispr.services.stream.engine.containers import FORMS, TYPES, form_of
from whispr.services.stream.engine.lives import EngineOptions, Lives, SourceOptions

LOW = Rendition(Codec.OPUS, Quality.LOW)
SOURCE = SourceOptions(kind="test")


@pytest.fixture
def news() -> News:
    return News()


@pytest.fixture
async def lives(nursery: trio.Nursery, news: News) -> Lives:
    lives = Lives(EngineOptions(grace_s=0.3, streams=20), news)
    await nursery.start(lives.run)
    return lives


async def heard(lives: Lives, name: str, data: bytes, form: str) -> tuple[Ears, str]:
    """Send a container; return what was heard of it, and what codec it was found to be."""
    ears = Ears()
    async with lives.source(name, SOURCE) as feed:
        ears.listen(feed.live, LOW)
        await feed.container(pieces(data), form)
        codec = feed.live.source.codec
    await feed.live.ended.wait()
    return ears, codec


@pytest.mark.slow
async def test_every_container_is_heard(lives: Lives) -> None:
    """Ogg with Opus, Vorbis and FLAC, WebM, MP3, ADTS, FLAC, WAV, TS and fragmented MP4: the tone comes out."""
    found: dict[str, tuple[Ears, str]] = {}

    async def listen(name: str) -> None:
        found[name] = await heard(lives, name, contained(name, 1.6), CONTAINERS[name][2])

    async with trio.open_nursery() as nursery:
        for name in CONTAINERS:
            nursery.start_soon(listen, name)
    for name, (ears, codec) in found.items():
        assert codec == name.rpartition("-")[2].replace("wav", "pcm_s16le"), name
        assert without_holes(ears.heard[LOW])
        assert ears.purest(LOW, 440.0) > 0.9, name


@pytest.mark.slow
async def test_a_browsers_packets_of_60_ms_pass_through(lives: Lives) -> None:
    """What MediaRecorder sends is cut to 20 ms and not encoded again."""
    ears = Ears()
    data = contained("webm-opus", 2.5, frame_ms=60)
    async with lives.source("s", SOURCE) as feed:
        ears.listen(feed.live, Rendition(Codec.OPUS, Quality.ULTRA))
        await feed.container(pieces(data, 600), "webm")
        assert lives._held["s"].production._passing == {Rendition(Codec.OPUS, Quality.ULTRA)}
    assert without_holes(ears.heard[Rendition(Codec.OPUS, Quality.ULTRA)])


@pytest.mark.slow
async def test_a_source_faster_than_heard_waits(lives: Lives) -> None:
    """A file that comes all at once takes as long as it lasts, but for the half second ahead."""
    began = trio.current_time()
    async with lives.source("s", SOURCE) as feed:
        await feed.container(pieces(contained("wav", 1.6)), "wav")
        assert feed.live.now_pts <= (trio.current_time() - began + 0.7) * CLOCK_HZ
    assert trio.current_time() - began > 0.9


def of_one_hertz() -> bytes:
    """A WAV of a sample a second: 20 KB would be five hours, and 3.8 GB, on the stream's clock."""
    form = struct.pack("<IHHIIHH", 16, 1, 1, 1, 1, 1, 8)
    return b"RIFF\xff\xff\xff\xffWAVEfmt " + form + b"data\xff\xff\xff\xff" + bytes(20_000)


async def test_what_is_no_container_is_refused(lives: Lives) -> None:
    """Junk, and a container that is another than announced, are refused in words; the source's block goes on."""
    for form, data in (
        ("ogg", b"junk" * 500),
        ("webm", contained("mp3", 0.5)),
        ("zip", b"PK\3\4"),
        ("wav", of_one_hertz()),
    ):
        with pytest.raises(WhisprError) as caught:
            async with lives.source(f"{form}-{len(data)}", SOURCE) as feed:
                await feed.container(pieces(data), form)
        assert caught.value.reason in ("malformed_media", "unsupported_media"), form


@pytest.mark.slow
async def test_damage_in_the_middle_is_passed(lives: Lives) -> None:
    """Bytes lost on the way cost their own time, and not the stream."""
    data = contained("mp3", 1.6)
    ears, _ = await heard(lives, "s", data[:9000] + bytes(700) + data[10500:], "mp3")
    assert without_holes(ears.heard[LOW])
    assert ears.purest(LOW, 440.0) > 0.9


async def test_a_cancelled_source_lets_its_thread_go(lives: Lives) -> None:
    """When a stream is ended while its source's thread waits for bytes, the block ends at once."""

    class Endless(pieces):
        async def __anext__(self) -> bytes:
            if not self._data:
                await trio.sleep_forever()
            return await super().__anext__()

    with trio.fail_after(20):
        async with lives.source("s", SOURCE) as feed, trio.open_nursery() as nursery:
            nursery.start_soon(feed.container, Endless(contained("ogg-opus", 0.4)[:3000]), "ogg")
            await trio.sleep(0.2)
            lives.end("s", "stopped")
    assert feed.reason == "the stream ended: stopped"


async def test_what_sources_raise_comes_through(lives: Lives) -> None:
    """An error of the connection is the caller's, whatever FFmpeg makes of the end that it sees."""

    class Broken(pieces):
        async def __anext__(self) -> bytes:
            if not self._data:
                raise ConnectionResetError("gone")
            return await super().__anext__()

    with pytest.raises(ConnectionResetError):
        async with lives.source("s", SOURCE) as feed:
            await feed.container(Broken(contained("ogg-opus", 0.4)[:3000]), "ogg")


async def test_what_a_container_says_is_told(lives: Lives, news: News) -> None:
    """Title and artist of a container reach whoever keeps them."""
    from whispr.audio.ogg import Writer

    writer = Writer(5)
    data = writer.opus_headers({"title": "Song", "artist": "Band", "comment": "no"})
    data += b"".join(writer.page([b"\xfc\xff\xfe"], 960 * n) for n in range(1, 20))
    await heard(lives, "s", data, "ogg")
    assert "described {'title': 'Song', 'artist': 'Band'}" in news.told


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ogg-opus", "ogg-vorbis"])
async def test_songs_chained_one_after_another_are_heard(lives: Lives, news: News, name: str) -> None:
    """Each link of a chained Ogg goes on where the one before ended, under its own title (RFC 3533, section 4)."""
    songs = b"".join(contained(name, 1.0, title=f"Song {number}") for number in range(3))
    ears, codec = await heard(lives, "s", songs, "ogg")
    assert codec == name.removeprefix("ogg-")
    assert without_holes(ears.heard[LOW])
    assert sum(packet.duration for packet in ears.heard[LOW]) >= 2.6 * CLOCK_HZ
    assert ears.purest(LOW, 440.0) > 0.9
    titles = [told for told in news.told if told.startswith("described")]
    assert titles == [f"described {{'title': 'Song {number}'}}" for number in range(3)]


@pytest.mark.parametrize("name", list(CONTAINERS))
def test_containers_are_known_by_how_they_begin(name: str) -> None:
    """Sources that announce another type, as FFmpeg does unless told, are understood all the same."""
    beginning = contained(name, 1.6)[:12]
    expected = CONTAINERS[name][2]
    assert form_of("audio/mpeg" if expected != "ts" else "video/mp2t", beginning) == expected


@given(st.text(max_size=20) | st.sampled_from(sorted(TYPES)), st.binary(max_size=20))
def test_any_beginning_is_one_of_ours_or_none(media_type: str, beginning: bytes) -> None:
    """Only containers that are served are ever named."""
    assert form_of(media_type, beginning) in {*FORMS, ""}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CONTAINERS))
async def test_malformed_containers_harm_nobody(lives: Lives, news: News, name: str) -> None:
    """Containers with bytes changed, cut and repeated at random are heard or refused; the process goes on."""
    import random

    dice = random.Random(name)
    whole, refused = contained(name, 0.8), {"malformed_media"}

    async def send(number: int) -> None:
        data = bytearray(whole)
        for _ in range(dice.randint(1, 40)):
            at = dice.randrange(len(data))
            if dice.random() < 0.5:
                data[at] = dice.randrange(256)
            elif dice.random() < 0.5:
                del data[at : at + dice.randrange(50)]
            else:
                data[at:at] = data[at : at + dice.randrange(200)]
        async with lives.source(f"s{number}", SOURCE) as feed:
            try:
                await feed.container(pieces(bytes(data), dice.randint(10, 3000)), CONTAINERS[name][2])
            except WhisprError as error:
                refused.add(error.reason)

    for batch in range(3):
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(send, batch * 8 + number)
        await trio.sleep(0.5)
    assert refused == {"malformed_media"}
    assert "ended: failed" not in news.told
