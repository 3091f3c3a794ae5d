"""One request and its answer: the application's `receive` and `send`.

Reading happens only when the application asks, so a slow application holds the client back; writing waits for
the socket, so a slow client holds the application back. After its answer is complete, or the client has gone,
or the rest of the request had to be refused, all that an application receives is `http.disconnect`.

The extension `whispr.endless` is for sources of live sound, whose requests say nothing of the body that they have
(https://www.icecast.org/docs/): the application sends it with what the client waits for, and receives what comes
until the client closes its side. A client that half closes is answered, and not taken for one that has left.
"""

from __future__ import annotations

import os
import stat
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

import trio

from whispr.asgi.refusals import Refusal
from whispr.asgi.request import RequestHead
from whispr.asgi.response import CONTINUE, AppError, ResponseWriter
from whispr.asgi.wire import ClientGoneError

if TYPE_CHECKING:
    from whispr.asgi.connection import Connection

Message = MutableMapping[str, Any]


class Exchange:
    """What the application is given for one request."""

    __slots__ = (
        "_connection", "_expects", "_given", "_waiting", "_wire", "endless", "gone", "head", "refusal", "response",
    )  # fmt: skip

    def __init__(self, connection: Connection, head: RequestHead, response: ResponseWriter) -> None:
        self._connection = connection
        self._wire = connection.wire
        self.head = head
        self.response = response
        self._expects = head.expects_continue
        self._given = False
        """Whether the application has been given the end of the body."""
        self._waiting: trio.CancelScope | None = None
        self.gone = False
        """Whether the client has left before its answer was complete."""
        self.endless = False
        """Whether the body lasts until the client closes its side."""
        self.refusal: Refusal | None = None
        """Why the rest of the request is not read."""

    async def receive(self) -> Message:
        """Part of ASGI: the body, and after it the end of the connection."""
        if self.response.complete or self.gone or self.refusal is not None:
            await trio.lowlevel.checkpoint()
            return {"type": "http.disconnect"}
        if self._given:
            return await self._disconnected()
        return await self._body()

    async def _body(self) -> Message:
        """Return the next part of the body."""
        reader = self._connection.reader
        try:
            body = reader.body()
            while not body and not reader.body_done:
                if not await self._more():
                    return {"type": "http.disconnect"}
                body = reader.body()
        except Refusal as refusal:
            await self._refuse(refusal)
            return {"type": "http.disconnect"}
        self._given = reader.body_done
        return {"type": "http.request", "body": body, "more_body": not self._given}

    async def _more(self) -> bool:
        """Wait for more of the body; False when there will be none. Raises Refusal when it takes too long."""
        if self._expects:
            self._expects = False
            if not self.response.started:
                await self._wire.send(CONTINUE)
        gap_s = self._connection.limits.body_gap_s
        data = b""
        with trio.move_on_after(gap_s) as gap:
            data = await self._wire.receive()
        if gap.cancelled_caught:
            raise Refusal(408, "body_too_slow", f"nothing of the body has come for {gap_s:g} s")
        reader = self._connection.reader
        if data:
            reader.feed(data)
        elif self.endless:
            reader.end()
            reader.body()
        else:
            self.gone = True
        return bool(data) or self.endless

    async def _refuse(self, refusal: Refusal) -> None:
        """Answer in the application's place, if it has not begun to."""
        self.refusal = refusal
        self.response.keep_alive = False
        await self._connection.refuse(refusal, self)

    async def _disconnected(self) -> Message:
        """Wait until the client leaves or the answer is complete; what comes meanwhile is the next request."""
        connection = self._connection
        with trio.CancelScope() as self._waiting:
            while not self.gone:
                if connection.reader.buffered >= connection.limits.ahead_bytes:
                    # Whether it is still there is found out by the server's own looking after clients.
                    await trio.sleep_forever()
                data = await self._wire.receive()
                self.gone = not data
                connection.reader.feed(data)
        self._waiting = None
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Part of ASGI: the answer. Raises ClientGoneError, an OSError, and AppError."""
        if self.gone:
            await trio.lowlevel.checkpoint()
            raise ClientGoneError("the client is gone")
        if self.refusal is not None:
            await trio.lowlevel.checkpoint()
            return  # It has been answered already.
        kind = message["type"]
        if kind == "http.response.body":
            await self._send_body(message.get("body", b""), message.get("more_body", False))
        elif kind == "http.response.start":
            self.response.start(message["status"], message.get("headers", ()))
        elif kind == "http.response.pathsend":
            await self._send_path(message["path"])
        elif kind == "http.response.zerocopysend":
            await self._send_part(message)
        elif kind == "whispr.endless":
            await self._begin_endless(message.get("say", b""), message.get("answered", False))
        else:
            raise AppError(f"{kind!r} is not part of an HTTP answer")

    async def _send_body(self, body: bytes, more: bool) -> None:
        response = self.response
        if not response.started:
            self._settle(whole=not more)
        data = response.body(body, more=more)
        try:
            if data:
                await self._wire.send(data)
            if more:
                # A client that always keeps up would otherwise let nobody else have a turn.
                await trio.lowlevel.checkpoint()
        except ClientGoneError:
            self._lost()
            raise
        if not more:
            self._completed()

    async def _begin_endless(self, say: bytes, answered: bool) -> None:
        """Receive without end: the extension `whispr.endless`.

        `say`: what the client waits for, as it is written; `answered`: whether that is the answer's head.
        """
        head, response = self.head, self.response
        if head.chunked or head.body_length or response.started or self.endless:
            raise AppError("only a request that says nothing of a body can be received without end")
        self.endless, self._given, self._expects = True, False, False
        response.keep_alive = False
        self._connection.reader.begin_endless()
        if answered:
            response.answered()
        try:
            await self._wire.send(say)
        except ClientGoneError:
            self._lost()
            raise

    def _lost(self) -> None:
        """The answer did not get through, even if the application has given all of it."""
        self.gone = True
        self.response.complete = False

    def _completed(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel(reason="the answer is complete")

    def _settle(self, *, whole: bool) -> None:
        """Decide, as the head is about to be written, whether the connection can serve another request.

        An application that answers in one piece will not read on: of a small body that it left unread, all
        may have come already, and is dropped.
        """
        response, reader = self.response, self._connection.reader
        if whole and not reader.body_done and not self._expects:
            try:
                reader.body()
            except Refusal:
                response.keep_alive = False
        if not self.head.keep_alive or self._connection.draining or not reader.body_done:
            response.keep_alive = False

    async def _send_path(self, path: str) -> None:
        """Send a file: the extension `http.response.pathsend`. Raises OSError as `open` does."""
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = await trio.to_thread.run_sync(os.open, path, flags)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise AppError("only regular files can be sent")
            await self._send_file(descriptor, 0, status.st_size)
        finally:
            os.close(descriptor)

    async def _send_part(self, message: Message) -> None:
        """Send part of an open file, as all of the body: the extension `http.response.zerocopysend`."""
        if message.get("more_body", False):
            raise AppError("a part of a file is all of an answer's body here")
        descriptor = message["file"].fileno()
        start = message.get("offset", 0)
        count = message.get("count")
        left = max(0, os.fstat(descriptor).st_size - start)
        await self._send_file(descriptor, start, left if count is None else count)

    async def _send_file(self, descriptor: int, start: int, size: int) -> None:
        self._settle(whole=True)
        head, count = self.response.file(size)
        try:
            await self._wire.send(head)
            await self._wire.send_file(descriptor, start, start + count)
        except ClientGoneError:
            self._lost()
            raise
        self.response.complete = True
        self._completed()
