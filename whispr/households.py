"""What counts as one client address. Pure.

Whoever has an IPv6 address has 2^64 of them to change as they like (RFC 4291 §2.5.1), so a limit of an address that
took each for another would be none.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache

_NETWORK_BITS = 64


@lru_cache(4096)
def household(address: str) -> str:
    """Return what an address is counted under: itself in its IPv4 form, or the /64 of IPv6; else what was given."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address  # such as a Unix socket's
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    whole = int(parsed) >> _NETWORK_BITS << _NETWORK_BITS
    return str(ipaddress.IPv6Network((whole, _NETWORK_BITS)))
