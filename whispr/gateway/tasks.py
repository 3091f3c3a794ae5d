"""`GET /v1/debug/tasks`: the tree of this process's tasks, for administrators and services.

`?expand=socket` shows more of that kind, or of the group of that name, than a few examples; it may be given several
times. `?nodes=500` bounds the answer further.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import parse_qs

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from whispr.asgi.errors import HttpError
from whispr.errors import Code, invalid, unauthenticated
from whispr.gateway.http import NoTokenError, json_response
from whispr.telemetry import tree
from whispr.telemetry.tasks import TaskTree

PATH = re.compile("/v1/debug/tasks")
EXPAND_MAX = 10
"""Kinds in one question."""

Authorise = Callable[[str], Awaitable[None]]
"""Checks a token. Raises UNAUTHENTICATED, or PERMISSION_DENIED for one that is no operator's."""


class Tasks:
    """The endpoint, as an ASGI application."""

    def __init__(
        self, tasks: TaskTree, authorise: Authorise, process: Callable[[], Mapping[str, Any]]
    ) -> None:
        """`process` says whose tasks they are."""
        self._tasks = tasks
        self._authorise = authorise
        self._process = process

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request. Raises WhisprError."""
        if scope["method"] not in ("GET", "HEAD"):
            raise HttpError(405, Code.UNIMPLEMENTED, "GET it", reason="method_not_allowed")
        expand, nodes_max = _asked(scope["query_string"].decode("latin-1"))
        await self._authorise(_token(Headers(scope=scope)))
        seen = await self._tasks.read()
        shown = {"process": self._process(), "tree": tree.as_json(seen, expand, nodes_max=nodes_max)}
        await json_response(shown)(scope, receive, send)


def _token(headers: Headers) -> str:
    authorization = headers.get("authorization", "")
    if not authorization:
        raise NoTokenError
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise unauthenticated("the authorization is not `Bearer <token>`")
    return token.strip()


def _asked(query: str) -> tuple[list[str], int]:
    """Read the query. Raises INVALID_ARGUMENT."""
    given = parse_qs(query, keep_blank_values=True)
    unknown = given.keys() - {"expand", "nodes"}
    if unknown:
        raise invalid(dict.fromkeys(sorted(unknown), "no such parameter: there are expand and nodes"))
    expand = given.get("expand", [])
    if len(expand) > EXPAND_MAX:
        raise invalid({"expand": f"at most {EXPAND_MAX}"})
    nodes = given.get("nodes", [str(tree.NODES_MAX)])[-1]
    if not re.fullmatch("[0-9]{1,6}", nodes) or not 0 < int(nodes) <= tree.NODES_MAX:
        raise invalid({"nodes": f"a number from 1 to {tree.NODES_MAX}"})
    return expand, int(nodes)
