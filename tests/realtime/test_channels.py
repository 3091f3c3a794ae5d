"""Channels as a client meets them: Phoenix's rules of joining, pushing, leaving and failing, frame by frame."""

from __future__ import annotations

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from whispr.errors import Code, WhisprError, conflict, denied, exhausted, internal, invalid, unavailable
from whispr.realtime import frames
from whispr.realtime.channel import (
    NO_REPLY,
    Channel,
    Deferred,
    LeaveReason,
    error_response,
)
from whispr.realtime.limits import Limits
from whispr.realtime.link import Link
from whispr.realtime.testing import served

UNMATCHED = {"status": "error", "response": {"reason": "unmatched topic"}}
OK = {"status": "ok", "response": {}}


class Demo(Channel):
    """Does what its events say."""

    left: list[tuple[str, LeaveReason]]
    deferred: list[Deferred]
    handled: list[object]

    async def join(self, payload: object) -> object:
        if isinstance(payload, dict) and payload.get("refuse"):
            raise denied("members only", "not_a_member")
        if isinstance(payload, dict) and payload.get("hang"):
            await trio.sleep_forever()
        if isinstance(payload, dict) and payload.get("crash"):
            raise RuntimeError("in join")
        return {"topic": self.link.topic, "user": self.link.session.user_id}

    def handle_now(self, event: str, payload: object) -> object:
        if event == "now":
            return {"now": payload}
        if event == "later":
            Demo.deferred.append(Deferred())
            return Demo.deferred[-1]
        return NotImplemented

    async def handle(self, event: str, payload: object) -> object:
        Demo.handled.append((event, payload))
        if event == "echo":
            return payload
        if event == "shout":
            self.link.broadcast("shouted", payload)
            return None
        if event == "whisper":
            self.link.broadcast_from("whispered", payload)
            return None
        if event == "slow":
            await trio.sleep_forever()
        if event == "quiet":
            return NO_REPLY
        if event == "crash":
            raise RuntimeError("in handle")
        if event == "unjsonable":
            return {"response": object()}
        if event == "grouped":
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._refuse)
        if event == "beside":
            self.link.start_soon(self._crash)
            return None
        if event == "kick_me":
            self.link.close("kicked", {"why": payload})
            return NO_REPLY
        return await super().handle(event, payload)

    async def leave(self, reason: LeaveReason) -> None:
        Demo.left.append((self.link.topic, reason))

    async def _refuse(self) -> None:
        raise conflict("too old", "not_editable")

    async def _crash(self) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("beside")


@pytest.fixture(autouse=True)
def _fresh() -> None:
    Demo.left, Demo.deferred, Demo.handled = [], [], []


async def test_a_join_is_answered_with_both_refs_and_a_push_with_its_own() -> None:
    """Replies echo join_ref and ref; the response is the handler's result."""
    async with served({"demo": Demo}) as server, server.wire("alice") as wire:
        await wire.send("7", "7", "demo:1", "phx_join", {})
        response = {"topic": "demo:1", "user": "alice"}
        assert await wire.receive() == [
            "7",
            "7",
            "demo:1",
            "phx_reply",
            {"status": "ok", "response": response},
        ]
        await wire.send("7", "8", "demo:1", "echo", {"a": [1]})
        assert await wire.receive() == [
            "7",
            "8",
            "demo:1",
            "phx_reply",
            {"status": "ok", "response": {"a": [1]}},
        ]
        await wire.send("7", 9, "demo:1", "now", 1)
        assert await wire.receive() == [
            "7",
            9,
            "demo:1",
            "phx_reply",
            {"status": "ok", "response": {"now": 1}},
        ]


async def test_heartbeats_are_answered() -> None:
    """The heartbeat of phoenix.js gets an ok with null join_ref; the topic phoenix has nothing else."""
    async with served({}) as server, server.wire("alice") as wire:
        await wire.send(None, "1", "phoenix", "heartbeat", {})
        assert await wire.receive() == [None, "1", "phoenix", "phx_reply", OK]
        await wire.send(None, "2", "phoenix", "other", {})
        assert await wire.receive() == [None, "2", "phoenix", "phx_reply", UNMATCHED]


