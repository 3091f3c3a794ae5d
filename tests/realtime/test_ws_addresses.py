"""Connections of one client address: counted from the first byte to the end, bounded, refused in plain words."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack

import pytest
import trio
from prometheus_client import REGISTRY
from trio.testing import MockClock

from tests.realtime.polling import Polling, poll_served
from whispr.errors import WhisprError
from whispr.gateway.http import Proxies
from whispr.realtime import server as server_module
from whispr.realtime.addresses import Addresses
from whispr.realtime.channel import Channel
from whispr.realtime.limits import Limits
from whispr.realtime.testing import Server, served
from whispr.realtime.upgrade import Rejected

HERE = "127.0.0.1"


def turned_away() -> float:
    """Return how many upgrades have been refused for this."""
    labels = {"outcome": "too_many_connections"}
    return REGISTRY.get_sample_value("whispr_ws_upgrades_total", labels) or 0.0


async def asked(
    server: Server, target: str, **headers: str
) -> tuple[int, dict[str, object], trio.SocketStream]:
    """Ask for a WebSocket by hand; return the status, the refusal's facts and the connection."""
    stream = await trio.open_tcp_stream(HERE, server.port)
    lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
    await stream.send_all(
        f"GET {target} HTTP/1.1\r\nHost: here\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        f"{lines}\r\n".encode()
    )
    answer = bytes(await stream.receive_some())
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body) if body else {}, stream


def test_a_count_is_given_back() -> None:
    """An address that has given all its places back is forgotten; the limit of 0 is none."""
    addresses = Addresses(1)
    for _ in range(3):
        addresses.take("a")
        with pytest.raises(WhisprError, match="at most 1 connections from one address") as refused:
            addresses.take("a")
        assert refused.value.reason == "too_many_connections"
        addresses.take("b")
        addresses.leave("b")
        addresses.leave("a")
    assert addresses.count("a") == 0
    assert not addresses._open
    lifted = Addresses(0)
    for _ in range(5000):
        lifted.take("a")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("192.0.2.1", "192.0.2.2", False),
        ("fe80::1%1", "fe80::2%1", True),
        ("", "unix", False),
    ],
)
def test_what_counts_as_one_address(one: str, other: str, same: bool) -> None:
    """Who has a network of IPv6 to themselves has no more connections than who has an address of IPv4."""
    addresses = Addresses(1)
    addresses.take(one)
    assert addresses.count(other) == same
    addresses.leave(one)
    assert not addresses._open


async def test_connections_of_an_address_are_limited(autojump_clock: MockClock) -> None:
    """One more is HTTP 429 with the reason, whoever's it is, and counted; a closed one makes room."""
    before = turned_away()
    async with served({}, Limits(address_connections=3)) as server, AsyncExitStack() as stack:
        for n in range(2):
            await stack.enter_async_context(server.wire(f"ada{n}"))
        async with server.wire("ada2"):
            for _ in range(3):
                with pytest.raises(Rejected, match="at most 3 connections from one address") as refused:
                    await stack.enter_async_context(server.wire("bob"))
                assert (refused.value.status, refused.value.reason) == (429, "too_many_connections")
        while server.hub.addresses.count(HERE) > 2:  # noqa: ASYNC110  # until the server hears of the close
            await trio.sleep(0.01)
        async with server.wire("bob"):
            assert server.hub.addresses.count(HERE) == 3
        assert turned_away() == before + 3
    assert server.hub.addresses.count(HERE) == 0


async def test_who_says_nothing_counts_too(autojump_clock: MockClock) -> None:
    """Handshakes under way take places, whoever comes later is told so at once; given up they are free again."""
    async with served({}, Limits(address_connections=4)) as server:
        silent = [await trio.open_tcp_stream(HERE, server.port) for _ in range(4)]
        await trio.testing.wait_all_tasks_blocked()
        began = trio.current_time()
        with pytest.raises(Rejected, match="too_many_connections"):
            async with server.wire("ada"):
                pass
        assert trio.current_time() - began < 1
        assert server.hub.addresses.count(HERE) == 4
        await trio.sleep(server.hub.limits.handshake_s + 1)
        async with server.wire("ada"):
            assert server.hub.addresses.count(HERE) == 1
        for stream in silent:
            await stream.aclose()


async def test_who_is_turned_away_and_says_nothing_is_soon_gone(autojump_clock: MockClock) -> None:
    """A connection over the limit lasts a second, not as long as it likes."""
    async with served({}, Limits(address_connections=1)) as server, server.wire("ada"):
        began = trio.current_time()
        async with await trio.open_tcp_stream(HERE, server.port) as silent:
            assert await silent.receive_some() == b""
        assert trio.current_time() - began < 3


