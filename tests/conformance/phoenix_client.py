"""phoenix-channels-python-client, which knows nothing of Whispr, in a process of its own: it listens, and comes back.

    python phoenix_client.py ws://127.0.0.1:4000/socket/websocket?token=TOKEN 2.0.0

Prints "joined", then each payload of `shouted` as JSON, also after crashes and cuts, until standard input ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from phoenix_channels_python_client import (  # type: ignore[import-not-found]  # the test's own folder has it
    PHXChannelsClient,
)


async def main(url: str, version: str) -> None:
    """Listen until told to stop."""

    async def hear(message: Any) -> None:
        if str(message.event) == "shouted":
            print(json.dumps(message.payload), flush=True)

    async with PHXChannelsClient(url, "any", protocol_version=version, heartbeat_interval_s=0.2) as client:
        await client.subscribe_to_topic("room:1", hear)
        print("joined", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await client.unsubscribe_from_topic("room:1")


asyncio.run(main(sys.argv[1], sys.argv[2]))
