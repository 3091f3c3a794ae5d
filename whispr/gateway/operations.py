"""`/v1/operations/…`: what the operator's console asks and does, for administrators and services.

    GET  workers                              the processes behind this port, and which of them answers
    GET  health?worker=N                      /v1/health as that worker sees it: breakers are each process's own
    GET  figures                              calls, latencies and what is in use, added up over all workers
    GET  realtime                             sockets and topics of all workers, the largest topics first
    GET  events                               the outbox, the streams, and how far consumers are
    GET  dead-letters?consumer=&after=&limit= events that were given up on, oldest first
    GET  dead-letters/{id}                    one of them, with its event
    POST dead-letters/replay, …/drop          {"ids": […]}, {"consumer": "…"} or {"all": true}

What changes something is logged with who did it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

import msgspec
import structlog
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from whispr.asgi.errors import must_read, not_allowed
from whispr.errors import invalid, not_found
from whispr.events import dead_letters
from whispr.events.dead_letters import Choice, Letter
from whispr.events.lag import Lag
from whispr.gateway.figures import figures
from whispr.gateway.http import json_response, read_body
from whispr.gateway.pages import Exposition
from whispr.gateway.processes import Processes
from whispr.gateway.tasks import Authorise, bearer

PATH = re.compile("/v1/operations/[a-z0-9/-]{1,60}")
BODY_BYTES_MAX = 64 * 1024
LETTERS_MAX = 100
"""Dead letters of one answer, and numbers in one request."""
TOPICS_MAX = 50

log = structlog.get_logger("whispr.operations")


class _Chosen(msgspec.Struct, forbid_unknown_fields=True):
    ids: list[int] = []
    consumer: str = ""
    all: bool = False


class Letters:
    """The dead letters there are, and what may be done with them."""

    def __init__(self, db: Any) -> None:
        self._db = db

    async def page(self, query: Mapping[str, str]) -> dict[str, Any]:
        """Return some of them. Raises INVALID_ARGUMENT."""
        limit, after = _number(query, "limit", 50, LETTERS_MAX), _number(query, "after", 0, 2**62)
        found = await dead_letters.page(self._db, query.get("consumer", ""), limit + 1, after)
        return {"letters": [_shown(letter) for letter in found[:limit]], "has_more": len(found) > limit}

    async def one(self, number: int) -> dict[str, Any]:
        """Return one with its event. Raises NOT_FOUND."""
        letter, event_id, payload = await dead_letters.one(self._db, number)
        try:
            event: Any = msgspec.json.decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            event = repr(payload)
        return {**_shown(letter), "event_id": event_id, "payload": event}

    async def act(self, act: str, body: bytes, by: str) -> dict[str, Any]:
        """Replay or drop what the body chooses. Raises INVALID_ARGUMENT, NOT_FOUND."""
        choice = _choice(body)
        done = await (dead_letters.replay if act == "replay" else dead_letters.drop)(self._db, choice)
        log.info(
            "dead_letters_replayed" if act == "replay" else "dead_letters_dropped",
            count=done,
            ids=list(choice.ids),
            consumer=choice.consumer,
            by=by,
        )
        return {"count": done}


class Operations:
    """The endpoint, as an ASGI application."""

    def __init__(
        self,
        authorise: Authorise,
        processes: Processes,
        letters: Letters,
        lag: Callable[[], Awaitable[Lag]],
        exposition: Exposition,
    ) -> None:
        self._authorise = authorise
        self._processes = processes
        self._letters = letters
        self._lag = lag
        self._exposition = exposition
        self._reads: Mapping[str, Callable[[Mapping[str, str]], Awaitable[Any]]] = {
            "workers": self._workers, "health": self._health, "figures": self._figures,
            "realtime": self._realtime, "events": self._events, "dead-letters": letters.page,
        }  # fmt: skip

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises WhisprError."""
        headers = Headers(scope=scope)
        by = await self._authorise(bearer(headers))
        what = scope["path"].removeprefix("/v1/operations/")
        if what in ("dead-letters/replay", "dead-letters/drop"):
            if scope["method"] != "POST":
                raise not_allowed(scope["method"], "POST")
            body = await read_body(receive, headers, BODY_BYTES_MAX)
            answer: Any = await self._letters.act(what.rpartition("/")[2], body, by)
        else:
            must_read(scope)
            given = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
            answer = await self._read(what, {name: values[-1] for name, values in given.items()})
        await json_response(answer)(scope, receive, send)

    async def _read(self, what: str, query: Mapping[str, str]) -> Any:
        number = re.fullmatch("dead-letters/([0-9]{1,18})", what)
        if number is not None:
            return await self._letters.one(int(number[1]))
        if what not in self._reads:
            raise not_found("page of operations", what)
        return await self._reads[what](query)

    async def _workers(self, _: Mapping[str, str]) -> dict[str, Any]:
        facts = await self._processes.ask_all("process", {})
        return {
            "answered_by": self._processes.own,
            "workers": [{"worker": name, "process": fact} for name, fact in facts.items()],
        }

    async def _health(self, query: Mapping[str, str]) -> Any:
        worker = query.get("worker", "")
        report = await self._processes.ask(worker, "health", {})
        return {"worker": worker or self._processes.own, **report}

    async def _figures(self, _: Mapping[str, str]) -> dict[str, Any]:
        return {"at": time.time(), **figures((await self._exposition()).decode())}

    async def _realtime(self, _: Mapping[str, str]) -> dict[str, Any]:
        census = await self._processes.ask_all("realtime", {"topics": TOPICS_MAX})
        return merged_topics(census)

    async def _events(self, _: Mapping[str, str]) -> Lag:
        return await self._lag()


def merged_topics(census: Mapping[str, Any | None]) -> dict[str, Any]:
    """Add up what each worker says of its topics; each says its largest, so a small one's number is at least that."""
    members: dict[str, int] = {}
    for said in census.values():
        for topic, count in (said or {}).get("largest", ()):
            members[topic] = members.get(topic, 0) + count
    largest = sorted(members.items(), key=lambda each: (-each[1], each[0]))[:TOPICS_MAX]
    return {
        "workers": [
            {"worker": worker, **{name: said[name] for name in ("sockets", "users", "channels", "topics")}}
            if said is not None
            else {"worker": worker}
            for worker, said in census.items()
        ],
        "topics": [{"topic": topic, "members": count} for topic, count in largest],
    }


def _shown(letter: Letter) -> dict[str, Any]:
    return msgspec.to_builtins(letter, builtin_types=())  # type: ignore[no-any-return]  # of a dataclass, a dict


def _choice(body: bytes) -> Choice:
    """Read which dead letters are meant. Raises INVALID_ARGUMENT."""
    try:
        chosen = msgspec.json.decode(body or b"{}", type=_Chosen)
    except msgspec.MsgspecError as error:
        raise invalid({"body": str(error)}) from None
    if sum((bool(chosen.ids), bool(chosen.consumer), chosen.all)) != 1:
        raise invalid({"ids": "say which: ids, or a consumer, or all"})
    if len(chosen.ids) > LETTERS_MAX or not all(0 < each < 2**62 for each in chosen.ids):
        raise invalid({"ids": f"at most {LETTERS_MAX} numbers of dead letters"})
    return Choice(tuple(chosen.ids), chosen.consumer)


def _number(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    given = query.get(name, "") or str(default)
    if not re.fullmatch("[0-9]{1,18}", given) or int(given) > most:
        raise invalid({name: f"a number up to {most}"})
    return int(given)
