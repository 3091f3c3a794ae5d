"""HTTP/2 (RFC 9113) without I/O: bytes in, events out; commands in, bytes out.

`Connection` is the whole of the interface: feed it what the socket read with `receive`, hand the socket what
`take_output` returns, and open, answer, reset streams with its commands. Nothing here waits, reads a clock of
its own choosing, or raises because of what a peer sent: a peer's error is an event, with the GOAWAY or
RST_STREAM it deserves already in the output.

    frames      the wire format: frame types, their size and stream rules, builders
    headers     HPACK with cached blocks (RFC 7541), and what makes a header list malformed
    plain       header blocks that need no more than a look
    partial     a header block spread over several frames
    streams     the open streams, and what is remembered of closed ones
    states      the stream state machine, one table
    flow        windows, and when to announce more of them
    limits      every limit, and the budget of control frames
    sender      the output: ready bytes, and a fair queue of streams with DATA to send
    whole       the short way for messages that came in one piece
    queued      DATA that waits, and is not copied for it
    core        the state of a connection, and how its streams end
    incoming    what the peer's frames do to it
    connection  all of it together: the commands of its owner
    events      what `receive` reports

It does not do server push (refused), priorities (RFC 9113 deprecates them; parsed and ignored), or CONNECT.
"""