@pytest.mark.parametrize("event", ["phx_join", "echo"])
async def test_unknown_and_unjoined_topics_are_unmatched(event: str) -> None:
    """A topic that nothing serves or that was not joined is answered with a null join_ref."""
    async with served({"demo": Demo}) as server, server.wire("alice") as wire:
        topic = "nothing:1" if event == "phx_join" else "demo:1"
        await wire.send("1", "1", topic, event, {})
        assert await wire.receive() == [None, "1", topic, "phx_reply", UNMATCHED]


async def test_a_refused_join_says_why_and_leaves_nothing_behind() -> None:
    """The reason and message of the error reach the client; nothing is subscribed, `leave` is not called."""
    async with served({"demo": Demo}) as server, server.wire("alice") as wire:
        reply = await wire.join("demo:1", {"refuse": True})
        assert reply == {"status": "error", "response": {"reason": "not_a_member", "message": "members only"}}
        assert server.hub.broadcast("demo:1", "e", {}) == 0
        await wire.send("1", "2", "demo:1", "echo", {})
        assert await wire.receive() == [None, "2", "demo:1", "phx_reply", UNMATCHED]
        assert Demo.left == []


async def test_pushes_sent_before_a_refused_join_was_answered_are_unmatched() -> None:
    """A push behind a join that fails gets the answer it would have got a moment later."""
    async with served({"demo": Demo}) as server, server.wire("alice") as wire:
        await wire.send("1", "1", "demo:1", "phx_join", {"refuse": True})
        await wire.send("1", "2", "demo:1", "echo", {})
        await wire.receive()
        assert await wire.receive() == [None, "2", "demo:1", "phx_reply", UNMATCHED]
        assert Demo.handled == []


async def test_a_broadcast_reaches_its_sender_before_the_reply() -> None:
    """What a handler broadcasts has null refs and precedes the reply of the push."""
    async with served({"demo": Demo}) as server, server.wire("alice") as wire, server.wire("bob") as other:
        await wire.join("demo:1")
        await other.join("demo:1")
        await wire.send("1", "2", "demo:1", "shout", {"x": 1})
        broadcast = [None, None, "demo:1", "shouted", {"x": 1}]
        assert await wire.receive() == broadcast
        assert await wire.receive() == ["1", "2", "demo:1", "phx_reply", OK]
        assert await other.receive() == broadcast


async def test_broadcast_from_skips_the_sending_link_only() -> None:
    """The sender's other sockets do get it."""
    async with (
        served({"demo": Demo}) as server,
        server.wire("alice") as wire,
        server.wire("alice") as other,
    ):
        await wire.join("demo:1")
        await other.join("demo:1")
        await wire.send("1", "2", "demo:1", "whisper", {"x": 1})
        assert await other.receive() == [None, None, "demo:1", "whispered", {"x": 1}]
        assert await wire.receive() == ["1", "2", "demo:1", "phx_reply", OK]


async def test_a_leave_is_answered_and_then_closed() -> None:
    """ok, then phx_close with the join_ref as both refs; the channel's `leave` runs; a second leave is still ok."""
    async with served({"demo": Demo}) as server, server.wire("alice") as wire:
        await wire.join("demo:1")
        await wire.send("1", "2", "demo:1", "phx_leave", {})
        assert await wire.receive() == ["1", "2", "demo:1", "phx_reply", OK]
        assert await wire.receive() == ["1", "1", "demo:1", "phx_close", {}]
        await wire.send("1", "3", "demo:1", "phx_leave", {})
        assert await wire.receive() == ["1", "3", "demo:1", "phx_reply", OK]
        assert Demo.left == [("demo:1", "left")]


async def test_a_leave_waits_for_the_replies_in_flight() -> None:
    """A client that pipelines its last messages and leaves learns what became of them."""
    async with served({"demo": Demo}) as server, server.wire("alice") as wire:
        await wire.join("demo:1")
        await wire.send("1", "2", "demo:1", "later", {})
        await wire.send("1", "3", "demo:1", "phx_leave", {})
        await wait_all_tasks_blocked()
        Demo.deferred[0].resolve({"n": 1})
        replies = [await wire.receive() for _ in range(3)]
        assert replies[0] == ["1", "2", "demo:1", "phx_reply", {"status": "ok", "response": {"n": 1}}]
        assert replies[1] == ["1", "3", "demo:1", "phx_reply", OK]
        assert replies[2] == ["1", "1", "demo:1", "phx_close", {}]


