"""Sources that speak Icecast's HTTP: over a real socket, as FFmpeg, libshout, BUTT and curl do."""

from __future__ import annotations

import base64
import shutil
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pytest
import trio

from tests.services.stream.sounds import contained, without_holes
from tests.services.stream.test_engine import Ears, News
from whispr.audio.packets import Codec, Quality, Rendition
from whispr.errors import not_found, unauthenticated
from whispr.gateway.server import Endpoint, Gateway
from whispr.services.stream.access import Shown
from whispr.services.stream.domain import Stream
from whispr.services.stream.engine.icecast import PATH, Icecast
from whispr.services.stream.engine.live import Live
from whispr.services.stream.engine.lives import EngineOptions, Lives

LOW = Rendition(Codec.OPUS, Quality.LOW)
KEY = "wsk_hackme"
BASIC = "Authorization: Basic " + base64.b64encode(f"source:{KEY}".encode()).decode()


class Door:
    """Admits to the stream `s` by its key."""

    async def source(self, stream_id: str, shown: Shown) -> Stream:
        await trio.lowlevel.checkpoint()
        if stream_id != "s":
            raise not_found("stream", stream_id)
        if shown.password != KEY:
            raise unauthenticated("this is not the stream's key", reason="wrong_key")
        return Stream(
            id="s",
            title="",
            streamer_id="u",
            streamer_username="u",
            created_at=datetime(2030, 1, 1, tzinfo=UTC),
        )


class Told(News):
    """Says when a stream has begun."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = trio.Event()

    async def started(self, live: Live) -> None:
        self.begun.set()


@dataclass
class Station:
    """A node that takes sources."""

    lives: Lives
    port: int
    news: Told
    described: list[tuple[str, Mapping[str, str]]] = field(default_factory=list)
    clients: list[trio.SocketStream] = field(default_factory=list)

    async def connect(self, request: str, body: bytes = b"") -> trio.SocketStream:
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        self.clients.append(stream)
        await stream.send_all(request.replace("\n", "\r\n").encode() + body)
        return stream

    async def listening(self, ears: Ears) -> None:
        """Wait until the stream is live, and listen to it."""
        with trio.fail_after(20):
            await self.news.begun.wait()
        live = self.lives.get("s")
        assert live is not None
        ears.listen(live, LOW)


@pytest.fixture
async def station(nursery: trio.Nursery) -> AsyncIterator[Station]:
    news = Told()
    lives = Lives(EngineOptions(grace_s=0.5), news)
    described: list[tuple[str, Mapping[str, str]]] = []

    async def describe(stream_id: str, facts: Mapping[str, str]) -> None:
        await trio.lowlevel.checkpoint()
        described.append((stream_id, facts))

    icecast = Icecast(lives, Door(), describe)

    async def ready() -> Mapping[str, str]:
        return {}

    gateway = Gateway({}, readiness=ready, voucher=str, endpoints=[Endpoint("ingest", PATH, icecast)])
    await nursery.start(lives.run)
    port = await nursery.start(gateway.serve, "127.0.0.1", 0)
    station = Station(lives, port, news, described)
    yield station
    for client in station.clients:
        await client.aclose()
    nursery.cancel_scope.cancel()


async def said(stream: trio.SocketStream, until: bytes = b"\r\n\r\n") -> str:
    """Read up to the end of a head."""
    heard = b""
    with trio.fail_after(20):
        while until not in heard and (data := await stream.receive_some()):
            heard += data
    return heard.decode()


@pytest.mark.slow
async def test_put_without_length_is_read_to_its_end(station: Station) -> None:
    """As FFmpeg and libshout send: 100 first, then sound until the source closes its side; then 200."""
    ears = Ears()
    stream = await station.connect(
        f"PUT /ingest/s HTTP/1.1\nHost: x\n{BASIC}\nExpect: 100-continue\nContent-Type: audio/ogg\n\n"
    )
    assert await said(stream) == "HTTP/1.1 100 Continue\r\n\r\n"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(station.listening, ears)
        await stream.send_all(contained("ogg-opus", 1.5))
        await stream.send_eof()
        # What had been sent when it closed its side is heard to the end, at its own pace.
        assert (await said(stream)).startswith("HTTP/1.1 200 ")
    assert without_holes(ears.heard[LOW])
    assert ears.purest(LOW, 440.0) > 0.9


@pytest.mark.slow
async def test_source_of_old(station: Station) -> None:
    """SOURCE of HTTP/1.0 is told `HTTP/1.0 200 OK` at once, and read on."""
    ears = Ears()
    stream = await station.connect(f"SOURCE /ingest/s HTTP/1.0\n{BASIC}\nContent-Type: audio/mpeg\n\n")
    assert await said(stream) == "HTTP/1.0 200 OK\r\n\r\n"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(station.listening, ears)
        await stream.send_all(contained("mp3", 1.2))
    await stream.aclose()
    live = station.lives.get("s")
    assert live is not None
    with trio.fail_after(20):
        await live.ended.wait()
    assert live.source.codec == "mp3"
    assert ears.purest(LOW, 440.0) > 0.9


@pytest.mark.slow
async def test_chunked_and_with_a_length(station: Station) -> None:
    """Bodies that are framed, as curl's are, end where they say, and the connection is kept."""
    data = contained("flac", 0.4)
    for framing, body in (
        (f"Content-Length: {len(data)}", data),
        ("Transfer-Encoding: chunked", b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)),
    ):
        stream = await station.connect(f"PUT /ingest/s HTTP/1.1\nHost: x\n{BASIC}\n{framing}\n\n", body)
        head = await said(stream)
        assert head.startswith("HTTP/1.1 200 ")
        assert "connection: close" not in head


