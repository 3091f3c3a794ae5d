"""Whispr's hub with all of its semantics: channels, seq, presence, operation budgets, replies."""

from __future__ import annotations

import gc
import resource
import sys
from dataclasses import replace

import trio

from whispr.realtime.channel import NO_REPLY, Channel, Joined
from whispr.realtime.hub import Hub
from whispr.realtime.limits import Limits
from whispr.realtime.server import serve_websocket
from whispr.realtime.testing import authenticate


class Room(Channel):
    """A topic whose subscribers are present, and whose messages are numbered."""

    seq = 0

    async def join(self, payload: object) -> object:
        """Be present, and complete up to now."""
        self.link.track({"online": True})
        self.link.push_presence_state()
        return Joined({"seq": Room.seq}, seq=Room.seq)

    def handle_now(self, event: str, payload: object) -> object:
        """Broadcast what is published."""
        if event != "publish" or not isinstance(payload, dict):
            return NotImplemented
        Room.seq += 1
        said = {"message_id": "0190f5c2-7b1e-7c3a-9d4e-1a2b3c4d5e70", "seq": Room.seq, **payload}
        self.link.broadcast("new_message", said, seq=Room.seq)
        return NO_REPLY


class Own(Channel):
    """A topic of one's own."""


async def main() -> None:
    """Serve until killed; the port is the first line of stdout. An argument changes one limit: `name=value`."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    limits = Limits(operations_per_min=10**6, address_connections=0)
    for argument in sys.argv[1:]:
        name, _, value = argument.partition("=")
        limits = replace(limits, **{name: type(getattr(limits, name))(float(value))})
    hub = Hub(limits)
    hub.mount("room", Room)
    hub.mount("user", Own)
    async with trio.open_nursery() as nursery:
        port = await nursery.start(serve_websocket, hub, "127.0.0.1", 0, authenticate)
        gc.collect()
        gc.freeze()
        gc.set_threshold(5_000, 20, 20)  # as whispr.app does
        print(port, flush=True)


if __name__ == "__main__":
    trio.run(main)
