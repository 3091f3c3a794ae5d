"""`websockets` on uvloop: joins, and `websockets.broadcast` to every socket."""

from __future__ import annotations

import itertools
import json
import resource

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve

SEQ = itertools.count(1)


async def handle(connection: ServerConnection) -> None:
    """Answer joins, broadcast what is published."""
    async for text in connection:
        join_ref, ref, topic, event, payload = json.loads(text)
        if event == "publish":
            said = {"message_id": "0190f5c2-7b1e-7c3a-9d4e-1a2b3c4d5e70", "seq": next(SEQ), **payload}
            broadcast(connection.server.connections, json.dumps([None, None, topic, "new_message", said]))
        else:
            reply = [join_ref, ref, topic, "phx_reply", {"status": "ok", "response": {}}]
            await connection.send(json.dumps(reply))


async def main() -> None:
    """Serve until killed; the port is the first line of stdout."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    async with serve(handle, "127.0.0.1", 0, compression=None, ping_interval=None, backlog=4096) as server:
        print(next(iter(server.sockets)).getsockname()[1], flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
