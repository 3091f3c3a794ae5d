"""The hub as services and the application use it: who gets a broadcast, and how connections end."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace

import pytest
import trio
from prometheus_client import REGISTRY
from trio.testing import MockClock, wait_all_tasks_blocked

from whispr.realtime import protocol
from whispr.realtime.channel import Channel, Deferred, LeaveReason
from whispr.realtime.client import ChannelClosed, ClientChannel, Disconnected
from whispr.realtime.frames import CLOSE, Closed, FrameReader, close_payload
from whispr.realtime.hub import Broadcast, Hub
from whispr.realtime.limits import Limits
from whispr.realtime.testing import Server, served
from whispr.realtime.upgrade import Rejected

LIFTED = Limits(operations_per_min=0)


class Room(Channel):
    """Tracks presence; `later` is answered by the test."""

    later: list[Deferred]
    left: list[LeaveReason]

    async def join(self, payload: object) -> object:
        if isinstance(payload, dict) and payload.get("present"):
            self.link.track({"mood": payload["present"]})
            self.link.push_presence_state()
        return None

    async def handle(self, event: str, payload: object) -> object:
        if event == "later":
            Room.later.append(Deferred())
            return Room.later[-1]
        if event == "mood":
            self.link.update({"mood": payload})
        if event == "gone":
            self.link.untrack()
        return None

    async def leave(self, reason: LeaveReason) -> None:
        Room.left.append(reason)


MOUNTS = {"room": Room, "user:": Room}


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Room.later, Room.left = [], []


async def next_event(channel: ClientChannel) -> tuple[str, object]:
    with trio.fail_after(5):
        return await channel.__anext__()


async def test_a_preview_skips_sockets_that_joined_the_conversation() -> None:
    """`unless_joined` leaves out the sockets that get the same on another topic, and only those."""
    async with (
        served(MOUNTS, LIFTED) as server,
        server.connect("alice") as phone,
        server.connect("alice") as desk,
    ):
        inbox = [await phone.join("user:alice"), await desk.join("user:alice")]
        await desk.join("room:1")
        offered = server.hub.broadcast("user:alice", "preview", {"n": 1}, unless_joined="room:1")
        assert offered == 1
        server.hub.broadcast("user:alice", "all", {})
        assert await next_event(inbox[0]) == ("preview", {"n": 1})
        assert await next_event(inbox[1]) == ("all", {})


async def test_broadcasts_arrive_in_order_whoever_sends_them() -> None:
    """Frames sent directly, held for the round, and corked keep their order; so do pushes between them."""
    async with served(MOUNTS, LIFTED) as server, server.connect("alice") as phoenix:
        channel = await phoenix.join("room:1")
        (link,) = server.hub.subscribers("room:1")
        for n in range(0, 30, 3):
            server.hub.broadcast("room:1", "n", n)
            with server.hub.corked():
                server.hub.broadcast("room:1", "n", n + 1)
                link.push("n", n + 2)
            if n % 2:
                await trio.lowlevel.checkpoint()
        assert [await next_event(channel) for _ in range(30)] == [("n", n) for n in range(30)]


async def test_binary_broadcasts_reach_everyone_as_bytes() -> None:
    """A bytes payload is one binary frame for all."""
    async with served(MOUNTS, LIFTED) as server, server.connect("alice") as phoenix:
        channel = await phoenix.join("room:1")
        server.hub.broadcast("room:1", "audio", b"\x00\x01\xff")
        assert await next_event(channel) == ("audio", b"\x00\x01\xff")


async def test_broadcasts_are_relayed_and_delivered_on_another_node() -> None:
    """A relayed broadcast, packed and unpacked, is the same frame there; `exclude` is this node's own affair."""
    there = Hub(LIFTED)
    published: list[bytes] = []
    here = Hub(LIFTED, relay=lambda broadcast: published.append(broadcast.pack()))
    async with (
        served(MOUNTS, hub=here) as near,
        served(MOUNTS, hub=there) as far,
        near.connect("alice") as alice,
        far.connect("bob") as bob,
    ):
        local, remote = await alice.join("room:1"), await bob.join("room:1")
        (link,) = here.subscribers("room:1")
        here.broadcast("room:1", "new", {"text": "hé"}, seq=4)
        here.broadcast("room:1", "bin", b"\xff", exclude=link)
        for packed in published:
            assert there.deliver(Broadcast.unpack(packed)) == 1
        assert here.deliver(Broadcast("room:9", "nobody", b"{}")) == 0
        assert await next_event(local) == ("new", {"text": "hé"})
        assert await next_event(remote) == ("new", {"text": "hé"})
        assert await next_event(remote) == ("bin", b"\xff")
        assert [Broadcast.unpack(packed).seq for packed in published] == [4, None]


