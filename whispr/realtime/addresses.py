"""How many connections each client address has open, and whether there is room for one more. Pure.

A connection counts from its first byte to its end, handshake included; a long-poll session counts too, for as long as
it lives, wherever its requests come in. Whoever connects directly is counted on arrival. Behind a trusted proxy the
address is known once the headers are there, so it is counted then, and the proxy itself never.

Of IPv6 a network counts as one address (`whispr.households`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from whispr.errors import exhausted
from whispr.households import household

RawHeaders = Sequence[tuple[bytes, bytes]]


class Proxies(Protocol):
    """Whom to believe about the address of a client."""

    def trusts(self, address: str) -> bool:
        """Tell whether a peer is a proxy of ours."""

    def address_behind(self, peer: str, headers: RawHeaders) -> str:
        """Return the client's address: the peer's, or what trusted proxies say it is."""


class NoProxies:
    """Everybody connects directly."""

    def trusts(self, address: str) -> bool:
        """Tell that nobody is a proxy."""
        del address
        return False

    def address_behind(self, peer: str, headers: RawHeaders) -> str:
        """Return the peer's address."""
        del headers
        return peer


class Addresses:
    """Those of one hub."""

    def __init__(self, most: int) -> None:
        self.most = most
        """Connections of one address; 0 is no limit."""
        self._open: dict[str, int] = {}

    def count(self, address: str) -> int:
        """Return how many an address has open."""
        return self._open.get(household(address), 0)

    def take(self, address: str) -> None:
        """Count a connection in. Raises RESOURCE_EXHAUSTED `too_many_connections` past the limit."""
        if self.most and self.count(address) >= self.most:
            told = f"at most {self.most} connections from one address"
            raise exhausted(told, reason="too_many_connections")
        self._open[household(address)] = self.count(address) + 1

    def leave(self, address: str) -> None:
        """Count a connection out."""
        counted = household(address)
        self._open[counted] -= 1
        if not self._open[counted]:
            del self._open[counted]


class Visit:
    """One connection, counted once: on arrival, or when its headers have told whose it is."""

    __slots__ = ("_addresses", "_counted", "_peer", "_proxies")

    def __init__(self, addresses: Addresses, proxies: Proxies, peer: str) -> None:
        self._addresses = addresses
        self._proxies = proxies
        self._peer = peer
        self._counted: str | None = None

    @property
    def peer(self) -> str:
        """The address at the other end of the connection."""
        return self._peer

    def arrive(self) -> None:
        """Count who connects directly. Raises as `Addresses.take`."""
        if not self._proxies.trusts(self._peer):
            self._count(self._peer)

    def introduce(self, headers: RawHeaders) -> None:
        """Count who comes through a proxy. Raises as `Addresses.take`."""
        if self._counted is None:
            self._count(self._proxies.address_behind(self._peer, headers))

    def end(self) -> None:
        """Count the connection out, if it was counted in."""
        counted, self._counted = self._counted, None
        if counted is not None:
            self._addresses.leave(counted)

    def _count(self, address: str) -> None:
        self._addresses.take(address)
        self._counted = address
