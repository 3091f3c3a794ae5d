from __future__ import annotations

import select
from contextlib import AsyncExitStack
from random import Random

import pytest
import trio
import trio.testing

from tests.webrtc.client import PAYLOAD_TYPE, Client, connection
from whispr.audio.packets import Packet
from whispr.errors import Code, WhisprError
from whispr.webrtc import sdp, stun
from whispr.webrtc.endpoint import IN_USE_S, Endpoint, Options
from whispr.webrtc.fanout import Fanout
from whispr.webrtc.ice import Credentials
from whispr.webrtc.metrics import REFUSED_CHECKS, REFUSED_HANDSHAKES
from whispr.webrtc.peer import Peer, State
from whispr.webrtc.rtcp import Nack, SenderReport
from whispr.webrtc.stun import Kind

WAIT_S = 10
"""How long a test waits for the network of this machine before it fails."""


async def started(nursery: trio.Nursery, host: str = "127.0.0.1", options: Options | None = None) -> Endpoint:
    endpoint = Endpoint(options)
    await nursery.start(endpoint.run, host, 0)
    return endpoint


def admitted(endpoint: Endpoint, client: Client, ssrc: int | None = 77) -> Peer:
    offer = sdp.read_offer(client.offer())
    peer = endpoint.admit(offer)
    client.answered(endpoint.answer(peer, offer, cname="whispr", ssrc=ssrc))
    return peer


async def until(peer: Peer, state: State) -> None:
    """Wait until the endpoint has seen what the client did."""
    while peer.state is not state:
        await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_a_client_connects_hears_and_leaves(host: str) -> None:
    """Over IPv4 and IPv6: checks, handshake, protected packets in order, reports, packets again, and a farewell."""
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            endpoint = await started(nursery, host)
            fanout = Fanout(endpoint.socket_for, "whispr")
            client = Client()
            peer = admitted(endpoint, client, fanout.ssrc)
            async with connection(client, host) as connected:
                await connected.connect()
                await until(peer, State.CONNECTED)
                receiver = fanout.add(peer, PAYLOAD_TYPE, "a")
                for number in range(6):
                    fanout.push("a", Packet(number * 960, 960, b"%d" % number))
                heard = await connected.hear(5)
                assert [each.payload for each in heard] == [b"1", b"2", b"3", b"4", b"5"]
                assert {(each.ssrc, each.payload_type) for each in heard} == {(fanout.ssrc, PAYLOAD_TYPE)}
                assert heard[1].timestamp - heard[0].timestamp & 0xFFFFFFFF == 960
                fanout.resend(receiver, Nack(fanout.ssrc, [heard[2].sequence]))
                while not client.repeated:
                    await connected.receive()
                fanout.report(receiver.number, 1_700_000_000.0)
                while not client.control:
                    await connected.receive()
                report = client.control[0]
                assert isinstance(report, SenderReport)
                assert (report.ssrc, report.packets, report.octets) == (fanout.ssrc, 5, 5)
                await connected.send(*client.goodbye())
                await until(peer, State.CLOSED)
            assert peer.reason == "the peer closed"
            nursery.cancel_scope.cancel(reason="tested")


async def test_checks_of_nobody_are_dropped_and_a_flood_of_them_is_not_looked_at() -> None:
    """Who proves nothing gets no answer; past its budget a host is not even read, until it is known by a check."""
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            endpoint = await started(nursery)
            client, stranger = Client(), Client()
            admitted(endpoint, client)
            stranger.candidates, stranger.remote = client.candidates, Credentials.new()
            async with connection(client) as known, connection(stranger) as flood:
                await known.send(client.check())
                while not client.answers:
                    await known.receive()
                before = REFUSED_CHECKS._value.get()
                for _ in range(3):
                    for _ in range(100):
                        await flood.send(stranger.check(), b"\x00" * 20)
                    while readable(endpoint):
                        await trio.lowlevel.checkpoint()
                while REFUSED_CHECKS._value.get() == before:
                    await flood.send(stranger.check())
                    await trio.lowlevel.checkpoint()
                await known.send(client.check())
                while len(client.answers) < 2:
                    await known.receive()
                assert not stranger.answers
            nursery.cancel_scope.cancel(reason="tested")


