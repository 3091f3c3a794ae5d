"""The call in progress, as handlers and interceptors see it."""

from __future__ import annotations

from collections.abc import Iterator
from contextvars import ContextVar
from time import perf_counter
from typing import Any

from whispr.rpc import compression, wire
from whispr.rpc.compression import Encoding
from whispr.rpc.tls import PeerIdentity
from whispr.rpc.wire import MetadataPairs, MetadataValue


class Metadata:
    """An ordered, immutable multi-dict: lower-case names to text, or to bytes for names ending in `-bin`."""

    __slots__ = ("_pairs",)

    def __init__(self, pairs: MetadataPairs = ()) -> None:
        self._pairs = tuple(pairs)

    def get(self, name: str, default: MetadataValue | None = None) -> MetadataValue | None:
        """First value of `name`."""
        return next((value for key, value in self._pairs if key == name), default)

    def text(self, name: str) -> str | None:
        """First value of `name` if it is text; None for a missing or a binary one."""
        value = self.get(name)
        return value if isinstance(value, str) else None

    def get_all(self, name: str) -> list[MetadataValue]:
        """Every value of `name`, in order."""
        return [value for key, value in self._pairs if key == name]

    def plus(self, pairs: MetadataPairs) -> Metadata:
        """A copy with more pairs at its end."""
        return Metadata((*self._pairs, *pairs))

    def __contains__(self, name: str) -> bool:
        return any(key == name for key, _ in self._pairs)

    def __iter__(self) -> Iterator[tuple[str, MetadataValue]]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Metadata) and self._pairs == other._pairs

    def __hash__(self) -> int:
        return hash(self._pairs)

    def __repr__(self) -> str:
        # Values may be credentials.
        return f"Metadata({', '.join(name for name, _ in self._pairs)})"


NO_METADATA = Metadata()


class Call:
    """One call, on either side of it."""

    __slots__ = ("_state", "begun_at", "deadline", "metadata", "method", "peer")

    def __init__(self, method: str, metadata: Metadata, peer: str, deadline: float) -> None:
        self.method = method
        """Full name, as in "/whispr.v1.AuthService/Login"."""
        self.metadata = metadata
        """Sent with the request. On the client an interceptor may replace it before it proceeds."""
        self.peer = peer
        """The other side's address, such as "tcp:127.0.0.1:50312"."""
        self.begun_at = perf_counter()
        """In seconds, on the clock of `time.perf_counter`."""
        self.deadline = deadline
        """On Trio's clock; infinity for none."""
        self._state: dict[str, Any] | None = None

    @property
    def peer_identity(self) -> PeerIdentity | None:
        """Who the other side is, by its certificate; None when it has shown none."""
        return None

    @property
    def state(self) -> dict[str, Any]:
        """Where interceptors leave things for each other and for the handler."""
        if self._state is None:
            self._state = {}
        return self._state

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.method} {self.peer}>"


class ServerSideCall(Call):
    """What a handler may say besides messages."""

    __slots__ = ("_accepts", "_encoding", "_initial", "_initial_sent", "_trailing", "compress")

    def __init__(self, method: str, metadata: Metadata, peer: str, deadline: float) -> None:
        super().__init__(method, metadata, peer, deadline)
        self._initial: list[tuple[str, str]] | None = None
        self._trailing: list[tuple[str, str]] | None = None
        self._initial_sent = False
        self._accepts: frozenset[str] = frozenset()
        self._encoding: Encoding | None = None
        self.compress = True
        """Whether messages sent from now on are compressed, when there is a `compression`."""

    def set_initial(self, pairs: MetadataPairs) -> None:
        """Add metadata to the response's head, which goes out with the first message.

        Raises ValueError for names or values that may not be sent, RuntimeError once the head has gone.
        """
        if self._initial_sent:
            raise RuntimeError("initial metadata has already been sent")
        self._initial = (self._initial or []) + wire.metadata_fields(pairs)

    @property
    def compression(self) -> str | None:
        """The encoding of the response: "gzip" or "deflate"; None for none.

        A client that does not accept what is set gets none, and small messages stay as they are. Setting it
        raises ValueError for an encoding that does not exist, RuntimeError once the head has gone.
        """
        return self._encoding.name if self._encoding is not None else None

    @compression.setter
    def compression(self, name: str | None) -> None:
        encoding = compression.named(name)
        if self._initial_sent:
            raise RuntimeError("the head, which names the encoding, has already been sent")
        self._encoding = encoding if encoding is None or encoding.name in self._accepts else None

    @property
    def received_compressed(self) -> bool:
        """Whether the message received last had come compressed."""
        return False

    def set_trailing(self, pairs: MetadataPairs) -> None:
        """Add metadata to what follows the response. Raises ValueError for what may not be sent."""
        self._trailing = (self._trailing or []) + wire.metadata_fields(pairs)


_current: ContextVar[ServerSideCall] = ContextVar("whispr_call")
set_current_call = _current.set


def current_call() -> ServerSideCall:
    """The call this task is handling. Raises LookupError outside a handler.

    Tasks that a handler starts inherit it.
    """
    return _current.get()
