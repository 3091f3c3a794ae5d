"""`GET /v1/debug/tasks`: the tree of a process's tasks, for administrators and services.

`?expand=socket` shows more of that kind, or of the group of that name, than a few examples; it may be given several
times. `?nodes=500` bounds the answer further. Of several workers the one that was met answers for itself;
`?worker=2` asks that one, and each answer says which there are.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from whispr.asgi.errors import must_read
from whispr.errors import invalid, unauthenticated
from whispr.gateway.http import NoTokenError, json_response
from whispr.gateway.processes import Answer, Processes
from whispr.telemetry import tree
from whispr.telemetry.tasks import TaskTree

PATH = re.compile("/v1/debug/tasks")
EXPAND_MAX = 10
"""Kinds in one question."""

Authorise = Callable[[str], Awaitable[str]]
"""Checks a token; returns who it is. Raises UNAUTHENTICATED, or PERMISSION_DENIED for one that is no operator's."""


class Tasks:
    """The endpoint, as an ASGI application."""

    def __init__(self, processes: Processes, authorise: Authorise) -> None:
        self._processes = processes
        self._authorise = authorise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises WhisprError."""
        must_read(scope)
        worker, parameters = _asked(scope["query_string"].decode("latin-1"))
        await self._authorise(bearer(Headers(scope=scope)))
        seen = await self._processes.ask(worker, "tasks", parameters)
        shown = {"worker": worker or self._processes.own, "workers": self._processes.names, **seen}
        await json_response(shown)(scope, receive, send)


def answer_tasks(tasks: TaskTree, process: Callable[[], Mapping[str, Any]]) -> Answer:
    """Return what answers the question `tasks` for a process; `process` says whose tasks they are."""

    async def answer(parameters: Mapping[str, Any]) -> dict[str, Any]:
        seen = await tasks.read()
        shown = tree.as_json(seen, parameters["expand"], nodes_max=parameters["nodes"])
        return {"process": process(), "tree": shown}

    return answer


def bearer(headers: Headers) -> str:
    """Return the access token of a request. Raises UNAUTHENTICATED."""
    authorization = headers.get("authorization", "")
    if not authorization:
        raise NoTokenError
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise unauthenticated("the authorization is not `Bearer <token>`")
    return token.strip()


def _asked(query: str) -> tuple[str, dict[str, Any]]:
    """Read the query: which worker, and what of it. Raises INVALID_ARGUMENT."""
    given = parse_qs(query, keep_blank_values=True)
    unknown = given.keys() - {"expand", "nodes", "worker"}
    if unknown:
        raise invalid(dict.fromkeys(sorted(unknown), "no such parameter: there are expand, nodes and worker"))
    expand = given.get("expand", [])
    if len(expand) > EXPAND_MAX:
        raise invalid({"expand": f"at most {EXPAND_MAX}"})
    nodes = given.get("nodes", [str(tree.NODES_MAX)])[-1]
    if not re.fullmatch("[0-9]{1,6}", nodes) or not 0 < int(nodes) <= tree.NODES_MAX:
        raise invalid({"nodes": f"a number from 1 to {tree.NODES_MAX}"})
    return given.get("worker", [""])[-1], {"expand": expand, "nodes": int(nodes)}
