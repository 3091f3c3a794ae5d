"""Progressive listening, asked in memory: what a plain player gets."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.audio.test_fmp4 import opened
from tests.audio.test_small_formats import unweave
from tests.services.stream.hearing import STREAM, Doorkeeper, TonedLive, finder
from whispr.asgi.wire import ClientGoneError
from whispr.audio.ogg import page_at
from whispr.audio.packets import Codec, Packet, Quality, Rendition
from whispr.errors import WhisprError
from whispr.services.stream.domain import Metadata
from whispr.services.stream.listener import Wish
from whispr.services.stream.listening.progressive import PATH, Progressive


@dataclass
class Player:
    """One who listens: what it has been sent, and whether it takes more."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    sound: bytes = b""
    takes: trio.Event = field(default_factory=trio.Event)
    ended: bool = False
    error: WhisprError | ClientGoneError | None = None

    def packets(self) -> list[bytes]:
        """Opus packets of the pages after the headers, whose numbers and positions follow each other."""
        found: list[bytes] = []
        at, sequence = 0, -1
        while (page := page_at(self.sound, at)) is not None:
            if sequence > 1:
                assert page.sequence == sequence + 1
            at, sequence = page.end, page.sequence
            found += page.packets
            if at == len(self.sound):
                break
        return [bytes(packet) for packet in found[2:]]