def readable(endpoint: Endpoint) -> bool:
    """Whether datagrams wait to be read."""
    return bool(select.select(endpoint._sockets, [], [], 0)[0])


async def test_handshakes_in_flight_are_bounded() -> None:
    """Past a number a handshake begins with a cookie, past another it has to wait; who is through makes room."""
    options = Options(handshakes_max=2, cookies_from=1)
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
            endpoint = await started(nursery, options=options)
            clients = [Client() for _ in range(3)]
            peers = [admitted(endpoint, client) for client in clients]
            wires = [await stack.enter_async_context(connection(client)) for client in clients]
            for client, wire in zip(clients, wires, strict=True):
                await wire.send(client.check())
                while not client.answers:
                    await wire.receive()
            for client, wire, peer in zip(clients[:2], wires, peers, strict=False):
                await wire.send(*client.hello())
                await until(peer, State.HANDSHAKING)
            before = REFUSED_HANDSHAKES._value.get()
            late = clients[2].hello()
            await wires[2].send(*late)
            while REFUSED_HANDSHAKES._value.get() == before:
                await trio.lowlevel.checkpoint()
            assert peers[2].state is State.REACHED
            for client, wire, peer in zip(clients[:2], wires, peers, strict=False):
                while client.protection is None:
                    await wire.receive()
                await until(peer, State.CONNECTED)
            await wires[2].send(*late)
            while clients[2].protection is None:
                await wires[2].receive()
            nursery.cancel_scope.cancel(reason="tested")


async def test_any_datagram_is_taken_or_dropped() -> None:
    """Of a stranger and of a peer: nothing that arrives ends the endpoint, or the peer's call."""
    random = Random(7)
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            endpoint = await started(nursery)
            client = Client()
            peer = admitted(endpoint, client)
            async with connection(client) as wire:
                await wire.connect()
                await until(peer, State.CONNECTED)
                for _ in range(500):
                    datagram = random.randbytes(random.choice((0, 1, 2, 13, 20, 60, 300, 1500)))
                    if random.random() < 0.5:
                        datagram = (
                            random.choice((b"\x00\x01", b"\x16\xfe\xfd", b"\x80\x6f", b"\x80\xc8")) + datagram
                        )
                    await wire.send(datagram)
                    await trio.lowlevel.checkpoint()
                client.answers.clear()
                while not client.answers:
                    await wire.send(client.check())
                    with trio.move_on_after(0.2):
                        await wire.receive()
                assert peer.state is State.CONNECTED
            nursery.cancel_scope.cancel(reason="tested")


async def test_an_address_in_use_is_nobody_elses() -> None:
    """Who writes another's address on their checks gets no answer and nothing of theirs, until that one is gone."""
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            endpoint = await started(nursery)
            client, other = Client("sendonly"), Client()
            peer, theirs = admitted(endpoint, client), admitted(endpoint, other)
            came = trio.Event()
            peer.on_rtp = lambda *_: came.set()
            async with connection(client) as wire:
                await wire.connect()
                await until(peer, State.CONNECTED)
                await wire.send(other.check(), client.packet(1))
                await came.wait()
                assert (theirs.state, theirs.address) == (State.NEW, None)
                peer.heard_at -= IN_USE_S
                await wire.send(other.check())
                await until(theirs, State.REACHED)
            nursery.cancel_scope.cancel(reason="tested")


