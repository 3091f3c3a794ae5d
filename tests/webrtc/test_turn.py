from __future__ import annotations

from whispr.webrtc.turn import CREDENTIALS_S, ice_server_links


def test_turn_servers_are_told_with_credentials_that_end() -> None:
    """The time they end is the name, and its HMAC under the shared secret the password, as coturn computes it."""
    stun, turn = ice_server_links(
        ["stun:a.example", "turn:b.example?transport=tcp"], "north", 1_700_000_000 - CREDENTIALS_S
    )
    assert stun == '<stun:a.example>; rel="ice-server"'
    assert turn == (
        '<turn:b.example?transport=tcp>; rel="ice-server"; username="1700000000";'
        ' credential="CWyHi3zCeWqXBir9thl4m+iZPRY="; credential-type="password"'
    )


def test_without_a_secret_there_are_no_credentials() -> None:
    """A TURN server that wants none is told as it is."""
    assert ice_server_links(["turns:b.example"], "", 0) == ['<turns:b.example>; rel="ice-server"']