@dataclass
class Radio:
    """Progressive listening to one live stream."""

    app: Progressive
    live: TonedLive
    door: Doorkeeper
    nursery: trio.Nursery
    metadata: Metadata = field(default_factory=Metadata)

    async def tune_in(
        self, path: str = f"/listen/{STREAM}", *, method: str = "GET", **headers: str
    ) -> Player:
        player = Player()
        player.takes.set()
        self.nursery.start_soon(self._listen, player, path, method, headers)
        await trio.testing.wait_all_tasks_blocked()
        return player

    async def _listen(self, player: Player, path: str, method: str, headers: dict[str, str]) -> None:
        plain, _, query = path.partition("?")
        scope = {
            "type": "http", "method": method, "path": plain, "query_string": query.encode(),
            "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()],
        }  # fmt: skip

        async def send(message: Any) -> None:
            await player.takes.wait()
            if message["type"] == "http.response.start":
                player.status = message["status"]
                player.headers = {k.decode(): v.decode() for k, v in message["headers"]}
            else:
                player.sound += message["body"]
                player.ended = not message.get("more_body", False)

        try:
            await self.app(scope, cast(Any, None), send)
        except (WhisprError, ClientGoneError) as error:
            player.error = error

    async def advance(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.live.advance(0.1)
            await trio.testing.wait_all_tasks_blocked()


@asynccontextmanager
async def radio(seconds: float = 5.0) -> AsyncIterator[Radio]:
    live, door = TonedLive({Quality.LOW: 500.0}), Doorkeeper()
    live.advance(seconds)
    async with trio.open_nursery() as nursery:
        made: Radio

        def metadata_of(stream_id: str) -> Metadata:
            return made.metadata

        app = Progressive(
            finder(live),
            cast(Any, door),
            lambda scope, headers: "192.0.2.1",
            metadata_of,
        )
        made = Radio(app, live, door, nursery)
        yield made
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_ogg_opus_from_the_last_seconds_on_without_a_hole(autojump_clock: MockClock) -> None:
    """Headers, a burst to fill the player's buffer, then every packet of the stream, bit for bit."""
    async with radio() as r:
        player = await r.tune_in()
        assert (player.status, player.headers["content-type"]) == (200, "audio/ogg")
        assert 130 <= len(player.packets()) <= 160
        await r.advance(2.0)
        packets = player.packets()
        expected = [p.data for p in r.live.packets(Rendition(Codec.OPUS, Quality.MEDIUM), 0, r.live.now_pts)]
        start = len(expected) - len(packets)
        assert any(packets == expected[at : at + len(packets)] for at in range(start - 8, start + 1))
        with opened(player.sound, "ogg") as container:
            assert sum(frame.samples for frame in container.decode(audio=0)) > 200_000


async def test_two_listeners_are_sent_the_same_pages(autojump_clock: MockClock) -> None:
    """What differs is where they began."""
    async with radio() as r:
        first = await r.tune_in()
        await r.advance(1.0)
        second = await r.tune_in()
        await r.advance(1.0)
        tail = second.packets()
        assert first.packets()[-len(tail) :] == tail


async def test_aac_by_extension_and_to_who_accepts_nothing_else(autojump_clock: MockClock) -> None:
    """ADTS, any frame of which a player can begin with."""
    async with radio() as r:
        for accept, path in (("", f"/listen/{STREAM}.aac"), ("audio/aac", f"/listen/{STREAM}")):
            player = await r.tune_in(path, accept=accept)
            await r.advance(1.0)
            assert player.headers["content-type"] == "audio/aac"
            with opened(player.sound, "aac") as container:
                read = [bytes(packet)[7:] for packet in container.demux(audio=0) if packet.size]
            expected = [
                p.data for p in r.live.packets(Rendition(Codec.AAC, Quality.MEDIUM), 0, r.live.now_pts)
            ]
            at = len(expected) - len(read)
            assert any(read == expected[i : i + len(read)] for i in range(at - 8, at + 1))


async def test_titles_are_woven_in_for_players_that_ask(autojump_clock: MockClock) -> None:
    """`Icy-MetaData: 1` gets titles, the new one when it changes; the sound is what it is without."""
    async with radio() as r:
        r.metadata = Metadata(artist="Somebody", current_track="One")
        player = await r.tune_in(icy_metadata="1")
        await r.advance(2.0)
        r.metadata = Metadata(current_track="Two")
        await r.advance(3.0)
        interval = int(player.headers["icy-metaint"])
        sound, titles = unweave(player.sound, interval)
        assert titles == ["Somebody - One", "Two"]
        with opened(sound, "aac") as container:
            assert len([p for p in container.demux(audio=0) if p.size]) > 300


async def test_another_quality_goes_on_with_the_next_page(autojump_clock: MockClock) -> None:
    """ChangeQuality is heard in the same answer: no packet is missing, none comes twice."""
    async with radio() as r:
        player = await r.tune_in(f"/listen/{STREAM}?quality=high")
        await r.advance(1.0)
        r.door.here[0].wants(Wish(quality=Quality.LOW))
        await r.advance(1.0)
        assert r.door.here[0].rendition is Quality.LOW
        packets = player.packets()
        now = r.live.now_pts

        def made(quality: Quality) -> list[Packet]:
            return r.live.packets(Rendition(Codec.OPUS, quality), 0, now)

        high, low = [p.data for p in made(Quality.HIGH)], [p.data for p in made(Quality.LOW)]
        begun = next(at for at in range(len(high)) if high[at : at + 20] == packets[:20] and at % 8 == 0)
        whole = max(at for at in range(0, len(packets), 8) if packets[:at] == high[begun : begun + at])
        assert packets[whole:] == low[begun + whole : begun + len(packets)]
        assert 0 < whole < len(packets)


async def test_a_slow_listener_goes_on_at_the_live_edge_and_is_then_cut(autojump_clock: MockClock) -> None:
    """What waits for one listener is bounded in time; who takes nothing is let go."""
    async with radio() as r:
        player = await r.tune_in()
        player.takes = trio.Event()
        await r.advance(12.0)
        assert r.door.here[0].figures.dropped_frames > 50
        before = len(player.sound)
        player.takes.set()
        await r.advance(0.5)
        assert before < len(player.sound)
        player.takes = trio.Event()
        await r.advance(1.0)
        await trio.sleep(20)
        assert r.door.here == []
        assert isinstance(player.error, ClientGoneError)
        assert not player.ended


async def test_whose_access_ends_hears_no_more(autojump_clock: MockClock) -> None:
    """The answer ends, as does that of everybody when the stream does."""
    async with radio() as r:
        player = await r.tune_in()
        r.door.here[0].end("kicked")
        await trio.testing.wait_all_tasks_blocked()
        assert player.ended
        assert r.door.here == []


async def test_the_end_of_the_sound_ends_the_answer(autojump_clock: MockClock) -> None:
    """Also where nobody says that the stream has ended: its node died, and another one may have it by now."""
    async with radio() as r:
        player = await r.tune_in()
        r.live.end("source_gone")
        await trio.testing.wait_all_tasks_blocked()
        assert (player.ended, player.error, r.door.here) == (True, None, [])


async def test_who_may_not_hear_it_is_not_told_whether_it_is_live(autojump_clock: MockClock) -> None:
    """Nor is its sound fetched from another node for them, whichever the method."""
    async with radio() as r:
        r.door.asks, asked = "the token", list[str]()

        async def find(stream_id: str) -> None:
            await trio.lowlevel.checkpoint()
            asked.append(stream_id)

        r.app._find = find
        for method in ("GET", "HEAD"):
            player = await r.tune_in(method=method)
            assert isinstance(player.error, WhisprError)
            assert player.error.reason == "invitation_required"
        assert asked == []


async def test_who_has_all_left_is_encoded_for_no_more(autojump_clock: MockClock) -> None:
    """The press stops with its last listener."""
    async with radio() as r:
        live = r.live
        await r.tune_in()
        track = live.track(Rendition(Codec.OPUS, Quality.MEDIUM))
        held = len(track._batched)
        r.door.here[0].end("left")
        await trio.testing.wait_all_tasks_blocked()
        assert len(track._batched) == held - 1


@pytest.mark.parametrize("path", [f"/listen/{STREAM}x", "/listen/none.aac"])
async def test_what_is_not_live_is_not_found(path: str, autojump_clock: MockClock) -> None:
    """And a quality that there is none of is refused by name."""
    async with radio() as r:
        missing = await r.tune_in(path)
        assert isinstance(missing.error, WhisprError)
        assert missing.error.reason == "not_found"
        wrong = await r.tune_in(f"/listen/{STREAM}?quality=best")
        assert isinstance(wrong.error, WhisprError)
        assert wrong.error.fields == {"quality": "low, medium, high or ultra"}
        head = await r.tune_in(method="HEAD")
        assert (head.status, head.sound, head.headers["accept-ranges"]) == (200, b"", "none")
        refused = await r.tune_in(method="POST")
        assert refused.error is not None


def test_the_page_to_listen_on_is_another_path() -> None:
    """`/listen/<id>/` is a page; players ask without the slash."""
    assert PATH.fullmatch(f"/listen/{STREAM}")
    assert not PATH.fullmatch(f"/listen/{STREAM}/")
    assert re.fullmatch(PATH, f"/listen/{STREAM}.aac")
