"""How many calls a person, an address and a connection may make, over all services: an rpc interceptor.

List it after the one that authorises. Services are not limited: they act for people who were, where they came
in. Of a call through the gateway the address is that of the gateway's client, which a voucher proves; the gateway's
own connections carry everybody's calls and are not limited as such. A refusal is RESOURCE_EXHAUSTED
(`rate_limited`) with the time to wait, as REST says it (429, Retry-After) and sockets do (`retry_after_ms`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import trio

from whispr.adapters.rate_limit import LocalLimits, RateLimiter
from whispr.errors import exhausted
from whispr.households import household
from whispr.identity import CLIENT_ADDRESS_KEY, VOUCHER_KEY, Actor, Identity, actor_on, host_of
from whispr.rpc.call import Call
from whispr.rpc.interceptors import Proceed

MINUTE_S = 60.0
EXEMPT = ("/grpc.health.v1.", "/grpc.reflection.")
"""Whose probes must never be refused."""


_host = lru_cache(4096)(host_of)


@dataclass(frozen=True, slots=True)
class Quota:
    """Calls a minute; 0 lifts one."""

    user: int
    address: int
    connection: int
    handshakes: int = 0
    """Sockets opened from an address."""


class Quotas:
    """Server interceptor: counts a call against whoever makes it, and refuses what is too much."""

    def __init__(self, limiter: RateLimiter, identity: Identity, quota: Quota) -> None:
        self._limiter = limiter
        self._identity = identity
        self._quota = quota
        self._connections = LocalLimits()

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Count one call. Raises RESOURCE_EXHAUSTED for one too many."""
        actor = actor_on(call)
        if (actor is None or not actor.is_service) and not call.method.startswith(EXEMPT):
            await self._count(call, actor)
        return await proceed()

    async def admit(self, address: str) -> None:
        """Count a socket's opening against its client's address. Raises RESOURCE_EXHAUSTED for one too many."""
        home = household(address)
        await self._charge(f"handshakes:{home}", self._quota.handshakes)
        await self._charge(f"calls:{home}", self._quota.address)

    async def _count(self, call: Call, actor: Actor | None) -> None:
        quota = self._quota
        if quota.address or quota.connection:
            address, ours = await self._client(call)
            if quota.connection and not ours:
                self._count_on_connection(call.peer, quota.connection)
            await self._charge(f"calls:{household(address)}", quota.address)
        if actor is not None:
            await self._charge(f"calls:{actor.user_id}", quota.user)

    async def _client(self, call: Call) -> tuple[str, bool]:
        """Return the client's address, and whether it is our gateway that passes the call on."""
        voucher, named = call.metadata.text(VOUCHER_KEY), call.metadata.text(CLIENT_ADDRESS_KEY)
        if voucher is not None and named and (await self._identity.authenticate(voucher)).is_service:
            return named, True
        return _host(call.peer), False

    def _count_on_connection(self, peer: str, per_min: int) -> None:
        wait_s = self._connections.take(peer, per_min, MINUTE_S, trio.current_time())
        if wait_s > 0:
            raise exhausted(f"at most {per_min} calls a minute on a connection", wait_s)

    async def _charge(self, key: str, per_min: int) -> None:
        if not self._limiter.on_account(key, per_min, MINUTE_S):
            await self._limiter.settle(key, per_min, MINUTE_S)
