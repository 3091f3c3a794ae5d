"""Health checking, `grpc.health.v1` (grpc/doc/health-checking.md).

    health = HealthServicer()
    server = RpcServer([..., health])
    health.set("", SERVING)

Their messages are built in `protos`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import purerpc
import trio

from whispr.errors import Code, WhisprError, not_found
from whispr.rpc import protos
from whispr.rpc.call import current_call

UNKNOWN, SERVING, NOT_SERVING, SERVICE_UNKNOWN = range(4)

SERVICE = "grpc.health.v1.Health"

_WATCHERS_MAX = 10_000
_WATCHERS_OF_ADDRESS_MAX = 500
"""Anybody may watch, so nobody may take all the places: other nodes watch too."""


HealthCheckRequest = protos.message("grpc.health.v1.HealthCheckRequest")
HealthCheckResponse = protos.message("grpc.health.v1.HealthCheckResponse")


class HealthServicer(purerpc.Servicer):  # type: ignore[misc]  # purerpc is untyped
    """Answers for each service by full name, and for the whole server under ""."""

    def __init__(self) -> None:
        self._statuses = {"": NOT_SERVING}
        self._changed = trio.Event()
        self._watchers: Counter[str] = Counter()
        """By the address they come from."""
        self._ended = False

    def set(self, service: str, status: int) -> None:
        """Say how a service is; watchers hear of it."""
        self._statuses[service] = status
        self._changed.set()
        self._changed = trio.Event()

    def end_watches(self) -> None:
        """End every watch, told or not: one that went on would hold up a drain."""
        self._ended = True
        self._changed.set()

    async def Check(self, input_message: Any) -> Any:  # noqa: N802  # the protocol's name
        """The status now. Raises WhisprError NOT_FOUND for a service never heard of."""
        status = self._statuses.get(input_message.service)
        if status is None:
            raise not_found("service", input_message.service)
        return HealthCheckResponse(status=status)

    async def Watch(self, input_message: Any) -> AsyncIterator[Any]:  # noqa: N802  # the protocol's name
        """The status now and whenever it changes; SERVICE_UNKNOWN for a service not heard of yet.

        Raises WhisprError RESOURCE_EXHAUSTED for too many watchers, of one address or in all.
        """
        address = current_call().peer.rpartition(":")[0]
        if self._watchers[address] >= _WATCHERS_OF_ADDRESS_MAX or self._watchers.total() >= _WATCHERS_MAX:
            raise WhisprError(Code.RESOURCE_EXHAUSTED, "too many health watchers")
        self._watchers[address] += 1
        try:
            last = None
            while True:
                changed = self._changed
                status = self._statuses.get(input_message.service, SERVICE_UNKNOWN)
                if status != last:
                    last = status
                    yield HealthCheckResponse(status=status)
                    continue
                if self._ended:
                    return
                await changed.wait()
        finally:
            self._watchers[address] -= 1
            if not self._watchers[address]:
                del self._watchers[address]

    @property
    def service(self) -> purerpc.Service:
        """The methods by name."""
        return protos.service(SERVICE, self)


class HealthStub:
    """Asks a peer how it is."""

    def __init__(self, channel: Any) -> None:
        self.Check = channel.unary_unary(f"/{SERVICE}/Check", HealthCheckRequest, HealthCheckResponse)
        self.Watch = channel.unary_stream(f"/{SERVICE}/Watch", HealthCheckRequest, HealthCheckResponse)
