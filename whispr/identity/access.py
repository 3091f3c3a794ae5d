"""Who may call which RPC: the `(whispr.v1.access)` option of its proto, enforced in front of every handler.

A method without the option is refused to everybody. Handlers then ask `current_actor()`.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pool

from whispr.errors import denied
from whispr.identity.actors import (
    ACTOR_KEY,
    CLIENT_ADDRESS_KEY,
    STATE,
    VOUCHER_KEY,
    Actor,
    actor_of,
    bearer_of,
    host_of,
)
from whispr.identity.verifying import Identity
from whispr.rpc.call import Call, current_call
from whispr.rpc.interceptors import Proceed
from whispr.tokens import check_service
from whispr.v1 import options_pb2

PUBLIC_SERVICES = frozenset(
    {
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
)
"""Services of gRPC itself that anybody may ask; their protos cannot carry our option."""

OPERATOR_SERVICES = frozenset({"grpc.channelz.v1.Channelz"})
"""Services of gRPC itself for those who run the product: administrators, and services whose token grants them."""

OPERATORS = -1
"""Who may call these, beside what the option has to say of others."""

OPERATOR_PERMISSION = "system:read"


def access_of(method: str) -> int:
    """Return the `(whispr.v1.access)` option of "/package.Service/Method"; unspecified when it has none."""
    service_name, _, method_name = method.removeprefix("/").rpartition("/")
    if service_name in PUBLIC_SERVICES:
        return int(options_pb2.PUBLIC)
    if service_name in OPERATOR_SERVICES:
        return OPERATORS
    try:
        service = descriptor_pool.Default().FindServiceByName(service_name)
        options = service.methods_by_name[method_name].GetOptions()
    except KeyError:
        return int(options_pb2.ACCESS_UNSPECIFIED)
    return int(options.Extensions[options_pb2.access])  # type: ignore[index]  # the .pyi says FieldDescriptor


def service_of(method: str) -> str:
    """`/whispr.v1.MessagingService/SendMessage` → `messaging`, as the `services` claim names it."""
    return method.removeprefix("/").partition("/")[0].rpartition(".")[2].removesuffix("Service").lower()


class AuthInterceptor:
    """Lets a call through when its method's option and its token agree; refuses it otherwise."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity
        self._access: dict[str, int] = {}

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Authorise one call."""
        access = self._access_of(call.method)
        if access != options_pb2.PUBLIC:
            call.state[STATE] = await self._actor(call, access)
        return await proceed()

    async def _actor(self, call: Call, access: int) -> Actor:
        if access == OPERATORS:
            return await self._operator(call)
        if access not in (options_pb2.AUTHENTICATED, options_pb2.SERVICE_ONLY):
            raise denied(f"{call.method} is open to nobody", reason="access_unspecified")
        claims = await self._identity.authenticate(bearer_of(call.metadata), service_of(call.method))
        if access == options_pb2.SERVICE_ONLY and not claims.is_service:
            raise denied(f"{call.method} is for services", reason="service_only")
        return actor_of(claims, call.metadata.text(ACTOR_KEY))

    async def _operator(self, call: Call) -> Actor:
        claims = await self._identity.authenticate(bearer_of(call.metadata))
        if claims.is_service:
            check_service(claims, service_of(call.method))
        elif not claims.allows(OPERATOR_PERMISSION):
            raise denied(f"{call.method} is for administrators and services", reason="operators_only")
        return actor_of(claims, call.metadata.text(ACTOR_KEY))

    def _access_of(self, method: str) -> int:
        access = self._access.get(method)
        if access is None:
            access = access_of(method)
            if access != options_pb2.ACCESS_UNSPECIFIED:  # Made-up names must not fill the memory.
                self._access[method] = access
        return access


async def client_address(identity: Identity) -> str:
    """Return the address of who makes the call in progress: what our gateway says, else the other end."""
    call = current_call()
    named, voucher = call.metadata.text(CLIENT_ADDRESS_KEY), call.metadata.text(VOUCHER_KEY)
    if named and voucher:
        claims = await identity.authenticate(voucher)
        if claims.is_service:
            return named
    return host_of(call.peer)