async def test_a_second_join_of_a_topic_replaces_the_first() -> None:
    """The old channel leaves first; on the wire the new join's ok comes before the old one's phx_close."""
    async with served({"demo": Demo}) as server, server.wire("alice") as wire:
        await wire.join("demo:1", ref="1")
        assert await wire.join("demo:1", ref="5") == {
            "status": "ok",
            "response": {"topic": "demo:1", "user": "alice"},
        }
        assert await wire.receive() == ["1", "1", "demo:1", "phx_close", {}]
        assert Demo.left == [("demo:1", "replaced")]
        assert server.hub.broadcast("demo:1", "e", {}) == 1
        assert await wire.receive() == [None, None, "demo:1", "e", {}]


async def test_a_second_join_cancels_one_that_has_not_been_answered() -> None:
    """A client whose join timed out may join again; the pending one gets no answer but its phx_close."""
    async with served({"demo": Demo}) as server, server.wire("alice") as wire:
        await wire.send("1", "1", "demo:1", "phx_join", {"hang": True})
        await wire.send("2", "2", "demo:1", "phx_join", {})
        reply = await wire.receive()
        assert isinstance(reply, list)
        assert reply[:2] == ["2", "2"]
        assert await wire.receive() == ["1", "1", "demo:1", "phx_close", {}]


async def test_a_push_of_an_earlier_join_is_ignored_and_a_null_join_ref_accepted() -> None:
    """What a client sent before it rejoined must not act on the new channel."""
    async with served({"demo": Demo}) as server, server.wire("alice") as wire:
        await wire.join("demo:1", ref="1")
        await wire.join("demo:1", ref="2")
        await wire.receive()
        await wire.send("1", "3", "demo:1", "echo", "stale")
        await wire.send("1", "4", "demo:1", "phx_leave", {})
        await wire.send(None, "5", "demo:1", "echo", "fresh")
        assert await wire.receive() == [
            "2",
            "5",
            "demo:1",
            "phx_reply",
            {"status": "ok", "response": "fresh"},
        ]
        assert Demo.handled == [("echo", "fresh")]


async def test_an_unexpected_exception_is_a_phx_error_and_the_client_may_rejoin() -> None:
    """The crash is reported without its insides, the channel leaves, and a new join works."""
    async with served({"demo": Demo}) as server, server.wire("alice") as wire:
        await wire.join("demo:1")
        for event in ("crash", "unjsonable", "beside"):
            await wire.send("1", "2", "demo:1", event, {})
            if event == "beside":
                await wire.receive()
            assert await wire.receive() == ["1", "1", "demo:1", "phx_error", {"reason": "channel_crash"}]
            assert await wire.join("demo:1") == {
                "status": "ok",
                "response": {"topic": "demo:1", "user": "alice"},
            }
        await wait_all_tasks_blocked()
        assert Demo.left == [("demo:1", "crashed")] * 3


async def test_a_crash_in_join_or_in_the_factory_is_an_internal_error() -> None:
    """The client hears `internal` and nothing of what happened; the socket lives on."""

    def broken(link: Link) -> Channel:
        raise RuntimeError(link.topic)

    async with served({"demo": Demo, "broken": broken}) as server, server.wire("alice") as wire:
        response = {"reason": "internal", "message": "join crashed"}
        assert await wire.join("demo:1", {"crash": True}) == {"status": "error", "response": response}
        assert await wire.join("broken:1") == {"status": "error", "response": response}
        assert await wire.join("demo:2") != {"status": "error", "response": response}


async def test_expected_errors_are_error_replies_also_out_of_a_nursery() -> None:
    """A WhisprError becomes `{reason, …}`, whether raised plainly or in a group."""
    async with served({"demo": Demo}) as server, server.wire("alice") as wire:
        await wire.join("demo:1")
        await wire.send("1", "2", "demo:1", "nonsense", {})
        reply = await wire.receive()
        assert isinstance(reply, list)
        assert reply[4]["status"] == "error"
        assert (reply[4]["response"]["reason"], reply[4]["response"]["field"]) == ("invalid_payload", "event")
        await wire.send("1", "3", "demo:1", "grouped", {})
        response = {"reason": "not_editable", "message": "too old"}
        assert await wire.receive() == [
            "1",
            "3",
            "demo:1",
            "phx_reply",
            {"status": "error", "response": response},
        ]