async def test_a_kicked_user_hears_why_on_every_socket_and_stays_connected() -> None:
    """Their channels of that topic close; other topics, other users and the sockets go on."""
    async with (
        served(MOUNTS, LIFTED) as server,
        server.connect("alice") as alice,
        server.connect("bob") as bob,
    ):
        kicked, kept, other = await alice.join("room:1"), await alice.join("room:2"), await bob.join("room:1")
        assert server.hub.kick("room:1", "alice", "user_banned", {"until": "2030"}) == 1
        assert await next_event(kicked) == ("user_banned", {"until": "2030"})
        with pytest.raises(StopAsyncIteration):
            await next_event(kicked)
        with pytest.raises(ChannelClosed):
            kicked.push_nowait("e", {})
        server.hub.broadcast("room:1", "e", {})
        server.hub.broadcast("room:2", "e", {})
        assert await next_event(other) == ("e", {})
        assert await next_event(kept) == ("e", {})


@pytest.mark.parametrize("by", ["user_id", "session_id"])
async def test_a_revoked_session_is_told_and_closed(by: str) -> None:
    """Each joined channel gets session_revoked, the socket closes with 1008; other sessions stay."""
    async with (
        served(MOUNTS, LIFTED) as server,
        server.wire("alice/s1") as wire,
        server.connect("alice/s2") as same_user,
        server.connect("bob") as bob,
    ):
        await wire.join("user:alice")
        await same_user.join("user:alice")
        if by == "user_id":
            assert server.hub.disconnect(user_id="alice") == 2
        else:
            assert server.hub.disconnect(session_id="s1", reason="signed out") == 1
        reason = "session_revoked" if by == "user_id" else "signed out"
        assert await wire.receive() == ["1", None, "user:alice", "session_revoked", {"reason": reason}]
        assert await wire.receive_item() == Closed(1008, reason)
        if by == "user_id":
            assert (await same_user.wait_closed()).close_code == 1008
        else:
            assert same_user.closed is None
        assert bob.closed is None


async def test_sockets_and_subscribers_are_found() -> None:
    """By user and by topic, and no longer once they are gone; a joining link is no subscriber yet."""
    async with served(MOUNTS, LIFTED) as server:
        async with server.connect("alice") as phoenix:
            await phoenix.join("room:1")
            (socket,) = server.hub.sockets_of("alice")
            (link,) = server.hub.subscribers("room:1")
            assert link.socket is socket
            assert (link.subtopic, link.session.user_id) == ("1", "alice")
            assert server.hub.sockets_of("bob") == ()
        await server.hub.drain()
        assert server.hub.sockets_of("alice") == ()
        assert server.hub.subscribers("room:1") == ()


class Waiting:
    """The other nodes' seats, which answer when the test says so: a handshake that takes its time."""

    def __init__(self) -> None:
        self.answered = trio.Event()

    async def admit(self, user_id: str) -> bool:
        await self.answered.wait()
        return True

    def changed(self, user_id: str) -> None:
        """Note nothing."""


