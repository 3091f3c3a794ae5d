"""How many calls a person, an address and a connection may make."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import pytest
import trio

from tests.services.kit import SERVICE, Tokens
from whispr.adapters.rate_limit import RateLimiter
from whispr.errors import Code, WhisprError, unavailable
from whispr.identity import CLIENT_ADDRESS_KEY, VOUCHER_KEY, AuthInterceptor, Identity
from whispr.quotas import Quota, Quotas
from whispr.rpc.call import Metadata, ServerSideCall, set_current_call
from whispr.rpc.interceptors import surrounded

GET_PROFILE, LOGIN = "/whispr.v1.UserService/GetProfile", "/whispr.v1.AuthService/Login"


class Away:
    """No cache: limits are this process's own."""

    async def script(self, sha: str, source: str, keys: Sequence[str], args: Sequence[str | float]) -> Any:
        await trio.lowlevel.checkpoint()
        raise unavailable("away")


class Server:
    """What a call meets on its way to a handler."""

    def __init__(self, **quota: int) -> None:
        identity = cast("Identity", Tokens())
        limits = Quota(**({"user": 0, "address": 0, "connection": 0} | quota))
        self._run = surrounded(
            [AuthInterceptor(identity), Quotas(RateLimiter(Away()), identity, limits)], self._handle
        )

    async def _handle(self, call: ServerSideCall) -> str:
        await trio.lowlevel.checkpoint()
        return "served"

    async def call(
        self, token: str = "", method: str = GET_PROFILE, peer: str = "tcp:1.2.3.4:5000", **metadata: str
    ) -> float:
        """Make a call; return 0.0 when it is served, or the seconds it is told to wait."""
        pairs = [(name.replace("_", "-"), value) for name, value in metadata.items()]
        pairs += [("authorization", f"Bearer {token}")] if token else []
        call = ServerSideCall(method, Metadata(pairs), peer, float("inf"))
        set_current_call(call)
        try:
            assert await self._run(call) == "served"
        except WhisprError as error:
            if (error.code, error.reason) != (Code.RESOURCE_EXHAUSTED, "rate_limited"):
                raise
            return error.retry_after_s or float("nan")
        return 0.0

    async def passed(self, count: int, *args: Any, **kwargs: Any) -> int:
        """Make calls; return how many were served."""
        return sum([await self.call(*args, **kwargs) == 0.0 for _ in range(count)])


def through_gateway(address: str) -> dict[str, str]:
    """What our gateway says of its client."""
    return {CLIENT_ADDRESS_KEY.replace("-", "_"): address, VOUCHER_KEY.replace("-", "_"): SERVICE}


async def test_a_person_is_limited_wherever_they_call_from(autojump_clock: trio.testing.MockClock) -> None:
    """The limit is a person's over all connections, addresses and methods; others have their own; time frees it."""
    server = Server(user=10)
    for n in range(10):
        assert await server.call("ada", peer=f"tcp:1.2.3.{n}:1") == 0.0
    wait_s = await server.call("ada")
    assert wait_s == pytest.approx(6, abs=0.1)
    assert await server.call("bob") == 0.0
    await trio.sleep(wait_s)
    assert await server.call("ada") == 0.0


async def test_an_address_is_limited_whoever_calls(autojump_clock: trio.testing.MockClock) -> None:
    """Calls of all people, and of nobody, count for the address they come from."""
    server = Server(address=10)
    assert await server.passed(6, "ada") == 6
    assert await server.passed(6, method=LOGIN) == 4
    assert await server.call("bob") > 0
    assert await server.call("bob", peer="tcp:4.3.2.1:1") == 0.0


async def test_behind_the_gateway_the_address_is_the_clients(autojump_clock: trio.testing.MockClock) -> None:
    """Clients of one gateway are told apart, and its connection is not limited as one."""
    server = Server(address=3, connection=3)
    for n in range(5):
        assert await server.passed(3, "ada", **through_gateway(f"9.9.9.{n}")) == 3
    assert await server.call("ada", **through_gateway("9.9.9.0")) > 0


async def test_only_a_service_can_vouch(autojump_clock: trio.testing.MockClock) -> None:
    """Somebody who vouches for themselves is limited by the address and connection they really have."""
    server = Server(address=3)
    forged = through_gateway("9.9.9.9") | {VOUCHER_KEY.replace("-", "_"): "ada"}
    assert await server.passed(4, "ada", **forged) == 3
    assert await Server(connection=3).passed(4, "ada", **forged) == 3


async def test_a_connection_is_limited(autojump_clock: trio.testing.MockClock) -> None:
    """One connection's calls are bounded, whoever's they are; another connection has its own."""
    server = Server(connection=5)
    assert await server.passed(4, "ada") + await server.passed(4, "bob") == 5
    assert await server.call("ada", peer="tcp:1.2.3.4:5001") == 0.0


async def test_services_and_probes_are_not_limited(autojump_clock: trio.testing.MockClock) -> None:
    """What services do for people, and whether we are alive, is always answered."""
    server = Server(user=1, address=1, connection=1)
    assert await server.passed(20, SERVICE) == 20
    assert await server.passed(20, method="/grpc.health.v1.Health/Check") == 20


async def test_zero_lifts_each(autojump_clock: trio.testing.MockClock) -> None:
    """Without limits everything passes."""
    assert await Server().passed(200, "ada") == 200


async def test_sockets_opened_from_an_address_are_limited(autojump_clock: trio.testing.MockClock) -> None:
    """One more than its limit in a minute is refused, and told when to come back; other addresses are open."""
    limits = Quota(user=0, address=0, connection=0, handshakes=3)
    quotas = Quotas(RateLimiter(Away()), cast("Identity", Tokens()), limits)
    for _ in range(3):
        await quotas.admit("1.2.3.4")
    with pytest.raises(WhisprError) as caught:
        await quotas.admit("1.2.3.4")
    assert (caught.value.code, caught.value.reason) == (Code.RESOURCE_EXHAUSTED, "rate_limited")
    assert caught.value.retry_after_s
    await quotas.admit("1.2.3.5")


async def test_of_ipv6_a_household_is_one_address(autojump_clock: trio.testing.MockClock) -> None:
    """Whoever has a network of addresses opens no more sockets than who has one."""
    quotas = Quotas(RateLimiter(Away()), cast("Identity", Tokens()), Quota(0, 0, 0, handshakes=2))
    for number in range(2):
        await quotas.admit(f"2001:db8::{number}")
    with pytest.raises(WhisprError):
        await quotas.admit("2001:db8::ffff:1")
    await quotas.admit("2001:db8:0:1::1")
