"""WebRTC's transport for audio, as a server that many talk to: ICE-lite, DTLS-SRTP, RTP and RTCP on one UDP port.

Theory of operation. A client sends an SDP offer over HTTP and gets an answer (`sdp`); from then on everything is
datagrams on one port per process, told apart by their first byte (RFC 7983): STUN, DTLS, or RTP and RTCP. We are
ICE-lite (RFC 8445, section 2.5): the client makes the connectivity checks, we answer those that prove knowledge of
the peer's password (`stun`, `ice`). DTLS is spoken with addresses that passed such a check alone, so nothing is sent
to an address that somebody made up. The handshake's keys protect the media (`dtls`, `srtp`).

`peer` puts these together without I/O: datagrams in, datagrams out, time passed in. `endpoint` owns the sockets and
the clock. `fanout` sends one stream of packets to many peers, `reception` puts one peer's packets in order.
"""
