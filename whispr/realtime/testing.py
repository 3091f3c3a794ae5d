"""A hub on a free loopback port for tests, with clients that speak Phoenix or the bare wire.

    async with served({"echo": Echo}) as server:
        async with server.connect("alice") as phoenix:           # a real client; the token is the user's name
            channel = await phoenix.join("echo:1")
        async with server.wire("bob") as wire:                   # frame by frame, for exact order and shape
            await wire.send("1", "1", "echo:1", "phx_join", {})
            reply = await wire.receive()                         # ["1", "1", "echo:1", "phx_reply", {…}]

It works under `MockClock` too: addresses are numeric, so that no thread is asked for them.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import trio

from whispr.errors import unauthenticated
from whispr.realtime import frames
from whispr.realtime.addresses import Proxies
from whispr.realtime.channel import ChannelFactory, Session
from whispr.realtime.client import Phoenix, open_phoenix
from whispr.realtime.deflate import inflate
from whispr.realtime.frames import Closed, FrameReader
from whispr.realtime.hub import Hub
from whispr.realtime.limits import Limits
from whispr.realtime.server import ServeHttp, serve_websocket
from whispr.realtime.upgrade import request_upgrade

_MASK = b"\x37\xfa\x21\x3d"
_MESSAGE_BYTES_MAX = 64 * 1024 * 1024


@dataclass(frozen=True)
class Visitor:
    """A session made from a token `user`, `user/session`, or `user/session/expiry in Unix seconds`."""

    user_id: str
    session_id: str
    expires_at: float | None = None


async def authenticate(token: str) -> Session:
    """Let everybody in under the name of their token, but for `expired` and the empty name."""
    user_id, _, rest = token.partition("/")
    if user_id == "expired":
        raise unauthenticated("the token has expired", "token_expired")
    session_id, _, expiry = rest.partition("/")
    return Visitor(user_id, session_id or f"{user_id}-session", float(expiry) if expiry else None)


class Wire:
    """One upgraded connection, message by message, with nothing done behind the test's back."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._reader = FrameReader(masked=False, message_bytes_max=_MESSAGE_BYTES_MAX, inflate=inflate)
        self._items: deque[frames.Item] = deque()

    async def send(self, *message: object) -> None:
        """Send one message as a JSON text frame."""
        await self.send_frame(frames.TEXT, json.dumps(message).encode())

    async def send_frame(self, opcode: int, payload: bytes) -> None:
        """Send one masked frame."""
        await self.stream.send_all(frames.encode_masked_frame(opcode, payload, _MASK))

    async def receive_item(self) -> frames.Item | None:
        """Return the next message or control frame, None at the end of the stream."""
        while not self._items:
            data = bytes(await self.stream.receive_some(65536))
            if not data:
                return None
            self._items.extend(self._reader.feed(data))
        return self._items.popleft()

    async def receive(self) -> object:
        """Return the next item, a text message as decoded JSON."""
        item = await self.receive_item()
        return json.loads(item) if isinstance(item, str) else item

    async def join(self, topic: str, payload: object = None, ref: str = "1") -> object:
        """Join and return the reply's payload."""
        await self.send(ref, ref, topic, "phx_join", {} if payload is None else payload)
        reply = await self.receive()
        assert isinstance(reply, list)
        assert reply[:4] == [ref, ref, topic, "phx_reply"], reply
        return reply[4]

    async def closed(self) -> Closed:
        """Drop messages until the close frame and return it."""
        while not isinstance(item := await self.receive_item(), Closed):
            assert item is not None, "the connection ended without a close frame"
        return item


class Server:
    """A hub that is being served."""

    def __init__(self, hub: Hub, port: int, nursery: trio.Nursery) -> None:
        self.hub = hub
        self.port = port
        self.nursery = nursery
        self.url = f"ws://127.0.0.1:{port}"

    def connect(self, user: str, *, heartbeat_s: float = 30.0) -> AbstractAsyncContextManager[Phoenix]:
        """Connect a Phoenix client."""
        return open_phoenix(self.url, user, heartbeat_s=heartbeat_s)

    @asynccontextmanager
    async def wire(
        self,
        user: str,
        *,
        receive_buffer_bytes: int | None = None,
        version: str = "2.0.0",
        deflate: bool = False,
    ) -> AsyncIterator[Wire]:
        """Connect frame by frame. A small receive buffer makes a slow reader of a test that does not read.

        With `deflate` permessage-deflate is offered; what comes compressed is inflated, what is sent is not touched.
        """
        sock = trio.socket.socket()
        if receive_buffer_bytes is not None:
            sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, receive_buffer_bytes)
        await sock.connect(("127.0.0.1", self.port))
        async with trio.SocketStream(sock) as stream:
            target = f"/socket/websocket?vsn={version}&token={user}"
            if deflate:
                await _upgrade_with_deflate(stream, target)
            else:
                await request_upgrade(stream, f"127.0.0.1:{self.port}", target)
            yield Wire(stream)


async def _upgrade_with_deflate(stream: trio.SocketStream, target: str) -> None:
    """Offer permessage-deflate, which trio-websocket's client does not let its callers do."""
    head = (
        f"GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        "Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n"
    )
    await stream.send_all(head.encode())
    answer = b""
    while not answer.endswith(b"\r\n\r\n"):
        answer += await stream.receive_some()
    assert b"permessage-deflate" in answer, answer


@asynccontextmanager
async def served(
    mounts: Mapping[str, ChannelFactory],
    limits: Limits | None = None,
    *,
    hub: Hub | None = None,
    origins: Collection[str] = (),
    http: ServeHttp | None = None,
    proxies: Proxies | None = None,
) -> AsyncIterator[Server]:
    """Serve these channels until the block ends; `http` is handed the connections of long polls."""
    hub = hub or Hub(limits)
    for prefix, factory in mounts.items():
        hub.mount(prefix, factory)
    async with trio.open_nursery() as nursery:
        port: int = await nursery.start(_serve, hub, origins, http, proxies)
        yield Server(hub, port, nursery)
        nursery.cancel_scope.cancel(reason="the test is over")


async def _serve(
    hub: Hub,
    origins: Collection[str],
    http: ServeHttp | None,
    proxies: Proxies | None,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    await serve_websocket(
        hub,
        "127.0.0.1",
        0,
        authenticate,
        origins=origins,
        http=http,
        proxies=proxies,
        task_status=task_status,
    )
