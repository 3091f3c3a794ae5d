"""What the gateway serves beside the API: health, metrics, the OpenAPI document, and pages that explain it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec
import trio
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from whispr.gateway.http import json_response
from whispr.gateway.page_files import Places, asset_routes

Readiness = Callable[[], Awaitable[Mapping[str, str]]]
"""Returns what is missing: name → why. Empty when all is well."""

Exposition = Callable[[], Awaitable[bytes]]
"""Returns metrics in Prometheus' text format."""

_PLAIN = {"cache-control": "no-cache", "x-content-type-options": "nosniff"}
READY_S = 2.0
"""How long readiness may take to be found out."""


async def own_metrics() -> bytes:
    """Return this process's metrics."""
    return generate_latest()


def page_routes(
    document: Mapping[str, Any],
    readiness: Readiness,
    exposition: Exposition = own_metrics,
    places: Places | None = None,
) -> list[Route]:
    """Return the routes of everything that is not an RPC."""
    encoded = msgspec.json.encode(document)
    places = places or Places()

    async def healthz(_: Request) -> Response:
        return json_response({"status": "alive"})

    async def readyz(_: Request) -> Response:
        missing: Mapping[str, str] = {"readiness": f"not known within {READY_S:g} s"}
        with trio.move_on_after(READY_S):
            missing = await readiness()
        if missing:
            return json_response({"status": "not ready", "missing": dict(missing)}, 503)
        return json_response({"status": "ready"})

    async def metrics(_: Request) -> Response:
        return Response(await exposition(), headers={"content-type": CONTENT_TYPE_LATEST, **_PLAIN})

    async def openapi(_: Request) -> Response:
        return Response(encoded, headers=_PLAIN, media_type="application/json")

    async def client(_: Request) -> Response:
        return json_response(places.as_json(), headers=_PLAIN)

    async def startupz(_: Request) -> Response:
        missing: Mapping[str, str] = {}
        with trio.move_on_after(READY_S):
            missing = await readiness()
        started = missing.get("process") != "starting"
        return json_response({"status": "started" if started else "starting"}, 200 if started else 503)

    endpoints = {
        "/healthz": healthz, "/livez": healthz, "/readyz": readyz, "/startupz": startupz,
        "/metrics": metrics, "/openapi.json": openapi, "/client.json": client,
    }  # fmt: skip
    routes = [Route(path, endpoint) for path, endpoint in endpoints.items()]
    return routes + asset_routes(places)
