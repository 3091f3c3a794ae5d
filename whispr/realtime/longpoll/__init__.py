"""Phoenix's other transport: a client of the hub that polls over HTTP, where WebSockets do not get through.

    GET  /socket/longpoll?vsn=2.0.0&token=<access token>     410 {token}     a session is open
    GET  …&token=<session token>                             200 {messages}  or 204 {} after `Limits.poll_s`
    POST …&token=<session token>    one message a line        200 {}         once the channels have taken them

The HTTP status is always 200, the one meant stands in the JSON, as phoenix.js wants it: 410 for a session that is
not (any more), on which the client opens another and rejoins; 403 for a client that is refused; 500 for what is worth
another try, since that is the only such status phoenix.js knows.

`session` is the transport, `sessions` holds those of this process and answers requests, `passing` asks the process
that has the session when the request has come to another. HTTP itself is the gateway's (`whispr.gateway.longpoll`).

**Several processes behind one port.** The session's token names the process that has it. A request that comes to
another one is passed to it over the bus and its answer passed back, so neither the client nor a load balancer
must see to it that requests of one session go to one process. A process that does not say within `passing.ACK_S` that
it has the request is gone and its sessions with it: 410, and the client opens another wherever it gets to.
"""
