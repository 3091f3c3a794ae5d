"""A gateway on a loopback socket, in front of scripted services on real gRPC."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import trio

from whispr.errors import WhisprError, unauthenticated
from whispr.gateway.rest import RestLimits
from whispr.gateway.server import Gateway, GatewayOptions
from whispr.rpc.call import current_call
from whispr.rpc.channel import open_channel
from whispr.rpc.server import RpcServer
from whispr.v1 import auth_pb2, messaging_pb2, user_pb2
from whispr.v1.auth_grpc import AuthServiceServicer
from whispr.v1.messaging_grpc import MessagingServiceServicer
from whispr.v1.user_grpc import UserServiceServicer


@dataclass
class Script:
    """What the services do, and what they saw."""

    error: Exception | None = None
    hang: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)
    requests: list[Any] = field(default_factory=list)
    deadline_s: float = math.inf
    reached: trio.Event = field(default_factory=trio.Event)
    cancelled: trio.Event = field(default_factory=trio.Event)
    release: trio.Event = field(default_factory=trio.Event)
    missing: dict[str, str] = field(default_factory=dict)

    async def play(self, request: Any, answer: Any) -> Any:
        call = current_call()
        self.metadata = dict(call.metadata)
        self.deadline_s = call.deadline - trio.current_time()
        self.requests.append(request)
        self.reached.set()
        if self.error is not None:
            raise self.error
        if self.hang:
            try:
                await self.release.wait()
            except trio.Cancelled:
                self.cancelled.set()
                raise
        return answer

    async def readiness(self) -> Mapping[str, str]:
        await trio.lowlevel.checkpoint()
        return self.missing


def scripted(base: type[Any], script: Script, answers: Mapping[str, Callable[[Any], Any]]) -> Any:
    """A servicer whose methods play the script and answer what `answers` makes of the request."""

    def handler(answer: Callable[[Any], Any]) -> Callable[[Any, Any], Any]:
        async def handle(_: Any, input_message: Any) -> Any:
            return await script.play(input_message, answer(input_message))

        return handle

    return type(base.__name__, (base,), {name: handler(answer) for name, answer in answers.items()})()


def sent_message(request: Any) -> Any:
    message = messaging_pb2.Message(
        id="m1", conversation_id=request.conversation_id, seq=1, content=request.content
    )
    return messaging_pb2.SendMessageResponse(message=message)


def profile(request: Any) -> Any:
    if current_call().metadata.text("authorization") != "Bearer good":
        raise unauthenticated("the token has expired", reason="token_expired")
    return user_pb2.GetProfileResponse(profile=user_pb2.Profile(id=request.user_id or "me", username="ada"))


def servicers(script: Script) -> list[Any]:
    key = auth_pb2.Jwk(kty="OKP", crv="Ed25519", x="eA", kid="k")
    return [
        scripted(
            AuthServiceServicer,
            script,
            {
                "Login": lambda _: auth_pb2.SessionTokens(access_token="a.b.c", expires_in=900),
                "GetJwks": lambda _: auth_pb2.Jwks(keys=[key]),
            },
        ),
        scripted(UserServiceServicer, script, {"GetProfile": profile}),
        scripted(
            MessagingServiceServicer,
            script,
            {
                "SendMessage": sent_message,
                "RemoveMember": lambda _: messaging_pb2.RemoveMemberResponse(),
                "GetMessages": lambda _: messaging_pb2.GetMessagesResponse(),
            },
        ),
    ]


@dataclass
class Served:
    """A gateway that runs, what its services are scripted to do, and an HTTP client to it."""

    gateway: Gateway
    script: Script
    port: int
    client: httpx.AsyncClient

    def fails_with(self, error: WhisprError | Exception) -> None:
        self.script.error = error


OpenGateway = Callable[..., Any]


@pytest.fixture
def open_gateway() -> OpenGateway:
    """Return a context manager that serves a gateway with given options."""
    return _open_gateway


@asynccontextmanager
async def _open_gateway(**options: Any) -> AsyncIterator[Served]:
    script = Script()
    server = RpcServer(servicers(script))
    options.setdefault("rest", RestLimits(body_bytes=4096, deadline_s=2.0))
    options.setdefault("drain_s", 1.0)
    async with trio.open_nursery() as nursery:
        rpc_port = await nursery.start(server.serve_tcp, "127.0.0.1", 0)
        async with open_channel(f"127.0.0.1:{rpc_port}") as channel:
            gateway = Gateway(
                {"auth": channel, "user": channel, "messaging": channel},
                readiness=script.readiness,
                voucher=lambda: "vouched",
                options=GatewayOptions(**options),
            )
            port = await nursery.start(gateway.serve, "127.0.0.1", 0)
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
                yield Served(gateway, script, port, client)
            nursery.cancel_scope.cancel(reason="the test has ended")


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    """Serve a gateway with small limits and a short deadline."""
    async with _open_gateway() as served:
        yield served
