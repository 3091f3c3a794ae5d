"""Answers told again: to whom, how marked, and until when."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import cast

import pytest
import trio
from google.protobuf import descriptor_pool
from google.protobuf.descriptor_pb2 import MethodOptions
from trio.testing import MockClock

from tests.services.kit import Tokens
from whispr.errors import Code, WhisprError, denied, unavailable
from whispr.identity import AuthInterceptor, Identity
from whispr.resilience.fallback import STALE_KEY
from whispr.rpc.call import Metadata
from whispr.rpc.channel import open_channel
from whispr.rpc.server import RpcServer
from whispr.stale_reads import AGE_S_MAX, METHODS, StaleReads
from whispr.testing import MemoryNetwork
from whispr.v1 import auth_pb2, chat_pb2, messaging_pb2, user_pb2  # noqa: F401  # registers what METHODS names
from whispr.v1.user_grpc import UserServiceServicer, UserServiceStub


class Users(UserServiceServicer):
    """Knows everybody, unless it is away."""

    def __init__(self) -> None:
        self.error: WhisprError | None = None
        self.asked = 0

    async def GetProfile(  # noqa: N802  # the RPC's name
        self, input_message: user_pb2.GetProfileRequest
    ) -> user_pb2.GetProfileResponse:
        await trio.lowlevel.checkpoint()
        if self.error is not None:
            raise self.error
        self.asked += 1
        profile = user_pb2.Profile(id=input_message.user_id, display_name=f"version {self.asked}")
        return user_pb2.GetProfileResponse(profile=profile)


class Service:
    """A server with stale reads in front of its handlers."""

    def __init__(self, users: Users, reads: StaleReads, stub: UserServiceStub) -> None:
        self.users = users
        self.reads = reads
        self._stub = stub

    async def get(self, who: str, by: str) -> tuple[str, str | None]:
        """A profile's name as somebody gets it, and its age, if it is marked as stale."""
        heads: list[Metadata] = []
        request = user_pb2.GetProfileRequest(user_id=who)
        metadata = [("authorization", f"Bearer {by}")]
        reply = await self._stub.GetProfile(request, metadata=metadata, heads=heads)
        return reply.profile.display_name, heads[0].text(STALE_KEY) if heads else None

    async def refusal(self, who: str, by: str) -> Code:
        """What a profile is refused with."""
        with pytest.raises(WhisprError) as refused:
            await self.get(who, by)
        return refused.value.code


@pytest.fixture
async def service() -> AsyncIterator[Service]:
    """A server in memory."""
    users, reads = Users(), StaleReads()
    async with trio.open_nursery() as nursery:
        identity = cast("Identity", Tokens())
        server = RpcServer([users], [AuthInterceptor(identity), reads])
        network = MemoryNetwork(server, nursery)
        async with open_channel("memory", connect=network.connect) as channel:
            yield Service(users, reads, UserServiceStub(channel))
        nursery.cancel_scope.cancel()


AWAY = unavailable("PostgreSQL is away", reason="breaker_open")


async def test_what_somebody_was_told_they_are_told_again(
    autojump_clock: MockClock, service: Service
) -> None:
    """While nobody can say: the last answer, to whoever got it and asks for the same, with its age."""
    assert await service.get("bob", by="ada") == ("version 1", None)
    assert await service.get("bob", by="ada") == ("version 2", None)
    service.users.error = AWAY
    await trio.sleep(7)
    assert await service.get("bob", by="ada") == ("version 2", "7")
    assert await service.refusal("bob", by="eve") is Code.UNAVAILABLE
    assert await service.refusal("cyd", by="ada") is Code.UNAVAILABLE
    service.users.error = None
    assert await service.get("bob", by="ada") == ("version 3", None)


async def test_a_refusal_is_no_reason_to_tell_it_again(autojump_clock: MockClock, service: Service) -> None:
    """Whoever may not know any more does not."""
    await service.get("bob", by="ada")
    service.users.error = denied("no")
    assert await service.refusal("bob", by="ada") is Code.PERMISSION_DENIED


@pytest.mark.parametrize("name", ["ada", "bob"])
async def test_what_has_changed_is_not_told_again(
    autojump_clock: MockClock, service: Service, name: str
) -> None:
    """Neither what was told to somebody, nor what was told of them."""
    await service.get("bob", by="ada")
    await service.get("eve", by="cyd")
    service.reads.forget(name)
    service.users.error = AWAY
    assert await service.refusal("bob", by="ada") is Code.UNAVAILABLE
    assert (await service.get("eve", by="cyd"))[1] is not None
    service.reads.forget_all()
    assert await service.refusal("eve", by="cyd") is Code.UNAVAILABLE


async def test_what_is_too_old_is_not_told_again(autojump_clock: MockClock, service: Service) -> None:
    """A quarter of an hour, and then the refusal."""
    await service.get("bob", by="ada")
    service.users.error = AWAY
    await trio.sleep(AGE_S_MAX - 1)
    assert (await service.get("bob", by="ada"))[1] == "899"
    await trio.sleep(1)
    assert await service.refusal("bob", by="ada") is Code.UNAVAILABLE


@pytest.mark.parametrize("method", sorted(METHODS))
def test_only_reads_are_told_again(method: str) -> None:
    """Every method of the list is there, and its proto says that it has no side effects."""
    service, _, name = method.removeprefix("/").partition("/")
    found = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name]
    assert found.GetOptions().idempotency_level == MethodOptions.NO_SIDE_EFFECTS
    assert not found.server_streaming
