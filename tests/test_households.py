"""What counts as one client address."""

from __future__ import annotations

import pytest

from whispr.households import household


@pytest.mark.parametrize(
    ("address", "key"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:1", "2001:db8::/64"),
        ("2001:db8:0:1::1", "2001:db8:0:1::/64"),
        ("unix", "unix"),
    ],
)
def test_addresses_are_counted_by_customer(address: str, key: str) -> None:
    """An IPv4 address is itself in either notation; an IPv6 one stands for its /64."""
    assert household(address) == key
