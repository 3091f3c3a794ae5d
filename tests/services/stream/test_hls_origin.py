"""The HLS origin, asked in memory on a clock of its own."""

from __future__ import annotations

import gzip
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import urljoin

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.audio.test_fmp4 import demux
from tests.services.stream.hearing import STREAM, Answer, Doorkeeper, TonedLive, a_stream, ask, finder
from whispr.audio.packets import Codec, Quality, Rendition
from whispr.errors import Code
from whispr.services.stream.domain import Stream, Visibility
from whispr.services.stream.engine.live import LINGER_S
from whispr.services.stream.listener import Wish
from whispr.services.stream.listening.hls import DESCRIBED_S, HELD_MAX, HlsOrigin
from whispr.services.stream.listening.shelves import Shelves

MASTER = f"/hls/{STREAM}/master.m3u8"


@dataclass
class Origin:
    """An origin with one live stream."""

    app: HlsOrigin
    live: TonedLive
    door: Doorkeeper
    shelves: Shelves
    nursery: trio.Nursery

    async def get(self, path: str, **headers: str) -> Answer:
        return await ask(self.app, path, **headers)

    async def variant(self, name: str = "aac-medium", **headers: str) -> str:
        """The address of a rendition's playlist, as a new listener is told."""
        master = await self.get(MASTER, **headers)
        found = next(line for line in master.lines if line.endswith(f"{name}/live.m3u8"))
        return urljoin(MASTER, found)

    def later(self, path: str) -> Answer:
        """Ask, and have the answer when it comes."""
        pending = Answer()

        async def run() -> None:
            answer = await ask(self.app, path)
            pending.__dict__.update(answer.__dict__)

        self.nursery.start_soon(run)
        return pending


@asynccontextmanager
async def origin(
    stream: Stream | None = None,
    seconds: float = 4.0,
    asks: str = "",
    *,
    on_demand: bool = False,
    shared_files: bool = False,
) -> AsyncIterator[Origin]:
    live = TonedLive(on_demand=on_demand)
    live.advance(seconds)
    keeper = Doorkeeper(stream or a_stream(), asks)
    shelves = Shelves(finder(live))

    async def describe(stream_id: str) -> Stream:
        await trio.lowlevel.checkpoint()
        return keeper.stream

    async with trio.open_nursery() as nursery:
        await nursery.start(shelves.run)
        app = HlsOrigin(
            shelves,
            cast(Any, keeper),
            describe,
            lambda scope, headers: "192.0.2.1",
            shared_files=shared_files,
        )
        yield Origin(app, live, keeper, shelves, nursery)
        nursery.cancel_scope.cancel(reason="the test is over")


def files(playlist: Answer) -> list[str]:
    return [line for line in playlist.lines if line.endswith(".m4s")]


async def test_what_playlists_name_is_there_and_is_the_sound(autojump_clock: MockClock) -> None:
    """Master, playlist, initialisation and every segment and part: the packets of the stream, bit for bit."""
    async with origin(seconds=9.0) as o:
        for name in ("aac-low", "opus-high"):
            at = await o.variant(name)
            playlist = await o.get(at)
            base = re.search(r'MAP:URI="([^"]+)"', playlist.body.decode())
            assert base is not None
            init = (await o.get(urljoin(at, base[1]))).body
            sound = [(await o.get(urljoin(at, file))).body for file in files(playlist)]
            rendition = Rendition(Codec(name.split("-")[0]), Quality(name.split("-")[1]))
            expected = o.live.packets(rendition, 0, o.live.now_pts)
            read = demux(init + b"".join(sound))[1]
            assert read == expected[: len(read)]
            assert len(read) > 300
            for part in re.findall(r'EXT-X-PART:.*URI="([^"]+)"', playlist.body.decode()):
                assert demux(init + (await o.get(urljoin(at, part))).body)[1][0] in expected


