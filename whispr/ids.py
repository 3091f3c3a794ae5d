"""Identifiers: UUIDv7 strings (RFC 9562, section 5.7), whose order is that of their making."""

from __future__ import annotations

import os
import re
import time
from random import Random

from whispr.errors import invalid

UUID_PATTERN = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
"""A UUID in the canonical lower-case form, the only one Whispr emits."""

_UUID = re.compile(UUID_PATTERN)

_VERSION_7 = 0x7 << 76
_VARIANT = 0b10 << 62
_RANDOM_BITS = ((1 << 12) - 1) << 64 | ((1 << 62) - 1)

# Ids have to be unique, not secret: a generator seeded by the system costs a tenth of asking it each time.
_random = Random()  # noqa: S311  # see above
os.register_at_fork(after_in_child=_random.seed)
_bits = _random.getrandbits


def new_id() -> str:
    """Return a fresh UUIDv7: 48 bits of Unix milliseconds, then 74 random bits."""
    random = _bits(80) & _RANDOM_BITS
    digits = f"{time.time_ns() // 1_000_000 << 80 | _VERSION_7 | _VARIANT | random:032x}"
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"


def is_id(value: object) -> bool:
    """Tell whether `value` is a UUID in canonical form."""
    return isinstance(value, str) and _UUID.fullmatch(value) is not None


def parse_id(value: str, field: str) -> str:
    """Return a UUID in canonical form. Raises INVALID_ARGUMENT naming `field`."""
    lowered = value.lower()
    if _UUID.fullmatch(lowered) is None:
        raise invalid({field: "must be a UUID such as 0190163d-8694-739b-aea5-966c26f8ad91"})
    return lowered
