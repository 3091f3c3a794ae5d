"""A stream's sound on nodes that do not have its source."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any, cast

import msgspec
import pytest
import trio
import trio.testing

from whispr.adapters.bus import Bus, open_bus
from whispr.adapters.bus_feed import Feed, Message, Missed
from whispr.audio.packets import CLOCK_HZ, Codec, Packet, Quality, Rendition
from whispr.bridge import Bridge, Inbox
from whispr.embed import Backends
from whispr.errors import WhisprError
from whispr.services.stream.engine.live import Levels, Live, Sound
from whispr.services.stream.engine.lives import Lives, SourceOptions
from whispr.services.stream.engine.relay import everywhere as everywhere_module
from whispr.services.stream.engine.relay import messages
from whispr.services.stream.engine.relay.everywhere import Everywhere
from whispr.services.stream.engine.relay.imports import ORPHAN_S, SILENT_S, UNHEARD_S

STREAM = "01a2b3c4-0000-7000-8000-000000000001"
LOW = Rendition(Codec.OPUS, Quality.LOW)
AAC = Rendition(Codec.AAC, Quality.MEDIUM)
TONE_TOC = b"\xfc"
"""20 ms, stereo, full band."""
TICKS = {Codec.OPUS: 960, Codec.AAC: 1024}


class Wire:
    """The bus of all nodes: delivers at once, but what `loses` says it does not."""

    def __init__(self) -> None:
        self.ends: list[End] = []
        self.loses: Callable[[str], bool] = lambda subject: False
        self.said: list[str] = []


class End(Feed):
    """One node's connection: as much of a bus, and of its feed, as a relay needs."""

    def __init__(self, wire: Wire) -> None:
        self.wire = wire
        self.subjects_heard: set[str] = set()
        self.items: deque[Message | Missed] = deque()
        self.some = trio.Event()
        self.inboxes: dict[str, Inbox[Message]] = {}
        wire.ends.append(self)

    def publish(self, subject: str, payload: bytes) -> None:
        self.wire.said.append(subject)
        for end in self.wire.ends:
            if end is not self and not self.wire.loses(subject):
                end.arrive(Message(subject, payload))

    def arrive(self, message: Message) -> None:
        if message.subject in self.inboxes:
            self.inboxes[message.subject].put(message)
        if message.subject in self.subjects_heard:
            self.items.append(message)
            self.some.set()

    @asynccontextmanager
    async def subscribe(self, subject: str) -> AsyncIterator[Inbox[Message]]:
        inbox = self.inboxes[subject] = Inbox(1000)
        yield inbox
        del self.inboxes[subject]

    @asynccontextmanager
    async def feed(self) -> AsyncIterator[Feed]:
        yield self

    def add(self, subject: str) -> None:
        self.subjects_heard.add(subject)

    def remove(self, subject: str) -> None:
        self.subjects_heard.discard(subject)

    async def in_force(self, subject: str) -> None:
        await trio.lowlevel.checkpoint()

    async def take(self) -> deque[Message | Missed]:
        await self.some.wait()
        self.some = trio.Event()
        items, self.items = self.items, deque()
        return items


class Sources(Lives):
    """The streams of a node, of which some have their source there, without an engine that makes anything of it."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[str, Live] = {}

    def made_here(self, stream_id: str) -> bool:
        return stream_id in self.made

    def get(self, stream_id: str) -> Live | None:
        return self.made.get(stream_id) or super().get(stream_id)


class Node:
    """One node: what is live on it, and what it can serve."""

    def __init__(self, bus: Bus | End) -> None:
        self.lives = Sources()
        self.everywhere = Everywhere(self.lives, cast(Bus, bus))

    def go_live(self) -> Live:
        live = self.lives.made[STREAM] = Live(STREAM, datetime.now(UTC))
        live.source.kind, live.source.connected = "whip", True
        return live


@asynccontextmanager
async def nodes(count: int = 2) -> AsyncIterator[tuple[Wire, Sequence[Node]]]:
    wire = Wire()
    made = [Node(End(wire)) for _ in range(count)]
    async with trio.open_nursery() as nursery:
        for node in made:
            await nursery.start(node.everywhere.run)
        yield wire, made
        nursery.cancel_scope.cancel()


def play(live: Live, seconds: float, *renditions: Rendition) -> None:
    """Publish so much of what is wanted, all on the stream's clock."""
    until = live.now_pts + int(seconds * CLOCK_HZ)
    for rendition in renditions or live.wanted():
        ticks = TICKS[rendition.codec]
        begin = live.next_pts(rendition)
        first = live.now_pts // ticks * ticks if begin is None else begin
        packets = [Packet(pts, ticks, b"%d" % pts) for pts in range(first, until - ticks + 1, ticks)]
        live.publish(rendition, packets)
    live.now_pts = until