async def let_in(server: Server, what_happens: Callable[[], object]) -> int:
    """Connect while something happens that concerns all sockets; return the code that ends the connection."""
    seats = server.hub.seats.elsewhere = Waiting()
    async with await trio.open_tcp_stream("127.0.0.1", server.port) as stream:
        await stream.send_all(
            b"GET /socket/websocket?vsn=2.0.0&token=alice/s1 HTTP/1.1\r\nHost: here\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        await wait_all_tasks_blocked()
        what_happens()
        await wait_all_tasks_blocked()
        seats.answered.set()
        said = b"".join([bytes(data) async for data in stream])
    server.hub.seats.elsewhere = None
    head, _, rest = said.partition(b"\r\n\r\n")
    assert b" 101 " in head
    (closed,) = FrameReader(masked=False, message_bytes_max=1000).feed(rest)
    assert isinstance(closed, Closed)
    return closed.code


async def test_a_session_that_ends_during_the_handshake_opens_no_socket(autojump_clock: MockClock) -> None:
    """Its token was good when it was looked at; the socket is closed as the session's others were."""
    async with served(MOUNTS, LIFTED) as server:
        assert (
            await let_in(server, lambda: server.hub.disconnect(session_id="s1", reason="signed out")) == 1008
        )
        async with server.connect("alice/s2") as other:
            await other.join("room:1")
        await trio.sleep(60)
        assert not server.hub._revoked


async def test_a_drain_waits_for_no_socket_that_came_late(autojump_clock: MockClock) -> None:
    """Whoever was in their handshake when it began is told to come back, too, and the drain is over at once."""
    async with served(MOUNTS, LIFTED) as server, trio.open_nursery() as nursery, server.wire("bob") as wire:
        began = trio.current_time()
        assert await let_in(server, lambda: nursery.start_soon(server.hub.drain)) == 1012
        assert (await wire.closed()).code == 1012
        await wire.stream.aclose()
    assert trio.current_time() - began < 5


async def test_codes_of_clients_do_not_each_make_a_time_series() -> None:
    """Codes from 3000 on are anybody's to choose: they are counted together."""
    before = REGISTRY.get_sample_value("whispr_ws_closed_total", {"code": "application"}) or 0
    async with served(MOUNTS, LIFTED) as server:
        for code in (3000, 4321, 4999):
            async with server.wire("eve") as wire:
                await wire.send_frame(CLOSE, close_payload(code))
                assert (await wire.closed()).code == code
            while server.hub.sockets:
                await wait_all_tasks_blocked()
    assert REGISTRY.get_sample_value("whispr_ws_closed_total", {"code": "application"}) == before + 3
    assert REGISTRY.get_sample_value("whispr_ws_closed_total", {"code": "4321"}) is None


# ── drain ──


async def test_a_drain_answers_what_is_in_flight_then_closes_with_1012() -> None:
    """A push taken before the drain gets its reply; channels leave; new connections are turned away."""
    async with served(MOUNTS, LIFTED) as server, server.wire("alice") as wire:
        await wire.join("room:1")
        await wire.send("1", "2", "room:1", "later", {})
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.hub.drain)
            await wait_all_tasks_blocked()
            with pytest.raises(Exception, match=r"cannot connect|HTTP 503|hung up"):
                await _connect_once(server)
            Room.later[0].resolve({"seq": 1})
            assert await wire.receive() == [
                "1",
                "2",
                "room:1",
                "phx_reply",
                {"status": "ok", "response": {"seq": 1}},
            ]
            assert (await wire.closed()).code == 1012
            await wire.stream.aclose()
        assert not server.hub.sockets
        assert Room.left == ["closed"]


async def _connect_once(server: Server) -> None:
    async with server.connect("late"):
        pass


async def test_a_drain_is_bounded(autojump_clock: MockClock) -> None:
    """A push that never ends holds the drain up for drain_s and no longer."""
    async with served(MOUNTS, Limits(drain_s=3, close_s=1)) as server, server.wire("alice") as wire:
        await wire.join("room:1")
        await wire.send("1", "2", "room:1", "later", {})
        await wait_all_tasks_blocked()
        started = trio.current_time()
        await server.hub.drain()
        assert 3 <= trio.current_time() - started <= 4.1


async def test_a_cancelled_server_says_goodbye() -> None:
    """Without a drain, sockets still get a close frame (1001) and their channels leave."""
    async with trio.open_nursery() as nursery:
        async with served(MOUNTS, Limits(close_s=0.1)) as server:
            wire = await nursery.start(_hold_open, server)
            await wire.join("room:1")
        assert (await wire.closed()).code == 1001
        assert Room.left == ["closed"]
        nursery.cancel_scope.cancel()