async def test_first_asked_without_a_password(station: Station) -> None:
    """Who shows none is told how, and asks again on the same connection."""
    ask = "PUT /ingest/s HTTP/1.1\nHost: x\nExpect: 100-continue\n"
    stream = await station.connect(ask + "\n")
    head = await said(stream)
    assert head.startswith("HTTP/1.1 401 ")
    assert 'www-authenticate: Basic realm="whispr"' in head
    await stream.send_all(f"{ask}{BASIC}\n\n".replace("\n", "\r\n").encode())
    assert "HTTP/1.1 100 Continue" in await said(stream, b"100 Continue\r\n\r\n")


async def test_refusals(station: Station) -> None:
    """A wrong key, no such stream, a second source and what is no sound are refused, each in its words."""
    wrong = BASIC[:-4] + "AAAA"
    for request, status in (
        (f"PUT /ingest/s HTTP/1.1\nHost: x\n{wrong}\n\n", 401),
        (f"PUT /ingest/t HTTP/1.1\nHost: x\n{BASIC}\n\n", 404),
        (f"GET /ingest/s HTTP/1.1\nHost: x\n{BASIC}\n\n", 405),
    ):
        assert (await said(await station.connect(request))).startswith(f"HTTP/1.1 {status} ")
    put = f"PUT /ingest/s HTTP/1.1\nHost: x\n{BASIC}\nExpect: 100-continue\n\n"
    first = await station.connect(put)
    await said(first)
    second = await said(await station.connect(put), b"source_connected")
    assert second.startswith(("HTTP/1.1 400 ", "HTTP/1.1 409 "))
    await first.send_all(b"junk" * 3000)
    await first.send_eof()
    assert "unsupported_media" in await said(first, b"unsupported_media")


async def test_a_source_that_is_put_out(station: Station) -> None:
    """When the stream is stopped its source is told, and the connection ends."""
    stream = await station.connect(f"PUT /ingest/s HTTP/1.1\nHost: x\n{BASIC}\nExpect: 100-continue\n\n")
    await said(stream)
    await stream.send_all(contained("ogg-opus", 1.5)[:6000])
    with trio.fail_after(20):
        await station.news.begun.wait()
    station.lives.end("s", "stopped")
    assert "the stream ended: stopped" in await said(stream, b"stopped")


async def test_metadata_updates(station: Station) -> None:
    """What sources say of the song reaches whoever keeps it, in the charset that they write."""

    async def update(query: str, credentials: str = BASIC) -> str:
        request = f"GET /admin/metadata?{query} HTTP/1.1\nHost: x\n{credentials}\n\n"
        return await said(await station.connect(request), b"}" if credentials != BASIC else b"\r\n\r\n")

    told = await update("mode=updinfo&mount=/ingest/s&song=Bj%F6rk+-+J%F3ga")
    assert told.startswith("HTTP/1.1 200 ")
    await update("mode=updinfo&mount=/ingest/s&artist=A&title=B&charset=utf-8")
    # Half a surrogate is no text, whichever charset it was smuggled in by: it is read as it stands.
    await update("mode=updinfo&mount=/ingest/s&title=%5Cud800&charset=unicode_escape")
    assert [dict(facts) for _, facts in station.described] == [
        {"title": "Jóga", "artist": "Björk", "album": ""},
        {"title": "B", "artist": "A", "album": ""},
        {"title": "\\ud800", "artist": "", "album": ""},
    ]
    assert (await update("mode=updinfo&mount=/ingest/s&song=x", "X: y")).startswith("HTTP/1.1 401 ")
    assert (await update("mode=killclient&mount=/ingest/s")).startswith("HTTP/1.1 400 ")
    assert (await update("mode=updinfo&mount=/elsewhere&song=x")).startswith("HTTP/1.1 404 ")


@pytest.mark.slow
@pytest.mark.parametrize("legacy", [0, 1])
@pytest.mark.parametrize(
    ("codec", "container", "media_type"),
    [
        ("libopus", "ogg", "application/ogg"),
        ("libmp3lame", "mp3", "audio/mpeg"),
        ("aac", "adts", "audio/aac"),
    ],
)
async def test_ffmpeg_publishes(
    station: Station, legacy: int, codec: str, container: str, media_type: str
) -> None:
    """FFmpeg publishes by icecast://, the new way and the old, and its tone is heard."""
    if shutil.which("ffmpeg") is None:
        pytest.skip("there is no ffmpeg on this machine")
    ears = Ears()
    url = f"icecast://source:{KEY}@127.0.0.1:{station.port}/ingest/s"
    command = [
        "ffmpeg", "-v", "error", "-re", "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000:duration=4",
        "-c:a", codec, "-b:a", "96k", "-content_type", media_type, "-legacy_icecast", str(legacy),
        "-f", container, url,
    ]  # fmt: skip
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(station.listening, ears)
            done = await trio.run_process(command, capture_stderr=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    assert without_holes(ears.heard[LOW])
    assert ears.purest(LOW, 440.0) > 0.9
