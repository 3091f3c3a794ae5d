from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.webrtc.client import Client
from whispr.webrtc import answers, sdp
from whispr.webrtc.answers import Local
from whispr.webrtc.ice import Credentials
from whispr.webrtc.sdp import Direction, SdpError

OFFERS = {path.stem: path.read_bytes().decode() for path in (Path(__file__).parent / "offers").glob("*.sdp")}
LOCAL = Local(
    Credentials("ours", "p" * 24), "AA:BB", answers.candidate_lines([("192.0.2.1", 5000)]), 7, "cname", 99
)
CHROMIUM = OFFERS["chromium"]


@pytest.mark.parametrize(
    ("who", "payload_type", "direction", "mid", "nack"),
    [
        ("chromium", 111, Direction.RECVONLY, "0", False),
        ("firefox", 109, Direction.RECVONLY, "0", False),
        ("firefox-source", 109, Direction.SENDONLY, "0", False),
        ("safari", 111, Direction.SENDONLY, "0", False),
        ("obs", 111, Direction.SENDONLY, "0", False),
        ("gstreamer", 97, Direction.SENDONLY, "audio0", True),
        ("gstreamer-listener", 97, Direction.RECVONLY, "audio0", False),
        ("aiortc", 96, Direction.RECVONLY, "0", False),
    ],
)
def test_every_dialect_is_understood(
    who: str, payload_type: int, direction: Direction, mid: str, nack: bool
) -> None:
    """Offers as each client writes them: attributes in either part, any case, video beside."""
    offer = sdp.read_offer(OFFERS[who])
    assert (offer.payload_type, offer.direction, offer.mid, offer.nack) == (
        payload_type,
        direction,
        mid,
        nack,
    )
    assert len(offer.credentials.password) >= 22
    assert all(len(each) == 95 and each == each.upper() for each in offer.fingerprints["sha-256"])
    assert offer.bundled


@pytest.mark.parametrize("who", sorted(OFFERS))
def test_an_answer_has_a_section_for_each_of_the_offer(who: str) -> None:
    """The audio is accepted and everything else turned down, in the offer's order (RFC 3264, section 6)."""
    offer = sdp.read_offer(OFFERS[who])
    session, *media = sdp.parse(answers.answer(offer, LOCAL))
    assert session.get("ice-lite") == ""
    assert session.all("group") == [f"BUNDLE {offer.mid}"]
    assert [each.media for each in media] == [each.media for each in offer.sections]
    assert [each.get("mid") for each in media] == [each.get("mid") for each in offer.sections]
    for number, each in enumerate(media):
        if number != offer.chosen:
            assert (each.port, each.get("inactive")) == (0, "")
            continue
        assert each.formats == (str(offer.payload_type),)
        assert each.get("rtpmap") == f"{offer.payload_type} opus/48000/2"
        assert each.get("setup") == "passive"
        assert each.get("sendonly") == ""
        assert each.get("rtcp-mux") == ""
        assert (each.get("rtcp-fb") is not None) is offer.nack
        assert (each.get("rtcp-rsize") is not None) is ("rtcp-rsize" in OFFERS[who].split("m=video")[0])
        assert each.all("candidate") == ["1 1 udp 2130706431 192.0.2.1 5000 typ host"]
        assert each.all("ssrc")[0] == "99 cname:cname"


def video_before(offer: str) -> str:
    """An offer of video first, and audio that goes with it, as max-bundle has it (RFC 9429, section 5.2.1)."""
    session, _, audio = offer.partition("m=audio 9")
    lines = audio.partition("m=")[0].split("\r\n")
    transport = [
        line for line in lines if line.startswith(("a=ice-", "a=fingerprint", "a=setup", "a=rtcp-mux"))
    ]
    rest = [line for line in lines if line not in transport]
    video = [
        "m=video 9 UDP/TLS/RTP/SAVPF 96",
        "c=IN IP4 0.0.0.0",
        "a=mid:v",
        "a=rtpmap:96 VP8/90000",
        *transport,
    ]
    return session.replace("BUNDLE 0", "BUNDLE v 0") + "\r\n".join(
        [*video, "m=audio 0" + rest[0], "a=bundle-only", *rest[1:]]
    )


def test_a_bundle_only_section_has_the_transport_of_its_group() -> None:
    """It says nothing of ICE and DTLS itself; the video beside it, whose they are, is turned down all the same."""
    plain, bundled = sdp.read_offer(CHROMIUM), sdp.read_offer(video_before(CHROMIUM))
    assert (bundled.credentials, bundled.fingerprints) == (plain.credentials, plain.fingerprints)
    assert (bundled.chosen, bundled.bundled, bundled.mid) == (1, True, "0")
    session, video, audio = sdp.parse(answers.answer(bundled, LOCAL))
    assert session.all("group") == ["BUNDLE 0"]
    assert (video.port, audio.port) == (0, 5000)
    with pytest.raises(SdpError, match="rtcp-mux"):
        sdp.read_offer(
            video_before(CHROMIUM).replace("a=bundle-only\r\n", "").replace("m=audio 0", "m=audio 9")
        )


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("a=rtcp-mux\r\n", "a=rtcp-mux-only\r\n"),
        ("a=rtcp-mux\r\n", "a=rtcp-mux\r\na=rtcp-mux-only\r\n"),
        ("a=setup:actpass", "a=setup:active"),
        ("s=-", "s=-\r\na=extmap-allow-mixed"),
        ("a=fingerprint", "a=fingerprint:md5 00:01\r\na=fingerprint:sha-1 zz\r\na=fingerprint"),
        ("a=fingerprint", f"a=fingerprint:SHA-512 {':'.join(['ab'] * 64)}\r\na=fingerprint"),
        ("\r\n", "\n"),
        ("useinbandfec=1", "useinbandfec=0;usedtx=1;cbr=1;ptime=40; maxptime=60;stereo=0;x-google=1"),
        ("a=rtpmap:111 opus", "a=rtpmap:111 OPUS"),
        ("a=rtpmap:111 opus/48000/2", "a=rtpmap:63 red/48000/2\r\na=rtpmap:111 opus/48000/2"),
    ],
)
def test_what_clients_write_otherwise_is_understood(before: str, after: str) -> None:
    """What is equal by the RFCs is read as equal."""
    assert before in CHROMIUM
    plain, other = sdp.read_offer(CHROMIUM), sdp.read_offer(CHROMIUM.replace(before, after))
    assert (other.mid, other.payload_type, other.credentials) == (
        plain.mid,
        plain.payload_type,
        plain.credentials,
    )
    assert other.fingerprints["sha-256"] == plain.fingerprints["sha-256"]
    assert "opus/48000/2" in answers.answer(other, LOCAL)


