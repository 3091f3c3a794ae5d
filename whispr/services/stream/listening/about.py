"""What a player's page shows of a stream, whoever looks: `/listen/{stream_id}/about`. An ASGI application.

    {"stream": {…}, "listener_count": 3, "has_source": true, "refused": null}

It asks for what listening asks for, so that who comes without an account, or by a signed URL, is told what plays and
why they may not hear it, if so: `refused` is then `{"code", "reason", "message"}`. Nobody becomes a listener by it.
"""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec
from starlette.types import Receive, Scope, Send

from whispr.asgi.errors import HttpError
from whispr.errors import Code, WhisprError
from whispr.services.stream.access import shown_by
from whispr.services.stream.audience import Audience
from whispr.services.stream.channel import shown
from whispr.services.stream.livestate import LiveState

PATH: Final = re.compile(r"/listen/([0-9A-Za-z-]{1,64})/about")
"""What of a gateway's paths is served here."""
_HEADERS: Final = (
    (b"content-type", b"application/json"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
)


class About:
    """Tells what streams are."""

    def __init__(self, audience: Audience, live_state: LiveState) -> None:
        self._audience = audience
        self._live_state = live_state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI 3). Raises as `Audience.regard`."""
        del receive
        method = scope["method"]
        if method not in ("GET", "HEAD"):
            allowed = {"allow": "GET, HEAD"}
            raise HttpError(405, Code.UNIMPLEMENTED, f"no {method} here", "method_not_allowed", allowed)
        stream_id = scope["path"].split("/")[2]
        stream, refused = await self._audience.regard(stream_id, shown_by(scope))
        said = {"stream": shown(stream), **await self._now(stream_id), "refused": _worded(refused)}
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await send({"type": "http.response.body", "body": msgspec.json.encode(said)})

    async def _now(self, stream_id: str) -> dict[str, Any]:
        """What Redis knows; a stream is worth being told of without."""
        try:
            counts = await self._live_state.counts([stream_id])
            sourced = await self._live_state.with_source([stream_id])
        except WhisprError:
            return {"listener_count": None, "has_source": None}
        return {"listener_count": counts[stream_id], "has_source": stream_id in sourced}


def _worded(refused: WhisprError | None) -> dict[str, str] | None:
    if refused is None:
        return None
    return {"code": refused.code.name, "reason": refused.reason, "message": refused.message}
