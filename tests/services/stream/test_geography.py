"""Countries of addresses, by a database in MaxMind's format that is made here (MaxMind DB, version 2.0)."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from whispr.services.stream.geography import countries_in

_METADATA = b"\xab\xcd\xefMaxMind.com"
_NOTHING = -1

Tree = list[list[int]]


def text(value: str) -> bytes:
    return bytes([2 << 5 | len(value)]) + value.encode()


def number(kind: int, value: int) -> bytes:
    packed = value.to_bytes(-(-value.bit_length() // 8), "big")
    head = bytes([kind << 5 | len(packed)]) if kind < 8 else bytes([len(packed), kind - 7])
    return head + packed


def mapping(**entries: bytes) -> bytes:
    return bytes([7 << 5 | len(entries)]) + b"".join(text(name) + value for name, value in entries.items())


def database(records: dict[str, bytes]) -> bytes:
    """Return a database of networks, IPv4's in the lowest /96 as in GeoLite2's, and their records."""
    tree: Tree = [[_NOTHING, _NOTHING]]
    places, data = dict[int, int](), b""
    for at, (network, record) in enumerate(records.items()):
        places[at], data = len(data), data + record
        _add(tree, ipaddress.ip_network(network), -2 - at)
    found = b""
    for node in tree:
        for value in node:
            if value == _NOTHING:
                value = len(tree)
            elif value < 0:
                value = len(tree) + 16 + places[-2 - value]
            found += value.to_bytes(3, "big")
    described = mapping(
        node_count=number(6, len(tree)), record_size=number(5, 24), ip_version=number(5, 6),
        database_type=text("Test-Country"), languages=bytes([0, 4]), binary_format_major_version=number(5, 2),
        binary_format_minor_version=number(5, 0), build_epoch=number(9, 1_700_000_000), description=mapping(),
    )  # fmt: skip
    return found + bytes(16) + data + _METADATA + described


def _add(tree: Tree, network: ipaddress.IPv4Network | ipaddress.IPv6Network, leaf: int) -> None:
    length = network.prefixlen + (96 if network.version == 4 else 0)
    bits = f"{int(network.network_address):0128b}"[:length]
    node = 0
    for bit in bits[:-1]:
        if tree[node][int(bit)] < 0:
            tree.append([_NOTHING, _NOTHING])
            tree[node][int(bit)] = len(tree) - 1
        node = tree[node][int(bit)]
    tree[node][int(bits[-1])] = leaf


def country(code: str) -> bytes:
    """A record as GeoLite2 and DB-IP have it."""
    return mapping(country=mapping(iso_code=text(code), geoname_id=number(6, 2_921_044)))


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.7", "DE"),
        ("198.51.100.1", "JP"),
        ("2001:db8::1", "BR"),
        ("203.0.113.1", ""),
        ("100.64.0.1", ""),
        ("2001:db9::1", ""),
        ("nowhere", ""),
        ("", ""),
    ],
)
def test_addresses_have_countries(tmp_path: Path, address: str, expected: str) -> None:
    """Of both kinds; none for who is in no network, or in one whose record names no country, or is no address."""
    path = tmp_path / "countries.mmdb"
    path.write_bytes(
        database(
            {
                "192.0.2.0/24": country("DE"),
                "198.51.100.0/25": country("JP"),
                "2001:db8::/32": country("BR"),
                "203.0.113.0/24": mapping(continent=mapping(code=text("EU"))),
                "100.64.0.0/10": mapping(country=text("DE")),
            }
        )
    )
    assert countries_in(path)(address) == expected
