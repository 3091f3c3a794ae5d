"""What sections are made of: a table of the TOML file, a listener, and the kinds of their values."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_settings import NoDecode


def _split_commas(value: object) -> object:
    if isinstance(value, str):
        return tuple(part.strip() for part in value.split(",") if part.strip())
    return value


Port = Annotated[int, Field(ge=0, le=65535)]
CommaSeparated = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_commas)]
Limit = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A table of the TOML file: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Listener(Section):
    """Where something listens. `host` empty means the top-level `host`; port 0 picks a free one."""

    host: str = ""
    port: Port