async def test_a_push_without_a_ref_and_one_with_no_reply_are_not_answered() -> None:
    """Nobody waits for either."""
    async with served({"demo": Demo}) as server, server.wire("alice") as wire:
        await wire.join("demo:1")
        await wire.send("1", None, "demo:1", "echo", 1)
        await wire.send("1", None, "demo:1", "nonsense", 1)
        await wire.send("1", "2", "demo:1", "quiet", 1)
        await wire.send("1", "3", "demo:1", "echo", 2)
        assert await wire.receive() == ["1", "3", "demo:1", "phx_reply", {"status": "ok", "response": 2}]


async def test_binary_pushes_are_answered_in_binary() -> None:
    """A bytes payload reaches the handler as bytes; a bytes result is a binary reply."""
    async with served({"demo": Demo}) as server, server.wire("alice") as wire:
        await wire.join("demo:1")
        await wire.send_frame(2, b"\x00\x01\x01\x06\x0412demo:1echo\xff\x00")
        assert await wire.receive() == b"\x01\x01\x01\x06\x0212demo:1ok\xff\x00"


async def test_the_server_can_close_a_channel_with_a_last_event() -> None:
    """`close` pushes the event with the join_ref, then phx_close; the channel leaves as kicked."""
    async with served({"demo": Demo}) as server, server.wire("alice") as wire:
        await wire.join("demo:1")
        await wire.send("1", "2", "demo:1", "kick_me", "spam")
        assert await wire.receive() == ["1", None, "demo:1", "kicked", {"why": "spam"}]
        assert await wire.receive() == ["1", "1", "demo:1", "phx_close", {}]
        await wait_all_tasks_blocked()
        assert Demo.left == [("demo:1", "kicked")]


async def test_a_lost_connection_makes_every_channel_leave() -> None:
    """Cutting TCP ends the channels as closed."""
    async with served({"demo": Demo}) as server:
        async with server.wire("alice") as wire:
            await wire.join("demo:1")
            await wire.join("demo:2", ref="2")
        while server.hub.sockets:
            await trio.lowlevel.checkpoint()
        assert sorted(Demo.left) == [("demo:1", "closed"), ("demo:2", "closed")]


async def test_a_busy_channel_leaves_too_when_the_connection_is_lost() -> None:
    """Also one that is in the middle of a push, and one whose rejoin waits for it."""
    async with served({"demo": Demo}) as server:
        async with server.wire("alice") as wire:
            await wire.join("demo:1")
            await wire.join("demo:2", ref="2")
            await wire.send("1", "3", "demo:1", "slow", {})
            await wire.send("2", "4", "demo:2", "slow", {})
            await wire.send("5", "5", "demo:2", "phx_join", {})
        with trio.fail_after(2):
            while server.hub.sockets:
                await trio.lowlevel.checkpoint()
        assert ("demo:1", "closed") in Demo.left
        assert ("demo:2", "replaced") in Demo.left


# ── deferred replies ──


async def test_deferred_replies_are_sent_when_settled_in_any_order() -> None:
    """Pipelined pushes are each answered by their own outcome, ok or error."""
    async with served({"demo": Demo}) as server, server.wire("alice") as wire:
        await wire.join("demo:1")
        for ref in ("2", "3"):
            await wire.send("1", ref, "demo:1", "later", {})
        await wire.send("1", "4", "demo:1", "echo", {})
        assert await wire.receive() == ["1", "4", "demo:1", "phx_reply", OK]
        first, second = Demo.deferred
        second.fail(exhausted("slow down", 1.5))
        first.resolve({"seq": 1})
        first.resolve({"seq": 2})
        refused = {"reason": "rate_limited", "message": "slow down", "retry_after_ms": 1500}
        assert await wire.receive() == [
            "1",
            "3",
            "demo:1",
            "phx_reply",
            {"status": "error", "response": refused},
        ]
        assert await wire.receive() == [
            "1",
            "2",
            "demo:1",
            "phx_reply",
            {"status": "ok", "response": {"seq": 1}},
        ]


async def test_an_already_settled_deferred_is_answered_at_once() -> None:
    """An outcome known before the handler returns needs no second step."""

    class Ready(Channel):
        def handle_now(self, event: str, payload: object) -> object:
            done = Deferred()
            done.resolve(payload)
            return done

    async with served({"ready": Ready}) as server, server.wire("alice") as wire:
        await wire.join("ready:1")
        await wire.send("1", "2", "ready:1", "e", 5)
        assert await wire.receive() == ["1", "2", "ready:1", "phx_reply", {"status": "ok", "response": 5}]


