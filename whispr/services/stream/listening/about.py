"""What a player's page shows of a stream, whoever looks: `/listen/{stream_id}/about`. An ASGI application.

    {"stream": {…}, "listener_count": 3, "has_source": true, "refused": null}

It asks for what listening asks for, so that who comes without an account, or by a signed URL, is told what plays and
why they may not hear it, if so: `refused` is then `{"code", "reason", "message"}`. Nobody becomes a listener by it.

Pages ask every few seconds, and strangers as often as they like: who shows nothing is told what another one was told
within `KNOWN_S`, and however many ask at once, the databases are asked once.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from typing import Any, Final

import msgspec
import trio
from starlette.types import Receive, Scope, Send

from whispr.asgi.errors import must_read
from whispr.errors import Code, WhisprError
from whispr.services.stream.access import Shown, shown_by
from whispr.services.stream.audience import Audience
from whispr.services.stream.channel import shown
from whispr.services.stream.livestate import LiveState

PATH: Final = re.compile(r"/listen/([0-9A-Za-z-]{1,64})/about")
"""What of a gateway's paths is served here."""
KNOWN_S: Final = 1.0
KNOWN_MAX: Final = 1_000
"""Streams that are remembered; beyond, the first is asked about again."""
_LASTING: Final = frozenset({Code.NOT_FOUND, Code.UNAUTHENTICATED, Code.PERMISSION_DENIED})
"""Refusals that are as true a moment later."""
_HEADERS: Final = (
    (b"content-type", b"application/json"),
    (b"cache-control", b"no-store"),
    (b"x-content-type-options", b"nosniff"),
)


class _Known:
    """What strangers are told of a stream, or will be."""

    def __init__(self) -> None:
        self.at = trio.current_time()
        self.there = trio.Event()
        self.said: bytes | None = None
        """None while it is being looked up, and when nothing came of that."""
        self.error: WhisprError | None = None


class About:
    """Tells what streams are."""

    def __init__(self, audience: Audience, live_state: LiveState) -> None:
        self._audience = audience
        self._live_state = live_state
        self._known: OrderedDict[str, _Known] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI 3). Raises as `Audience.regard`."""
        del receive
        must_read(scope)
        stream_id = scope["path"].split("/")[2]
        credentials = shown_by(scope)
        strange = credentials == Shown()
        said = await (self._for_strangers(stream_id) if strange else self._look(stream_id, credentials))
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await send({"type": "http.response.body", "body": said})

    async def _for_strangers(self, stream_id: str) -> bytes:
        """Return what was said within the last moment, or look. Raises as `_look`."""
        while (known := self._known.get(stream_id)) is not None:
            if known.at + KNOWN_S <= trio.current_time() and known.there.is_set():
                break
            await known.there.wait()
            if known.error is not None:
                raise WhisprError(known.error.code, known.error.message, known.error.details)
            if known.said is not None:
                return known.said
        self._known[stream_id] = known = _Known()
        self._known.move_to_end(stream_id)
        if len(self._known) > KNOWN_MAX:
            self._known.popitem(last=False)
        try:
            known.said = await self._look(stream_id, Shown())
        except WhisprError as error:
            known.error = error if error.code in _LASTING else None
            raise
        finally:
            if known.said is None and known.error is None and self._known.get(stream_id) is known:
                del self._known[stream_id]  # who waits looks for themselves
            known.at = trio.current_time()
            known.there.set()
        return known.said

    async def _look(self, stream_id: str, credentials: Shown) -> bytes:
        """Return what there is to say. Raises as `Audience.regard`."""
        stream, refused = await self._audience.regard(stream_id, credentials)
        said = {"stream": shown(stream), **await self._now(stream_id), "refused": _worded(refused)}
        return msgspec.json.encode(said)

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
