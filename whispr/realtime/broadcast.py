"""What hubs of several nodes say to each other, and which topics they hear each other on. Pure."""

from __future__ import annotations

from typing import Protocol

import msgspec


class Broadcast(msgspec.Struct, array_like=True, frozen=True):
    """A broadcast on its way between nodes. `payload` is encoded JSON, or raw bytes when `binary`."""

    topic: str
    event: str
    payload: bytes
    binary: bool = False
    seq: int | None = None
    unless_joined: str | None = None
    change: int | None = None
    about: int = 0
    """With `change`: the seq of the message that changed, 0 for none."""

    def pack(self) -> bytes:
        """Encode for the bus."""
        return msgspec.msgpack.encode(self)

    @classmethod
    def unpack(cls, data: bytes | memoryview) -> Broadcast:
        """Decode from the bus. Raises msgspec.DecodeError."""
        return msgspec.msgpack.decode(data, type=cls)


class Reach(Protocol):
    """Which topics other nodes are heard on: those with somebody here."""

    def want(self, topic: str) -> None:
        """The topic has its first link or tap."""

    def unwant(self, topic: str) -> None:
        """It has lost its last."""

    async def in_force(self, topic: str) -> None:
        """Return once what other nodes broadcast on a wanted topic arrives, or is known to be missed."""
