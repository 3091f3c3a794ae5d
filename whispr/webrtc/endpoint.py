"""The process's WebRTC endpoint: its UDP port, everybody who talks to it, and the clock.

One port for IPv4 and one of the same number for IPv6. What arrives is told apart by its first byte (RFC 7983): a
check by the name in it, everything else by the address that a check has proved to be a peer's. What nobody asked for
is dropped without an answer. Nothing here waits to send: a datagram that the kernel has no room for is lost, as it
may be anywhere on its way, and counted.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import structlog
import trio

from whispr.errors import exhausted
from whispr.webrtc import answers, metrics, stun
from whispr.webrtc.addresses import bind_udp, reachable
from whispr.webrtc.answers import Local
from whispr.webrtc.dtls import Identity
from whispr.webrtc.flood import Failures
from whispr.webrtc.ice import Address, Credentials
from whispr.webrtc.peer import Peer, State
from whispr.webrtc.sdp import Offer
from whispr.webrtc.stun import Attribute, Kind, StunError

TICK_S: Final = 0.1
"""Between looks at handshakes, whose first retransmission is due after a second, and at consent."""
DRAIN_MAX: Final = 256
"""Datagrams taken from a socket before others get their turn."""
DATAGRAM_BYTES: Final = 2048
PEER_ADDRESSES_MAX: Final = 8
"""Of one peer that passed a check: a client tries all of its own."""
IN_USE_S: Final = 10.0
"""After something came from a peer, its address is nobody else's: clients check every 2 to 6 s (RFC 7675)."""
BUSY_RETRY_S: Final = 5.0

log = structlog.get_logger("whispr.webrtc")


@dataclass(frozen=True, slots=True)
class Options:
    """What an operator may choose."""

    advertised: Sequence[str] = ()
    """Addresses that peers are told instead of our own: behind NAT, the public ones."""
    peers_max: int = 5_000
    handshakes_max: int = 256
    """Handshakes in flight. Of more, the beginning is dropped: the client sends it again within a second."""
    cookies_from: int = 64
    """As many in flight, and a new one begins with a cookie."""


