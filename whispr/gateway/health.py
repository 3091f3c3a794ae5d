"""`GET /v1/health`: how the services and everything they depend on are, breakers and last errors included.

Anybody may ask; what the errors say, which may name hosts, only administrators and services are told.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from whispr.asgi.errors import must_read
from whispr.errors import WhisprError
from whispr.gateway.http import json_response, request_id

PATH = re.compile("/v1/health")

Report = Callable[[bool], Awaitable[Mapping[str, Any]]]
"""Returns how everything is: with what errors say, or without."""
Authorise = Callable[[str], Awaitable[object]]
"""Raises WhisprError unless the token is one of an administrator or a service."""


class Health:
    """The endpoint (ASGI 3)."""

    def __init__(self, report: Report, authorise: Authorise) -> None:
        self._report = report
        self._authorise = authorise

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 200 when it serves, whole or degraded, and 503 when it does not."""
        request = Request(scope)
        must_read(scope)
        report = await self._report(await self._is_operator(request))
        response = json_response(dict(report), 503 if report["status"] == "down" else 200)
        response.headers["x-request-id"] = request_id(request.headers)
        response.headers["cache-control"] = "no-store"
        await response(scope, receive, send)

    async def _is_operator(self, request: Request) -> bool:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            return False
        try:
            await self._authorise(token.strip())
        except WhisprError:
            return False  # while Auth is away nobody is left without an answer
        return True
