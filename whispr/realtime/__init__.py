"""The real-time hub: Phoenix Channels v2 over WebSocket, knowing nothing of conversations.

    frames     PURE  RFC 6455 frames: bytes in, messages out; whole frames as bytes
    protocol   PURE  Phoenix V2 serializer: JSON and binary
    serializers PURE version 2 of the protocol, and version 1
    presence   PURE  who is on a topic, and what changed
    replication PURE the same over several nodes
    handshake  PURE  what an upgrade request must say
    limits     PURE  every bound of a socket in one place, and the operation budget
    channel    what a service writes: Channel, Joined, Deferred
    link       one topic joined on one socket: inbox, worker, deferred replies, resume
    transport  non-blocking sends, coalescing, the bounded buffer of a slow reader
    socket     one connection: reader, dispatch, closing
    hub        topics, subscribers, broadcasts, presence, drain
    upgrade    the opening handshake of both sides, on trio-websocket
    server     accept loop, admission
    client     a Phoenix client on Trio
    testing    a hub on loopback for tests

A service needs `channel`, and `hub` to broadcast; the application `hub`, `limits` and `server`.
"""
