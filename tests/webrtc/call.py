"""A client and the server's side of it, without a network between them."""

from __future__ import annotations

from collections.abc import Sequence

from tests.webrtc.client import Client
from whispr.webrtc import answers, sdp, stun
from whispr.webrtc.answers import Local
from whispr.webrtc.dtls import Identity
from whispr.webrtc.peer import Peer, State
from whispr.webrtc.rtcp import Item

HERE = ("192.0.2.1", 5000)
IDENTITY = Identity()


class Call:
    """A client and the server's side of it, with a wire between them that loses what a test says."""

    def __init__(self, client: Client | None = None) -> None:
        self.client = client or Client()
        self.now = 0.0
        offer = sdp.read_offer(self.client.offer())
        self.peer = Peer(IDENTITY, offer.credentials, offer.fingerprints, self.now)
        local = Local(self.peer.ice.local, IDENTITY.fingerprint, [], 1, "whispr", 7)
        self.client.answered(answers.answer(offer, local))
        self.states: list[State] = []
        self.peer.on_state = lambda peer: self.states.append(peer.state)
        self.rtp: list[bytes] = []
        self.rtcp: list[Item] = []
        self.peer.on_rtp = lambda data, _: self.rtp.append(data)
        self.peer.on_rtcp = lambda items, _: self.rtcp.extend(items)

    def reach(self) -> None:
        (answer,) = self.peer.check(stun.parse(self.client.check()), HERE, self.now)
        self.client.receive(answer)

    def shake(self, *, cookie: bool = False, lose: Sequence[int] = ()) -> int:
        """Exchange flights until nobody has anything to say; returns how many datagrams the client sent."""
        out, sent = self.client.hello(), 0
        while out:
            back: list[bytes] = []
            for each in out:
                sent += 1
                back += self.peer.receive_dtls(each, self.now, cookie=cookie)
            arrived = [each for number, each in enumerate(back) if number not in lose]
            out = [answer for each in arrived for answer in self.client.receive(each)]
        return sent

    def connect(self) -> None:
        self.reach()
        self.shake()
        assert self.peer.state is State.CONNECTED
