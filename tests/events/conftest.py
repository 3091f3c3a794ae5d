"""Relays and consumers on a real database and a real JetStream."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio

from tests.events.kit import LIMITS, delete_streams
from whispr.adapters.bus import Bus
from whispr.adapters.jetstream import JetStream
from whispr.events.streams import Streams


@pytest.fixture
async def jetstream(bus: Bus) -> AsyncIterator[JetStream]:
    """JetStream without any streams, before and after."""
    await delete_streams(bus)
    yield JetStream(bus)
    with trio.CancelScope(shield=True):
        await delete_streams(bus)


@pytest.fixture
def streams(jetstream: JetStream) -> Streams:
    return Streams(jetstream, LIMITS)
