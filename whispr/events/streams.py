"""The four streams, made when they are missing and kept to the limits that are set."""

from __future__ import annotations

import trio

from whispr.adapters.jetstream import JetStream, StreamLimits, StreamState
from whispr.events.envelope import STREAMS


class Streams:
    """Knows whether the streams have been seen to since the bus last came up."""

    def __init__(self, jetstream: JetStream, limits: StreamLimits) -> None:
        self._jetstream = jetstream
        self._limits = limits
        self._ensured = False
        self._ensuring = trio.Lock()

    def forget(self) -> None:
        """Look at the streams again before the next use: NATS may have lost them."""
        self._ensured = False

    async def ensure(self) -> None:
        """Make what is missing. Raises UNAVAILABLE while NATS is away."""
        if self._ensured:
            await trio.lowlevel.checkpoint()
            return
        async with self._ensuring:
            if self._ensured:
                return
            for source, name in STREAMS.items():
                await self._jetstream.ensure_stream(name, [f"{source}.events.>"], self._limits)
            self._ensured = True

    async def state(self, name: str) -> StreamState:
        """Return what is in a stream, which is made if it is missing. Raises UNAVAILABLE while NATS is away."""
        state = await self._jetstream.state(name)
        if state is None:
            self.forget()
            await self.ensure()
            state = await self._jetstream.state(name)
            assert state is not None
        return state
