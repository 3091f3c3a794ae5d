"""The byte endpoints: `/v1/media/uploads/{id}` takes, `/v1/media/{id}/content` gives. An ASGI application.

Both are reached by signed URLs alone (see `urls`), which say what their bearer may do; no token is looked at.
Errors are raised, for the gateway to word them.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any, Final

import trio
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from whispr.adapters.objects import Objects
from whispr.asgi import conditions
from whispr.asgi.conditions import http_date
from whispr.asgi.errors import HttpError, must_read, not_allowed
from whispr.asgi.wire import ClientGoneError
from whispr.errors import Code, WhisprError, not_found, unavailable
from whispr.services.media import metrics, tus
from whispr.services.media.domain import MediaLimits, Medium, Status, Stored, not_there_yet
from whispr.services.media.store import MediaStore
from whispr.services.media.tus import TusFault
from whispr.services.media.types import SHOWN
from whispr.services.media.uploads import Uploads
from whispr.services.media.urls import Granted, SignedUrls

PATH: Final = re.compile(r"/v1/media/(uploads/[0-9a-f-]{36}|[0-9a-f-]{36}/content)")
"""What of a gateway's paths is served here."""

SENDING_MAX: Final = 512
"""Downloads at a time that pass through this process's memory, a piece of each."""
BUSY_RETRY_S: Final = 1.0

_RESUMABLE = {"tus-resumable": tus.VERSION, "cache-control": "no-store", "x-content-type-options": "nosniff"}
_CODES = {404: Code.NOT_FOUND, 409: Code.ABORTED, 410: Code.NOT_FOUND, 412: Code.FAILED_PRECONDITION}
_CONTENT = {
    "accept-ranges": "bytes",
    # Bytes of strangers: nothing in them runs, whatever a browser takes them for.
    "content-security-policy": "default-src 'none'; style-src 'unsafe-inline'; sandbox",
    "x-content-type-options": "nosniff",
    # Pages of other origins may show them: that they have the URL is what allows it.
    "cross-origin-resource-policy": "cross-origin",
    "referrer-policy": "no-referrer",
}


