"""Long polls: Phoenix's protocol request by request, and every bound of a session."""

from __future__ import annotations

import base64
import json

import trio
import trio.testing

from tests.realtime.polling import Polling, poll_served
from whispr.realtime import protocol
from whispr.realtime.channel import Channel
from whispr.realtime.limits import Limits
from whispr.realtime.testing import Server

FAST = Limits(poll_s=0.2)


class Echo(Channel):
    """Answers with what it was sent, and tells everybody."""

    async def handle(self, event: str, payload: object) -> object:
        if event == "say":
            self.link.broadcast("said", payload)
            return None
        return payload


def opened(server: Server, user: str = "alice") -> Polling:
    return Polling(server.port, user)


async def told(client: Polling, count: int) -> list[list[object]]:
    """Poll until that many messages have come."""
    messages: list[list[object]] = []
    while len(messages) < count:
        answer = await client.get()
        assert answer["status"] in (200, 204), answer
        messages += [json.loads(text) for text in answer["messages"]]
    return messages


async def test_a_session_is_opened_polled_and_posted_to(autojump_clock: None) -> None:
    """GET 410 with a token, POST 200, GET 200 with the messages in order, GET 204 when there is nothing."""
    async with poll_served({"echo": Echo}) as server:
        client = opened(server)
        first = await client.open()
        assert (first["status"], first["messages"]) == (410, [])
        assert first["token"].startswith("lp1.")
        assert (await client.post(["1", "1", "echo:1", "phx_join", {}]))["status"] == 200
        assert await told(client, 1) == [["1", "1", "echo:1", "phx_reply", {"status": "ok", "response": {}}]]
        assert (await client.post(["1", "2", "echo:1", "say", {"n": 1}]))["status"] == 200
        said, reply = await told(client, 2)
        assert said == [None, None, "echo:1", "said", {"n": 1}]
        assert reply[:4] == ["1", "2", "echo:1", "phx_reply"]
        began = trio.current_time()
        assert (await client.get())["status"] == 204
        assert trio.current_time() - began >= 10.0


async def test_binary_is_base64_both_ways(autojump_clock: None) -> None:
    """A binary push travels as base64; what is binary from the server arrives as JSON with base64 in it."""
    frame = protocol.encode_client_message("1", "2", "echo:1", "any", b"\x00\xff")[1]
    shout = protocol.encode_client_message("1", "3", "echo:1", "say", b"\x01\x02")[1]
    async with poll_served({"echo": Echo}) as server:
        client = opened(server)
        await client.open()
        await client.post(["1", "1", "echo:1", "phx_join", {}])
        await client.post(body=base64.b64encode(frame) + b"\n" + base64.b64encode(shout))
        _, reply, said, _ = await told(client, 4)
        assert reply == ["1", "2", "echo:1", "phx_reply", {"status": "ok", "response": {"base64": "AP8="}}]
        assert said == [None, None, "echo:1", "said", {"base64": "AQI="}]


async def test_who_may_not_come_in_is_told_403(autojump_clock: None) -> None:
    """No token, a bad one, a foreign origin, and an unknown version are refused, in JSON."""
    async with poll_served({"echo": Echo}) as server:
        for user, headers, reason in (
            ("", {}, "unauthorized"),
            ("expired", {}, "token_expired"),
            ("alice", {"origin": "https://evil.example"}, "forbidden_origin"),
        ):
            answer = await opened(server, user).open(**headers)
            assert (answer["status"], answer["reason"]) == (403, reason)
        client = opened(server)
        client.query = client.query.replace("2.0.0", "9.9.9")
        assert (await client.open())["status"] == 403
        client = opened(server, "")
        assert (await client.open(**{"x-phoenix-authtoken": "alice"}))["status"] == 410


async def test_an_allowed_page_may_read_the_answers(autojump_clock: None) -> None:
    """CORS: a preflight and an answer name the allowed origin."""
    page = "https://app.example"
    async with poll_served({"echo": Echo}, origins=[page]) as server:
        client = opened(server)
        status, headers, _ = await client.exchange("OPTIONS", headers={"origin": page})
        assert status == 200
        assert headers["access-control-allow-origin"] == page
        assert "x-phoenix-authtoken" in headers["access-control-allow-headers"]
        _, headers, body = await client.exchange("GET", headers={"origin": page})
        assert headers["access-control-allow-origin"] == page
        assert json.loads(body)["status"] == 410


async def test_a_token_that_is_not_ours_is_gone(autojump_clock: None) -> None:
    """A forged, foreign or stale session token is answered with 410, and opens nothing."""
    async with poll_served({"echo": Echo}) as server:
        client = opened(server)
        await client.open()
        good = str(client.token)
        for forged in (good[:-1] + ("A" if good[-1] != "A" else "B"), "lp1.a.b.c", "lp1.x", good + ".x"):
            client.token = forged
            assert (await client.get())["status"] == 410
            assert (await client.post(["1", "1", "echo:1", "phx_join", {}]))["status"] == 410
        client.token = None
        assert (await client.post(["1", "1", "echo:1", "phx_join", {}]))["status"] == 410
        assert len(server.hub.sockets) == 1


async def test_a_client_that_stops_polling_is_forgotten(autojump_clock: None) -> None:
    """Its session ends after `poll_idle_s`, its channels leave, its seat is free, and its token is gone."""
    async with poll_served({"echo": Echo}, Limits(user_sockets=1)) as server:
        client = opened(server)
        await client.open()
        await client.post(["1", "1", "echo:1", "phx_join", {}])
        busy = await opened(server).open()
        assert (busy["status"], busy["reason"]) == (500, "too_many_sockets")
        await trio.sleep(20)
        assert not server.hub.sockets
        assert not server.hub.subscribers("echo:1")
        assert (await client.get())["status"] == 410
        assert (await opened(server).open())["status"] == 410


