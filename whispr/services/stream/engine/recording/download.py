"""Recordings over HTTP: `/recordings/{recording_id}/{token}/audio.ogg` or `.aac`, with ranges. An ASGI application.

The URL is what allows: its token names the recording and when it ends. Errors are raised, for the gateway to word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final, Protocol

from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from whispr.adapters.objects import Objects
from whispr.asgi import conditions
from whispr.asgi.conditions import http_date
from whispr.asgi.errors import must_read
from whispr.asgi.files import answer_file
from whispr.errors import conflict, not_found, unavailable
from whispr.services.stream.recordings import MEDIA_TYPES, Recording, RecordingStatus

PATH: Final = re.compile(r"/recordings/([0-9a-f-]{36})/([0-9A-Za-z._-]{1,200})/audio\.(ogg|aac)")
"""What of a gateway's paths is served here."""
SENDING_MAX: Final = 256
"""Downloads at a time that pass through this process's memory, a piece of each."""


class Index(Protocol):
    """`Recordings`, as far as this needs it."""

    async def find(self, recording_id: str) -> Recording:
        """Return a recording. Raises NOT_FOUND."""


class Checks(Protocol):
    """`ListenUrls`, as far as this needs it."""

    def check_recording(self, token: str, recording_id: str) -> None:
        """Return if a token is good for a recording; raises if not."""


class Download:
    """Gives recordings for one process."""

    def __init__(self, index: Index, urls: Checks, objects: Objects, folder: Path) -> None:
        """`folder`: where a `Recorder` of this node has its files."""
        self._index = index
        self._urls = urls
        self._objects = objects
        self._folder = folder
        self._sending = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI 3). Raises WhisprError."""
        must_read(scope)
        found = PATH.fullmatch(scope["path"])
        assert found is not None, "the gateway looked"
        recording_id, token, extension = found.groups()
        self._urls.check_recording(token, recording_id)
        recording = await self._index.find(recording_id)
        if recording.status is not RecordingStatus.COMPLETED:
            raise conflict(f"the recording is {recording.status.value}", "not_complete")
        if extension != recording.extension:
            raise not_found("file", f"audio.{extension}")
        if not recording.object_key:
            await self._give_own(recording, scope, send)
        else:
            await self._give_stored(recording, scope, send)

    async def _give_own(self, recording: Recording, scope: Scope, send: Send) -> None:
        """Give one that was not to be uploaded."""
        said = [(name.encode(), value.encode()) for name, value in _said(recording).items()]
        try:
            path = self._folder / f"{recording.id}.{recording.extension}"
            await answer_file(scope, send, path, MEDIA_TYPES[recording.codec], said)
        except FileNotFoundError:
            raise unavailable(
                "the recording is on the disk of another node, and was not to be uploaded", 60.0
            ) from None

    async def _give_stored(self, recording: Recording, scope: Scope, send: Send) -> None:
        etag = f'"{recording.id}-{recording.bytes:x}"'
        modified = recording.ended_at or recording.created_at
        plan = conditions.plan(Headers(scope=scope), etag, modified, recording.bytes)
        said = _said(recording) | {
            "accept-ranges": "bytes", "etag": etag, "last-modified": http_date(modified),
        }  # fmt: skip
        if plan.status == 416:
            said["content-range"] = f"bytes */{recording.bytes}"
        if plan.status == 206:
            said["content-range"] = f"bytes {plan.start}-{plan.end - 1}/{recording.bytes}"
        if plan.status in (200, 206):
            media_type = MEDIA_TYPES[recording.codec]
            said |= {"content-type": media_type, "content-length": str(plan.end - plan.start)}
        if plan.status not in (200, 206) or scope["method"] == "HEAD":
            await _begin(send, plan.status, said)
            await send({"type": "http.response.body", "body": b""})
        else:
            await self._send_pieces(recording.object_key, plan, said, send)

    async def _send_pieces(
        self, key: str, plan: conditions.Plan, said: Mapping[str, str], send: Send
    ) -> None:
        """Send bytes, in step with the client."""
        if self._sending >= SENDING_MAX:
            raise unavailable("there are too many downloads going on", 1.0)
        self._sending += 1
        try:
            async with aclosing(self._objects.read(key, plan.start, plan.end)) as pieces:
                first = await anext(
                    pieces
                )  # what is wrong with the store shows here, before anything is said
                await _begin(send, plan.status, said)
                await send({"type": "http.response.body", "body": first, "more_body": True})
                async for piece in pieces:
                    await send({"type": "http.response.body", "body": piece, "more_body": True})
                await send({"type": "http.response.body", "body": b""})
        finally:
            self._sending -= 1


def _said(recording: Recording) -> dict[str, str]:
    """Headers that go with a recording, wherever it is."""
    return {
        "content-disposition": conditions.disposition(
            f"{recording.title or recording.id}.{recording.extension}", inline=True
        ),
        "cache-control": "private, max-age=3600, immutable",
        "x-content-type-options": "nosniff",
        # Pages of other origins may play it: that they have the URL is what allows it.
        "cross-origin-resource-policy": "cross-origin",
    }


async def _begin(send: Send, status: int, headers: Mapping[str, str]) -> None:
    raw = [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]
    start: dict[str, Any] = {"type": "http.response.start", "status": status, "headers": raw}
    await send(start)
