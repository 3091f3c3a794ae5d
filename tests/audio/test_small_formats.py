"""ADTS, ICY titles, and packets in one message."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.audio.test_fmp4 import opened
from tests.audio.tones import tone
from whispr.audio.adts import adts
from whispr.audio.icy import TitleWeaver, title_block
from whispr.audio.messages import decode_message, encode_message
from whispr.audio.packets import Codec, Packet, Quality, Rendition
from whispr.errors import WhisprError


def test_players_read_adts_from_any_frame_on() -> None:
    """FFmpeg finds every frame, bit for bit, though it begins in the middle."""
    packets = tone(Rendition(Codec.AAC, Quality.ULTRA), 1.0)
    with opened(adts(packets[7:]), "aac") as container:
        read = [bytes(packet) for packet in container.demux(audio=0) if packet.size]
        assert container.streams.audio[0].codec_context.sample_rate == 48_000
    assert [frame[7:] for frame in read] == [packet.data for packet in packets[7:]]


def unweave(data: bytes, interval: int) -> tuple[bytes, list[str]]:
    """Read what was woven, as a player does."""
    sound, titles, at = b"", [], 0
    while at < len(data):
        sound += data[at : at + interval]
        at += interval
        if at < len(data):
            size = data[at] * 16
            if size:
                block = data[at + 1 : at + 1 + size].decode()
                match = re.fullmatch(r"StreamTitle='(.*?)';\0*", block, re.DOTALL)
                assert match is not None, block
                titles.append(match[1])
            at += 1 + size
    return sound, titles


@given(
    st.lists(st.tuples(st.binary(max_size=90), st.sampled_from(["", "one", "two — ü"])), max_size=40),
    st.integers(1, 64),
)
def test_titles_do_not_disturb_the_sound(given: list[tuple[bytes, str]], interval: int) -> None:
    """A player that takes the titles out has the sound as it was, and each title once."""
    weaver = TitleWeaver(interval)
    woven = b"".join(weaver.weave(sound, title) for sound, title in given)
    sound, titles = unweave(woven, interval)
    assert sound == b"".join(sound for sound, _ in given)
    assert all(a != b for a, b in pairwise(titles))


@given(st.text(max_size=5000))
def test_no_title_breaks_out_of_its_block(title: str) -> None:
    """Quotes, semicolons and length are tamed; a block is a whole number of 16 bytes."""
    block = title_block(title)
    assert len(block) == 1 + block[0] * 16
    text = block[1:].rstrip(b"\0").decode()
    assert text.startswith("StreamTitle='")
    assert text.count("'") == 2
    assert text.endswith("';")


@given(
    st.sampled_from(Codec),
    st.integers(0, 1 << 60),
    st.lists(st.binary(min_size=1, max_size=300), min_size=1, max_size=50),
)
def test_a_message_gives_its_packets_back(codec: Codec, pts: int, payloads: list[bytes]) -> None:
    """Whatever the packets."""
    packets = [Packet(pts + i * 960, 960, payload) for i, payload in enumerate(payloads)]
    assert decode_message(encode_message(codec, packets)) == (codec, pts, payloads)


@given(st.binary(max_size=200))
def test_what_is_no_message_is_refused(data: bytes) -> None:
    """Any bytes from a client are packets or INVALID_ARGUMENT, never another error."""
    try:
        codec, pts, payloads = decode_message(data)
    except WhisprError:
        return
    packets = [Packet(pts, 960, payload) for payload in payloads]
    assert not packets or encode_message(codec, packets) == data


def test_the_message_is_laid_out_as_it_is_documented() -> None:
    """Pages read it without our help: the bytes are fixed."""
    made = encode_message(
        Codec.OPUS, [Packet(0x0102030405, 960, b"ab"), Packet(0x0102030405 + 960, 960, b"c")]
    )
    assert made.hex() == "01000002" + "0000000102030405" + "0002" + "0001" + "616263"
    with pytest.raises(WhisprError):
        decode_message(made + b"x")
