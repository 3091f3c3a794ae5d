from __future__ import annotations

import pytest
import trio

from tests.webrtc.client import PAYLOAD_TYPE, Client, connection
from whispr.audio.packets import Packet
from whispr.webrtc import sdp
from whispr.webrtc.endpoint import Endpoint, Options
from whispr.webrtc.fanout import Fanout
from whispr.webrtc.peer import Peer, State
from whispr.webrtc.rtcp import Nack, SenderReport

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
