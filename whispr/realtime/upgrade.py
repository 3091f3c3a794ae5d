"""The opening handshake of both sides.

A server reads and answers requests with wsproto, the protocol half of trio-websocket, in the connection's own task:
trio-websocket's other half adds a task, a nursery and two channels, which was half of what an upgrade costs (656 CPU
µs with it, 321 without, in the same minute on the same machine).

A client's runs on trio-websocket itself, in a nursery that ends with it: its reader takes the response, is stopped,
and from then on the bytes on the stream are ours. Nothing is lost in between. A client must not send before it has
the 101 response (RFC 6455 §4.1), and one that does can be seen by `Request.head`; a Phoenix server never speaks
before the client has joined something.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http import HTTPStatus

import structlog
import trio
import wsproto.events
import wsproto.utilities
from trio_websocket import ConnectionClosed, ConnectionRejected, wrap_client_stream
from wsproto import ConnectionType, WSConnection

from whispr.errors import Code, WhisprError, unavailable

_HEAD_BYTES_MAX = 64 * 1024
_RECEIVE_BYTES = 8 * 1024
log = structlog.get_logger()

_HUNG_UP = (OSError, trio.BrokenResourceError, trio.ClosedResourceError, ConnectionClosed)


class Request:
    """An upgrade request, to `accept` or `reject`. `head` are its bytes as they came."""

    __slots__ = ("_stream", "_wire", "extensions", "head", "headers", "subprotocols", "target")

    def __init__(
        self, stream: trio.abc.Stream, wire: WSConnection, event: wsproto.events.Request, head: bytes
    ) -> None:
        self._stream = stream
        self._wire = wire
        self.head = head
        self.target = event.target
        self.headers = event.extra_headers
        """All but those of the handshake itself, with names in lower case."""
        self.subprotocols = tuple(event.subprotocols)
        self.extensions = tuple(map(str, event.extensions))

    async def accept(self, subprotocol: str | None, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Answer 101. Raises BrokenResourceError when the peer has hung up."""
        answer = wsproto.events.AcceptConnection(subprotocol=subprotocol, extra_headers=list(headers))
        await self._stream.send_all(self._wire.send(answer))

    async def reject(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        """Answer with an HTTP error. Raises BrokenResourceError when the peer has hung up."""
        length = (b"content-length", str(len(body)).encode())
        head = wsproto.events.RejectConnection(status_code=status, headers=[*headers, length], has_body=True)
        data = self._wire.send(head) + self._wire.send(wsproto.events.RejectData(data=body))
        await self._stream.send_all(data)


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
        with self._ending_when_broken():
            await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        with self._ending_when_broken():
            data = bytes(await self._stream.receive_some(max_bytes))
        self.head += data
        if not data or len(self.head) > _HEAD_BYTES_MAX:
            self._over.cancel(reason="no handshake came")
        return data

    async def aclose(self) -> None:
        self._over.cancel(reason="what came was no handshake")
        await self._stream.aclose()

    @contextmanager
    def _ending_when_broken(self) -> Iterator[None]:
        try:
            yield
        except trio.BrokenResourceError:
            self._over.cancel(reason="the connection was reset")
            raise


async def read_request(stream: trio.abc.Stream) -> Request | None:
    """Read the upgrade request. None when there was none: the peer hung up, or was told with an HTTP error."""
    wire = WSConnection(ConnectionType.SERVER)
    head = b""
    try:
        while data := bytes(await stream.receive_some(_RECEIVE_BYTES)):
            head += data
            wire.receive_data(data)
            for event in wire.events():
                if isinstance(event, wsproto.events.Request):
                    return Request(stream, wire, event, head)
    except wsproto.utilities.RemoteProtocolError as error:
        with suppress(*_HUNG_UP):
            if error.event_hint is not None:
                await stream.send_all(wire.send(error.event_hint))
    except (*_HUNG_UP, wsproto.utilities.LocalProtocolError, UnicodeError) as error:
        # wsproto decodes Host and the subprotocols without a net.
        log.debug("no upgrade request", error=str(error))
    return None


async def turn_away(stream: trio.SocketStream, status: int, body: Callable[[bytes], bytes]) -> None:
    """Answer whatever is asked with an HTTP error, and let the client read it: until it hangs up.

    `body` is made from the head of the request, so far as it came. The caller bounds the time. Raises
    BrokenResourceError when the peer has hung up.
    """
    head = b""
    while b"\r\n\r\n" not in head and len(head) < _HEAD_BYTES_MAX:
        data = bytes(await stream.receive_some(_RECEIVE_BYTES))
        if not data:
            return
        head += data
    said = body(head)
    first = (
        f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
        f"content-length: {len(said)}\r\nconnection: close\r\n\r\n"
    )
    await stream.send_all(first.encode() + said)
    await stream.send_eof()
    while await stream.receive_some(_RECEIVE_BYTES):
        continue  # closing over unread bytes would reset the connection, and the answer with it


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
