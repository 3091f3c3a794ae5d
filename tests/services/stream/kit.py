"""The stream service of one process, by itself: its RPCs in memory, PostgreSQL, Valkey and NATS for real.

Whoever shows a user id as their token is that user, of the role that the test gave them.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import trio

from tests.services.kit import SERVICE, as_, as_service
from whispr.adapters.bus import Bus
from whispr.adapters.cache import Cache
from whispr.adapters.objects import objects_at
from whispr.adapters.postgres import Postgres
from whispr.adapters.rate_limit import RateLimiter
from whispr.errors import unauthenticated, unavailable
from whispr.identity import AuthInterceptor, Identity
from whispr.services.stream.domain import StreamLimits
from whispr.services.stream.service import StreamOptions, StreamService, Surroundings
from whispr.testing import open_rpc_pair
from whispr.tokens import Claims, service_claims, user_claims
from whispr.v1 import stream_pb2 as pb
from whispr.v1.stream_grpc import StreamServiceStub

__all__ = ["SERVICE", "Rig", "as_", "as_service", "open_rig"]


class Tokens:
    """Believes every token; sessions are named after their person."""

    def __init__(self) -> None:
        self.roles: dict[str, str] = {}
        self.ended: set[str] = set()
        self.callbacks: list[Any] = []

    async def authenticate(self, token: str, service: str | None = None) -> Claims:
        del service
        await trio.lowlevel.checkpoint()
        if token == SERVICE:
            return service_claims("test", now=time.time(), lifetime_s=60)
        if not token or f"session-{token}" in self.ended:
            raise unauthenticated("no token")
        return self.claims(token)

    def claims(self, user_id: str) -> Claims:
        """What somebody's token says."""
        return user_claims(
            user_id=user_id, session_id=f"session-{user_id}", username="u",
            role=self.roles.get(user_id, "user"), now=time.time(), lifetime_s=600,
        )  # fmt: skip

    def on_revoked(self, callback: Any) -> None:
        self.callbacks.append(callback)

    def is_revoked(self, session_id: str) -> bool:
        return session_id in self.ended

    def end(self, user_id: str) -> None:
        """End somebody's session."""
        self.ended.add(f"session-{user_id}")
        for callback in self.callbacks:
            callback(f"session-{user_id}", "signed out")


@dataclass
class Rig:
    """A running service and its people."""

    db: Postgres
    service: StreamService
    rpc: StreamServiceStub
    tokens: Tokens
    announced: list[tuple[str, str, Any]] = field(default_factory=list)
    chats: list[Any] = field(default_factory=list)
    """ChatService, once it is there."""

    async def person(self, role: str = "user") -> str:
        """Make an account; return its id."""
        user_id = str(uuid4())
        await self.db.execute(
            "INSERT INTO auth.accounts (id, username, display_name, role, password_hash)"
            " VALUES ($1, $2, $2, $3, '')",
            user_id, f"person{uuid4().hex[:12]}", role,
        )  # fmt: skip
        self.tokens.roles[user_id] = role
        return user_id

    async def stream(
        self, streamer: str, *, visibility: str = "PUBLIC_STREAM", start: bool = True, **config: Any
    ) -> str:
        """Make a stream that runs; return its id."""
        request = pb.CreateStreamRequest(title="a stream", visibility=visibility)
        made = await self.rpc.CreateStream(request, metadata=as_(streamer))
        if start:
            body = pb.StartStreamRequest(stream_id=made.stream.id, config=pb.StreamConfig(**config))
            await self.rpc.StartStream(body, metadata=as_(streamer))
        return str(made.stream.id)


@asynccontextmanager
async def open_rig(
    db: Postgres,
    cache: Cache,
    bus: Bus,
    folder: Path,
    limits: StreamLimits | None = None,
    *,
    sound: bool = False,
) -> AsyncIterator[Rig]:
    """Run the service until the block ends. Unless there is to be `sound`, listeners are let in without any."""
    tokens = Tokens()
    announced: list[tuple[str, str, Any]] = []
    identity = cast("Identity", tokens)

    chats: list[Any] = []

    def chat() -> Any:
        if not chats:
            raise unavailable("no chat service here")
        return chats[0]

    around = Surroundings(
        identity=identity,
        limiter=RateLimiter(cache),
        announce=lambda topic, event, payload: announced.append((topic, event, payload)),
        base_url=lambda: "http://127.0.0.1:8080",
        chat=chat,
        acting_for=as_service,
        address_of=lambda scope, headers: "127.0.0.1",
    )
    options = StreamOptions(
        key_folder=folder / "keys", work_folder=folder / "work", limits=limits or StreamLimits()
    )
    objects = objects_at(db.bridge, "", folder / "objects")
    service = StreamService(db, cache, bus, objects, around, options)
    if not sound:
        service.audience.brings = None
    async with (
        open_rpc_pair([service.servicer], server_interceptors=[AuthInterceptor(identity)]) as pair,
        trio.open_nursery() as nursery,
    ):
        await nursery.start(service.run)
        yield Rig(db, service, StreamServiceStub(pair.channel), tokens, announced, chats)
        nursery.cancel_scope.cancel(reason="the test is over")