async def test_a_playlist_is_held_back_until_it_has_what_was_asked_for(autojump_clock: MockClock) -> None:
    """RFC 8216bis, 6.2.5.2: neither before nor a part later."""
    async with origin(seconds=4.0) as o:
        at = await o.variant()
        await o.get(at)
        held = o.later(f"{at}?_HLS_msn=2&_HLS_part=2")
        await trio.testing.wait_all_tasks_blocked()
        o.live.advance(0.6)
        await trio.testing.wait_all_tasks_blocked()
        assert held.status == 0
        o.live.advance(0.3)
        await trio.testing.wait_all_tasks_blocked()
        assert held.status == 200
        assert '2.2.m4s"' in held.body.decode()
        assert held.lines[-4].endswith('PRELOAD-HINT:TYPE=PART,URI="2.3.m4s"')


async def test_the_part_that_is_hinted_at_is_waited_for_and_no_other(autojump_clock: MockClock) -> None:
    """RFC 8216bis, 6.2.6: the hinted part comes as soon as it is there; one after it is not found."""
    async with origin(seconds=4.0) as o:
        at = await o.variant()
        hint = re.search(r'PRELOAD-HINT:TYPE=PART,URI="([^"]+)"', (await o.get(at)).body.decode())
        assert hint is not None
        held = o.later(urljoin(at, hint[1]))
        await trio.testing.wait_all_tasks_blocked()
        assert held.status == 0
        o.live.advance(0.4)
        await trio.testing.wait_all_tasks_blocked()
        assert held.status == 200
        later = await o.get(f"/hls/{STREAM}/aac-medium/3.5.m4s")
        assert later.error is not None
        assert later.error.code is Code.NOT_FOUND


async def test_so_many_requests_of_a_session_wait_at_a_time(autojump_clock: MockClock) -> None:
    """One more is refused at once; others wait for theirs, and make room for it."""
    async with origin() as o:
        at = await o.variant()
        held = [o.later(f"{at}?_HLS_msn=2&_HLS_part=1") for _ in range(HELD_MAX + 1)]
        await trio.testing.wait_all_tasks_blocked()
        refused = [each.error.reason for each in held if each.error is not None]
        assert refused == ["too_many_requests"]
        o.live.advance(1.0)
        await trio.testing.wait_all_tasks_blocked()
        assert sum(each.status == 200 for each in held) == HELD_MAX
        assert (await o.get(f"{at}?_HLS_msn=2&_HLS_part=1")).status == 200


async def test_too_far_in_the_future_is_refused(autojump_clock: MockClock) -> None:
    """RFC 8216bis, 6.2.5.2: more than two segments ahead is an error of the player's."""
    async with origin() as o:
        at = await o.variant()
        refused = await o.get(f"{at}?_HLS_msn=5")
        assert refused.error is not None
        assert refused.error.fields == {"_HLS_msn": "at most 2 past the last segment, 1"}


async def test_a_source_that_is_away_does_not_hold_listeners_for_ever(autojump_clock: MockClock) -> None:
    """RFC 8216bis, 6.2.5.2: after three target durations, 503."""
    async with origin() as o:
        at = await o.variant()
        await o.get(at)
        answer = await o.get(f"{at}?_HLS_msn=3")
        assert answer.error is not None
        assert (answer.error.code, answer.error.retry_after_s) == (Code.UNAVAILABLE, 2.0)


async def test_the_first_listener_starts_the_encoders_and_waits_for_a_segment(
    autojump_clock: MockClock,
) -> None:
    """All renditions of a codec are taken, others not; an encoder that begins now is waited for."""
    async with origin(seconds=0.7, on_demand=True) as o:
        at = await o.variant()
        assert o.live.wanted() == []
        held = o.later(at)
        await trio.testing.wait_all_tasks_blocked()
        assert set(o.live.wanted()) == {Rendition(Codec.AAC, q) for q in Quality}
        assert held.status == 0
        o.live.advance(2.0)
        await trio.testing.wait_all_tasks_blocked()
        assert held.status == 200
        assert files(held) == ["0.m4s"]


async def test_a_stage_that_nobody_asks_for_is_taken_down(autojump_clock: MockClock) -> None:
    """Half a minute after the last request no encoder runs for it."""
    async with origin(on_demand=True) as o:
        at = await o.variant()
        pending = o.later(at)
        await trio.testing.wait_all_tasks_blocked()
        o.live.advance(2.0)
        await trio.testing.wait_all_tasks_blocked()
        assert pending.status == 200
        await trio.sleep(20)
        await o.get(at)
        await trio.sleep(29)
        assert len(o.live.wanted()) == 4
        await trio.sleep(1 + LINGER_S)
        assert o.live.wanted() == []
        assert len(o.shelves) == 0