async def test_settling_after_the_channel_ended_is_harmless() -> None:
    """The log may settle a reply whose socket is gone."""
    async with served({"demo": Demo}) as server:
        async with server.wire("alice") as wire:
            await wire.join("demo:1")
            await wire.send("1", "2", "demo:1", "later", {})
            await wait_all_tasks_blocked()
        while server.hub.sockets:
            await trio.lowlevel.checkpoint()
        Demo.deferred[0].resolve({})
        assert Demo.deferred[0].settled


async def test_a_deferred_response_that_is_no_json_crashes_the_channel_not_its_settler() -> None:
    """Whoever settles a batch of replies must not be stopped by one of them."""
    async with served({"demo": Demo}) as server, server.wire("alice") as wire:
        await wire.join("demo:1")
        await wire.send("1", "2", "demo:1", "later", {})
        await wait_all_tasks_blocked()
        Demo.deferred[0].resolve(object())
        assert await wire.receive() == ["1", "1", "demo:1", "phx_error", {"reason": "channel_crash"}]


async def test_deferred_replies_are_bounded_and_hold_back_what_follows() -> None:
    """Past the limit the next push waits until one is settled; order is kept."""
    async with served({"demo": Demo}, Limits(deferred_len=2)) as server, server.wire("alice") as wire:
        await wire.join("demo:1")
        for ref in ("2", "3", "4"):
            await wire.send("1", ref, "demo:1", "later", {})
        await wire.send("1", "5", "demo:1", "echo", {})
        await wait_all_tasks_blocked()
        assert len(Demo.deferred) == 2
        Demo.deferred[0].resolve()
        assert await wire.receive() == ["1", "2", "demo:1", "phx_reply", OK]
        await wait_all_tasks_blocked()
        assert len(Demo.deferred) == 3
        Demo.deferred[1].resolve()
        assert await wire.receive() == ["1", "3", "demo:1", "phx_reply", OK]
        assert await wire.receive() == ["1", "5", "demo:1", "phx_reply", OK]


async def test_an_overdue_deferred_reply_is_unavailable(autojump_clock: trio.testing.MockClock) -> None:
    """A reply nobody settles is failed after push_s, before phoenix.js gives up at 10 s."""
    async with served({"demo": Demo}) as server, server.wire("alice") as wire:
        await wire.join("demo:1")
        await wire.send("1", "2", "demo:1", "later", {})
        started = trio.current_time()
        reply = await wire.receive()
        assert isinstance(reply, list)
        assert reply[4]["response"]["reason"] == "unavailable"
        assert 5 <= trio.current_time() - started <= 8
        Demo.deferred[0].resolve({"too": "late"})
        await wire.send("1", "3", "demo:1", "echo", {})
        assert await wire.receive() == ["1", "3", "demo:1", "phx_reply", OK]


# ── time and order ──


@pytest.mark.parametrize("what", ["push", "join"])
async def test_what_takes_too_long_is_unavailable(what: str, autojump_clock: trio.testing.MockClock) -> None:
    """A handler is cancelled after push_s, and the client is told that it may try again."""
    async with served({"demo": Demo}) as server, server.wire("alice") as wire:
        started = trio.current_time()
        if what == "join":
            reply = await wire.join("demo:1", {"hang": True})
        else:
            await wire.join("demo:1")
            await wire.send("1", "2", "demo:1", "slow", {})
            message = await wire.receive()
            assert isinstance(message, list)
            reply = message[4]
        assert reply == {
            "status": "error",
            "response": {"reason": "unavailable", "message": "it took too long", "retry_after_ms": 1000},
        }
        assert trio.current_time() - started == pytest.approx(5.0)


