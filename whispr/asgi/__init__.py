"""An ASGI 3 server on Trio over httptools (llhttp).

    server = HttpServer(app, HttpLimits(body_bytes=2**20))
    port = await nursery.start(server.serve_tcp, "127.0.0.1", 0)
    ...
    with trio.move_on_after(10):
        await server.drain()

Bytes become requests in modules that do no I/O: `reader` cuts a connection into heads and bodies, `request`
makes a head an ASGI scope, `body` finds a body's end, `response` writes an answer. `connection` runs the
application in the connection's own task, `exchange` is its `receive` and `send`, `wire` the socket, `poller`
says which sockets have something to read.

It speaks HTTP/1.1 and 1.0. Anything that two parties could read in two ways is refused with 400 and the
connection closed. There are no WebSockets (403), no lifespan events and no trailers; of ASGI's extensions it
has `http.response.pathsend`, with which Starlette's FileResponse sends files by sendfile(2), and
`http.response.zerocopysend`, with which `files.answer_file` also does parts of them.

Figures (`just bench-http`: 2 cores shared with the load, 32 connections, Python 3.11): an answer of one line by
Starlette 27,700 requests/s, p50 1.1 ms, p99 3.1 ms, beside 26,300 by uvicorn (httptools, uvloop) in the same run,
which is 1.05 of its rate and 1.02 by CPU time; where no two requests are alike (`--vary`) 0.78 by CPU time. Heads
that come again, of requests and of answers, are not read and written again. A unary REST call through gateway and
gRPC, all in one process: 4,000/s.
"""

from __future__ import annotations

from whispr.asgi.limits import HttpLimits
from whispr.asgi.refusals import Refusal, Rendered, Renderer
from whispr.asgi.server import HttpServer
from whispr.asgi.wire import ClientGoneError

__all__ = ["ClientGoneError", "HttpLimits", "HttpServer", "Refusal", "Rendered", "Renderer"]
