"""The real-time hub: Phoenix Channels v2 over WebSocket, knowing nothing of conversations.

    frames     PURE  RFC 6455 frames: bytes in, messages out; whole frames as bytes
    protocol   PURE  Phoenix V2 serializer: JSON and binary
    serializers PURE version 2 of the protocol, and version 1
    presence   PURE  who is on a topic, and what changed
    replication PURE the same over several nodes
    handshake  PURE  what an upgrade request must say
    limits     PURE  every bound of a socket in one place, and the operation budget
    channel    what a service writes: Channel, Joined, Deferred
    link       one topic joined on one socket: its life, what it gets, resume
    worker     what a link's channel does in order, and the replies it owes
    fanout     from one broadcast to many sockets: one encode and one frame for each form
    policies   PURE  what slow readers go without, in one table
    pacing     PURE  what is said only so often
    deflate    PURE  permessage-deflate, one frame for all
    transport  non-blocking sends, coalescing, the bounded buffer of a slow reader
    socket     one connection: reader, dispatch, closing
    roster     who is present, told to topics and to other nodes
    hub        topics, subscribers, broadcasts, drain
    upgrade    the opening handshake of both sides, on wsproto and trio-websocket
    server     accept loop, admission
    client     a Phoenix client on Trio
    testing    a hub on loopback for tests

A service needs `channel`, and `hub` to broadcast; the application `hub`, `limits` and `server`.
"""
