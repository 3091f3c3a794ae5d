"""What sections are made of: a table of the TOML file, a listener, and the kinds of their values."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_settings import NoDecode


def _split_commas(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


_HOST = re.compile(r"(\[[^\]@]*\]|[^:@\[\]]*)(:\d{1,5})?")
"""And a port, if there is one."""


def _one_of(*schemes: str) -> Callable[[str], str]:
    """Check what can be told of a URL without asking anybody; it may be empty. Errors do not repeat it."""

    def check(url: str) -> str:
        if not url:
            return url
        scheme, found, rest = url.partition("://")
        if not found or scheme not in schemes:
            raise ValueError(f"must begin with {' or '.join(f'{each}://' for each in schemes)}")
        hosts = re.split("[/?#]", rest, maxsplit=1)[0].rpartition("@")[2]
        if not all(map(_HOST.fullmatch, hosts.split(","))):
            raise ValueError("has a host or a port that is none")
        urlsplit(url)
        return url

    return check


Port = Annotated[int, Field(ge=0, le=65535)]
CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)]
PostgresUrl = Annotated[str, AfterValidator(_one_of("postgresql", "postgres"))]
RedisUrl = Annotated[str, AfterValidator(_one_of("redis", "rediss", "unix"))]
NatsUrl = Annotated[str, AfterValidator(_one_of("nats", "tls"))]
Limit = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A table of the TOML file: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Listener(Section):
    """Where something listens. `host` empty means the top-level `host`; port 0 picks a free one."""

    host: str = ""
    port: Port
