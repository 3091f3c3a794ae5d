"""Answers to offers of audio (RFC 9429, section 5.3.1): what is not the chosen section is turned down."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from whispr.webrtc.ice import Credentials
from whispr.webrtc.sdp import MID, Offer, Section

OPUS_STEREO_BPS: Final = 128_000
"""What a publisher is asked for: without it Chromium sends mono of 32 kbps."""


@dataclass(frozen=True, slots=True)
class Local:
    """What we bring to an answer."""

    credentials: Credentials
    fingerprint: str
    """SHA-256 of our certificate."""
    candidates: Sequence[str]
    """Values of a=candidate."""
    session_id: int
    cname: str = ""
    ssrc: int | None = None
    """Of what we send; None when we receive."""


def candidate_lines(addresses: Sequence[tuple[str, int]]) -> list[str]:
    """Write host candidates of UDP, the first preferred (RFC 8839, section 5.1; priorities: RFC 8445, 5.1.2.1)."""
    return [
        f"{number} 1 udp {(126 << 24) | ((65536 - number) << 8) | 255} {host} {port} typ host"
        for number, (host, port) in enumerate(addresses, 1)
    ]


def answer(offer: Offer, local: Local) -> str:
    """Answer an offer: its audio the other way round, everything else turned down (RFC 9429, section 5.3.1)."""
    lines = ["v=0", f"o=- {local.session_id} 1 IN IP4 0.0.0.0", "s=-", "t=0 0"]
    if offer.bundled:
        lines.append(f"a=group:BUNDLE {offer.mid}")
    lines += ["a=ice-lite", "a=msid-semantic:WMS *"]
    for number, section in enumerate(offer.sections):
        lines += _accepted(offer, local) if number == offer.chosen else _declined(section)
    return "\r\n".join([*lines, ""])


def _declined(section: Section) -> list[str]:
    mid = section.get("mid")
    lines = [f"m={section.media} 0 {section.protocol} {' '.join(section.formats)}", "c=IN IP4 0.0.0.0"]
    if mid is not None and MID.fullmatch(mid):
        lines.append(f"a=mid:{mid}")
    return [*lines, "a=inactive"]


def _accepted(offer: Offer, local: Local) -> list[str]:
    section, number = offer.sections[offer.chosen], offer.payload_type
    sending = local.ssrc is not None
    port = local.candidates[0].split()[5] if local.candidates else "9"
    lines = [f"m=audio {port} {section.protocol} {number}", "c=IN IP4 0.0.0.0"]
    if offer.mid:
        lines.append(f"a=mid:{offer.mid}")
    lines += [
        f"a={'sendonly' if sending else 'recvonly'}",
        "a=rtcp-mux",
        f"a=rtpmap:{number} opus/48000/2",
        f"a=fmtp:{number} {_opus_answer(sending)}",
    ]
    if offer.nack:
        lines.append(f"a=rtcp-fb:{number} nack")
    if section.get("rtcp-rsize") is not None:
        lines.append("a=rtcp-rsize")
    lines += [
        f"a=ice-ufrag:{local.credentials.ufrag}",
        f"a=ice-pwd:{local.credentials.password}",
        f"a=fingerprint:sha-256 {local.fingerprint}",
        "a=setup:passive",
    ]
    if sending:
        lines += [
            f"a=msid:{local.cname} audio",
            f"a=ssrc:{local.ssrc} cname:{local.cname}",
            f"a=ssrc:{local.ssrc} msid:{local.cname} audio",
        ]
    return [*lines, *(f"a=candidate:{each}" for each in local.candidates), "a=end-of-candidates"]


def _opus_answer(sending: bool) -> str:
    """What we want to receive, and say of what we send (RFC 7587, section 7.1): stereo, packets of 20 ms, FEC."""
    said = "minptime=10;useinbandfec=1;stereo=1;sprop-stereo=1"
    return said if sending else f"{said};maxaveragebitrate={OPUS_STEREO_BPS};maxplaybackrate=48000"


def fragment(mid: str, local: Local) -> str:
    """Write the fragment that answers an ICE restart (RFC 9725, section 4.3.3; RFC 8840, section 9)."""
    lines = [
        "a=ice-lite",
        f"a=ice-ufrag:{local.credentials.ufrag}",
        f"a=ice-pwd:{local.credentials.password}",
        "m=audio 9 UDP/TLS/RTP/SAVPF 0",
        *([f"a=mid:{mid}"] if mid else []),
        *(f"a=candidate:{each}" for each in local.candidates),
        "a=end-of-candidates",
    ]
    return "\r\n".join([*lines, ""])
