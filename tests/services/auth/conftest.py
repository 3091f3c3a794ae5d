"""An auth service on real backends, served over real gRPC, with cheap password hashes."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import trio
from argon2 import PasswordHasher

from whispr.adapters.bus import Bus, open_bus
from whispr.adapters.cache import Cache
from whispr.adapters.postgres import Postgres
from whispr.bridge import Bridge
from whispr.embed import Backends
from whispr.errors import WhisprError
from whispr.identity import AuthInterceptor, Identity
from whispr.rpc.channel import open_channel
from whispr.rpc.server import RpcServer
from whispr.services.auth.keys import KeyRing, ServiceToken, ensure_keys
from whispr.services.auth.neighbours import Neighbours, Standing
from whispr.services.auth.passwords import Passwords
from whispr.services.auth.service import AuthLimits, AuthService
from whispr.v1 import auth_pb2, common_pb2
from whispr.v1.auth_grpc import AuthServiceStub


def cheap_hasher(memory_kib: int = 8) -> PasswordHasher:
    """argon2id at its smallest: these tests are about what surrounds it."""
    return PasswordHasher(time_cost=1, memory_cost=memory_kib, parallelism=1)


@dataclass
class Others:
    """The other services, as far as auth asks them: what people are in conversations, what is held about them."""

    standings: dict[tuple[str, str], Standing | None] = field(default_factory=dict)
    held: dict[str, list[common_pb2.DataRecord] | WhisprError] = field(default_factory=dict)

    async def standing(self, user_id: str, conversation_id: str) -> Standing | None:
        await trio.lowlevel.checkpoint()
        return self.standings.get((user_id, conversation_id))

    @asynccontextmanager
    async def records(
        self, service: str, user_id: str
    ) -> AsyncIterator[AsyncIterator[common_pb2.DataRecord]]:
        held = self.held[service]

        async def each() -> AsyncGenerator[common_pb2.DataRecord, None]:
            await trio.lowlevel.checkpoint()
            if isinstance(held, WhisprError):
                raise held
            for record in held:
                yield record

        async with aclosing(each()) as records:
            yield records

    def neighbours(self) -> Neighbours:
        return Neighbours(self.standing, ["user", "messaging"], self.records)


@dataclass
class Auth:
    """The service and a stub to it, as a stranger from `address`."""

    service: AuthService
    identity: Identity
    keys: KeyRing
    stub: AuthServiceStub
    others: Others
    address: str = ""

    def from_address(self, address: str = "") -> list[tuple[str, str]]:
        """Metadata by which the gateway vouches for a client's address; each test has one of its own."""
        voucher = ServiceToken(self.keys.signer, "gateway")()
        return [("x-whispr-client-address", address or self.address), ("x-whispr-voucher", voucher)]

    async def register(self, username: str, password: str = "correct horse", **fields: str) -> Any:
        address = fields.pop("address", "")
        request = auth_pb2.RegisterRequest(username=username, password=password, **fields)
        return await self.stub.Register(request, metadata=self.from_address(address))

    async def login(self, username: str, password: str = "correct horse", address: str = "") -> Any:
        request = auth_pb2.LoginRequest(username=username, password=password)
        return await self.stub.Login(request, metadata=self.from_address(address))

    async def refresh(self, refresh_token: str) -> Any:
        return await self.stub.Refresh(auth_pb2.RefreshRequest(refresh_token=refresh_token))

    async def validate(self, token: str, service: str = "") -> Any:
        return await self.stub.ValidateToken(auth_pb2.ValidateTokenRequest(token=token, service=service))


@pytest.fixture
async def other_bus(bridge: Bridge, backends: Backends) -> AsyncIterator[Bus]:
    """The bus as another process has it: a connection of its own."""
    assert backends.nats_url is not None
    async with open_bus(bridge, backends.nats_url) as bus:
        await bus.wait_connected()
        yield bus


@pytest.fixture
async def auth(db: Postgres, cache: Cache, bus: Bus, tmp_path: Path) -> AsyncIterator[Auth]:
    """Serve the auth service for the length of a test."""
    keys = ensure_keys(tmp_path / "keys")
    identity = Identity(cache, bus, keys=keys.public_keys)
    passwords = Passwords(cheap_hasher(), cores=2)
    others = Others()
    limits = AuthLimits(attempts_per_hour=5, account_attempts_per_hour=10, account_sessions=4)
    service = AuthService(
        db, cache, bus, identity, keys, others.neighbours(), limits=limits, passwords=passwords
    )
    server = RpcServer([service.servicer], interceptors=[AuthInterceptor(identity)])
    async with trio.open_nursery() as nursery:
        await nursery.start(identity.run)
        await nursery.start(service.run)
        port = await nursery.start(server.serve_tcp, "127.0.0.1", 0)
        async with open_channel(f"127.0.0.1:{port}") as channel:
            unique = uuid.uuid4()
            address = f"2001:db8:{unique.hex[:4]}:{unique.hex[4:8]}::1"
            yield Auth(service, identity, keys, AuthServiceStub(channel), others, address)
        nursery.cancel_scope.cancel(reason="the test has ended")
