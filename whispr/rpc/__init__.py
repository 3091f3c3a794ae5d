"""gRPC over `whispr.http2`, in Trio: servers, channels, and the code generator for both.

    wire               PURE: what gRPC says on top of HTTP/2
    compression        PURE: gzip and deflate, never past a limit
    call               the call as handlers and interceptors see it; `current_call()`
    interceptors       what surrounds calls, on both sides
    inbox              messages that wait to be read, with back-pressure
    transport          one reader and one writer task for each connection
    server             RpcServer: listens, drains
      server_connection    requests become calls, each in a cancel scope
      driving              runs a handler in the task that read its request, until it has to wait
      server_call          one call's messages and its end
      methods              purerpc's servicers as a table; judging a request's head
      statuses             exceptions of handlers as statuses
    channel            open_channel, Channel: addresses, turns, the line of waiting calls
      targets              what a target stands for; looking up names
      subchannel           one address: attempts, backoff, connections
      client_connection    calls become streams
      client_call          one call's messages and its end
      stubs                the attributes of generated stubs, by call kind
      purerpc_socket       what stubs of purerpc's own plugin need
    keepalive          pings, age and idleness of connections, on both sides
      watchman             one task that looks after all of them
    tls                certificates from files that may change; who the other side is
    limits             RpcLimits
    memory             that of large messages is kept for the next ones
    health             grpc.health.v1
    reflection         grpc.reflection.v1 and v1alpha
      protos               the messages of these and of channelz, built at run time
      reflection_client    what a server says of itself
      prototext            descriptors as the proto they came from
    statistics         what servers and channels have done: connections, calls, messages, bytes
    channelz           grpc.channelz.v1: the same, asked over gRPC
    metrics, logging   interceptors: a count and a time, and an event, for each call
    codegen, generate  the protoc plugin, and the command that runs it over `proto/`

What a call costs, and what paid off, most first (`just bench-grpc` measures it, py-spy found it):

- No task for a handler that does not wait. The task that read a request runs its handler, step by step in that
  one task, and becomes the call's own should the handler have to wait; another then leads (`driving`,
  `server_connection`). It trebled the server. A method that waited gets tasks from the start.
- One scope for many calls, whose deadline is set anew only when it differs: making one costs as much as a call.
- Requests and responses that came in one piece, with header blocks seen before, are taken in one step instead
  of frame by frame and state by state (`http2.whole`); sent ones are one join around the message.
- Sockets are read and written directly. Answers leave in one write for each read, but every sixteen calls, so
  that both ends work at once; a client's call by itself leaves at once, many together leave together.
- A request's head is judged once for each distinct header block, interceptors are put together once for each method.

Figures of one run on two shared cores, ratios to grpcio.aio beside it: server, unary, 8 connections of 16 calls,
with metrics, logging, deadlines and limits 57,000 calls/s, 9.1 times (from h2load 6.6 times), 28,000 with a handler
that waits; client 49,700 calls/s, 2.4 times; both ends 32,100 calls/s, 5.2 times; one call after another 0.11 ms, a
quarter; streams of 100 bytes 269,000 messages/s, 14 times, and of 1 MiB 530, 0.6 times, for want of fewer copies
on the way; at 1,000 calls/s p99 1.5 ms. An idle connection holds 22 KiB, a waiting call 5.
"""
