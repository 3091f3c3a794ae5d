"""A server on a loopback socket, and a client that says exactly what it is told to."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import h11
import pytest
import trio

from whispr.asgi import HttpLimits, HttpServer


@dataclass
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes


class Client:
    """One connection, spoken in raw bytes and read by h11."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._buffer = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def answer(self, method: str = "GET", *, within_s: float = 5.0) -> Answer:
        """Read one answer."""
        peer = h11.Connection(h11.CLIENT)
        peer.send(h11.Request(method=method, target="/", headers=[("host", "x")]))
        peer.send(h11.EndOfMessage())
        if self._buffer:
            peer.receive_data(self._buffer)
        head: h11.Response | None = None
        body = b""
        with trio.fail_after(within_s):
            while True:
                event = peer.next_event()
                if event is h11.NEED_DATA:
                    peer.receive_data(bytes(await self.stream.receive_some()))
                elif isinstance(event, h11.Response):
                    head = event
                elif isinstance(event, h11.Data):
                    body += event.data
                elif isinstance(event, h11.EndOfMessage):
                    break
        self._buffer = peer.trailing_data[0]
        assert head is not None
        headers = {name.decode(): value.decode() for name, value in head.headers}
        return Answer(head.status_code, headers, body)

    async def ask(self, data: bytes, method: str = "GET") -> Answer:
        await self.send(data)
        return await self.answer(method)

    async def closed(self, *, within_s: float = 5.0) -> bool:
        """Whether the server has closed without saying anything more."""
        try:
            with trio.fail_after(within_s):
                return self._buffer + await self.stream.receive_some() == b""
        except trio.BrokenResourceError:
            return True


@dataclass
class Served:
    """A server that runs."""

    server: HttpServer
    port: int
    host: str = "127.0.0.1"

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Client]:
        stream = await trio.open_tcp_stream(self.host, self.port)
        async with stream:
            yield Client(stream)


Serve = Callable[..., AbstractAsyncContextManager[Served]]


@pytest.fixture
def serve() -> Serve:
    """Return a context manager that serves an application with the given limits."""
    return _serve


@asynccontextmanager
async def _serve(
    app: Any,
    *,
    host: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
    server_header: str = "",
    **limits: Any,
) -> AsyncIterator[Served]:
    server = HttpServer(app, HttpLimits(**limits), server_header=server_header)
    async with trio.open_nursery() as nursery:

        async def run(*, task_status: trio.TaskStatus[int]) -> None:
            make = None if tls is None else lambda: tls
            await server.serve_tcp(host, 0, tls=make, task_status=task_status)

        port = await nursery.start(run)
        yield Served(server, port, host)
        nursery.cancel_scope.cancel(reason="the test has ended")
