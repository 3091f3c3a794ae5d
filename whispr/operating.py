"""What an operator sees of a node, and of the others that share its ports, over HTTP."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import msgspec
import trio

from whispr.adapters.bus import Bus
from whispr.adapters.jetstream import JetStream
from whispr.adapters.postgres import Postgres
from whispr.events import lag
from whispr.gateway import operations, tasks
from whispr.gateway.health import PATH as HEALTH_PATH
from whispr.gateway.health import Health
from whispr.gateway.pages import own_metrics
from whispr.gateway.processes import Processes
from whispr.gateway.server import Endpoint
from whispr.observing import Observing
from whispr.realtime.hub import Census, Hub
from whispr.worker_questions import ask, serve_answers, socket_name

if TYPE_CHECKING:
    from whispr.node import Shared

Report = Callable[[bool], Awaitable[Mapping[str, object]]]


class Operating:
    """One node's. `run` it, so that the others may ask."""

    def __init__(
        self,
        observing: Observing,
        report: Report,
        hub: Callable[[], Hub | None],
        db: Postgres,
        bus: Bus,
        shared: Shared | None,
    ) -> None:
        """`report` says how everything is; `hub` returns the process's hub, if it has one by now."""
        self._shared = shared
        self._hub = hub

        async def health(_: Mapping[str, Any]) -> Mapping[str, object]:
            return await report(True)

        answers = {**observing.answers(), "health": health, "realtime": self._realtime}
        self._processes = Processes(answers) if shared is None else self._among(shared, answers)
        authorise = observing.authorise
        exposition = own_metrics if shared is None else shared.exposition
        letters, lagging = operations.Letters(db), partial(lag.read, db, JetStream(bus))
        self.endpoints = (
            Endpoint("debug", tasks.PATH, tasks.Tasks(self._processes, authorise)),
            Endpoint("health", HEALTH_PATH, Health(report, authorise)),
            Endpoint(
                "operations",
                operations.PATH,
                operations.Operations(authorise, self._processes, letters, lagging, exposition),
            ),
        )

    @staticmethod
    def _among(shared: Shared, answers: Mapping[str, Any]) -> Processes:
        def others(worker: str, question: str, parameters: Mapping[str, Any]) -> Awaitable[Any | None]:
            return ask(shared.folder / socket_name(worker), question, parameters)

        names = [str(number) for number in range(1, shared.workers + 1)]
        return Processes(answers, own=str(shared.number), names=names, ask=others)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Answer the others that share this node's ports, until cancelled."""
        if self._shared is None:
            task_status.started()
            return
        path = self._shared.folder / socket_name(self._shared.number)
        await serve_answers(path, self._processes.answer, task_status=task_status)

    async def _realtime(self, parameters: Mapping[str, Any]) -> dict[str, Any]:
        hub = self._hub()
        census = hub.census(parameters["topics"]) if hub is not None else Census(0, 0, 0, 0, [])
        return msgspec.structs.asdict(census)
