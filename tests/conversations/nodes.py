"""Several nodes in this process, joined by one database and by a bus that loses, repeats and reorders."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import trio

from whispr.adapters.postgres import Postgres
from whispr.conversations.core import Conversations
from whispr.conversations.domain import Limits
from whispr.conversations.permissions import Permissions
from whispr.realtime.client import ClientChannel, Phoenix
from whispr.realtime.hub import Broadcast, Hub
from whispr.realtime.limits import Limits as SocketLimits
from whispr.realtime.testing import Server, served
from whispr.v1 import user_pb2

UNLIMITED = Limits(user_messages_per_min=0, conversation_messages_per_min=0)
SOCKETS = SocketLimits(operations_per_min=0, user_sockets=0, presence_linger_s=0)


class Faults:
    """What the bus does to what is broadcast, by chance."""

    def __init__(self, seed: int, *, lost: float = 0.0, repeated: float = 0.0, late: float = 0.0) -> None:
        self.random = random.Random(seed)  # a test's dice
        self.lost, self.repeated, self.late = lost, repeated, late
        self.cut = False
        """Whether the bus is away altogether."""
        self.dropped = 0


class Bus:
    """Carries broadcasts from each node to all the others."""

    def __init__(self, faults: Faults) -> None:
        self.faults = faults
        self._nodes: list[Node] = []
        self._late: list[Callable[[], None]] = []

    def attach(self, node: Node) -> None:
        self._nodes.append(node)
        node.hub.relay = lambda broadcast: self._relay(node, broadcast.pack())

    def _relay(self, by: Node, packed: bytes) -> None:
        faults, dice = self.faults, self.faults.random
        for node in self._nodes:
            if node is by:
                continue
            if faults.cut or dice.random() < faults.lost:
                faults.dropped += 1
                continue
            for _ in range(1 + (dice.random() < faults.repeated)):
                if dice.random() < faults.late:
                    self._late.append(partial(node.hear, packed))
                else:
                    node.hear(packed)
        if self._late and dice.random() < 0.3:
            self.catch_up()

    def catch_up(self) -> None:
        """Deliver what is late, in any order."""
        late, self._late = self._late, []
        self.faults.random.shuffle(late)
        for deliver in late:
            deliver()


@dataclass
class Node:
    """One process of the product, as far as conversations go."""

    hub: Hub
    core: Conversations
    server: Server

    def hear(self, packed: bytes) -> None:
        broadcast = Broadcast.unpack(packed)
        self.core.heard(broadcast)
        self.hub.deliver(broadcast)


class Everybody:
    """A user service to which nobody has blocked anybody."""

    async def ValidateMessagePermissions(  # noqa: N802  # the RPC's name
        self, request: user_pb2.ValidateMessagePermissionsRequest, **_: object
    ) -> user_pb2.ValidateMessagePermissionsResponse:
        await trio.lowlevel.checkpoint()
        del request
        return user_pb2.ValidateMessagePermissionsResponse(permission_granted=True)

    async def ValidateConversationAccess(  # noqa: N802  # the RPC's name
        self, request: user_pb2.ValidateConversationAccessRequest, **_: object
    ) -> user_pb2.ValidateConversationAccessResponse:
        await trio.lowlevel.checkpoint()
        del request
        return user_pb2.ValidateConversationAccessResponse(access_granted=True, shows_presence=True)

    async def CheckPresenceVisibility(  # noqa: N802  # the RPC's name
        self, request: user_pb2.CheckPresenceVisibilityRequest, **_: object
    ) -> user_pb2.CheckPresenceVisibilityResponse:
        await trio.lowlevel.checkpoint()
        return user_pb2.CheckPresenceVisibilityResponse(visible_user_ids=request.user_ids)

    async def ListVisibleContacts(  # noqa: N802  # the RPC's name
        self, request: user_pb2.ListVisibleContactsRequest, **_: object
    ) -> user_pb2.ListVisibleContactsResponse:
        await trio.lowlevel.checkpoint()
        del request
        return user_pb2.ListVisibleContactsResponse()


class Free:
    """A limiter without limits."""

    async def take(self, key: str, limit: int, period_s: float) -> None:
        """Let it pass."""

    def on_account(self, key: str, limit: int, period_s: float) -> bool:
        """Let it pass."""
        return True

    async def settle(self, key: str, limit: int, period_s: float) -> None:
        """Let it pass."""


@asynccontextmanager
async def nodes(
    db: Postgres,
    count: int,
    faults: Faults | None = None,
    limits: Limits = UNLIMITED,
    sockets: SocketLimits = SOCKETS,
) -> AsyncIterator[tuple[Sequence[Node], Bus]]:
    """Run so many nodes until the block ends."""
    bus = Bus(faults or Faults(0))
    async with trio.open_nursery() as nursery:
        running = [await nursery.start(_run, db, bus, limits, sockets) for _ in range(count)]
        yield running, bus
        nursery.cancel_scope.cancel(reason="the test is over")


async def _run(
    db: Postgres, bus: Bus, limits: Limits, sockets: SocketLimits, *, task_status: trio.TaskStatus[Node]
) -> None:
    hub = Hub(sockets)
    permissions = Permissions(cast("Any", Everybody()), lambda _: [])
    core = Conversations(db, hub=hub, permissions=permissions, limiter=Free(), limits=limits)
    async with served(core.channels, hub=hub) as server, trio.open_nursery() as nursery:
        node = Node(hub, core, server)
        bus.attach(node)
        await nursery.start(core.run)
        task_status.started(node)
        await trio.sleep_forever()


async def expect(channel: ClientChannel, wanted: str) -> Any:
    """Return the payload of the next event of a kind."""
    with trio.fail_after(10):
        while True:
            event, payload = await channel.__anext__()
            if event == wanted:
                return payload


async def push(channel: ClientChannel, event: str, payload: object) -> Any:
    """Push and return the reply's response."""
    with trio.fail_after(10):
        return await channel.push(event, payload)


async def join(phoenix: Phoenix, topic: str, **params: object) -> ClientChannel:
    """Join a topic."""
    with trio.fail_after(10):
        return await phoenix.join(topic, params)
