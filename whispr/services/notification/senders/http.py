"""The HTTP client of the senders: bounded in every direction, no redirects, errors as values of one kind.

Nothing here times out: the caller's scope does. Each host is a target of its own: one that cannot be reached is left
alone for a moment, and one that is slow holds no more than its own places. Nothing is tried again here: deliveries
are kept, and the dispatcher tries again.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from math import inf
from urllib.parse import urlsplit

import httpcore

from whispr.errors import WhisprError, unavailable
from whispr.resilience.bulkhead import BulkheadRules
from whispr.resilience.retry import RetryRules
from whispr.resilience.target import CallRules, TargetRules, Targets
from whispr.services.notification.senders.addresses import ForbiddenAddressError, Network

RESPONSE_BYTES_MAX = 16 * 1024
"""More of an answer is not read."""
CONNECTIONS_MAX = 64
KEEP_S = 60.0
"""How long an idle connection is kept."""


HOST_QUEUE_MAX = 1000
"""Requests that wait for one host."""
_ONCE = CallRules(deadline_s=inf, retry=RetryRules(attempts=1))


class UnreachableError(Exception):
    """The other end could not be reached, or broke the protocol; trying again may help."""

    def __init__(self, told: str, after_s: float | None = None) -> None:
        super().__init__(told)
        self.after_s = after_s
        """Seconds to leave it alone, when that is known."""


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
    """A pool of connections, at most `per_host` requests to one host at once; others wait their turn.

    `kind` is what its hosts are called in metrics.
    """

    def __init__(
        self,
        network: Network,
        *,
        per_host: int,
        kind: str = "push",
        rules: TargetRules | None = None,
        http2: bool = False,
        http1: bool = True,
        tls: ssl.SSLContext | None = None,
        connections_max: int = CONNECTIONS_MAX,
    ) -> None:
        bulkhead = BulkheadRules(per_host, HOST_QUEUE_MAX)
        self.targets = Targets(kind, replace(rules or TargetRules(), bulkhead=bulkhead))
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

        async def attempt() -> Answer:
            try:
                return await self._request(method, url, headers, content)
            except ForbiddenAddressError as error:
                raise ForbiddenError(str(error)) from error
            except (httpcore.UnsupportedProtocol, httpcore.LocalProtocolError) as error:
                raise ForbiddenError(f"cannot be asked for: {error}") from error
            except _FAILURES as error:
                raise unavailable(str(error) or type(error).__name__, retry_after_s=0) from error

        try:
            return await self.targets.of(urlsplit(url).netloc).run(attempt, _ONCE)
        except WhisprError as error:
            raise UnreachableError(error.message, error.retry_after_s or None) from error

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

    async def aclose(self) -> None:
        """Close the connections."""
        await self._pool.aclose()


_FAILURES = (httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError, OSError, ssl.SSLError)
