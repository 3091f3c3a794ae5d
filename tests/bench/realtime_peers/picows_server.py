"""picows on uvloop: joins, and one `send` for every socket."""

from __future__ import annotations

import itertools
import json
import resource

import picows  # type: ignore[import-not-found]  # in an environment of the benchmark's own
import uvloop

SEQ = itertools.count(1)
CONNECTIONS: set[picows.WSTransport] = set()


class Listener(picows.WSListener):  # type: ignore[misc]  # see above
    """One connection."""

    def on_ws_connected(self, transport: picows.WSTransport) -> None:
        """Count it in."""
        CONNECTIONS.add(transport)

    def on_ws_disconnected(self, transport: picows.WSTransport) -> None:
        """Count it out."""
        CONNECTIONS.discard(transport)

    def on_ws_frame(self, transport: picows.WSTransport, frame: picows.WSFrame) -> None:
        """Answer joins, broadcast what is published."""
        if frame.msg_type != picows.WSMsgType.TEXT:
            return
        join_ref, ref, topic, event, payload = json.loads(frame.get_payload_as_bytes())
        if event == "publish":
            said = {"message_id": "0190f5c2-7b1e-7c3a-9d4e-1a2b3c4d5e70", "seq": next(SEQ), **payload}
            text = json.dumps([None, None, topic, "new_message", said]).encode()
            for each in CONNECTIONS:
                each.send(picows.WSMsgType.TEXT, text)
        else:
            reply = [join_ref, ref, topic, "phx_reply", {"status": "ok", "response": {}}]
            transport.send(picows.WSMsgType.TEXT, json.dumps(reply).encode())


async def main() -> None:
    """Serve until killed; the port is the first line of stdout."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2)
    server = await picows.ws_create_server(lambda request: Listener(), "127.0.0.1", 0, backlog=4096)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())
