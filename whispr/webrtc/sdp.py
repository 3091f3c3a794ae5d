"""Session descriptions (RFC 8866) as far as offers of audio by WebRTC need them (RFC 9429): text in, values out.

The first section of audio that can be answered is chosen; a client that offers video too, such as OBS, is heard.
Lines that nothing is known of are passed over (RFC 8866, section 5).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from whispr.webrtc.ice import Credentials

OFFER_BYTES_MAX: Final = 64 * 1024
SECTIONS_MAX: Final = 16
ATTRIBUTES_MAX: Final = 512
"""Of one section. Browsers send about 50 for audio and 200 for video."""

_MEDIA = re.compile(r"(\w+) (\d{1,5})(?:/\d+)? ([\w/]+)((?: [\w.-]+)+)")
_ICE_CHARS = re.compile(r"[A-Za-z0-9+/]{4,256}")
_ICE_PASSWORD = re.compile(r"[A-Za-z0-9+/]{22,256}")
MID: Final = re.compile(r"[!#-'*+.0-9A-Z^-~-]{1,64}")
_HEX = re.compile(r"[0-9A-F]{2}(:[0-9A-F]{2}){19,63}")
_HASHES = frozenset({"sha-256", "sha-384", "sha-512"})
_OF_TRANSPORT = frozenset({"ice-ufrag", "ice-pwd", "fingerprint", "setup", "rtcp-mux", "rtcp-mux-only"})
_PROTOCOLS = ("UDP/TLS/RTP/SAVPF", "UDP/TLS/RTP/SAVP", "RTP/SAVPF", "RTP/SAVP", "TCP/DTLS/RTP/SAVPF")
"""JSEP takes all of these for the same (RFC 9429, section 5.1.2)."""


class SdpError(ValueError):
    """A description that is malformed, or not one that can be answered; the message says why."""


class Direction(StrEnum):
    """Of a section, seen by who wrote it (RFC 8866, section 6.7)."""

    SENDRECV = "sendrecv"
    SENDONLY = "sendonly"
    RECVONLY = "recvonly"
    INACTIVE = "inactive"

    @property
    def sends(self) -> bool:
        """Whether who wrote it wants to send."""
        return self in (Direction.SENDRECV, Direction.SENDONLY)

    @property
    def receives(self) -> bool:
        """Whether who wrote it wants to receive."""
        return self in (Direction.SENDRECV, Direction.RECVONLY)


@dataclass(slots=True)
class Section:
    """The session's part, or that of one medium: its attributes by name, in order."""

    media: str = ""
    port: int = 0
    protocol: str = ""
    formats: Sequence[str] = ()
    attributes: list[tuple[str, str]] = field(default_factory=list)

    def all(self, name: str) -> list[str]:
        """Values of an attribute."""
        return [value for given, value in self.attributes if given == name]

    def get(self, name: str) -> str | None:
        """The first value of an attribute, None without one."""
        return next((value for given, value in self.attributes if given == name), None)


@dataclass(frozen=True, slots=True)
class Offer:
    """What a client offers, read and checked: one section of Opus over DTLS-SRTP, and others that are turned down."""

    sections: Sequence[Section]
    chosen: int
    """The section of `sections` that is answered."""
    mid: str
    direction: Direction
    credentials: Credentials
    fingerprints: Mapping[str, Sequence[str]]
    """Hash function in lower case → fingerprints in upper case (RFC 8122); of functions that are believed."""
    payload_type: int
    """Of Opus."""
    nack: bool
    """Whether lost packets are asked for again (RFC 4585)."""
    bundled: bool


def parse(text: str) -> list[Section]:
    """Split a description into its session's part and its media's. Raises SdpError."""
    if len(text) > OFFER_BYTES_MAX:
        raise SdpError(f"longer than {OFFER_BYTES_MAX} characters")
    lines = [line.rstrip("\r") for line in text.split("\n")]
    if lines[0] != "v=0":
        raise SdpError("does not begin with v=0")
    return _sections(lines)


def parse_fragment(text: str) -> list[Section]:
    """Split the attributes of ICE that a PATCH brings (RFC 8840, section 9). Raises SdpError."""
    if len(text) > OFFER_BYTES_MAX:
        raise SdpError(f"longer than {OFFER_BYTES_MAX} characters")
    return _sections([line.rstrip("\r") for line in text.split("\n")])