async def test_the_end_of_a_stream_wakes_who_waits_and_closes_its_playlists(
    autojump_clock: MockClock,
) -> None:
    """Players hear of the end at once, and are told of it a little longer."""
    async with origin() as o:
        at = await o.variant()
        await o.get(at)
        held = o.later(f"{at}?_HLS_msn=3")
        await trio.testing.wait_all_tasks_blocked()
        o.live.end("stopped")
        await trio.testing.wait_all_tasks_blocked()
        assert held.lines[-1] == "#EXT-X-ENDLIST"
        await trio.sleep(20)
        assert (await o.get(at)).lines[-1] == "#EXT-X-ENDLIST"
        await trio.sleep(20)
        gone = await o.get(at)
        assert gone.error is not None
        assert gone.error.code is Code.NOT_FOUND


async def test_sound_never_changes_and_playlists_do(autojump_clock: MockClock) -> None:
    """Caches are told; what is a listener's own is private."""
    async with origin() as o:
        at = await o.variant()
        playlist = await o.get(at)
        assert playlist.headers["cache-control"] == "private, no-cache"
        sound = await o.get(urljoin(at, files(playlist)[0]))
        assert sound.headers["cache-control"] == "private, max-age=600, immutable"
        assert sound.headers["access-control-allow-origin"] == "*"
        assert (await o.get(MASTER)).headers["cache-control"] == "no-store"
        shared = await o.get(f"/hls/{STREAM}/aac-medium/0.m4s")
        assert shared.error is not None


async def test_files_of_open_streams_can_have_one_address_for_all(autojump_clock: MockClock) -> None:
    """Where a cache in front is to keep them; those of other streams have not."""
    for visibility in (Visibility.PUBLIC_STREAM, Visibility.PRIVATE_STREAM):
        async with origin(a_stream(visibility), shared_files=True) as o:
            at = await o.variant()
            file = urljoin(at, files(await o.get(at))[0])
            sound = await o.get(file)
            if visibility is Visibility.PUBLIC_STREAM:
                assert file == f"/hls/{STREAM}/aac-medium/0.m4s"
                assert sound.headers["cache-control"] == "public, max-age=600, immutable"
            else:
                assert "session0" in file
                assert (await o.get(f"/hls/{STREAM}/aac-medium/0.m4s")).error is not None


async def test_a_stream_made_private_closes_its_open_addresses(autojump_clock: MockClock) -> None:
    """Within moments, whoever goes on asking: also while nobody is left who has a session."""
    async with origin(shared_files=True) as o:
        at = await o.variant()
        file = urljoin(at, files(await o.get(at))[0])
        o.door.stream = a_stream(Visibility.PRIVATE_STREAM)
        for _ in range(round(DESCRIBED_S) + 1):
            answer = await o.get(file)
            await trio.sleep(1.0)
        assert answer.error is not None
        assert answer.error.reason == "not_found"


async def test_playlists_are_compressed_for_players_that_read_that(autojump_clock: MockClock) -> None:
    """Authoring specification, "Delivery": playlists are compressed with gzip."""
    async with origin() as o:
        at = await o.variant()
        packed = await o.get(at, accept_encoding="gzip, br")
        assert packed.headers["content-encoding"] == "gzip"
        assert packed.headers["vary"] == "accept-encoding"
        assert gzip.decompress(packed.body) == (await o.get(at)).body


async def test_a_private_stream_is_heard_with_a_session_alone(autojump_clock: MockClock) -> None:
    """Without a token there is no session, without a session no playlist, and no file by its open address."""
    async with origin(a_stream(Visibility.PRIVATE_STREAM), asks="secret") as o:
        refused = await o.get(MASTER)
        assert refused.error is not None
        assert refused.error.reason == "invitation_required"
        at = await o.variant(authorization="Bearer secret")
        playlist = await o.get(at)
        file = urljoin(at, files(playlist)[0])
        sound = await o.get(file)
        assert sound.headers["cache-control"].startswith("private")
        assert o.door.sessions["session0"].figures.bytes_sent == len(sound.body)
        forged = [each.replace("session0", "session9") for each in (file, at)]
        for path in (f"/hls/{STREAM}/aac-medium/0.m4s", *forged):
            answer = await o.get(path)
            assert answer.error is not None
            assert answer.error.code in (Code.NOT_FOUND, Code.PERMISSION_DENIED)


