"""Hosts that cannot be reached are left alone for a moment, each by itself."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from whispr.resilience.breaker import BreakerRules, State
from whispr.resilience.target import TargetRules
from whispr.services.notification.senders.addresses import Network
from whispr.services.notification.senders.http import Http, UnreachableError


async def test_a_host_that_refuses_is_left_alone(autojump_clock: trio.testing.MockClock) -> None:
    """After a few refused connections a host is not asked for a moment, and pushes to it are told until when."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    host = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
    for listener in listeners:
        await listener.aclose()  # nobody listens there, and the port is not given to anybody soon
    http = Http(
        Network(private_allowed=True),
        per_host=2,
        rules=TargetRules(breaker=BreakerRules(failures_in_a_row=2, open_s=30, open_s_max=30)),
    )
    for _ in range(2):
        with pytest.raises(UnreachableError) as refused:
            await http.request("POST", f"http://{host}/", [], b"")
        assert refused.value.after_s is None
    assert http.targets.of(host).breaker.state is State.OPEN
    with pytest.raises(UnreachableError) as left_alone:
        await http.request("POST", f"http://{host}/", [], b"")
    assert 0 < (left_alone.value.after_s or 0) <= 30
    assert http.targets.of("another.example").breaker.state is State.CLOSED
    await http.aclose()
