"""Every call is counted and timed under its outcome."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import REGISTRY

from whispr.errors import WhisprError, denied
from whispr.rpc.call import Call
from whispr.rpc.health import HealthCheckRequest, HealthServicer, HealthStub
from whispr.rpc.interceptors import Proceed
from whispr.rpc.metrics import Measured
from whispr.testing import open_rpc_pair


def counted(status: str, side: str = "server") -> tuple[float, float]:
    """Calls of health.Check with this outcome: how many were counted, and how many timed."""
    labels = {"service": "grpc.health.v1.Health", "method": "Check", "status": status, "side": side}
    values = (
        REGISTRY.get_sample_value(name, labels)
        for name in ("grpc_requests_total", "grpc_request_duration_seconds_count")
    )
    total, timed = (value or 0.0 for value in values)
    return total, timed


async def refuse(call: Call, proceed: Proceed) -> Any:
    raise denied("no")


async def test_answers_and_errors_are_counted_under_their_codes() -> None:
    """A reply counts as OK, an error under its code, each once."""
    before = [counted(status) for status in ("OK", "NOT_FOUND")]
    async with open_rpc_pair([HealthServicer()], server_interceptors=[Measured()]) as pair:
        stub = HealthStub(pair.channel)
        await stub.Check(HealthCheckRequest())
        with pytest.raises(WhisprError):
            await stub.Check(HealthCheckRequest(service="nonsense"))
    after = [counted(status) for status in ("OK", "NOT_FOUND")]
    assert after == [(total + 1, timed + 1) for total, timed in before]


async def test_calls_that_are_made_are_counted_apart() -> None:
    """A channel counts what it calls, under the code its caller sees; a server does not count it twice."""
    before = counted("OK", "client"), counted("NOT_FOUND", "client"), counted("OK")
    async with open_rpc_pair([HealthServicer()], channel_interceptors=[Measured("client")]) as pair:
        stub = HealthStub(pair.channel)
        await stub.Check(HealthCheckRequest())
        with pytest.raises(WhisprError):
            await stub.Check(HealthCheckRequest(service="nonsense"))
    after = counted("OK", "client"), counted("NOT_FOUND", "client"), counted("OK")
    assert [now[0] - then[0] for now, then in zip(after, before, strict=True)] == [1, 1, 0]


async def test_what_a_later_interceptor_refuses_is_counted_too() -> None:
    """Measured comes first, so a call that authorisation refuses does not go unseen."""
    before = counted("PERMISSION_DENIED")
    async with open_rpc_pair([HealthServicer()], server_interceptors=[Measured(), refuse]) as pair:
        with pytest.raises(WhisprError):
            await HealthStub(pair.channel).Check(HealthCheckRequest())
    assert counted("PERMISSION_DENIED") == (before[0] + 1, before[1] + 1)
