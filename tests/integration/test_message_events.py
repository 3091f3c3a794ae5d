"""Kill the product, NATS or PostgreSQL while people talk: every message stored has its event, once, in seq order.

Run by `just test-resilience`.
"""

from __future__ import annotations

import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from tests.integration.load import history, senders, until_acked
from tests.product import UNLIMITED, Product, start
from whispr.adapters.bus import open_bus
from whispr.adapters.jetstream import JetStream
from whispr.adapters.postgres import open_postgres
from whispr.bridge import open_bridge
from whispr.embed import find_running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(180)]

CLIENTS = 10
PATIENCE_S = 60.0
SENT = "messaging.events.message_sent"


@pytest.mark.parametrize("victim", ["product", "nats", "postgres"])
async def test_every_message_has_its_event_once(tmp_path: Path, victim: str) -> None:
    """Whatever is killed in mid-stream, the stream holds exactly the messages of the history, in their order."""
    product = start(tmp_path / "data", UNLIMITED)
    try:
        clients = senders(product, CLIENTS)
        async with trio.open_nursery() as nursery:
            for client in clients:
                nursery.start_soon(client.run, product)
            await until_acked(clients, 10)
            await kill(product, victim)
            with trio.fail_after(PATIENCE_S):
                await until_acked(clients, 10)
            nursery.cancel_scope.cancel()
        events = await published(product)
        for client in clients:
            client.check(product)
            stored = history(product, client.token, client.conversation_id)
            told = [event for event in events if event["subject"] == client.conversation_id]
            assert [event["data"]["seq"] for event in told] == [message["seq"] for message in stored]
            assert [event["id"] for event in told] == [message["id"] for message in stored]
    finally:
        product.stop()


async def kill(product: Product, victim: str) -> None:
    """Kill -9; the product is started again by us, its backends by it."""
    if victim != "product":
        os.kill(product.pid_of(victim), signal.SIGKILL)
        return
    await trio.to_thread.run_sync(product.kill)
    restarted = await trio.to_thread.run_sync(partial(start, product.data_dir, UNLIMITED))
    product.process, product.ports = restarted.process, restarted.ports


async def published(product: Product) -> list[dict[str, Any]]:
    """Wait until the outbox is empty; return the events of messages in stream order."""
    urls = await find_running(product.data_dir, ("postgres", "nats"))
    async with (
        open_bridge() as bridge,
        open_postgres(bridge, urls["postgres"], pool_size=1) as db,
        open_bus(bridge, urls["nats"]) as bus,
    ):
        await bus.wait_connected()
        with trio.fail_after(PATIENCE_S):
            while await db.fetchval("SELECT EXISTS (SELECT FROM events.outbox)"):  # noqa: ASYNC110
                await trio.sleep(0.05)  # the product is at work; there is no event of ours
        jetstream = JetStream(bus)
        count = await jetstream.count("MESSAGING_EVENTS", [SENT], 0)
        async with jetstream.read("MESSAGING_EVENTS", "test", [SENT], 1) as reader:
            return [msgspec.json.decode((await anext(reader)).payload) for _ in range(count)]