async def until(condition: Callable[[], Any]) -> None:
    with trio.fail_after(60):
        while not condition():  # noqa: ASYNC110  # nothing tells when a stream elsewhere changes
            await trio.sleep(0.05)


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def found(node: Node) -> Live:
    live = await node.everywhere.find(STREAM)
    assert live is not None
    return live


async def test_a_listener_elsewhere_hears_what_the_source_sends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Every packet of the rendition, once, in order, on the same clock, with levels and the source's state."""
    async with nodes() as (_, (there, here)):
        source = there.go_live()
        source.levels = Levels(peak_dbfs=-3.0, pts=7)
        live = await found(here)
        assert live.started_at == source.started_at
        heard: list[Packet] = []
        live.subscribe(LOW, heard.extend)
        await until(lambda: LOW in source.wanted())
        for _ in range(20):
            play(source, 0.1)
            await trio.sleep(0.1)
        await settle()
        track = source.track(LOW)
        track.flush()
        await settle()
        assert heard == list(track.recent)
        await until(lambda: live.levels.peak_dbfs == -3.0)
        assert live.source.kind == "whip"
        assert live.now_pts >= heard[-1].pts


async def test_a_rendition_begins_with_what_there_was_lately(autojump_clock: trio.testing.MockClock) -> None:
    """Somebody hears it where the source is; a playlist elsewhere has the last seconds at once."""
    async with nodes() as (_, (there, here)):
        source = there.go_live()
        source.subscribe(AAC, lambda packets: None)
        play(source, 8.0)
        live = await found(here)
        live.subscribe(AAC, lambda packets: None)
        await until(lambda: len(live.recent(AAC)) > 0)
        assert list(live.recent(AAC)) == list(source.recent(AAC))


async def test_nothing_is_sent_that_nobody_hears(autojump_clock: trio.testing.MockClock) -> None:
    """When the last listener elsewhere has gone, the encoder is free again and the bus is silent."""
    async with nodes() as (wire, (there, here)):
        source = there.go_live()
        live = await found(here)
        subscription = live.subscribe(LOW, lambda packets: None)
        await until(lambda: LOW in source.wanted())
        subscription.close()
        await until(lambda: not source.wanted())
        await until(lambda: here.lives.get(STREAM) is None)
        await trio.sleep(UNHEARD_S)
        wire.said.clear()
        await trio.sleep(10)
        assert wire.said == []


async def test_lost_sound_is_made_good_or_silence(autojump_clock: trio.testing.MockClock) -> None:
    """A hole in what came is filled, so that the timeline has none and goes on in time."""
    async with nodes() as (wire, (there, here)):
        source = there.go_live()
        live = await found(here)
        heard: dict[Rendition, list[Packet]] = {LOW: [], AAC: []}
        for rendition, packets in heard.items():
            live.subscribe(rendition, packets.extend)
        await until(lambda: len(source.wanted()) == 2)
        for number in range(60):
            wire.loses = (
                (lambda subject: "opus" in subject or "aac" in subject)
                if number % 7 == 3
                else (lambda subject: False)
            )
            play(source, 0.1)
            await trio.sleep(0.1)
        await settle()
        for rendition, packets in heard.items():
            ticks = TICKS[rendition.codec]
            assert [p.pts for p in packets] == list(range(packets[0].pts, packets[-1].pts + 1, ticks))
            assert any(packet.data != b"%d" % packet.pts for packet in packets), "something was lost"
            assert packets[-1].pts > 5 * CLOCK_HZ


async def test_a_node_that_dies_leaves_silence_then_the_end(autojump_clock: trio.testing.MockClock) -> None:
    """Listeners elsewhere are held through the grace, shown that the source is away, then told the end."""
    async with nodes() as (wire, (there, here)):
        source = there.go_live()
        live = await found(here)
        heard: list[Packet] = []
        live.subscribe(LOW, heard.extend)
        await until(lambda: LOW in source.wanted())
        play(source, 0.5)
        await settle()
        wire.loses = lambda subject: True
        await trio.sleep(SILENT_S + 5)
        assert not live.source.connected
        assert live.source.away_since is not None
        assert not live.ended.is_set()
        await trio.sleep(ORPHAN_S)
        assert live.ended.is_set()
        assert live.reason == "source_gone"


