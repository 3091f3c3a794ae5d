"""The user and messaging services as in production: over gRPC in memory, PostgreSQL and WebSockets for real.

Whoever shows a user id as their token is that user; the token `service` is a service's.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import cast

import trio

from whispr.adapters.postgres import Postgres
from whispr.conversations.core import Conversations
from whispr.conversations.domain import Limits
from whispr.conversations.permissions import Permissions
from whispr.errors import exhausted, unauthenticated
from whispr.identity import ACTOR_KEY, AuthInterceptor, Identity
from whispr.realtime.hub import Hub
from whispr.realtime.limits import Limits as SocketLimits
from whispr.realtime.testing import Server, served
from whispr.services.messaging.service import MessagingService
from whispr.services.user.service import UserService
from whispr.testing import RpcPair, open_rpc_pair
from whispr.tokens import Claims, service_claims, user_claims
from whispr.v1.messaging_grpc import MessagingServiceStub
from whispr.v1.user_grpc import UserServiceStub

UNLIMITED = Limits(user_messages_per_min=0)
SERVICE = "service"


class Tokens:
    """Believes every token."""

    async def authenticate(self, token: str, service: str | None = None) -> Claims:
        del service
        await trio.lowlevel.checkpoint()
        if token == SERVICE:
            return service_claims("test", now=time.time(), lifetime_s=60)
        if not token:
            raise unauthenticated("no token")
        return user_claims(
            user_id=token, session_id="s", username="u", role="user", now=time.time(), lifetime_s=60
        )


class Counted:
    """A rate limiter that counts, and refuses past the limit."""

    def __init__(self) -> None:
        self.taken: list[str] = []
        self.on_accounts: list[str] = []

    async def take(self, key: str, limit: float, period_s: float) -> None:
        assert period_s == 60
        await trio.lowlevel.checkpoint()
        self.taken.append(key)
        if self.taken.count(key) > limit:
            raise exhausted("too many", 1.5)

    def on_account(self, key: str, limit: float, period_s: float) -> bool:
        """Count a call of those that are charged together."""
        self.on_accounts.append(key)
        if limit and self.on_accounts.count(key) > limit:
            raise exhausted("too many", 1.5)
        return True

    async def settle(self, key: str, limit: float, period_s: float) -> None:
        """Never asked for: every call is on account."""
        raise AssertionError(key)


def as_(user_id: str) -> Sequence[tuple[str, str]]:
    """Return the metadata of a call by this user."""
    return [("authorization", f"Bearer {user_id}")]


def as_service(acting_for: str = "") -> Sequence[tuple[str, str]]:
    """Return the metadata of a call by a service, for nobody or for a person."""
    return [*as_(SERVICE), *([(ACTOR_KEY, acting_for)] if acting_for else [])]


@dataclass
class World:
    """Both services, running."""

    db: Postgres
    users: UserServiceStub
    messaging: MessagingServiceStub
    conversations: Conversations
    user_rpc: RpcPair
    limiter: Counted
    server: Server

    @property
    def hub(self) -> Hub:
        return self.server.hub


@asynccontextmanager
async def world(db: Postgres, limits: Limits = UNLIMITED, *, ttl_s: float = 10.0) -> AsyncIterator[World]:
    """Run both services until the block ends."""
    interceptors = [AuthInterceptor(cast("Identity", Tokens()))]
    forgetful: list[Conversations] = []

    def blocks_changed(user_id: str, target_id: str) -> None:
        for core in forgetful:
            core.people_changed(user_id, target_id)

    user_service = UserService(db, limits=limits, on_blocks_changed=blocks_changed)
    hub = Hub(SocketLimits(operations_per_min=0, user_sockets=0, presence_linger_s=0, typing_s=0))
    limiter = Counted()
    async with open_rpc_pair([user_service.servicer], server_interceptors=interceptors) as user_rpc:
        users = UserServiceStub(user_rpc.channel)
        permissions = Permissions(users, as_service, grant_ttl_s=ttl_s)
        core = Conversations(db, hub=hub, permissions=permissions, limiter=limiter, limits=limits)
        forgetful.append(core)
        service = MessagingService(core)
        async with (
            open_rpc_pair([service.servicer], server_interceptors=interceptors) as messaging_rpc,
            served(core.channels, hub=hub) as server,
            trio.open_nursery() as nursery,
        ):
            await nursery.start(core.run)
            await nursery.start(service.run)
            await nursery.start(user_service.run)
            stub = MessagingServiceStub(messaging_rpc.channel)
            yield World(db, users, stub, core, user_rpc, limiter, server)
            nursery.cancel_scope.cancel(reason="the test is over")