async def _hold_open(server: Server, task_status: trio.TaskStatus[object] = trio.TASK_STATUS_IGNORED) -> None:
    async with server.wire("alice") as wire:
        task_status.started(wire)
        await trio.sleep_forever()


async def test_an_unmounted_hub_draining_without_sockets_returns_at_once() -> None:
    """There is nothing to wait for."""
    with trio.fail_after(1):
        await Hub().drain()


# ── presence ──


async def test_presence_state_then_diffs(autojump_clock: MockClock) -> None:
    """A joiner gets the state right after its reply; others get one diff for a burst of changes."""
    async with (
        served(MOUNTS, replace(LIFTED, presence_linger_s=0)) as server,
        server.connect("alice") as alice,
        server.connect("bob") as bob,
        server.connect("bob") as desk,
    ):
        watching = await alice.join("room:1", {"present": "calm"})
        event, state = await next_event(watching)
        assert event == "presence_state"
        assert isinstance(state, dict)
        (meta,) = state["alice"]["metas"]
        assert meta["mood"] == "calm"
        assert await next_event(watching) == ("presence_diff", {"joins": state, "leaves": {}})
        first = await bob.join("room:1", {"present": "glad"})
        await desk.join("room:1", {"present": "tired"})
        _, diff = await next_event(watching)
        assert isinstance(diff, dict)
        metas = diff["joins"]["bob"]["metas"]
        assert [meta["mood"] for meta in metas] == ["glad", "tired"]
        assert server.hub.is_present("room:1", "bob")
        await first.push("mood", "merry")
        _, diff = await next_event(watching)
        assert isinstance(diff, dict)
        assert diff["leaves"] == {"bob": {"metas": [metas[0]]}}
        (updated,) = diff["joins"]["bob"]["metas"]
        assert (updated["mood"], updated["phx_ref_prev"]) == ("merry", metas[0]["phx_ref"])
        await first.push("gone", {})
        await desk.abort()
        left: list[str] = []
        while len(left) < 2:
            _, diff = await next_event(watching)
            assert isinstance(diff, dict)
            left += [meta["mood"] for meta in diff["leaves"]["bob"]["metas"]]
        assert sorted(left) == ["merry", "tired"]
        assert not server.hub.is_present("room:1", "bob")
        assert list(server.hub.presence_state("room:1")) == ["alice"]


async def test_a_broken_socket_that_comes_back_was_never_away(autojump_clock: MockClock) -> None:
    """Others see the new socket join and the old one leave in one diff, so nobody is shown as gone."""
    async with served(MOUNTS, LIFTED) as server, server.connect("alice") as alice:
        watching = await alice.join("room:1")
        async with server.connect("bob") as bob:
            await bob.join("room:1", {"present": "glad"})
            await next_event(watching)
            await bob.abort()
        async with server.connect("bob") as bob:
            await bob.join("room:1", {"present": "back"})
            _, diff = await next_event(watching)
        assert isinstance(diff, dict)
        assert [meta["mood"] for meta in diff["joins"]["bob"]["metas"]] == ["back"]
        assert [meta["mood"] for meta in diff["leaves"]["bob"]["metas"]] == ["glad"]


async def test_in_a_crowd_people_are_counted(autojump_clock: MockClock) -> None:
    """Past the limit a topic's clients get a number; back under it they get everybody's names again."""
    limits = replace(LIFTED, presence_people=1, presence_linger_s=0)
    async with served(MOUNTS, limits) as server, server.connect("alice") as alice:
        watching = await alice.join("room:1", {"present": "calm"})
        assert [(await next_event(watching))[0] for _ in range(2)] == ["presence_state", "presence_diff"]
        async with server.connect("bob") as bob:
            late = await bob.join("room:1", {"present": "glad"})
            assert await next_event(watching) == ("presence_count", {"count": 2})
            assert await next_event(late) == ("presence_state", {})
            assert await next_event(late) == ("presence_count", {"count": 2})
        event, state = await next_event(watching)
        assert event == "presence_state"
        assert isinstance(state, dict)
        assert list(state) == ["alice"]