async def test_pushes_of_a_channel_are_in_order_and_other_channels_go_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A slow push holds back its own channel only."""
    async with served({"demo": Demo}) as server, server.wire("alice") as wire:
        await wire.join("demo:1")
        await wire.join("demo:2", ref="2")
        await wire.send("1", "3", "demo:1", "slow", {})
        await wire.send("1", "4", "demo:1", "now", {})
        await wire.send("2", "5", "demo:2", "echo", {})
        refs = []
        for _ in range(3):
            reply = await wire.receive()
            assert isinstance(reply, list)
            refs.append(reply[1])
        assert refs == ["5", "3", "4"]


async def test_a_full_inbox_holds_the_socket_back(autojump_clock: trio.testing.MockClock) -> None:
    """Past inbox_len the socket is not read; once the channel takes pushes again nothing was lost."""
    async with served({"demo": Demo}, Limits(inbox_len=2)) as server, server.wire("alice") as wire:
        await wire.join("demo:1")
        await wire.send("1", "slow", "demo:1", "slow", {})
        for ref in range(10):
            await wire.send("1", str(ref), "demo:1", "echo", ref)
        await wire.send(None, "hb", "phoenix", "heartbeat", {})
        refs = []
        for _ in range(12):
            reply = await wire.receive()
            assert isinstance(reply, list)
            refs.append(reply[1])
        assert refs[0] == "slow", "the heartbeat was read past a full inbox"
        assert [ref for ref in refs if ref != "hb"] == ["slow", *map(str, range(10))]


async def test_a_channel_that_does_not_leave_in_time_is_given_up(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """`leave` is shielded but bounded: a stuck one cannot keep the socket."""

    class Stuck(Channel):
        async def leave(self, reason: LeaveReason) -> None:
            await trio.sleep_forever()

    async with served({"stuck": Stuck}) as server:
        async with server.wire("alice") as wire:
            await wire.join("stuck:1")
        started = trio.current_time()
        await server.hub.drain()
        assert trio.current_time() - started == pytest.approx(5.0)


# ── error replies ──


@pytest.mark.parametrize(
    ("error", "response"),
    [
        (
            invalid({"text": "too short", "kind": "unknown"}),
            {
                "reason": "invalid_payload",
                "field": "text",
                "fields": {"text": "too short", "kind": "unknown"},
            },
        ),
        (
            denied("muted", "muted", {"until": "2030-01-01T00:00:00Z"}),
            {"reason": "muted", "until": "2030-01-01T00:00:00Z"},
        ),
        (exhausted("slow down", 0.25), {"reason": "rate_limited", "retry_after_ms": 250}),
        (unavailable("database away", 2), {"reason": "unavailable", "retry_after_ms": 2000}),
        (WhisprError(Code.DEADLINE_EXCEEDED, "late"), {"reason": "unavailable", "retry_after_ms": 1000}),
        (WhisprError(Code.UNAVAILABLE, "away"), {"reason": "unavailable", "retry_after_ms": 1000}),
        (internal("oops"), {"reason": "internal"}),
    ],
)
def test_every_error_has_its_reply(error: WhisprError, response: dict[str, object]) -> None:
    """Reason, message, and what the reason needs: field, until, retry_after_ms."""
    rendered = error_response(error)
    assert rendered.pop("message") == error.message
    assert rendered == response


class Faulty(Channel):
    """Fails where it is only asked something."""

    @property
    def media(self) -> frozenset[str]:
        if self.link.subtopic == "media":
            raise RuntimeError("in media")
        return frozenset()

    def missed_presence(self) -> None:
        raise RuntimeError("in missed_presence")


async def test_a_fault_wherever_a_channel_is_asked_ends_that_channel_alone() -> None:
    """What a channel raises in any of its callbacks is a phx_error of its topic; the socket's others go on."""
    async with served({"demo": Demo, "faulty": Faulty}) as server, server.wire("alice") as wire:
        for ref, topic in (("1", "demo:1"), ("2", "faulty:media"), ("3", "faulty:presence")):
            await wire.join(topic, ref=ref)
        await wire.send("2", "4", "faulty:media", "x", {})
        assert await wire.receive() == ["2", "2", "faulty:media", "phx_error", {"reason": "channel_crash"}]
        (link,) = server.hub.subscribers("faulty:presence")
        assert link.socket.transport is not None
        link.socket.transport._owner.caught_up([link])
        assert await wire.receive() == ["3", "3", "faulty:presence", "phx_error", {"reason": "channel_crash"}]
        await wire.send("1", "5", "demo:1", "echo", {"still": "here"})
        reply = await wire.receive()
        assert isinstance(reply, list)
        assert reply[4] == {"status": "ok", "response": {"still": "here"}}


# ── while joining ──


