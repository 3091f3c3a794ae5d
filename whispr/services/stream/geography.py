"""Which country an address is in, by a database in MaxMind's format, if the operator has one (GeoLite2, DB-IP, …).

The file is read into memory at start. Addresses themselves are kept nowhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import maxminddb
from maxminddb.const import MODE_MEMORY

from whispr.errors import conflict

CountryOf = Callable[[str], str]
"""Returns a country's code (ISO 3166-1 alpha-2) for an address; empty when it is not known."""


def countries_in(path: Path | None) -> CountryOf:
    """Return what looks addresses up in the file; without one, nothing is known of any.

    Raises FAILED_PRECONDITION (bad_setting) for a file that cannot be read.
    """
    if path is None:
        return lambda _: ""
    try:
        database = maxminddb.open_database(path, MODE_MEMORY)
    except (OSError, maxminddb.InvalidDatabaseError) as error:
        raise conflict(f"WHISPR_STREAM_COUNTRIES_FILE: cannot read {path}: {error}", "bad_setting") from error

    def country_of(address: str) -> str:
        try:
            found = database.get(address)
        except ValueError:  # no address, or one of IPv6 in a database of IPv4
            return ""
        return _code(found)

    return country_of


def _code(found: object) -> str:
    """Read the record: GeoLite2's and DB-IP's have the code in the same place."""
    country = found.get("country") if isinstance(found, Mapping) else None
    code = country.get("iso_code") if isinstance(country, Mapping) else None
    return code if isinstance(code, str) and len(code) == 2 else ""
