"""What auth asks of other services, over gRPC; given to it by whoever puts a process together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from whispr.v1 import common_pb2

Records = AbstractAsyncContextManager[AsyncIterator[common_pb2.DataRecord]]


@dataclass(frozen=True, slots=True)
class Standing:
    """What a person is in a conversation, and which actions are theirs there; `role` empty is a stranger."""

    role: str
    permissions: Mapping[str, bool]


@dataclass(frozen=True, slots=True)
class Neighbours:
    """The other services."""

    standing: Callable[[str, str], Awaitable[Standing | None]]
    """Asks the user service what a person (first) is in a conversation; None when there is no such conversation."""
    services: Sequence[str]
    """The services that hold data about people."""
    records: Callable[[str, str], Records]
    """Asks a service (first) for all it holds about a person."""
