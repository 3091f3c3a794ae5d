"""A socket outlives its access token: it is told in time, and hands in another."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from tests.realtime.polling import Polling, poll_served
from whispr.realtime.channel import Channel
from whispr.realtime.frames import Closed
from whispr.realtime.hub import Hub
from whispr.realtime.testing import served

ROOM = {"room": Channel}


def hub_at(wall: list[float]) -> Hub:
    return Hub(wall_clock=lambda: wall[0])


async def test_a_socket_is_told_a_minute_before_and_goes_on_with_a_new_token(
    autojump_clock: MockClock,
) -> None:
    """`token_expiring` comes once on each channel; after `refresh_token` the old expiry means nothing."""
    wall = [1000.0]
    hub = hub_at(wall)
    async with served(ROOM, hub=hub) as server, server.wire("alice/s/1900") as wire:
        await wire.join("room:1", ref="1")
        await trio.sleep(2)
        wall[0] = 1840.0
        told = {"expires_at": "1970-01-01T00:31:40Z", "expires_in_s": 60}
        assert await wire.receive() == ["1", None, "room:1", "token_expiring", told]
        await wire.send("1", "2", "room:1", "refresh_token", {"token": "alice/s2/2800"})
        new = {"expires_at": "1970-01-01T00:46:40Z"}
        assert await wire.receive() == ["1", "2", "room:1", "phx_reply", {"status": "ok", "response": new}]
        wall[0] = 1901.0
        await trio.sleep(3)
        assert len(hub.sockets) == 1
        assert hub.disconnect(session_id="s") == 0, "the session is the new token's"
        assert hub.disconnect(session_id="s2") == 1


async def test_a_client_without_a_channel_renews_on_the_topic_phoenix(autojump_clock: MockClock) -> None:
    """`refresh_token` and `access_token` are understood there too."""
    wall = [1000.0]
    async with served(ROOM, hub=hub_at(wall)) as server, server.wire("alice/s/1900") as wire:
        await wire.send(None, "1", "phoenix", "refresh_token", {"token": "alice/s/2000"})
        expiry = {"expires_at": "1970-01-01T00:33:20Z"}
        assert await wire.receive() == [
            None,
            "1",
            "phoenix",
            "phx_reply",
            {"status": "ok", "response": expiry},
        ]
        await wire.send(None, "2", "phoenix", "access_token", {"access_token": "alice/s/2100"})
        reply = await wire.receive()
        assert isinstance(reply, list)
        assert reply[4]["status"] == "ok"


async def test_a_token_that_does_not_do_is_refused_and_changes_nothing(autojump_clock: MockClock) -> None:
    """Somebody else's, a bad one, none: an error reply. One that expires sooner: the later expiry stays."""
    wall = [1000.0]
    async with served(ROOM, hub=hub_at(wall)) as server, server.wire("alice/s/1900") as wire:
        await wire.join("room:1")
        for payload, reason in (
            ({"token": "bob/s/9000"}, "forbidden"),
            ({"token": "expired"}, "token_expired"),
            ({}, "invalid_payload"),
            (None, "invalid_payload"),
        ):
            await wire.send("1", "2", "room:1", "refresh_token", payload)
            reply = await wire.receive()
            assert isinstance(reply, list)
            assert (reply[4]["status"], reply[4]["response"]["reason"]) == ("error", reason)
            await wire.send(None, "3", "phoenix", "refresh_token", payload)
            reply = await wire.receive()
            assert isinstance(reply, list)
            assert (reply[2], reply[4]["response"]["reason"]) == ("phoenix", reason)
        await wire.send("1", "4", "room:1", "refresh_token", {"token": "alice/s/1500"})
        reply = await wire.receive()
        assert isinstance(reply, list)
        assert reply[4]["response"] == {"expires_at": "1970-01-01T00:31:40Z"}


async def test_who_does_nothing_is_closed_at_the_expiry(autojump_clock: MockClock) -> None:
    """`token_expiring` once, `token_expired` at the end, then 1008. A short token is told at half its life."""
    wall = [1000.0]
    async with served(ROOM, hub=hub_at(wall)) as server, server.wire("alice/s/1040") as wire:
        await wire.join("room:1")
        await trio.sleep(2)
        wall[0] = 1020.0
        told = await wire.receive()
        assert isinstance(told, list)
        assert told[3:] == ["token_expiring", {"expires_at": "1970-01-01T00:17:20Z", "expires_in_s": 20}]
        wall[0] = 1030.0
        await trio.sleep(3)
        wall[0] = 1040.0
        assert await wire.receive() == ["1", None, "room:1", "token_expired", {"reason": "token_expired"}]
        assert await wire.receive_item() == Closed(1008, "token_expired")


async def test_a_long_poll_session_renews_too(autojump_clock: MockClock) -> None:
    """The same events, the same effect."""
    wall = [1000.0]
    hub = hub_at(wall)
    async with poll_served(ROOM, hub=hub) as server:
        client = Polling(server.port, "alice/s/1900")
        await client.open()
        await client.post(["1", "1", "room:1", "phx_join", {}])
        await client.post(["1", "2", "room:1", "refresh_token", {"token": "alice/s/2800"}])
        wall[0] = 1901.0
        assert "1970-01-01T00:46:40Z" in (await client.get())["messages"][-1]
        assert (await client.get())["status"] == 204
        assert len(hub.sockets) == 1
