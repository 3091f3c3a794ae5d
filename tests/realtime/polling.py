"""A hub that WebSockets and long polls reach on one port, and a long-poll client request by request."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any

import trio

from whispr.asgi import HttpServer
from whispr.gateway.longpoll import LongPollEndpoint
from whispr.realtime.addresses import Proxies, RawHeaders
from whispr.realtime.channel import ChannelFactory
from whispr.realtime.hub import Hub
from whispr.realtime.limits import Limits
from whispr.realtime.longpoll.passing import Passing
from whispr.realtime.longpoll.sessions import Sessions
from whispr.realtime.testing import Server, authenticate, served


async def admit(address: str, headers: RawHeaders) -> None:
    """Admit everybody."""


@asynccontextmanager
async def poll_served(
    mounts: Mapping[str, ChannelFactory],
    limits: Limits | None = None,
    *,
    hub: Hub | None = None,
    origins: Collection[str] = (),
    proxies: Proxies | None = None,
) -> AsyncIterator[Server]:
    """Serve these channels over both transports until the block ends."""
    hub = hub or Hub(limits)
    passing = Passing(Sessions(hub))
    endpoint = LongPollEndpoint(passing, authenticate, admit, origins, proxies)
    async with trio.open_nursery() as nursery:
        await nursery.start(passing.run)
        http = await nursery.start(HttpServer(endpoint).serve_handed)
        async with served(mounts, hub=hub, origins=origins, http=http, proxies=proxies) as server:
            yield server
        nursery.cancel_scope.cancel(reason="the test is over")


class Polling:
    """One client, with nothing done behind the test's back: a connection for each request."""

    def __init__(self, port: int, user: str = "") -> None:
        self.port = port
        self.query = f"vsn=2.0.0&token={user}"
        self.token: str | None = None

    async def open(self, **headers: str) -> dict[str, Any]:
        """Open a session and remember its token."""
        answer = await self.request("GET", headers=headers)
        self.token = answer.get("token")
        return answer

    async def get(self) -> dict[str, Any]:
        """Poll."""
        return await self.request("GET")

    async def post(self, *messages: object, body: bytes | None = None) -> dict[str, Any]:
        """Post messages, as ndjson."""
        lines = "\n".join(json.dumps(message) for message in messages).encode() if body is None else body
        return await self.request("POST", lines, {"content-type": "application/x-ndjson"})

    async def request(
        self, method: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        """Make a request, which must be answered with HTTP 200, and return its JSON."""
        status, _, answer = await self.exchange(method, body, headers)
        assert status == 200
        found: dict[str, Any] = json.loads(answer) if answer else {}
        return found

    async def exchange(
        self, method: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Make a request; return the HTTP status, headers and body of its answer."""
        target = f"/socket/longpoll?{self.query}" + (f"&token={self.token}" if self.token else "&token=null")
        all_headers = {"host": "127.0.0.1", "connection": "close", "content-length": str(len(body))}
        all_headers |= dict(headers or {})
        head = "".join(f"{name}: {value}\r\n" for name, value in all_headers.items())
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            await stream.send_all(f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + body)
            data = b"".join([bytes(part) async for part in stream])
        top, _, answer = data.partition(b"\r\n\r\n")
        first, *lines = top.decode().split("\r\n")
        pairs = [line.split(": ", 1) for line in lines]
        return int(first.split()[1]), {name.lower(): value for name, value in pairs}, answer