class Door(Channel):
    """Is joined when the test says so."""

    opened: trio.Event
    at_work: list[str]

    async def join(self, payload: object) -> object:
        Door.at_work.append(f"join {payload}")
        if payload != "at once":
            await Door.opened.wait()
        return None

    async def leave(self, reason: LeaveReason) -> None:
        Door.at_work.append(f"leaving: {reason}")
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
        Door.at_work.append("left")


@pytest.fixture(autouse=True)
def _closed_door() -> None:
    Door.opened, Door.at_work = trio.Event(), []


@pytest.mark.parametrize("whom", ["one", "all"])
async def test_a_channel_closed_while_it_is_joined_is_a_refused_join(whom: str) -> None:
    """Whoever is put out in that moment is told why, as any other who may not join, and nothing is left of it."""
    async with served({"door": Door}) as server, server.wire("eve") as wire:
        await wire.send("1", "7", "door:1", "phx_join", {})
        await wire.send("1", "8", "door:1", "knock", {})
        await wait_all_tasks_blocked()
        if whom == "one":
            assert server.hub.kick("door:1", "eve", "user_banned", {"reason": "spam"}) == 1
        else:
            server.hub.close("door:1", "user_banned", {})
        reply = await wire.receive()
        assert isinstance(reply, list)
        assert reply[:4] == ["1", "7", "door:1", "phx_reply"]
        assert reply[4]["status"] == "error"
        assert reply[4]["response"]["reason"] == "user_banned"
        assert await wire.receive() == [None, "8", "door:1", "phx_reply", UNMATCHED]
        assert not server.hub.joined_topics()
        Door.opened.set()
        assert (await wire.join("door:1", ref="9"))["status"] == "ok"  # type: ignore[index]  # it is a dict


async def test_who_is_put_out_as_they_are_let_in_is_not_in() -> None:
    """A join that has its answer, but not yet its turn, when the channel is closed does not go live after all."""
    async with served({"door": Door}) as server, server.wire("eve") as wire:
        await wire.send("1", "1", "door:1", "phx_join", {})
        await wait_all_tasks_blocked()
        Door.opened.set()
        server.hub.kick("door:1", "eve", "user_banned", {})
        reply = await wire.receive()
        assert isinstance(reply, list)
        assert (reply[4]["status"], reply[4]["response"]["reason"]) == ("error", "user_banned")
        await wait_all_tasks_blocked()
        await wire.send("1", "2", "door:1", "knock", {})
        assert await wire.receive() == [None, "2", "door:1", "phx_reply", UNMATCHED]
        assert Door.at_work[-1] == "left"  # its channel had been let in, so it leaves


async def test_joins_of_a_topic_in_one_breath_end_the_first_before_the_last() -> None:
    """However many come before any has begun, the joined channel leaves before the last joins, and each is told."""
    async with served({"door": Door}) as server, server.wire("alice") as wire:
        await wire.join("door:1", "at once", ref="1")
        frames_together = [
            frames.encode_masked_frame(
                frames.TEXT, f'["{n}","{n}","door:1","phx_join","at once"]'.encode(), b"mask"
            )
            for n in (2, 3, 4)
        ]
        await wire.stream.send_all(b"".join(frames_together))
        heard = [await wire.receive() for _ in range(4)]
        assert Door.at_work == ["join at once", "leaving: replaced", "left", "join at once"]
        assert heard[0] == ["4", "4", "door:1", "phx_reply", OK]
        assert sorted(each[0] for each in heard[1:] if isinstance(each, list)) == ["1", "2", "3"]
        assert {each[3] for each in heard[1:] if isinstance(each, list)} == {"phx_close"}


async def test_what_a_join_has_the_server_keep_is_bounded() -> None:
    """Topics and join_refs over what a binary frame holds are refused by name, and not remembered."""
    async with served({"demo": Demo}) as server, server.wire("eve") as wire:
        fits = "demo:" + "x" * 250
        assert (await wire.join(fits, ref="1" * 255))["status"] == "ok"  # type: ignore[index]  # it is a dict
        for topic, ref, field in ((fits + "x", "2", "topic"), ("demo:2", "3" * 256, "join_ref")):
            reply = await wire.join(topic, {"refuse": True}, ref=ref)
            assert isinstance(reply, dict)
            assert (reply["response"]["reason"], reply["response"]["field"]) == ("invalid_payload", field)
        assert server.hub.joined_topics() == (fits,)
        assert not server.hub.refusals._refused