def test_a_section_without_a_name_is_answered_without_one() -> None:
    """Clients of before BUNDLE give none (RFC 9429, section 5.3.1): neither answer nor fragment invents one."""
    unnamed = re.sub(r"a=(mid|group):.*\r\n", "", CHROMIUM)
    offer = sdp.read_offer(unnamed)
    assert not offer.mid
    assert not offer.bundled
    for text in (answers.answer(offer, LOCAL), answers.fragment(offer.mid, LOCAL)):
        assert "a=mid" not in text
        assert "BUNDLE" not in text


def test_who_publishes_is_asked_for_stereo() -> None:
    """Without that, Chromium sends mono at 32 kbps."""
    answer = answers.answer(sdp.read_offer(OFFERS["safari"]), Local(LOCAL.credentials, "AA", [], 1))
    assert "a=recvonly" in answer
    assert "stereo=1;sprop-stereo=1;maxaveragebitrate=128000" in answer
    assert "a=ssrc" not in answer


@pytest.mark.parametrize(
    ("before", "after", "why"),
    [
        ("v=0", "v=1", "v=0"),
        ("opus/48000/2", "vorbis/48000", "no audio"),
        ("a=rtcp-mux\r\n", "", "rtcp-mux"),
        ("a=setup:actpass", "a=setup:passive", "setup"),
        ("a=ice-ufrag:oMD8", "a=ice-ufrag:!", "ice-ufrag"),
        ("a=ice-pwd:", "a=ice-pwd:#", "ice-pwd"),
        ("a=fingerprint:sha-256", "a=fingerprint:md5", "fingerprint"),
        ("a=fingerprint:sha-256 26", "a=fingerprint:sha-256 2G", "fingerprint"),
        ("s=-", "a=ice-lite\r\ns=-", "ICE-lite"),
        ("m=audio 9", "m=audio 0", "no audio"),
        ("UDP/TLS/RTP/SAVPF", "RTP/AVP", "no audio"),
        ("m=audio 9", "m=audio nine", "media description"),
        ("s=-", "sessions", "<type>=<value>"),
        ("a=mid:0", "a=mid:0 0", "a=mid"),
        ("t=0 0", "t=0 0\r\n" + "a=x\r\n" * 600, "too many"),
        ("t=0 0", "t=0 0\r\na=" + "x" * 70_000, "longer"),
    ],
)
def test_what_cannot_be_answered_is_refused_with_the_reason(before: str, after: str, why: str) -> None:
    """Each defect is named."""
    assert before in CHROMIUM
    with pytest.raises(SdpError, match=why):
        sdp.read_offer(CHROMIUM.replace(before, after))


@given(st.data())
def test_a_mutilated_offer_is_read_or_refused(data: st.DataObject) -> None:
    """Lines lost, doubled, cut or exchanged for anything: an offer or SdpError, and an answer to every offer."""
    lines = data.draw(st.sampled_from(sorted(OFFERS.values()))).split("\r\n")
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(lines) - 1))
        match data.draw(st.integers(0, 3)):
            case 0:
                lines[at : at + 1] = []
            case 1:
                lines[at] = lines[at][: data.draw(st.integers(0, 40))]
            case 2:
                lines[at] = lines[at][:2] + data.draw(st.text(max_size=30))
            case _:
                lines.insert(at, data.draw(st.sampled_from(lines)))
        lines = lines or [""]
    try:
        offer = sdp.read_offer("\r\n".join(lines))
    except SdpError:
        return
    sdp.parse(answers.answer(offer, LOCAL))


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    """No text does anything but SdpError."""
    for read in (sdp.parse, sdp.read_offer, sdp.parse_fragment):
        for each in (text, "v=0\n" + text):
            try:
                read(each)
            except SdpError:
                continue


def test_a_fragment_is_written_and_read() -> None:
    """An ICE restart's answer has credentials, candidates and the section they are of."""
    session, media = sdp.parse_fragment(answers.fragment("0", LOCAL))
    assert sdp.credentials_of(session, media) == LOCAL.credentials
    assert media.get("mid") == "0"
    assert media.all("candidate") == list(LOCAL.candidates)


def test_candidates_are_preferred_in_their_order() -> None:
    """The first has the highest priority, and an IPv6 address is written as it is."""
    first, second = answers.candidate_lines([("192.0.2.1", 1), ("2001:db8::1", 1)])
    assert int(first.split()[3]) > int(second.split()[3])
    assert second.split()[4] == "2001:db8::1"


def test_the_tests_own_client_offers_properly() -> None:
    """What the other tests offer is an offer."""
    assert sdp.read_offer(Client().offer()).nack