async def test_a_client_that_polls_stays(autojump_clock: None) -> None:
    """Polls alone, without heartbeats, keep a session for longer than any idle limit."""
    async with poll_served({"echo": Echo}) as server:
        client = opened(server)
        await client.open()
        for _ in range(10):
            assert (await client.get())["status"] == 204
        assert len(server.hub.sockets) == 1


async def test_a_full_buffer_ends_the_session(autojump_clock: None) -> None:
    """Messages that nobody fetches are kept up to `buffer_bytes`; past that all is dropped and the session gone."""
    async with poll_served({"echo": Echo}, Limits(buffer_bytes=1000, operations_per_min=0)) as server:
        client = opened(server)
        await client.open()
        await client.post(["1", "1", "echo:1", "phx_join", {}])
        await told(client, 1)
        server.hub.broadcast("echo:1", "big", "x" * 5000)
        assert len(await told(client, 1)) == 1, (
            "one large message to a client that polls is no sign of slowness"
        )
        for _ in range(30):
            server.hub.broadcast("echo:1", "news", "x" * 50)
        await trio.testing.wait_all_tasks_blocked()
        assert (await client.get())["status"] == 410


async def test_too_much_in_one_post_is_refused(autojump_clock: None) -> None:
    """More than 100 lines, a message over `frame_bytes`, a body over `poll_body_bytes`: 413; nonsense: 400."""
    async with poll_served({"echo": Echo}, Limits(frame_bytes=1000, poll_body_bytes=5000)) as server:
        client = opened(server)
        await client.open()
        assert (await client.post(body=b"[]\n" * 101))["status"] == 413
        assert (await client.post(body=b"[" + b"1" * 1001))["status"] == 413
        assert (await client.post(body=b"[" + b"1" * 6000))["status"] == 413
        assert (await client.post(body=b"~~~"))["status"] == 400
        assert (await client.post(body=b'["\xff"]'))["status"] == 400


async def test_operations_are_counted_as_a_sockets_are(autojump_clock: None) -> None:
    """What is over the budget is answered `rate_limited`."""
    async with poll_served({"echo": Echo}, Limits(operations_per_min=2)) as server:
        client = opened(server)
        await client.open()
        pushes = [["1", str(n), "echo:1", "x", n] for n in (2, 3)]
        await client.post(["1", "1", "echo:1", "phx_join", {}], *pushes)
        replies = {str(reply[1]): reply[4] for reply in await told(client, 3)}
        assert replies["2"] == {"status": "ok", "response": 2}
        refused = replies["3"]
        assert isinstance(refused, dict)
        assert refused["response"]["reason"] == "rate_limited"


async def test_a_newer_poll_takes_over(autojump_clock: None) -> None:
    """Of two polls the older is answered with nothing, at once; the newer gets what comes."""
    async with poll_served({"echo": Echo}) as server:
        client = opened(server)
        await client.open()
        await client.post(["1", "1", "echo:1", "phx_join", {}])
        await told(client, 1)
        answers: dict[str, dict[str, object]] = {}

        async def poll(name: str) -> None:
            answers[name] = await client.get()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(poll, "older")
            await trio.sleep(1)
            nursery.start_soon(poll, "newer")
            await trio.sleep(1)
            assert answers["older"]["status"] == 204
            server.hub.broadcast("echo:1", "news", 1)
        assert answers["newer"]["messages"] == ['[null,null,"echo:1","news",1]']


async def test_an_ended_session_says_why_before_it_goes(autojump_clock: None) -> None:
    """A revoked session's last messages are fetched by the poll that waits; the next is told 410."""
    async with poll_served({"echo": Echo}) as server:
        client = opened(server)
        await client.open()
        await client.post(["1", "1", "echo:1", "phx_join", {}])
        await told(client, 1)
        async with trio.open_nursery() as nursery:

            async def poll() -> None:
                answer = await client.get()
                assert "session_revoked" in answer["messages"][0]
                assert (await client.get())["status"] == 410

            nursery.start_soon(poll)
            await trio.sleep(1)
            assert server.hub.disconnect(user_id="alice") == 1


async def test_a_drain_frees_the_polls(autojump_clock: None) -> None:
    """A poll that waits is answered at once, and who comes then is told to try again."""
    async with poll_served({"echo": Echo}) as server:
        client = opened(server)
        await client.open()
        async with trio.open_nursery() as nursery:

            async def poll() -> None:
                began = trio.current_time()
                assert (await client.get())["status"] == 410
                assert trio.current_time() - began < 5

            nursery.start_soon(poll)
            await trio.sleep(1)
            await server.hub.drain()


async def test_a_malformed_message_ends_the_session(autojump_clock: None) -> None:
    """As a socket is closed with 1011, the session is gone."""
    async with poll_served({"echo": Echo}) as server:
        client = opened(server)
        await client.open()
        await client.post(body=b'["not a message"]')
        assert (await client.get())["status"] == 410


async def test_a_flood_of_polls_ends_the_session(autojump_clock: None) -> None:
    """Polls past `chatter_per_min` close it; one after another, as fast as answers come, they are no flood."""
    async with poll_served({"echo": Echo}, Limits(chatter_per_min=50, poll_s=2.0)) as server:
        client = opened(server)
        await client.open()
        for _ in range(60):
            assert (await client.get())["status"] == 204
        async with trio.open_nursery() as nursery:
            for _ in range(60):
                nursery.start_soon(client.get)
        assert (await client.get())["status"] == 410