async def test_the_end_is_heard_everywhere(autojump_clock: trio.testing.MockClock) -> None:
    """Within a second, with the reason."""
    async with nodes(3) as (_, (there, here, too)):
        source = there.go_live()
        lives = [await found(node) for node in (here, too)]
        source.end("stopped")
        await trio.sleep(1)
        assert [live.reason for live in lives] == ["stopped", "stopped"]


async def test_what_is_not_live_anywhere_is_not_found(autojump_clock: trio.testing.MockClock) -> None:
    """After a second; everybody who asks meanwhile shares the question."""
    async with nodes() as (wire, (_, here)):
        answers: list[Live | None] = []

        async def ask() -> None:
            answers.append(await here.everywhere.find(STREAM))

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask)
        assert answers == [None] * 5
        assert wire.said.count(messages.WANTS) == 1


async def test_streams_of_other_nodes_are_limited(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """One too many is refused, by name."""
    monkeypatch.setattr(everywhere_module, "IMPORTS_MAX", 1)
    async with nodes() as (_, (there, here)):
        there.go_live()
        await found(here)
        with pytest.raises(WhisprError, match="relays 1 streams"):
            await here.everywhere.find("another")


async def test_malformed_messages_are_dropped(autojump_clock: trio.testing.MockClock) -> None:
    """They end nothing."""
    async with nodes() as (_, (there, here)):
        there.go_live()
        live = await found(here)
        live.subscribe(LOW, lambda packets: None)
        await until(lambda: LOW in there.lives.made[STREAM].wanted())
        end = cast(End, there.everywhere._bus)
        for subject in (messages.state_subject(STREAM), messages.sound_subject(STREAM, LOW), messages.WANTS):
            for payload in (b"", b"\xc1", b"\x93\x01\x02\x03", b"x" * 100):
                end.publish(subject, payload)
        sound = messages.sound_subject(STREAM, LOW)
        for pts, duration in ((-960, 960), (0, 0), (0, -960), (0, 2**40)):
            end.publish(sound, messages.encode(messages.Packets(pts, duration, [b"x"] * 2000)))
        naive = live.started_at.replace(tzinfo=None)  # as none of ours says it
        naive_state = msgspec.structs.replace(messages.state_of(live), started_at=naive)
        end.publish(messages.state_subject(STREAM), messages.encode(naive_state))
        await settle()
        play(there.lives.made[STREAM], 1.0)
        await settle()
        assert live.next_pts(LOW) is not None


async def test_sound_and_volume_are_shown(autojump_clock: trio.testing.MockClock) -> None:
    """What the streamer set is seen on every node."""
    async with nodes() as (_, (there, here)):
        source = there.go_live()
        live = await found(here)
        source.sound, source.paused = Sound(volume=40), True
        await trio.sleep(1)
        assert live.sound == Sound(volume=40)
        assert live.paused


async def test_over_the_real_bus(bridge: Bridge, bus: Bus, backends: Backends) -> None:
    """Two connections to NATS: found, heard, ended."""
    assert backends.nats_url is not None
    async with open_bus(bridge, backends.nats_url) as other:
        await other.wait_connected()
        there, here = Node(bus), Node(other)
        async with trio.open_nursery() as nursery:
            await nursery.start(there.everywhere.run)
            await nursery.start(here.everywhere.run)
            source = there.go_live()
            live = await found(here)
            heard: list[Packet] = []
            live.subscribe(LOW, heard.extend)
            await until(lambda: LOW in source.wanted())
            play(source, 2.0)
            await until(lambda: len(heard) > 50)
            assert heard == list(source.recent(LOW))[: len(heard)]
            source.end("stopped")
            await until(live.ended.is_set)
            nursery.cancel_scope.cancel()


async def send(lives: Lives, seconds: float, mark: bytes, *, took: trio.Event | None = None) -> str:
    """Be a source of Opus packets, in real time; return why it was cut off, if it was."""
    async with lives.source(STREAM, SourceOptions(kind="whip", takeover=took is not None)) as feed:
        if took is not None:
            took.set()
        for number in range(int(seconds * 50)):
            feed.opus(TONE_TOC + mark * 100, number * 960)
            await trio.sleep(0.02)
    return feed.reason


@pytest.mark.slow
async def test_a_source_that_comes_back_on_another_node_goes_on_with_the_stream(
    bridge: Bridge, bus: Bus, backends: Backends
) -> None:
    """Listeners on both nodes hear it on one clock without holes; the old node relays what the new one makes."""
    assert backends.nats_url is not None
    async with open_bus(bridge, backends.nats_url) as other:
        await other.wait_connected()
        first, second = Lives(), Lives()
        for lives, its_bus in ((first, bus), (second, other)):
            lives.elsewhere = Everywhere(lives, its_bus)
        async with trio.open_nursery() as nursery:
            for lives in (first, second):
                await nursery.start(lives.run)
                await nursery.start(cast(Everywhere, lives.elsewhere).run)
            nursery.start_soon(send, first, 1.2, b"a")
            await until(lambda: first.get(STREAM))
            there = first.get(STREAM)
            here = await cast(Everywhere, second.elsewhere).find(STREAM)
            assert there is not None
            assert here is not None
            heard: dict[Live, list[Packet]] = {there: [], here: []}
            for live, packets in heard.items():
                live.subscribe(LOW, packets.extend)
            await until(lambda: not here.source.connected)
            await send(second, 1.5, b"b")
            assert second.made_here(STREAM)
            assert not first.made_here(STREAM)
            assert second.get(STREAM) is here
            assert first.get(STREAM) is there
            await until(lambda: all(any(b"bbb" in p.data for p in packets) for packets in heard.values()))
            for packets in heard.values():
                assert any(b"aaa" in packet.data for packet in packets)
                assert [p.pts for p in packets] == list(range(packets[0].pts, packets[-1].pts + 1, 960))
            second.end(STREAM, "stopped")
            await until(there.ended.is_set)
            assert there.reason == "stopped"
            nursery.cancel_scope.cancel()


async def test_a_second_source_elsewhere_is_refused_or_takes_over(
    bridge: Bridge, bus: Bus, backends: Backends
) -> None:
    """The rule about second sources holds over nodes: refused by name, or the first one is told why it ends."""
    assert backends.nats_url is not None
    async with open_bus(bridge, backends.nats_url) as other:
        await other.wait_connected()
        first, second = Lives(), Lives()
        for lives, its_bus in ((first, bus), (second, other)):
            lives.elsewhere = Everywhere(lives, its_bus)
        reasons: list[str] = []
        async with trio.open_nursery() as nursery:
            for lives in (first, second):
                await nursery.start(lives.run)
                await nursery.start(cast(Everywhere, lives.elsewhere).run)

            async def be_first() -> None:
                reasons.append(await send(first, 30, b"a"))

            nursery.start_soon(be_first)
            await until(lambda: first.get(STREAM))
            with pytest.raises(WhisprError, match="has a source"):
                await send(second, 0.1, b"b")
            took = trio.Event()
            nursery.start_soon(partial(send, second, 30, b"b", took=took))
            await took.wait()
            await until(lambda: reasons)
            assert reasons == ["another source took over"]
            nursery.cancel_scope.cancel()


async def test_what_is_taken_over_where_no_more_is_relayed_ends_there(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    """Its listeners here hear so; the streams that are relayed, and those made here, go on."""
    monkeypatch.setattr(everywhere_module, "IMPORTS_MAX", 0)
    wire, lives = Wire(), Lives()

    async def made_somewhere(stream_id: str) -> bool:
        await trio.lowlevel.checkpoint()
        return False

    lives.elsewhere = everywhere = Everywhere(lives, cast(Any, End(wire)), made_somewhere)
    async with trio.open_nursery() as nursery:
        await nursery.start(lives.run)
        await nursery.start(everywhere.run)
        async with lives.source("other", SourceOptions(kind="test")) as other:
            async with lives.source(STREAM, SourceOptions(kind="test")) as feed:
                End(wire).publish(messages.TAKEN, STREAM.encode())
                await feed.live.ended.wait()
            assert (feed.reason, feed.live.reason) == ("another source took over", "relay_ended")
            assert lives.get(STREAM) is None
            assert not other.live.ended.is_set()
        nursery.cancel_scope.cancel()
