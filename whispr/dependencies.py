"""What this process depends on, how each of it is, and what is said of that.

Every dependency is a `Target`: services and the parts that reach out make their calls through theirs; PostgreSQL,
Redis and NATS are `Backend`s, whose adapters make every operation through them and which are watched here. A watch
on each service's health (`grpc.health.v1`) hears of changes as they happen, and finds a service again that was away.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from math import inf
from typing import Any

import structlog
import trio

from whispr.adapters.bus import Bus
from whispr.adapters.cache import Cache
from whispr.adapters.postgres import Postgres
from whispr.call_rules import rules_of
from whispr.config import SERVICES, Settings
from whispr.errors import WhisprError
from whispr.resilience.backend import Backend
from whispr.resilience.breaker import State
from whispr.resilience.retry import Backoff
from whispr.resilience.target import Target
from whispr.rpc.channel import Channel
from whispr.rpc.health import NOT_SERVING, SERVING, HealthCheckRequest, HealthServicer, HealthStub

ASK_S = 1.0
"""How long an answer to a question about health may take."""
FRESH_S = 0.5
"""How long answers about health serve everybody who asks: anybody may, and each question asks everything."""
_WATCH_AGAIN = Backoff(0.2, 2.0)

NEEDED = ("postgres",)
"""Without these a service does not serve: writes are refused, and so are most reads."""

log = structlog.get_logger("whispr.dependencies")


@dataclass(slots=True)
class Known:
    """What is known of one dependency."""

    target: Target
    up: bool | None = None
    """None before anything is known."""
    latency_s: float | None = None
    """Of the last answer to a question about it."""
    logged_away: bool = False

    def describe(self, *, fully: bool) -> dict[str, Any]:
        """What the health endpoint says; what errors say only `fully`, for they name hosts."""
        target = self.target
        failure = target.last_failure
        error = None
        if failure is not None:
            error = {"code": failure.code, "age_s": round(time.time() - failure.at, 1)}
            if fully:
                error["message"] = failure.message
        return {
            "status": {None: "unknown", True: "up", False: "down"}[self.up],
            "latency_ms": None if self.latency_s is None else round(self.latency_s * 1000, 2),
            "breaker": target.breaker.state.value,
            "in_flight": target.bulkhead.in_flight,
            "queued": target.bulkhead.queued,
            "last_error": error,
        }


class Dependencies:
    """Those of one process. `run` watches them until cancelled."""

    def __init__(
        self,
        settings: Settings,
        here: Collection[str],
        db: Postgres,
        cache: Cache,
        bus: Bus,
        health: HealthServicer,
    ) -> None:
        """`here` are the services of this process; `health` is told how they are."""
        self.rules = rules_of(settings)
        self._here = here
        self._health = health
        self._probes: Mapping[str, tuple[Backend, Callable[[], Awaitable[None]]]] = {
            each.backend.name: (each.backend, each.probe) for each in (db, cache, bus)
        }
        self._backends = {name: Known(backend) for name, (backend, _) in self._probes.items()}
        self._services = {name: Known(Target(name, self.rules.of_target(name))) for name in SERVICES}
        self._others: dict[str, Known] = {}
        self._on_back: dict[str, list[Callable[[], None]]] = {}
        self._state = "starting"
        self._asked_at = -inf

    def service(self, name: str) -> Target:
        """The target of a service."""
        return self._services[name].target

    def other(self, name: str) -> Target:
        """The target of something that this process may need: made when it is first asked for."""
        if name not in self._others:
            self._others[name] = Known(Target(name, self.rules.of_target(name)))
        return self._others[name].target

    def on_back(self, name: str, callback: Callable[[], None]) -> None:
        """Call `callback`, which must not block or raise, whenever a dependency is there again."""
        self._on_back.setdefault(name, []).append(callback)

    def set_state(self, state: str) -> None:
        """Say how the process itself is: starting, serving, draining."""
        self._state = state
        for name, known in (self._services | self._backends).items():
            if known.up is False and name not in self._here:
                self._log_away(name, known)
        self._tell()

    async def run(
        self,
        channels: Mapping[str, Channel],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Watch until cancelled. `channels` lead to every service."""
        async with trio.open_nursery() as nursery:
            with ExitStack() as watches:
                for name, known in self._services.items():
                    nursery.start_soon(self._watch, name, known, channels[name], name=f"health of {name}")
                for name, (backend, _) in self._probes.items():
                    watches.enter_context(backend.watched())
                    nursery.start_soon(self._probe_for_ever, name, name=f"probes of {name}")
                task_status.started()
                await trio.sleep_forever()

    async def report(self, channels: Mapping[str, Channel], *, fully: bool) -> dict[str, Any]:
        """How everything is, asked now or a moment ago. Takes about `ASK_S` at most."""
        if trio.current_time() >= self._asked_at + FRESH_S:
            self._asked_at = trio.current_time()
            async with trio.open_nursery() as nursery:
                for name, known in self._services.items():
                    nursery.start_soon(self._ask, name, known, channels[name])
                for name in self._backends:
                    nursery.start_soon(self._probe, name)
        for known in self._others.values():
            known.up = known.target.breaker.state is not State.OPEN
        services = {
            name: {"here": name in self._here, **known.describe(fully=fully)}
            for name, known in self._services.items()
        }
        others = {
            name: known.describe(fully=fully) for name, known in (self._backends | self._others).items()
        }
        return {
            "status": self._summary(),
            "state": self._state,
            "services": services,
            "dependencies": others,
        }

    def _summary(self) -> str:
        if self._state != "serving" or any(self._backends[name].up is False for name in NEEDED):
            return "down"
        all_known = [*self._services.values(), *self._backends.values(), *self._others.values()]
        return "degraded" if any(known.up is False for known in all_known) else "ok"

    # --- Backends -----------------------------------------------------------------------------------------

    async def _probe_for_ever(self, name: str) -> None:
        backend, _ = self._probes[name]
        while True:
            await self._probe(name)
            await backend.pause()

    async def _probe(self, name: str) -> None:
        known = self._backends[name]
        backend, ping = self._probes[name]
        began = trio.current_time()
        try:
            await backend.probe(ping)
        except WhisprError as error:
            self._heard(name, known, up=backend.breaker.state is State.CLOSED and known.up is not False)
            log.debug("dependency_away", name=name, error=str(error))
        else:
            known.latency_s = trio.current_time() - began
            self._heard(name, known, up=True)

    # --- Services -----------------------------------------------------------------------------------------

    async def _watch(self, name: str, known: Known, channel: Channel) -> None:
        """Hear of every change of a service's health; look for it again when it is gone."""
        request = HealthCheckRequest(service=health_name(name))
        failures = 0
        while True:
            try:
                async with HealthStub(channel).Watch(request, wait_for_ready=True) as call:
                    async for answer in call:
                        failures = 0
                        self._heard(name, known, up=answer.status == SERVING)
            except WhisprError as error:
                known.target.note(error)
            failures += 1
            self._heard(name, known, up=False)
            await trio.sleep(_WATCH_AGAIN.pause_s(failures))

    async def _ask(self, name: str, known: Known, channel: Channel) -> None:
        """Ask a service how it is, past its breaker."""
        request = HealthCheckRequest(service=health_name(name))
        began = trio.current_time()
        up = False
        with trio.move_on_after(ASK_S):
            try:
                answer = await HealthStub(channel).Check(request)
            except WhisprError as error:
                known.target.note(error)
            else:
                known.latency_s = trio.current_time() - began
                up = answer.status == SERVING
        self._heard(name, known, up=up)

    def _heard(self, name: str, known: Known, *, up: bool) -> None:
        if known.up is up:
            return
        known.up = up
        if not up:
            self._log_away(name, known)
        elif known.logged_away:
            known.logged_away = False
            log.info("dependency_back", name=name)
        if up:
            for callback in self._on_back.get(name, ()):
                callback()
        if name in NEEDED:
            self._tell()

    def _log_away(self, name: str, known: Known) -> None:
        """Log it once; while the process itself starts or stops, its own services are away by nature."""
        if self._state == "serving" and not known.logged_away:
            known.logged_away = True
            log.warning("dependency_away", name=name)

    def _tell(self) -> None:
        """Tell those who ask after the health of the services here."""
        serving = self._state == "serving"
        able = serving and all(self._backends[name].up is not False for name in NEEDED)
        self._health.set("", SERVING if serving else NOT_SERVING)
        for name in self._here:
            self._health.set(health_name(name), SERVING if able else NOT_SERVING)


def health_name(service: str) -> str:
    """What `grpc.health.v1` knows a service by: "auth" → "whispr.v1.AuthService"."""
    return f"whispr.v1.{service.capitalize()}Service"
