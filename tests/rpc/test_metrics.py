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


async def test_what_a_later_interceptor_refuses_is_counted_too() -> None:
    """Measured comes first, so a call that authorisation refuses does not go unseen."""
    before = counted("PERMISSION_DENIED")
    async with open_rpc_pair([HealthServicer()], server_interceptors=[Measured(), refuse]) as pair:
        with pytest.raises(WhisprError):
            await HealthStub(pair.channel).Check(HealthCheckRequest())
    assert counted("PERMISSION_DENIED") == (before[0] + 1, before[1] + 1)