async def test_presence_costs_a_topic_a_bounded_number_of_deliveries(autojump_clock: MockClock) -> None:
    """A topic that would cost more is told less often, of everything that happened meanwhile; others are not held."""
    limits = replace(LIFTED, presence_per_s=2, presence_s=0.05, presence_linger_s=0)
    async with (
        served(MOUNTS, limits) as server,
        server.connect("alice") as alice,
        server.connect("bob") as bob,
    ):
        watching, _ = await alice.join("room:1"), await bob.join("room:1")
        began = trio.current_time()
        for n in range(40):
            server.hub.presence.track("room:1", f"user{n}", {})
            await trio.sleep(0.1)
        server.hub.broadcast("room:1", "end", {})
        told: list[str] = []
        diffs = 0
        with trio.fail_after(30):
            while len(told) < 40:
                event, diff = await watching.__anext__()
                if event == "presence_diff":
                    assert isinstance(diff, dict)
                    told += diff["joins"]
                    diffs += 1
        assert told == [f"user{n}" for n in range(40)]
        assert diffs <= 1 + (trio.current_time() - began)


async def test_an_ended_link_is_present_no_more() -> None:
    """Tracking between a link's end and its channel's leave leaves no ghost."""
    async with served(MOUNTS, LIFTED) as server, server.connect("alice") as phoenix:
        channel = await phoenix.join("room:1", {"present": "calm"})
        (link,) = server.hub.subscribers("room:1")
        await channel.leave()
        link.track({"mood": "haunting"})
        assert not server.hub.is_present("room:1", "alice")


# ── mounting ──


def test_mounting_twice_or_on_the_protocols_topic_is_a_defect() -> None:
    """Such a composition never starts."""
    hub = Hub()
    hub.mount("room", Room)
    with pytest.raises(AssertionError, match="twice"):
        hub.mount("room:", Room)
    with pytest.raises(AssertionError, match="phoenix"):
        hub.mount("phoenix", Room)
    assert hub.factory("room:a:b") is Room
    assert hub.factory("rooms:1") is None


# ── the client ──


async def test_the_client_reports_refusals_and_ends() -> None:
    """A bad token is Rejected with the server's reason; a cut connection is Disconnected for whoever waits."""
    async with served(MOUNTS, LIFTED) as server:
        with pytest.raises(Rejected) as raised:
            async with server.connect("expired"):
                pass
        assert (raised.value.status, raised.value.reason) == (403, "token_expired")
        async with server.connect("alice") as phoenix:
            channel = await phoenix.join("room:1")
            receipt = channel.push_nowait("later", {})
            await phoenix.abort()
            for wait in (receipt.wait, channel.__anext__):
                with pytest.raises(Disconnected):
                    await wait()
            with pytest.raises(Disconnected):
                await phoenix.join("room:2")
            assert (await phoenix.wait_closed()).close_code == 1006


async def test_the_client_raises_its_callers_errors_bare() -> None:
    """An exception out of the `async with` block is not wrapped in a group."""
    async with served(MOUNTS, LIFTED) as server:
        with pytest.raises(KeyError, match="mine"):
            async with server.connect("alice"):
                raise KeyError("mine")


async def test_an_unanswered_heartbeat_ends_the_connection(autojump_clock: MockClock) -> None:
    """A half-open connection is noticed after two intervals."""
    async with trio.open_nursery() as nursery:
        port = await nursery.start(_mute_server)
        server = Server(Hub(), port, nursery)
        async with server.connect("alice", heartbeat_s=10) as phoenix:
            started = trio.current_time()
            assert (await phoenix.wait_closed()).close_code == 1006
            assert trio.current_time() - started == pytest.approx(20)
        nursery.cancel_scope.cancel()


async def _mute_server(task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
    """Upgrade connections and never say a word."""
    from trio_websocket import WebSocketRequest, serve_websocket

    async def mute(request: WebSocketRequest) -> None:
        await request.accept()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_websocket, mute, "127.0.0.1", 0, None)
        task_status.started(server.port)


def test_a_payload_that_is_no_json_is_refused_where_it_is_sent() -> None:
    """`broadcast` raises at its caller, before anything is sent."""
    with pytest.raises(TypeError):
        protocol.encode_broadcast("t", "e", {"x": object()})
    assert json.loads(protocol.encode_json({"a": 1})) == {"a": 1}
