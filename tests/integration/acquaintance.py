"""People of every role in a product that runs as a process of its own, for tests that are not async."""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TypeVar

import trio

from tests.product import Product
from tests.world import World, acquainted, unlimited
from whispr.adapters.postgres import open_postgres
from whispr.bridge import open_bridge
from whispr.config import Settings
from whispr.embed import find_running

Answer = TypeVar("Answer")

LIFTED = {f"WHISPR_LIMITS_{name.upper()}": "0" for name in unlimited().model_fields_set}
"""Settings of a product that counts nothing per minute, hour or day, nor streams."""


@dataclass
class Acquaintance:
    """A world that lives in a thread of its own."""

    world: World
    token: trio.lowlevel.TrioToken
    over: trio.Event

    def do(self, fn: Callable[..., Awaitable[Answer]], *args: object) -> Answer:
        """Run an async function in the world's thread."""
        return trio.from_thread.run(fn, *args, trio_token=self.token)


@contextmanager
def acquaintance(product: Product) -> Iterator[Acquaintance]:
    """Everybody of `tests.world` in a product, for the length of the block."""
    made: SimpleQueue[Acquaintance | BaseException] = SimpleQueue()

    async def live() -> None:
        urls = await find_running(product.data_dir, ("postgres",))
        settings = Settings(data_dir=product.data_dir, limits=unlimited())
        async with (
            open_bridge() as bridge,
            open_postgres(bridge, urls["postgres"], pool_size=2) as db,
            acquainted(settings, db, product.ports) as world,
        ):
            it = Acquaintance(world, trio.lowlevel.current_trio_token(), trio.Event())
            made.put(it)
            await it.over.wait()

    def run() -> None:
        try:
            trio.run(live)
        except BaseException as error:  # noqa: BLE001  # whoever waits for it raises it
            made.put(error)

    thread = threading.Thread(target=run, name="acquaintance")
    thread.start()
    it = made.get()
    if isinstance(it, BaseException):
        raise it
    try:
        yield it
    finally:
        it.token.run_sync_soon(it.over.set)
        thread.join()
