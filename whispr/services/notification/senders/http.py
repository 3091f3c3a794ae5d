"""The HTTP client of the senders: bounded in every direction, no redirects, errors as values of one kind.

Nothing here times out: the caller's scope does.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import httpcore
import trio

from whispr.services.notification.senders.addresses import ForbiddenAddressError, Network

RESPONSE_BYTES_MAX = 16 * 1024
"""More of an answer is not read."""
CONNECTIONS_MAX = 64
KEEP_S = 60.0
"""How long an idle connection is kept."""


class UnreachableError(Exception):
    """The other end could not be reached, or broke the protocol; trying again may help."""


class ForbiddenError(Exception):
    """The other end must not be reached; trying again does not help."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    """By lower-case name."""
    body: bytes

    @property
    def retry_after_s(self) -> float | None:
        """Seconds that `Retry-After` asks for (RFC 9110, section 10.2.3), None when it does not."""
        value = self.headers.get("retry-after", "").strip()
        if value.isdigit():
            return float(value[:9])
        try:
            at = parsedate_to_datetime(value)
        except (TypeError, ValueError):
            return None
        return max(0.0, (at.replace(tzinfo=at.tzinfo or UTC) - datetime.now(UTC)).total_seconds())


class Http:
    """A pool of connections, at most `per_host` requests to one host at once; others wait their turn."""

    def __init__(
        self,
        network: Network,
        *,
        per_host: int,
        http2: bool = False,
        http1: bool = True,
        tls: ssl.SSLContext | None = None,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        self._per_host = per_host
        self._turns: dict[str, _Turns] = {}
        self._pool = httpcore.AsyncConnectionPool(
            ssl_context=tls or ssl.create_default_context(),
            max_connections=connections_max,
            max_keepalive_connections=connections_max,
            keepalive_expiry=KEEP_S,
            http1=http1,
            http2=http2,
            network_backend=network,
        )

    async def request(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], content: bytes
    ) -> Answer:
        """Make one request. Raises UnreachableError, ForbiddenError."""
        async with self._turn(urlsplit(url).netloc):
            try:
                return await self._request(method, url, headers, content)
            except ForbiddenAddressError as error:
                raise ForbiddenError(str(error)) from error
            except (httpcore.UnsupportedProtocol, httpcore.LocalProtocolError) as error:
                raise ForbiddenError(f"cannot be asked for: {error}") from error
            except _FAILURES as error:
                raise UnreachableError(str(error) or type(error).__name__) from error

    async def _request(
        self, method: str, url: str, headers: Sequence[tuple[str, str]], content: bytes
    ) -> Answer:
        body, enough = bytearray(), False
        async with self._pool.stream(method, url, headers=list(headers), content=content) as response:
            try:
                async for chunk in response.aiter_stream():
                    body += chunk
                    if len(body) >= RESPONSE_BYTES_MAX:
                        enough = True
                        # The connection goes with whatever else was coming. The iteration is not left but ends
                        # by this, so that no generator of httpcore's stays behind unfinished.
                        await response.aclose()
            except _FAILURES:
                if not enough:
                    raise
        named = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in response.headers}
        return Answer(response.status, named, bytes(body[:RESPONSE_BYTES_MAX]))

    @asynccontextmanager
    async def _turn(self, host: str) -> AsyncIterator[None]:
        turns = self._turns.setdefault(host, _Turns(trio.Semaphore(self._per_host)))
        turns.users += 1
        try:
            async with turns.slots:
                yield
        finally:
            turns.users -= 1
            if not turns.users:
                del self._turns[host]

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pool.aclose()


@dataclass(slots=True)
class _Turns:
    slots: trio.Semaphore
    users: int = 0


_FAILURES = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError, ssl.SSLError)
