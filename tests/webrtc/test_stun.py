from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whispr.webrtc import stun
from whispr.webrtc.ice import Credentials, LiteAgent
from whispr.webrtc.stun import Attribute, Kind, StunError

REQUEST = bytes.fromhex(
    "000100582112a442b7e7a701bc34d686fa87dfae"
    "802200105354554e207465737420636c69656e74"
    "002400046e0001ff80290008932ff9b151263b36"
    "000600096576746a3a68367659202020"
    "000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2"
    "80280004e57a3bcf"
)
"""RFC 5769, section 2.1."""
PASSWORD = b"VOkJxbRl1RmTxUk/WvJxBt"
REPLY_V4 = bytes.fromhex(
    "0101003c2112a442b7e7a701bc34d686fa87dfae"
    "8022000b7465737420766563746f7220"
    "002000080001a147e112a643"
    "000800142b91f599fd9e90c38c7489f92af9ba53f06be7d7"
    "80280004c07d4c96"
)
"""RFC 5769, section 2.2."""
LOCAL, REMOTE = Credentials("local", "l" * 22), Credentials("remote", "r" * 22)
HERE = ("192.0.2.1", 32853)


def check(*more: tuple[int, bytes], password: str = LOCAL.password, name: bytes = b"local:remote") -> bytes:
    attributes = [(int(Attribute.USERNAME), name), *more]
    return stun.build(Kind.REQUEST, b"t" * 12, attributes, password.encode())


def agent() -> LiteAgent:
    return LiteAgent(LOCAL, REMOTE, 0.0)


def test_the_rfcs_request_is_read_and_proved() -> None:
    """RFC 5769's sample request: its attributes, its fingerprint, and its integrity by the password alone."""
    message = stun.parse(REQUEST)
    assert message.kind == Kind.REQUEST
    assert message.get(Attribute.USERNAME) == b"evtj:h6vY"
    assert message.get(Attribute.PRIORITY) == bytes.fromhex("6e0001ff")
    assert message.proves(PASSWORD)
    assert not message.proves(b"another")
    assert message.unknown() == []


def test_the_rfcs_reply_is_read_and_its_address_made() -> None:
    """RFC 5769's sample replies: XOR-MAPPED-ADDRESS of IPv4 and IPv6."""
    message = stun.parse(REPLY_V4)
    assert message.proves(PASSWORD)
    assert message.get(Attribute.XOR_MAPPED_ADDRESS) == stun.xor_mapped(
        "192.0.2.1", 32853, message.transaction
    )
    v6 = stun.xor_mapped("2001:db8:1234:5678:11:2233:4455:6677", 32853, message.transaction)
    assert v6 == bytes.fromhex("0002a1470113a9faa5d3f179bc25f4b5bed2b9d9")
    assert stun.xor_mapped("::ffff:192.0.2.1", 32853, message.transaction) == message.get(
        Attribute.XOR_MAPPED_ADDRESS
    )


@given(st.data())
def test_a_message_with_a_byte_changed_is_refused_or_proves_nothing(data: st.DataObject) -> None:
    """No byte of a message can be another without that being noticed."""
    at = data.draw(st.integers(0, len(REQUEST) - 9))  # what follows is the fingerprint alone
    changed = bytearray(REQUEST)
    changed[at] ^= data.draw(st.integers(1, 255))
    try:
        message = stun.parse(bytes(changed))
    except StunError:
        return
    assert not message.proves(PASSWORD)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """No bytes do anything but StunError."""
    for each in (data, REQUEST[:8] + data, REQUEST[:2] + len(data).to_bytes(2, "big") + REQUEST[4:20] + data):
        try:
            stun.parse(each)
        except StunError:
            continue


@given(
    st.lists(st.tuples(st.integers(1, 0xFFFF).filter(lambda n: n not in (8, 0x8028)), st.binary(max_size=50)))
)
def test_what_is_built_is_read_again(attributes: list[tuple[int, bytes]]) -> None:
    """Attributes of any kind and size come back in order, and the integrity holds."""
    message = stun.parse(stun.build(Kind.REQUEST, b"t" * 12, attributes, b"password"))
    assert message.attributes[:-1] == attributes
    assert message.proves(b"password")


def test_a_check_teaches_where_the_peer_is() -> None:
    """A proved check is answered with the address it came from; the nominated one is the peer's."""
    ours = agent()
    checked = ours.check(stun.parse(check()), HERE, 1.0)
    assert checked is not None
    assert checked.valid
    answer = stun.parse(checked.answer)
    assert answer.kind == Kind.SUCCESS
    assert answer.proves(LOCAL.password.encode())
    assert answer.get(Attribute.XOR_MAPPED_ADDRESS) == stun.xor_mapped(*HERE, b"t" * 12)
    elsewhere = ("192.0.2.9", 1)
    assert ours.address == HERE
    ours.check(stun.parse(check()), elsewhere, 1.0)
    assert ours.address == HERE, "not nominated"
    ours.check(stun.parse(check((Attribute.USE_CANDIDATE, b""))), elsewhere, 1.0)
    assert ours.address == elsewhere