class MediaEndpoints:
    """Serves the bytes of media for one process."""

    def __init__(
        self,
        store: MediaStore,
        objects: Objects,
        uploads: Uploads,
        urls: SignedUrls,
        limits: MediaLimits,
        on_complete: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_complete`: called when an upload has all its bytes."""
        self._store = store
        self._objects = objects
        self._uploads = uploads
        self._urls = urls
        self._limits = limits
        self._on_complete = on_complete
        self._sending = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request (ASGI 3). Raises WhisprError."""
        headers = Headers(scope=scope)
        if scope["path"].startswith("/v1/media/uploads/"):
            await self._upload(scope, headers, receive, send)
        else:
            await self._content(scope, headers, send)

    # Uploads

    async def _upload(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        method = tus.method_of(scope["method"], headers)
        try:
            await self._upload_as(method, scope, headers, receive, send)
        except TusFault as fault:
            code = _CODES.get(fault.status, Code.INVALID_ARGUMENT)
            raise HttpError(fault.status, code, fault.message, fault.reason, self._said(fault)) from None

    def _said(self, fault: TusFault) -> dict[str, str]:
        return _RESUMABLE | ({"tus-version": tus.VERSION} if fault.status == 412 else {})

    async def _upload_as(
        self, method: str, scope: Scope, headers: Headers, receive: Receive, send: Send
    ) -> None:
        if method == "OPTIONS":
            await _answer(send, 204, self._capabilities())
            return
        if method not in ("HEAD", "PATCH", "PUT", "DELETE"):
            raise not_allowed(method, "OPTIONS, HEAD, PATCH, PUT, DELETE")
        granted = self._granted(scope)
        if method != "PUT":
            tus.check_version(headers)
        medium = await self._store.get(granted.media_id)
        if medium is None:
            raise TusFault(404, "not_found", "there is no such upload")
        if method == "HEAD":
            await _answer(send, 200, _progress(medium) | {"upload-length": str(medium.declared_bytes)})
        elif method == "DELETE":
            await self._terminate(medium)
            await _answer(send, 204, _RESUMABLE)
        else:
            with trio.move_on_after(granted.expires_at - datetime.now(UTC).timestamp()) as until:
                await self._take(method, medium, headers, receive, send)
            if until.cancelled_caught:
                raise TusFault(410, "expired", "the upload's time is up")

    async def _take(
        self, method: str, medium: Medium, headers: Headers, receive: Receive, send: Send
    ) -> None:
        """Receive bytes, by PATCH or PUT."""
        patch = tus.read_patch(headers) if method == "PATCH" else None
        if medium.status is not Status.PENDING:
            if patch is not None and patch.offset == medium.declared_bytes and not await _any(receive):
                await _answer(
                    send, 204, _progress(medium)
                )  # A last PATCH whose answer was lost, and an empty one.
                return
            raise TusFault(409, "complete", "the upload is complete")
        size = headers.get("content-length", "")
        start = patch.offset if patch is not None else 0
        if size.isdecimal() and start + int(size[:18]) > medium.declared_bytes:
            raise TusFault(413, "too_large", f"the upload was announced with {medium.declared_bytes} bytes")
        body = _Body(receive)
        if patch is not None:
            received = await self._uploads.append(medium, patch.offset, body, patch.checksum)
        else:
            received = await self._uploads.replace(medium, body)
        if received == medium.declared_bytes:
            self._on_complete()
        await _answer(send, 204, _progress(medium) | {"upload-offset": str(received)})

    async def _terminate(self, medium: Medium) -> None:
        """End an upload for good. Raises TusFault when it is complete: then its owner deletes the medium."""
        if medium.status is not Status.PENDING:
            raise TusFault(409, "complete", "the upload is complete: delete the medium")
        await self._store.delete(medium.id, medium.owner_id, "upload_cancelled")

    def _granted(self, scope: Scope) -> Granted:
        query = scope["query_string"].decode("latin-1")
        try:
            return self._urls.check(scope["path"], query)
        except WhisprError as error:
            if error.reason == "url_expired":
                raise TusFault(410, "url_expired", error.message) from None
            raise

    def _capabilities(self) -> dict[str, str]:
        limit = self._limits.file_bytes
        return _RESUMABLE | {
            "tus-version": tus.VERSION,
            "tus-extension": tus.EXTENSIONS,
            "tus-checksum-algorithm": ",".join(tus.ALGORITHMS),
            **({"tus-max-size": str(limit)} if limit else {}),
        }

    # Downloads

    async def _content(self, scope: Scope, headers: Headers, send: Send) -> None:
        must_read(scope)
        granted = self._urls.check(scope["path"], scope["query_string"].decode("latin-1"))
        medium = await self._store.get(granted.media_id)
        if medium is None:
            raise not_found("medium", granted.media_id)
        if (missing := not_there_yet(medium)) is not None:
            raise missing
        stored = medium.variant(granted.variant)
        if stored is None or medium.ready_at is None:
            raise not_found("variant", granted.variant)
        etag = f'"{stored.sha256[:32]}"'
        plan = conditions.plan(headers, etag, medium.ready_at, stored.bytes)
        said = _described(medium, stored, granted, etag)
        if plan.status in (304, 412, 416):
            if plan.status == 416:
                said["content-range"] = f"bytes */{stored.bytes}"
            await _answer(send, plan.status, said)
            return
        said["content-length"] = str(plan.end - plan.start)
        if plan.status == 206:
            said["content-range"] = f"bytes {plan.start}-{plan.end - 1}/{stored.bytes}"
        if scope["method"] == "HEAD":
            await _answer(send, plan.status, said)
        else:
            await self._give(scope, send, stored, plan, said)

    async def _give(
        self, scope: Scope, send: Send, stored: Stored, plan: conditions.Plan, said: Mapping[str, str]
    ) -> None:
        """Send bytes, in step with the client."""
        path = self._objects.path_of(stored.key)
        if (
            plan.status == 200
            and path is not None
            and "http.response.pathsend" in scope.get("extensions", {})
        ):
            # The kernel does it all: not a byte of the file passes through this process.
            await _begin(send, 200, said)
            await send({"type": "http.response.pathsend", "path": str(path)})
            metrics.SENT.inc(stored.bytes)
            return
        if self._sending >= SENDING_MAX:
            raise unavailable("there are too many downloads going on", BUSY_RETRY_S)
        self._sending += 1
        try:
            async with aclosing(self._objects.read(stored.key, plan.start, plan.end)) as pieces:
                first = await anext(
                    pieces
                )  # What is wrong with the store shows here, before anything is said.
                await _begin(send, plan.status, said)
                await _send_piece(send, first)
                async for piece in pieces:
                    await _send_piece(send, piece)
                await send({"type": "http.response.body", "body": b""})
        finally:
            self._sending -= 1


def _progress(medium: Medium) -> dict[str, str]:
    """Headers that say how far an upload is, and until when it may go on."""
    return _RESUMABLE | {
        "upload-offset": str(medium.received_bytes),
        "upload-expires": http_date(medium.upload_expires_at),
    }


def _described(medium: Medium, stored: Stored, granted: Granted, etag: str) -> dict[str, str]:
    """Headers of a medium's content."""
    inline = stored.type in SHOWN and not granted.as_attachment
    name = medium.filename if stored.name == "original" else f"{stored.name}.webp"
    left_s = max(0, granted.expires_at - int(datetime.now(UTC).timestamp()))
    assert medium.ready_at is not None, "asked before"
    return _CONTENT | {
        "content-type": stored.type,
        "content-disposition": conditions.disposition(name, inline=inline),
        "etag": etag,
        "last-modified": http_date(medium.ready_at),
        # The content under a URL never changes, and its holder may keep it while the URL holds.
        "cache-control": f"private, max-age={left_s}, immutable",
    }


class _Body:
    """A request's body, a piece at a time; it may be left at any of them."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._more = True

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        """Return the next piece. Raises ClientGoneError when there is none though there should be."""
        while self._more:
            event = await self._receive()
            if event["type"] == "http.disconnect":
                raise ClientGoneError("the client left in the middle of its upload")
            self._more = event.get("more_body", False)
            if event.get("body"):
                piece: bytes = event["body"]
                return piece
        raise StopAsyncIteration


async def _any(receive: Receive) -> bool:
    """Whether a request has a body with anything in it."""
    return await anext(_Body(receive), None) is not None


def _raw(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()]


async def _begin(send: Send, status: int, headers: Mapping[str, str]) -> None:
    await send({"type": "http.response.start", "status": status, "headers": _raw(headers)})


async def _answer(send: Send, status: int, headers: Mapping[str, str]) -> None:
    """Answer without a body."""
    await _begin(send, status, headers)
    end: dict[str, Any] = {"type": "http.response.body", "body": b""}
    await send(end)


async def _send_piece(send: Send, piece: bytes) -> None:
    await send({"type": "http.response.body", "body": piece, "more_body": True})
    metrics.SENT.inc(len(piece))
