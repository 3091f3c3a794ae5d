"""gRPC over `whispr.http2`, in Trio: servers, channels, and the code generator for both.

    wire               PURE: what gRPC says on top of HTTP/2
    compression        PURE: gzip and deflate, never past a limit
    call               the call as handlers and interceptors see it; `current_call()`
    interceptors       what surrounds calls, on both sides
    inbox              messages that wait to be read, with back-pressure
    transport          one reader and one writer task for each connection
    server             RpcServer: listens, drains
      server_connection    requests become calls, each a task with a cancel scope
      server_call          one call's messages and its end
      methods              purerpc's servicers as a table; judging a request's head
      statuses             exceptions of handlers as statuses
      unix_socket          a listener on a path, whatever was left there
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
    health             grpc.health.v1
    reflection         grpc.reflection.v1 and v1alpha
      protos               the messages of these, built at run time
      reflection_client    what a server says of itself
      prototext            descriptors as the proto they came from
    statistics         what servers and channels have done: connections, calls, messages, bytes
    metrics, logging   interceptors: a count and a time, and an event, for each call
    codegen, generate  the protoc plugin, and the command that runs it over `proto/`

What a call costs, and what paid off. A unary call is one task, one scope, one object for the call, and no
wait but its handler's: its task starts when its head is read, and by then the message is there, for a read's
frames are all handled before any task runs. A request's head is judged once for each distinct header block,
a response is one join of constant blocks around its message, and what many calls have to say goes out in one
write. About a third of the time is Trio's own, for the task and the scope.
"""