async def test_whose_access_ends_gets_no_more(autojump_clock: MockClock) -> None:
    """Also an answer that is being held back when it happens is not given."""
    async with origin(a_stream(Visibility.PRIVATE_STREAM)) as o:
        at = await o.variant()
        hint = next(line for line in (await o.get(at)).lines if line.startswith("#EXT-X-PRELOAD-HINT"))
        part = urljoin(at, hint.partition('URI="')[2].partition('"')[0])
        held = [o.later(f"{at}?_HLS_msn=2&_HLS_part=1"), o.later(part)]
        await trio.testing.wait_all_tasks_blocked()
        o.door.put_out("session0", "kicked")
        o.live.advance(1.0)
        await trio.testing.wait_all_tasks_blocked()
        for each in held:
            assert each.error is not None
            assert each.error.reason == "session_ended"
        assert (await o.get(at)).error is not None


async def test_change_quality_swaps_the_sound_in_the_files_a_player_asks_for(
    autojump_clock: MockClock,
) -> None:
    """What is asked for is of the pinned rendition, at the same places; AUTO gives the choice back to the player."""
    async with origin() as o:
        at = await o.variant("aac-high")
        playlist = await o.get(at)
        file, listener = urljoin(at, files(playlist)[1]), o.door.sessions["session0"]
        high = await o.get(file)
        listener.wants(Wish(quality=Quality.LOW))
        low = await o.get(file)
        assert low.body == (await o.get(file.replace("aac-high", "aac-low"))).body
        assert len(low.body) < len(high.body)
        assert (await o.get(at)).body == playlist.body
        assert listener.rendition is Quality.LOW
        listener.wants(Wish())
        assert (await o.get(file)).body == high.body


async def test_only_what_the_stream_offers_is_there(autojump_clock: MockClock) -> None:
    """A stream of at most MEDIUM has no HIGH, in its master or elsewhere; the preferred quality comes first."""
    async with origin() as o:
        o.live.top = Quality.MEDIUM
        o.door.wish = Wish(quality=Quality.LOW)
        names = [line.split("/")[1] for line in (await o.get(MASTER)).lines if "live.m3u8" in line]
        assert names == ["aac-low", "aac-medium", "opus-low", "opus-medium"]
        at = (await o.variant("aac-low")).replace("aac-low", "aac-high")
        answer = await o.get(at)
        assert answer.error is not None
        assert answer.error.code is Code.NOT_FOUND


@pytest.mark.parametrize(
    "path",
    ["no.m3u8", "aac-low/0.ts", "aac-low/-1.m4s", "mp3-low/0.m4s", "aac-low/99.m4s", "a/b/c/d", "x/aac-low/"],
)
async def test_what_is_not_there_is_not_found(path: str, autojump_clock: MockClock) -> None:
    """And says so, whatever the path."""
    async with origin() as o:
        await o.get(await o.variant())
        answer = await o.get(f"/hls/{STREAM}/{path}")
        assert answer.error is not None
        assert answer.error.code in (Code.NOT_FOUND, Code.PERMISSION_DENIED)


async def test_a_stream_that_is_not_live_here_is_not_found(autojump_clock: MockClock) -> None:
    """Nor does asking for it leave anything behind."""
    async with origin() as o:
        answer = await o.get(f"/hls/{STREAM[:-1]}9/aac-low/0.m4s")
        assert answer.error is not None
        assert answer.error.code is Code.NOT_FOUND
        assert len(o.shelves) == 0


async def test_foreign_pages_may_ask(autojump_clock: MockClock) -> None:
    """Players on other origins send a preflight for their token; nothing but reading is allowed."""
    async with origin() as o:
        preflight = await ask(o.app, MASTER, "OPTIONS")
        assert preflight.status == 204
        assert preflight.headers["access-control-allow-headers"] == "authorization, range"
        refused = await ask(o.app, MASTER, "POST")
        assert refused.error is not None
        assert refused.error.reason == "method_not_allowed"
        assert refused.error_headers == {"access-control-allow-origin": "*"}
