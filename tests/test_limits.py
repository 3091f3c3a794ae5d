"""What the settings become for one of several processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whispr.config import load
from whispr.limits import share, sockets, streaming


@given(whole=st.integers(1, 1000), workers=st.integers(1, 64))
def test_workers_share_what_a_node_has(whole: int, workers: int) -> None:
    """All of it and no more, evenly; where there is less than one for each, one for each."""
    shares = [share(whole, worker, workers) for worker in range(1, workers + 1)]
    assert sum(shares) == max(whole, workers)
    assert max(shares) - min(shares) <= 1
    assert share(0, 1, workers) == 0


def test_workers_share_the_nodes_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of streams and the threads that encode are the node's, not each worker's."""
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(5)))
    settings = load({"WHISPR_LIMITS_NODE_STREAMS": "7", "WHISPR_DATA_DIR": str(tmp_path)}).settings
    engines = [streaming(settings, worker, 3).engine for worker in (1, 2, 3)]
    assert [(each.streams, each.cores) for each in engines] == [(3, 2), (2, 2), (2, 1)]
    assert streaming(settings).engine.cores == 5


def test_connections_of_an_address_are_set_and_lifted() -> None:
    """What is set counts, 0 is no limit, and by default an address may be that of a thousand people."""
    for told, most in ({}, 10_000), ({"WHISPR_LIMITS_ADDRESS_CONNECTIONS": "7"}, 7):
        assert sockets(load(told).settings).address_connections == most
    assert sockets(load({"WHISPR_LIMITS_ADDRESS_CONNECTIONS": "0"}).settings).address_connections == 0
