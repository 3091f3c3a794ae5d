"""How many calls a person, an address and a connection may make, over all services: an rpc interceptor.

List it after the one that authorises. Services are not limited: they act for people who were, where they came
in. Of a call through the gateway the address is that of the gateway's client, which a voucher proves; the gateway's
own connections carry everybody's calls and are not limited as such. A refusal is RESOURCE_EXHAUSTED
(`rate_limited`) with the time to wait, as REST says it (429, Retry-After) and sockets do (`retry_after_ms`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import trio

from whispr.adapters.rate_limit import LocalLimits, RateLimiter
from whispr.errors import exhausted
from whispr.identity import VOUCHER_KEY, Actor, Identity, actor_on, client_address
from whispr.rpc.call import Call
from whispr.rpc.interceptors import Proceed

MINUTE_S = 60.0
EXEMPT = ("/grpc.health.v1.", "/grpc.reflection.")
"""Whose probes must never be refused."""


@dataclass(frozen=True, slots=True)
class Quota:
    """Calls a minute; 0 lifts one."""

    user: int
    address: int
    connection: int


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
        await self._charge(f"calls:{address}", self._quota.address)

    async def _count(self, call: Call, actor: Actor | None) -> None:
        quota = self._quota
        if quota.connection and not await self._vouched_for(call):
            wait_s = self._connections.take(call.peer, quota.connection, MINUTE_S, trio.current_time())
            if wait_s > 0:
                raise exhausted(f"at most {quota.connection} calls a minute on a connection", wait_s)
        if quota.address:
            await self._charge(f"calls:{await client_address(self._identity)}", quota.address)
        if quota.user and actor is not None:
            await self._charge(f"calls:{actor.user_id}", quota.user)

    async def _vouched_for(self, call: Call) -> bool:
        """Whether it is our gateway that passes the call on."""
        voucher = call.metadata.text(VOUCHER_KEY)
        return voucher is not None and (await self._identity.authenticate(voucher)).is_service

    async def _charge(self, key: str, per_min: int) -> None:
        if not self._limiter.on_account(key, per_min, MINUTE_S):
            await self._limiter.settle(key, per_min, MINUTE_S)