def _sections(lines: Iterable[str]) -> list[Section]:
    sections = [Section()]
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        if len(line) < 2 or line[1] != "=":
            raise SdpError(f"line {number} is not of the form <type>=<value>")
        if line[0] == "m":
            sections.append(_media(line[2:], number))
        elif line[0] == "a":
            name, _, value = line[2:].partition(":")
            sections[-1].attributes.append((name, value.strip()))
        if len(sections) > SECTIONS_MAX + 1 or len(sections[-1].attributes) > ATTRIBUTES_MAX:
            raise SdpError("too many sections or attributes")
    return sections


def _media(line: str, number: int) -> Section:
    found = _MEDIA.fullmatch(line.rstrip())
    if found is None:
        raise SdpError(f"line {number} is not a media description")
    return Section(found[1], int(found[2]), found[3], tuple(found[4].split()))


def read_offer(text: str) -> Offer:
    """Read an offer and find the audio in it. Raises SdpError."""
    session, *media = parse(text)
    chosen = next((n for n, each in enumerate(media) if _fits(each)), None)
    if chosen is None:
        raise SdpError("offers no audio over DTLS-SRTP with Opus")
    section = _with_transport(session, media, media[chosen])
    if session.get("ice-lite") is not None:
        raise SdpError("both sides would be ICE-lite, and nobody check")
    if section.get("rtcp-mux") is None and section.get("rtcp-mux-only") is None:
        raise SdpError("RTCP must go with RTP (a=rtcp-mux)")
    setup = section.get("setup") or session.get("setup")
    if setup not in ("actpass", "active"):
        raise SdpError("a=setup must be actpass or active: this side waits for the handshake")
    mid = section.get("mid") or ""
    if mid and not MID.fullmatch(mid):
        raise SdpError("a=mid is not a token")
    payload_type = _opus_of(section)
    assert payload_type is not None, "else it were not chosen"
    return Offer(
        media, chosen, mid, _direction(session, section), credentials_of(session, section),
        _fingerprints(session, section), payload_type,
        f"{payload_type} nack" in section.all("rtcp-fb") or "* nack" in section.all("rtcp-fb"),
        any(mid in group.split()[1:] for group in session.all("group") if group.startswith("BUNDLE")),
    )  # fmt: skip


def _with_transport(session: Section, media: Sequence[Section], section: Section) -> Section:
    """Add what a bundle-only section leaves to the first of its group to say (RFC 9429, section 5.2.1)."""
    mid = section.get("mid")
    if section.get("bundle-only") is None or not mid:
        return section
    groups = (group.split()[1:] for group in session.all("group") if group.startswith("BUNDLE"))
    tagged = next((group[0] for group in groups if mid in group), None)
    first = next((each for each in media if each.get("mid") == tagged), section)
    own = {name for name, _ in section.attributes}
    more = [each for each in first.attributes if each[0] in _OF_TRANSPORT - own]
    return replace(section, attributes=section.attributes + more)


def _fits(section: Section) -> bool:
    bundle_only = section.get("bundle-only") is not None
    return (
        section.media == "audio"
        and section.protocol in _PROTOCOLS
        and (section.port != 0 or bundle_only)
        and _opus_of(section) is not None
    )


def _opus_of(section: Section) -> int | None:
    """Return the payload type of Opus (RFC 7587, section 7: always two channels in the map), None without one."""
    for value in section.all("rtpmap"):
        number, _, codec = value.partition(" ")
        if codec.strip().lower() == "opus/48000/2" and number in section.formats and number.isdecimal():
            return int(number) if int(number) < 128 else None
    return None


def _direction(session: Section, section: Section) -> Direction:
    for where in (section, session):
        for direction in Direction:
            if where.get(direction.value) is not None:
                return direction
    return Direction.SENDRECV


def credentials_of(session: Section, section: Section) -> Credentials:
    """The client's credentials, which stand in either part (RFC 8839, section 5.4). Raises SdpError."""
    ufrag = section.get("ice-ufrag") or session.get("ice-ufrag") or ""
    password = section.get("ice-pwd") or session.get("ice-pwd") or ""
    if not _ICE_CHARS.fullmatch(ufrag) or not _ICE_PASSWORD.fullmatch(password):
        raise SdpError("a=ice-ufrag or a=ice-pwd is missing or malformed")
    return Credentials(ufrag, password)


def _fingerprints(session: Section, section: Section) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for value in section.all("fingerprint") or session.all("fingerprint"):
        name, _, digest = value.partition(" ")
        name, digest = name.lower(), digest.strip().upper()
        if name not in _HASHES:
            continue  # Of several, any that both sides know will do (RFC 8122, section 5).
        if not _HEX.fullmatch(digest):
            raise SdpError("a=fingerprint is malformed")
        found.setdefault(name, []).append(digest)
    if not found:
        raise SdpError("a=fingerprint of SHA-256, SHA-384 or SHA-512 is missing")
    return found