@pytest.mark.parametrize(
    "data",
    [
        check(password="x" * 22),
        check(name=b"someone:remote"),
        stun.build(Kind.REQUEST, b"t" * 12, [(Attribute.USERNAME, b"local:remote")]),
    ],
    ids=["wrong password", "another's", "no integrity"],
)
def test_who_proves_nothing_is_not_answered(data: bytes) -> None:
    """Neither an answer nor an address comes of a check that does not know the password."""
    ours = agent()
    assert ours.check(stun.parse(data), HERE, 1.0) is None
    assert ours.address is None


def test_a_peer_that_would_be_controlled_is_told_so() -> None:
    """A lite agent is always controlled: two of that kind are a role conflict (RFC 8445, section 7.3.1.1)."""
    checked = agent().check(stun.parse(check((Attribute.ICE_CONTROLLED, bytes(8)))), HERE, 1.0)
    assert checked is not None
    assert not checked.valid
    answer = stun.parse(checked.answer)
    assert (answer.kind, answer.get(Attribute.ERROR_CODE)) == (Kind.ERROR, stun.error_code(487))


def test_an_unknown_attribute_that_must_be_understood_is_named() -> None:
    """420 with the attributes (RFC 8489, section 6.3.1); those from 0x8000 on may be unknown."""
    ours = agent()
    checked = ours.check(stun.parse(check((0x7001, b"x"), (0x9001, b"y"))), HERE, 1.0)
    assert checked is not None
    answer = stun.parse(checked.answer)
    assert answer.get(Attribute.ERROR_CODE) == stun.error_code(420)
    assert answer.get(Attribute.UNKNOWN_ATTRIBUTES) == b"\x70\x01"
    assert ours.address is None


def test_consent_ends_without_checks() -> None:
    """30 s after the last proved check nothing may be sent any more (RFC 7675)."""
    ours = agent()
    assert ours.consents(29.9)
    ours.check(stun.parse(check()), HERE, 20.0)
    assert ours.consents(49.9)
    ours.check(stun.parse(check(password="x" * 22)), HERE, 40.0)
    assert not ours.consents(50.0)


def test_a_restart_keeps_the_path_until_the_new_one_is_nominated() -> None:
    """Old and new credentials are both answered, and the address changes with the new ones alone."""
    ours = agent()
    ours.check(stun.parse(check()), HERE, 1.0)
    fresh = Credentials("fresh", "f" * 22)
    ours.restart(fresh, Credentials("theirs", "t" * 22), 2.0)
    elsewhere = ("192.0.2.9", 1)
    nominated = (int(Attribute.USE_CANDIDATE), b"")
    assert ours.check(stun.parse(check(nominated)), elsewhere, 3.0) is not None
    assert ours.address == HERE
    new = stun.parse(check(nominated, password=fresh.password, name=b"fresh:theirs"))
    assert ours.check(new, elsewhere, 4.0) is not None
    assert ours.address == elsewhere
    assert ours.check(stun.parse(check()), HERE, 5.0) is None, "the old ones are over"


def test_media_moves_to_an_address_alone_that_has_answered() -> None:
    """Anybody may write any source on a datagram: who is connected moves once the new address answers our check."""
    ours = agent()
    ours.check(stun.parse(check()), HERE, 1.0)
    ours.settled = True
    victim, elsewhere = ("198.51.100.1", 9), ("192.0.2.9", 1)
    nominated = stun.parse(check((int(Attribute.USE_CANDIDATE), b"")))
    first, again = ours.check(nominated, victim, 2.0), ours.check(nominated, victim, 2.5)
    assert first is not None
    assert again is not None
    assert first.challenge is not None
    assert again.challenge == first.challenge, "asked again, it is the same question"
    assert ours.address == HERE
    asked = stun.parse(first.challenge)
    assert asked.proves(REMOTE.password.encode())
    assert asked.get(Attribute.USERNAME) == b"remote:local"
    forged = stun.parse(stun.build(Kind.SUCCESS, asked.transaction, [], b"x" * 22))
    proved = stun.parse(stun.build(Kind.SUCCESS, asked.transaction, [], REMOTE.password.encode()))
    assert not ours.confirm(forged, victim)
    assert not ours.confirm(proved, elsewhere), "from somewhere else"
    moved = ours.check(nominated, elsewhere, 3.0)
    assert moved is not None
    assert moved.challenge is not None
    assert not ours.confirm(proved, victim), "not asked any more"
    last = stun.parse(moved.challenge)
    assert ours.confirm(
        stun.parse(stun.build(Kind.SUCCESS, last.transaction, [], REMOTE.password.encode())), elsewhere
    )
    assert ours.address == elsewhere
    assert not ours.confirm(proved, elsewhere), "answered already"
    same = ours.check(nominated, elsewhere, 4.0)
    assert same is not None
    assert same.challenge is None
