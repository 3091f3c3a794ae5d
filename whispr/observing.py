"""What a process shows of itself: spans of its calls, measurements, logs, and the tree of its tasks."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import trio

from whispr import task_facts
from whispr.config import Settings
from whispr.errors import denied
from whispr.gateway.processes import Answer
from whispr.gateway.tasks import answer_tasks
from whispr.identity import Identity, actor_on
from whispr.identity.access import OPERATOR_PERMISSION
from whispr.rpc.call import Call
from whispr.rpc.interceptors import Interceptor
from whispr.rpc.logging import Logged
from whispr.rpc.metrics import CONNECTIONS, STREAMS, Measured
from whispr.rpc.server import RpcServer
from whispr.rpc.statistics import Counted
from whispr.rpc.tracing import TracedClient, TracedServer
from whispr.telemetry.loop import watch_loop
from whispr.telemetry.otlp import Exporter
from whispr.telemetry.tasks import TaskTree
from whispr.telemetry.tracing import Tracer, tracing_with
from whispr.tokens import check_service

OPERATIONS = "operations"
"""The service that a service's token must grant to see the tasks."""


class Observing:
    """One process's."""

    def __init__(self, settings: Settings, services: Sequence[str], identity: Identity) -> None:
        self._services = tuple(services)
        self._identity = identity
        self._ok_ratio = settings.log.calls
        self._began_at = time.monotonic()
        self._exporter: Exporter | None = None
        self._tracer: Tracer | None = None
        if settings.tracing.endpoint:
            resource = {
                "service.name": "whispr",
                "service.instance.id": f"{socket.gethostname()}:{os.getpid()}",
                "whispr.services": ",".join(services),
            }
            self._exporter = Exporter(settings.tracing.endpoint, resource)
            self._tracer = Tracer(settings.tracing.ratio, self._exporter.record)
        self.tasks = TaskTree()
        task_facts.describe_all()

    def of_servers(self) -> list[Interceptor]:
        """What surrounds every call that is served, before it is authorised."""
        observers: list[Interceptor] = [Measured(), Logged(ok_ratio=self._ok_ratio, actor_of=_actor)]
        return observers if self._tracer is None else [*observers, TracedServer(self._tracer)]

    def of_channels(self) -> list[Interceptor]:
        """What surrounds every call that is made."""
        measured: list[Interceptor] = [Measured("client")]
        return measured if self._tracer is None else [*measured, TracedClient(self._tracer)]

    async def run(
        self, servers: Sequence[RpcServer], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Measure, and trace and export, until cancelled. `servers` may still grow."""
        async with trio.open_nursery() as nursery:
            with (
                CONNECTIONS.watching(lambda: _sum(servers, lambda _: 1)),
                STREAMS.watching(lambda: _sum(servers, lambda connection: connection.calls_going)),
                nullcontext() if self._tracer is None else tracing_with(self._tracer),
            ):
                await nursery.start(watch_loop)
                if self._exporter is not None:
                    await nursery.start(self._exporter.run)
                task_status.started()
                await trio.sleep_forever()

    def answers(self) -> dict[str, Answer]:
        """What this process answers about itself: `process` and `tasks`."""

        async def process(_: Mapping[str, Any]) -> Mapping[str, Any]:
            return self._process()

        return {"process": process, "tasks": answer_tasks(self.tasks, self._process)}

    async def authorise(self, token: str) -> str:
        """Let those pass who run the product; return who it is. Raises UNAUTHENTICATED, PERMISSION_DENIED."""
        claims = await self._identity.authenticate(token)
        if claims.is_service:
            check_service(claims, OPERATIONS)
        elif not claims.allows(OPERATOR_PERMISSION):
            raise denied("this is for administrators and services", reason="operators_only")
        return f"service:{claims.username}" if claims.is_service else claims.user_id

    def _process(self) -> Mapping[str, Any]:
        return {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "services": self._services,
            "uptime_s": round(time.monotonic() - self._began_at, 1),
            "tasks": trio.lowlevel.current_statistics().tasks_living,
        }


def _sum(servers: Sequence[RpcServer], number: Callable[[Counted], int]) -> int:
    return sum(number(connection) for server in servers for connection in server.census.live)


def _actor(call: Call) -> str:
    """Name who a call was made for: the person, else the service that made it."""
    actor = actor_on(call)
    if actor is None:
        return ""
    return actor.user_id or f"service:{actor.claims.username}"