async def test_media_follows_a_listener_who_moves_and_nobody_else() -> None:
    """A check alone brings no media to where it says it is from; a client that answers ours hears on there."""
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            endpoint = await started(nursery)
            fanout = Fanout(endpoint.socket_for, "whispr")
            client = Client()
            peer = admitted(endpoint, client, fanout.ssrc)
            async with connection(client) as wire, connection(client) as moved:
                await wire.connect()
                await until(peer, State.CONNECTED)
                fanout.add(peer, PAYLOAD_TYPE, "a")
                before = peer.address
                await moved.send(client.check())
                replies = [stun.parse(await moved.socket.recv(2048)) for _ in range(2)]
                assert [each.kind for each in replies] == [Kind.SUCCESS, Kind.REQUEST]
                assert peer.address == before
                fanout.push("a", Packet(0, 960, b"0"))
                fanout.push("a", Packet(960, 960, b"1"))
                await wire.hear(1)
                await moved.send(client.check())
                for _ in range(2):  # the answer, and the check that is answered in turn
                    await moved.receive()
                while peer.address == before:
                    await trio.lowlevel.checkpoint()
                fanout.push("a", Packet(1920, 960, b"2"))
                await moved.hear(2)
            nursery.cancel_scope.cancel(reason="tested")


async def test_a_defect_costs_one_peer() -> None:
    """What is raised over a datagram closes the peer that it is of, and the others go on."""
    with trio.fail_after(WAIT_S):
        async with trio.open_nursery() as nursery:
            endpoint = await started(nursery)
            clients = Client("sendonly"), Client("sendonly")
            peers = [admitted(endpoint, each) for each in clients]
            came = trio.Event()

            def fails(*_: object) -> None:
                raise RuntimeError("a defect")

            peers[0].on_rtp, peers[1].on_rtp = fails, lambda *_: came.set()
            async with connection(clients[0]) as first, connection(clients[1]) as second:
                for each in first, second:
                    await each.connect()
                await first.send(clients[0].packet(1))
                await until(peers[0], State.CLOSED)
                await second.send(clients[1].packet(1))
                await came.wait()
            assert [each.state for each in peers] == [State.CLOSED, State.CONNECTED]
            nursery.cancel_scope.cancel(reason="tested")


async def test_there_is_room_for_so_many_peers() -> None:
    """Past it an offer is refused; a closed peer leaves nothing behind."""
    async with trio.open_nursery() as nursery:
        endpoint = await started(nursery, options=Options(peers_max=1))
        peer = admitted(endpoint, Client())
        with pytest.raises(WhisprError) as refused:
            admitted(endpoint, Client())
        assert refused.value.code is Code.RESOURCE_EXHAUSTED
        endpoint.close(peer, "tested")
        assert endpoint.peers == 0
        assert not endpoint._by_name
        admitted(endpoint, Client())
        nursery.cancel_scope.cancel(reason="tested")


async def test_behind_nat_the_public_addresses_are_told() -> None:
    """What an operator says is told instead of what this machine knows of itself, with the port there is."""
    async with trio.open_nursery() as nursery:
        endpoint = await started(nursery, options=Options(advertised=["203.0.113.7", "2001:db8::7"]))
        client = Client()
        admitted(endpoint, client)
        assert client.candidates == [("203.0.113.7", endpoint.port), ("2001:db8::7", endpoint.port)]
        nursery.cancel_scope.cancel(reason="tested")


async def test_everywhere_is_told_by_addresses_that_are_reached() -> None:
    """Bound to all interfaces, peers are not told 0.0.0.0; both families have one port."""
    async with trio.open_nursery() as nursery:
        endpoint = await started(nursery, "")
        client = Client()
        admitted(endpoint, client)
        assert client.candidates
        assert {port for _, port in client.candidates} == {endpoint.port}
        assert not {"0.0.0.0", "::"} & {host for host, _ in client.candidates}  # noqa: S104  # none of these
        nursery.cancel_scope.cancel(reason="tested")


async def test_a_peer_that_falls_silent_is_closed(autojump_clock: trio.testing.MockClock) -> None:
    """Consent ends 30 s after its last check (RFC 7675), and who never comes is forgotten as well."""
    async with trio.open_nursery() as nursery:
        endpoint = await started(nursery)
        peer = admitted(endpoint, Client())
        await trio.sleep(29)
        assert endpoint.peers == 1
        await trio.sleep(3)
        assert peer.state is State.CLOSED
        assert endpoint.peers == 0
        nursery.cancel_scope.cancel(reason="tested")