class Endpoint:
    """WebRTC of one process. `run` it, then `admit` peers."""

    def __init__(self, options: Options | None = None) -> None:
        self._options = options or Options()
        self._identity = Identity()
        self._sockets: list[socket.socket] = []
        self._candidates: list[str] = []
        self._by_name: dict[str, Peer] = {}
        """Checks find their peer by the fragment in them."""
        self._by_address: dict[Address, Peer] = {}
        self._addresses: dict[Peer, list[Address]] = {}
        """Every peer, and the addresses of `_by_address` that are its."""
        self._handshaking: set[Peer] = set()
        self._failures = Failures()
        self.port = 0
        """Once it runs."""

    async def run(
        self, host: str, port: int, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serve UDP on every address of `host`, on `port`, 0 for a free one, until cancelled. Reports the port.

        Raises OSError when the port cannot be had.
        """
        self._sockets = await bind_udp(host, port)
        try:
            self.port = self._sockets[0].getsockname()[1]
            hosts = self._options.advertised or reachable(self._sockets)
            self._candidates = answers.candidate_lines([(each, self.port) for each in hosts])
            async with trio.open_nursery() as nursery:
                for each in self._sockets:
                    nursery.start_soon(self._receive, each)
                nursery.start_soon(self._tick)
                task_status.started(self.port)
        finally:
            for peer in list(self._addresses):
                self.close(peer, "the server stops")
            for each in self._sockets:
                each.close()

    # Peers

    @property
    def peers(self) -> int:
        """How many there are, connected or on the way there."""
        return len(self._addresses)

    def admit(self, offer: Offer) -> Peer:
        """Take a client in that has made an offer. Raises RESOURCE_EXHAUSTED when there are too many."""
        if len(self._addresses) >= self._options.peers_max:
            raise exhausted(
                f"this server has {self._options.peers_max} WebRTC peers", BUSY_RETRY_S, "too_many_peers"
            )
        peer = Peer(self._identity, offer.credentials, offer.fingerprints, trio.current_time())
        self._addresses[peer] = []
        self._by_name[peer.ice.local.ufrag] = peer
        peer.on_state = self._changed
        metrics.PEERS.inc()
        return peer

    def answer(self, peer: Peer, offer: Offer, *, cname: str = "", ssrc: int | None = None) -> str:
        """Write the answer to a peer's offer; with an SSRC if we send."""
        return answers.answer(offer, self._local(peer, cname, ssrc))

    def restart(self, peer: Peer, remote: Credentials, mid: str) -> str:
        """Begin ICE anew with a peer's new credentials; returns our side's fragment."""
        fresh = Credentials.new()
        for name in [name for name, each in self._by_name.items() if each is peer]:
            if name != peer.ice.local.ufrag:
                del self._by_name[name]
        peer.ice.restart(fresh, remote, trio.current_time())
        self._by_name[fresh.ufrag] = peer
        return answers.fragment(mid, self._local(peer, "", None))

    def close(self, peer: Peer, reason: str) -> None:
        """End a peer, with a farewell if it can be told."""
        for datagram in peer.close(reason):
            self.send(datagram, peer.address)

    def _local(self, peer: Peer, cname: str, ssrc: int | None) -> Local:
        session_id = time.time_ns() >> 10
        return Local(peer.ice.local, self._identity.fingerprint, self._candidates, session_id, cname, ssrc)

    def _changed(self, peer: Peer) -> None:
        """Keep the tables in step with a peer's state, and tell whoever it belongs to."""
        if peer.state is State.HANDSHAKING:
            self._handshaking.add(peer)
        else:
            self._handshaking.discard(peer)
        if peer.state is State.CONNECTED:
            metrics.CONNECTED.inc()
        if peer.state is State.CLOSED:
            for address in self._addresses.pop(peer, ()):
                del self._by_address[address]
            for name in [name for name, each in self._by_name.items() if each is peer]:
                del self._by_name[name]
            metrics.PEERS.dec()
        peer.on_change(peer)

    # Datagrams

    def send(self, datagram: bytes, address: Address | None) -> None:
        """Send a datagram, or lose it."""
        if address is None:
            return
        try:
            self.socket_for(address).sendto(datagram, address)
        except OSError as error:
            metrics.lost(error)

    def socket_for(self, address: Address) -> socket.socket:
        """The socket of an address's family: IPv6 addresses have four parts."""
        family = socket.AF_INET if len(address) == 2 else socket.AF_INET6
        return next(each for each in self._sockets if each.family == family)

    async def _receive(self, own: socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(own)
            now = trio.current_time()
            for _ in range(DRAIN_MAX):
                try:
                    datagram, address = own.recvfrom(DATAGRAM_BYTES)
                except BlockingIOError:
                    break
                except OSError:
                    continue  # What the network says of a datagram that was sent is said here.
                self._arrived(datagram, address, now)

    def _arrived(self, datagram: bytes, address: Address, now: float) -> None:
        peer = self._by_address.get(address)
        try:
            self._take(datagram, address, peer, now)
        except Exception as error:  # a defect must cost one peer, not everybody's
            metrics.FAILURES.inc()
            self._failures.note(address[0], now)
            log.error("webrtc_datagram_failed", host=address[0], exc_info=error)
            if peer is not None:
                self.close(peer, "internal error")

    def _take(self, datagram: bytes, address: Address, peer: Peer | None, now: float) -> None:
        first = datagram[0] if datagram else 255
        if first < 4:
            self._check(datagram, address, peer, now)
        elif peer is None:
            metrics.STRAY.inc()
        elif 128 <= first < 192:
            peer.receive_rtp(datagram, now)
        elif 20 <= first < 64:
            self._dtls(peer, datagram, address, now)

    def _check(self, datagram: bytes, address: Address, known: Peer | None, now: float) -> None:
        """Answer a connectivity check of a peer; count those of nobody against their host."""
        host = address[0]
        if known is None and self._failures.over(host, now):
            metrics.REFUSED_CHECKS.inc()
            return
        try:
            message = stun.parse(datagram)
        except StunError:
            self._failures.note(host, now)
            return
        if message.kind == Kind.INDICATION or (known is not None and known.confirm(message, address, now)):
            return
        name = (message.get(Attribute.USERNAME) or b"").partition(b":")[0].decode("ascii", "replace")
        peer = self._by_name.get(name) if message.kind == Kind.REQUEST else None
        if known is not None and known is not peer and now - known.heard_at < IN_USE_S:
            peer = None  # Whoever writes another's address on a check would have that one's media.
        replies = peer.check(message, address, now) if peer is not None else ()
        if peer is None or not replies:
            self._failures.note(host, now)
            return
        self._learn(peer, address)
        for each in replies:
            self.send(each, address)

    def _learn(self, peer: Peer, address: Address) -> None:
        """Remember that an address is a peer's. It may have been another's before: ports are used again."""
        before = self._by_address.get(address)
        if before is peer or peer.state is State.CLOSED:
            return
        if before is not None:
            self._addresses[before].remove(address)
        owned = self._addresses[peer]
        if len(owned) >= PEER_ADDRESSES_MAX:
            oldest = next(each for each in owned if each != peer.address)
            owned.remove(oldest)
            del self._by_address[oldest]
        owned.append(address)
        self._by_address[address] = peer

    def _dtls(self, peer: Peer, datagram: bytes, address: Address, now: float) -> None:
        flying = len(self._handshaking)
        if peer.state is State.REACHED and flying >= self._options.handshakes_max:
            metrics.REFUSED_HANDSHAKES.inc()
            return
        for each in peer.receive_dtls(datagram, now, cookie=flying >= self._options.cookies_from):
            self.send(each, address)

    async def _tick(self) -> None:
        """Send again what was not answered, and end who is gone: handshakes often, everybody each second."""
        count = 0
        while True:
            await trio.sleep(TICK_S)
            count += 1
            now = trio.current_time()
            for peer in list(self._addresses if count % 10 == 0 else self._handshaking):
                for datagram in peer.tick(now):
                    self.send(datagram, peer.address)
