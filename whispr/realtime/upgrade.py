"""The opening handshake of both sides, performed by trio-websocket on its public API.

Each runs in a nursery of its own that ends with it: trio-websocket's reader takes the request (or the response), is
stopped, and from then on the bytes on the stream are ours. Nothing is lost in between. A client must not send before
it has the 101 response (RFC 6455 §4.1), and one that does can be seen by `Request.head`; a Phoenix server never
speaks before the client has joined something.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

import trio
import wsproto.utilities
from trio_websocket import (
    ConnectionClosed,
    ConnectionRejected,
    WebSocketRequest,
    wrap_client_stream,
    wrap_server_stream,
)

from whispr.errors import Code, WhisprError, unavailable

_HEAD_BYTES_MAX = 64 * 1024
_HUNG_UP = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, ConnectionClosed)


class Request(NamedTuple):
    """An upgrade request to `accept` or `reject`, and its bytes as they came."""

    websocket: WebSocketRequest
    head: bytes


class Rejected(WhisprError):  # noqa: N818  # says what happened, as trio.Cancelled does
    """The server refused the upgrade with this HTTP `status`; `reason` is its JSON body's, if it gave one."""

    def __init__(self, status: int, body: bytes) -> None:
        try:
            facts = json.loads(body)
            self._reason = str(facts["reason"])
            message = str(facts["message"])
        except (ValueError, KeyError, TypeError):
            self._reason, message = "rejected", body[:200].decode(errors="replace")
        code = Code.UNAVAILABLE if status >= 500 else Code.PERMISSION_DENIED
        super().__init__(code, f"HTTP {status} {self._reason}: {message}")
        self.status = status

    @property
    def reason(self) -> str:
        """The reason the server gave."""
        return self._reason


class _HandshakeStream(trio.abc.Stream):
    """Remembers the bytes read, and ends the handshake when the connection ends.

    trio-websocket's reader ends quietly when the peer hangs up or sends something else than a handshake;
    whoever waits for the handshake would wait for its deadline.
    """

    def __init__(self, stream: trio.abc.Stream, over: trio.CancelScope) -> None:
        self._stream = stream
        self._over = over
        self.head = b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        data = bytes(await self._stream.receive_some(max_bytes))
        self.head += data
        if not data or len(self.head) > _HEAD_BYTES_MAX:
            self._over.cancel(reason="no handshake came")
        return data

    async def aclose(self) -> None:
        self._over.cancel(reason="what came was no handshake")
        await self._stream.aclose()


async def read_request(stream: trio.abc.Stream) -> Request | None:
    """Read the upgrade request. None when there was none: the peer hung up, or was told with an HTTP error."""
    request: Request | None = None
    try:
        async with trio.open_nursery() as nursery:
            watched = _HandshakeStream(stream, nursery.cancel_scope)
            websocket = await wrap_server_stream(nursery, watched)
            request = Request(websocket, watched.head)
            nursery.cancel_scope.cancel(reason="the request is read")
    except* (*_HUNG_UP, wsproto.utilities.ProtocolError, UnicodeError):
        request = None  # UnicodeError: wsproto decodes Host and the subprotocols without a net
    return request


async def request_upgrade(
    stream: trio.abc.Stream, host: str, target: str, subprotocols: Sequence[str] = ()
) -> None:
    """Upgrade a client's stream. Raises Rejected, or UNAVAILABLE when the server hung up instead of answering."""
    done = False
    rejection: ConnectionRejected | None = None
    try:
        async with trio.open_nursery() as nursery:
            watched = _HandshakeStream(stream, nursery.cancel_scope)
            await wrap_client_stream(
                nursery,
                watched,  # type: ignore[arg-type]  # annotated narrower than what it uses: any stream
                host,
                target,
                subprotocols=subprotocols,
            )
            done = True
            nursery.cancel_scope.cancel(reason="the upgrade is done")
    except* ConnectionRejected as group:
        rejection = next(each for each in group.exceptions if isinstance(each, ConnectionRejected))
    except* (*_HUNG_UP, wsproto.utilities.ProtocolError):
        done = False
    if rejection is not None:
        raise Rejected(rejection.status_code, rejection.body or b"")
    if not done:
        raise unavailable("the server hung up during the WebSocket handshake")
