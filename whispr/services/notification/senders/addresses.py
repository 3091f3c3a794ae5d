"""Keeping requests to addresses that users name out of private networks.

A name is resolved here, every address is checked, and the connection is made to the very address that was
checked: a name that resolves to something else a moment later (DNS rebinding) gains nothing. The name still
goes into SNI and certificate checks, for httpcore does TLS above the connection.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Any

import httpcore
import trio
from trio.lowlevel import RunVar

IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
LOOKUPS_MAX = 8
"""Names looked up at once."""
ADDRESSES_MAX = 4
"""Addresses of one name that are tried."""


class ForbiddenAddressError(httpcore.ConnectError):
    """The name leads into a network that must not be reached."""


def is_public(address: str) -> bool:
    """Tell whether an address is of the public internet, also when it wraps one of IPv4."""
    try:
        ip: IPAddress = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return all(each.is_global and not each.is_multicast for each in (ip, *_wrapped(ip)))


def _wrapped(ip: IPAddress) -> Iterable[IPAddress]:
    """Unwrap the IPv4 addresses that an IPv6 one leads to: mapped, 6to4, Teredo, NAT64."""
    if isinstance(ip, ipaddress.IPv4Address):
        return []
    found: list[IPAddress | None] = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
    if ip in _NAT64:
        found.append(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF))
    return [each for each in found if each is not None]


_LIMITER: RunVar[trio.CapacityLimiter] = RunVar("whispr_resolving")


def _resolving() -> trio.CapacityLimiter:
    """Limit the threads that wait for name servers, for users choose the names."""
    try:
        return _LIMITER.get()
    except LookupError:
        _LIMITER.set(limiter := trio.CapacityLimiter(LOOKUPS_MAX))
        return limiter


async def resolve(host: str, port: int) -> Sequence[str]:
    """Ask the system's resolver. Raises OSError."""
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await trio.to_thread.run_sync(look_up, abandon_on_cancel=True, limiter=_resolving())
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Network(httpcore.AsyncNetworkBackend):
    """Connects to public addresses only, unless told that private ones are fine."""

    def __init__(self, *, private_allowed: bool = False, resolve: Resolve = resolve) -> None:
        self._private_allowed = private_allowed
        self._resolve = resolve
        self._tcp = httpcore.TrioBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # httpcore's signature; we pass none
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Connect to the first address that may be and can be reached. Raises httpcore.ConnectError."""
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in await self._addresses(host, port):
            try:
                return await self._tcp.connect_tcp(address, port, timeout, local_address, socket_options)
            except httpcore.ConnectError as error:
                failure = error
        raise failure

    async def _addresses(self, host: str, port: int) -> Sequence[str]:
        try:
            found = await self._resolve(host, port)
        except OSError as error:
            raise httpcore.ConnectError(f"{host} cannot be resolved: {error}") from error
        allowed = [each for each in found if self._private_allowed or is_public(each)]
        if found and not allowed:
            raise ForbiddenAddressError(f"{host} is not on the public internet")
        return allowed[:ADDRESSES_MAX]

    async def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,  # httpcore's signature
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        """Refuse: no URL leads there."""
        raise ForbiddenAddressError("unix sockets are not reached by URL")

    async def sleep(self, seconds: float) -> None:
        """Sleep, as httpcore does between retries (we ask for none)."""
        await trio.sleep(seconds)
