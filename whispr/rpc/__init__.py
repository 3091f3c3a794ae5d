"""gRPC over `whispr.http2`, in Trio: servers, channels, and the code generator for both.

    wire               PURE: what gRPC says on top of HTTP/2
    compression        PURE: gzip and deflate, never past a limit
    call               the call as handlers and interceptors see it; `current_call()`
    interceptors       what surrounds calls, on both sides
    inbox              messages that wait to be read, with back-pressure
    transport          moves bytes: one task for each connection, and another while a socket is full
      flusher              writes what calls say, for all connections
      lodger               a task that lives with one of many connections
      common               what the connections of a server or a channel have in common
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
      guard                what calls go through on their way out: deadlines, retries, breaker, bulkhead
      stubs                the attributes of generated stubs, by call kind
      purerpc_socket       what stubs of purerpc's own plugin need
    keepalive          pings, age and idleness of connections, on both sides
      watchman             one task that looks after all of them
    tls                certificates from files that may change; who the other side is
    limits             RpcLimits
      patience             ends what stands still
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

What a call costs, and what paid off, most first (`just bench-grpc` measures; py-spy, perf, tracemalloc found):

- No task for a handler that does not wait. The task that read a request runs its handler, step by step in that
  one task, and becomes the call's own should the handler have to wait; another then leads (`driving`,
  `server_connection`). It trebled the server. A method that waited gets tasks from the start.
- One scope for many calls, whose deadline is set anew only when it differs: making one costs as much as a call.
- Requests and responses that came in one piece, with header blocks seen before, are taken in one step instead
  of frame by frame and state by state (`http2.whole`); sent ones are one join around the message.
- Sockets are read and written directly. Answers leave in one write for each read, but every sixteen calls, so
  that both ends work at once; a client's call by itself leaves at once, many together leave together.
- A request's head is judged once for each distinct header block, interceptors are put together once for each method.
- Blocks that differ from call to call, by a request's id or a token, but leave the dynamic table alone, need 12 µs
  instead of 56 to take apart and check (`http2.plain`).

Large messages, 0.8 times grpcio.aio before and 1.3 to 1.6 times after:

- A message is copied once on its way in, when its last part has come, and never on its way out: DATA is handed
  on as it is read, and the socket is given views of the message (`http2.queued`, `writev`).
- A third of all the time were page faults: glibc gave each message's memory back at once (`memory`).
- Windows grow to a whole message of the largest size, and frames to 256 KiB while no other stream waits.

Memory, an idle connection 16.6 KiB before and 9.7 after, 10,000 waiting calls 46.5 MiB before and 38.6 after:

- No writer for each connection: one flusher writes for all of them, and what a socket does not take gets a task
  while there is need of one (2.2 KiB). No scope while there is nothing to cancel (0.7), no coroutine in between that
  could be a function (1.2), no bound method for each event (0.9), no dictionaries where slots do (0.5).
- Connections whose peers say the same hold decoded header lists once, and make an HPACK decoder only when a block
  needs one (2.5).
- Interceptors that only look on are told of the end of a call instead of surrounding it (0.6 for each call).

2,000,000 calls, after 200,000 to warm up, leave the process 148 KiB larger (`--only memory --calls 2000000`).

Figures of one run on two shared cores, ratios to grpcio.aio beside it: server, unary, 8 connections of 16 calls,
with metrics, logging, deadlines and limits 57,000 calls/s, 8 to 9 times (from h2load 6.6 to 7.1), 14 µs of CPU
each, and 38 with a handler that waits; client 49,700 calls/s, 2.4 times; both ends 32,100 calls/s, 5.2 to 8.3
times; one call after another 0.11 ms, a quarter; streams of 100 bytes 269,000 messages/s, 14 to 19 times, and of
1 MiB 1,400, 1.5 times; at 1,000 calls/s p99 1.5 ms. With both cores busy with something else the ratios are lower:
a peer of many threads then gets more of them. By CPU, 1 MiB messages take 1.7 ms at both ends, grpcio.aio's 2.1.
"""
