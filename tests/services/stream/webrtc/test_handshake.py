from __future__ import annotations

import time
from collections.abc import Sequence

import pytest

from tests.webrtc.call import Call
from whispr.webrtc.peer import State


@pytest.mark.slow
def test_what_is_lost_of_a_handshake_is_sent_again() -> None:
    """A flight that never arrived goes out again when its time has come: by OpenSSL's own clock, after a second."""
    call = Call()
    call.reach()
    call.shake(lose=range(10))
    assert State.CONNECTED not in call.states
    assert not call.peer.tick(0.1), "not yet"
    deadline = time.monotonic() + 20
    again: Sequence[bytes] = ()
    while not again:
        assert time.monotonic() < deadline
        again = call.peer.tick(0.1)
    out = [answer for each in again for answer in call.client.receive(each)]
    for each in out:
        for last in call.peer.receive_dtls(each, 0.2):
            call.client.receive(last)
    assert call.peer.state is State.CONNECTED