async def test_a_flood_over_the_limit_is_not_listened_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those who are one too many, so many are told so at a time; others are gone at once, and cost no place."""
    monkeypatch.setattr(server_module, "_TOLD_MAX", 1)
    limits = Limits(address_connections=1, slow_handshake_s=60)
    async with (
        served({}, limits) as server,
        server.wire("ada"),
        await trio.open_tcp_stream(HERE, server.port) as first,
    ):
        async with await trio.open_tcp_stream(HERE, server.port) as second:
            assert await second.receive_some() == b""
        await first.send_all(b"GET / HTTP/1.1\r\n\r\n")
        assert (await first.receive_some()).startswith(b"HTTP/1.1 429 Too Many Requests\r\n")


async def test_behind_a_trusted_proxy_clients_are_counted(autojump_clock: MockClock) -> None:
    """Each address that the proxy names has its own places; the proxy's connections take none of its own."""
    proxies = Proxies([HERE])
    target = "/socket/websocket?vsn=2.0.0&token=ada"
    async with served({}, Limits(address_connections=2), proxies=proxies) as server:
        streams = []
        for client in ("1.1.1.1", "1.1.1.1", "2.2.2.2", "2.2.2.2"):
            # What the client itself claims to have been forwarded for is not believed.
            status, _, stream = await asked(server, target, X_Forwarded_For=f"9.9.9.9, {client}")
            streams.append(stream)
            assert status == 101
        status, facts, stream = await asked(server, target, X_Forwarded_For="1.1.1.1")
        streams.append(stream)
        assert (status, facts["reason"]) == (429, "too_many_connections")
        assert [server.hub.addresses.count(each) for each in ("1.1.1.1", "2.2.2.2", HERE, "9.9.9.9")] == [
            2, 2, 0, 0,
        ]  # fmt: skip
        for stream in streams:
            await stream.aclose()


async def test_a_refused_upgrade_gives_its_place_back(autojump_clock: MockClock) -> None:
    """A bad token, a wrong path or a lost connection leaves nothing behind, behind a proxy too."""
    for proxies in (None, Proxies([HERE])):
        async with served({}, Limits(address_connections=2), proxies=proxies) as server:
            for target in ("/nowhere", "/socket/websocket?token=expired", "/socket/websocket"):
                for _ in range(3):
                    status, facts, stream = await asked(server, target, X_Forwarded_For="1.1.1.1")
                    assert status in (403, 404), facts
                    await stream.aclose()
                    await trio.testing.wait_all_tasks_blocked()
            assert server.hub.addresses.count(HERE) == server.hub.addresses.count("1.1.1.1") == 0


async def test_long_polls_count(autojump_clock: MockClock) -> None:
    """A session takes a place of its address for as long as it lives, besides the connections of its requests."""
    async with poll_served({"echo": Channel}, Limits(address_connections=3, user_sockets=0)) as server:
        first, second = Polling(server.port, "ada"), Polling(server.port, "bob")
        assert (await first.open())["status"] == 410
        assert (await second.open())["status"] == 410
        refused = await Polling(server.port, "eve").open()
        assert (refused["status"], refused["reason"]) == (500, "too_many_connections")
        assert server.hub.addresses.count(HERE) == 2
        async with server.wire("cy"):
            status, _, answer = await first.exchange("GET")
            facts = json.loads(answer)
            assert (status, facts["status"], facts["reason"]) == (429, 500, "too_many_connections")
        await trio.sleep(server.hub.limits.poll_idle_s + 5)
        assert server.hub.addresses.count(HERE) == 0


async def test_long_polls_through_a_proxy_count_for_their_clients(autojump_clock: MockClock) -> None:
    """Sessions are counted for the address that the proxy names; a refused one takes no place."""
    limits = Limits(address_connections=1)
    async with poll_served({}, limits, proxies=Proxies([HERE])) as server:
        forwarded = {"x-forwarded-for": "1.1.1.1"}
        assert (await Polling(server.port, "expired").open(**forwarded))["status"] == 403
        assert (await Polling(server.port, "ada").open(**forwarded))["status"] == 410
        assert (await Polling(server.port, "bob").open(**forwarded))["reason"] == "too_many_connections"
        assert (await Polling(server.port, "bob").open(**{"x-forwarded-for": "2.2.2.2"}))["status"] == 410
        assert server.hub.addresses.count(HERE) == 0
