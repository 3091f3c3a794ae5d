"""Rules of RFC 8216bis and of Apple's HLS authoring specification, each by the words it is written in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta

import pytest

from tests.audio.test_segments import blank
from whispr.audio.packets import CLOCK_HZ, Codec, Packet, Quality, Rendition
from whispr.audio.playlist import Report, bandwidth_bps, live, master, read_directives, recorded
from whispr.audio.segments import SEGMENT, Segmenter
from whispr.errors import WhisprError

BEGAN_AT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LADDER = [Rendition(codec, quality) for codec in (Codec.AAC, Codec.OPUS) for quality in Quality]
TARGET_S = 2


def segmenter_of(packets: Sequence[Packet], window: int = 16) -> Segmenter:
    segmenter = Segmenter(window)
    segmenter.add(packets)
    return segmenter


def as_it_grows(seconds: float = 40.0) -> Iterator[list[str]]:
    """Every playlist of a live stream, part by part."""
    segmenter = Segmenter(16)
    for packet in blank(960, 100 * SEGMENT, int(seconds * 50)):
        if segmenter.add([packet]) and segmenter.first_whole:
            yield lines_of(segmenter)


def lines_of(segmenter: Segmenter, *, skip: bool = False) -> list[str]:
    reports = [Report("aac-high", segmenter.last)] if segmenter.last else []
    text = live(segmenter, BEGAN_AT, prefix="", reports=reports, skip=skip).decode()
    assert text.endswith("\n")
    return text.splitlines()


def attributes(line: str) -> dict[str, str]:
    return {name: value.strip('"') for name, value in re.findall(r'([A-Z-]+)=("[^"]*"|[^,]*)', line)}


def tagged(lines: Sequence[str], tag: str) -> list[str]:
    return [line.partition(":")[2] for line in lines if line.split(":")[0] == tag]


def test_extm3u_must_be_the_first_line() -> None:
    """RFC 8216bis, 4.4.1.1: of every media playlist and multivariant playlist."""
    assert all(lines[0] == "#EXTM3U" for lines in as_it_grows(8))
    assert master(LADDER, "s").startswith(b"#EXTM3U\n")
    assert recorded([SEGMENT]).startswith(b"#EXTM3U\n")


def test_the_extinf_of_each_segment_rounded_must_not_exceed_the_target_duration() -> None:
    """RFC 8216bis, 4.4.3.1; and the target duration never changes."""
    for lines in as_it_grows():
        assert tagged(lines, "#EXT-X-TARGETDURATION") == [str(TARGET_S)]
        assert all(round(float(value.rstrip(","))) <= TARGET_S for value in tagged(lines, "#EXTINF"))


def test_the_media_sequence_number_must_not_decrease_and_counts_removed_segments() -> None:
    """RFC 8216bis, 6.2.2: it grows by one for each segment that goes from the front."""
    before: tuple[int, list[str]] | None = None
    for lines in as_it_grows():
        number = int(tagged(lines, "#EXT-X-MEDIA-SEQUENCE")[0])
        segments = [line for line in lines if re.fullmatch(r"\d+\.m4s", line)]
        assert segments[0] == f"{number}.m4s"
        if before is not None:
            assert number >= before[0]
            gone = before[1][: number - before[0]]
            assert [*gone, *segments][: len(before[1])] == before[1]
        before = (number, segments)


def test_parts_should_not_be_listed_further_than_three_target_durations_from_the_end() -> None:
    """RFC 8216bis, 4.4.4.9."""
    for lines in as_it_grows():
        end = sum(float(value.rstrip(",")) for value in tagged(lines, "#EXTINF"))
        growing = lines[max(i for i, line in enumerate(lines) if line.startswith("#EXTINF")) :]
        end += sum(float(attributes(value)["DURATION"]) for value in tagged(growing, "#EXT-X-PART"))
        at = 0.0
        for index, line in enumerate(lines):
            if line.startswith("#EXTINF"):
                at += float(line.partition(":")[2].rstrip(","))
            if line.startswith("#EXT-X-PART:"):
                assert end - at <= 3 * TARGET_S + 0.001, lines[index]


def test_each_part_must_not_exceed_the_part_target_and_others_but_the_last_reach_85_percent_of_it() -> None:
    """RFC 8216bis, 4.4.3.7 and 4.4.4.9."""
    for lines in as_it_grows(12):
        target = float(attributes(tagged(lines, "#EXT-X-PART-INF")[0])["PART-TARGET"])
        durations = [float(attributes(value)["DURATION"]) for value in tagged(lines, "#EXT-X-PART")]
        assert all(0.85 * target <= duration <= target for duration in durations)


def test_the_parts_of_a_segment_last_as_long_as_it_does() -> None:
    """RFC 8216bis, 4.4.4.9: a segment is the concatenation of its parts."""
    for lines in as_it_grows(12):
        gathered = 0.0
        for line in lines:
            if line.startswith("#EXT-X-PART:"):
                gathered += float(attributes(line)["DURATION"])
            elif line.startswith("#EXTINF") and gathered:
                assert abs(gathered - float(line.partition(":")[2].rstrip(","))) < 0.0001
                gathered = 0.0


def test_part_hold_back_must_be_at_least_twice_and_should_be_three_times_the_part_target() -> None:
    """RFC 8216bis, 4.4.3.8; HOLD-BACK at least three target durations, CAN-SKIP-UNTIL at least six."""
    lines = next(as_it_grows(8))
    control = attributes(tagged(lines, "#EXT-X-SERVER-CONTROL")[0])
    assert control["CAN-BLOCK-RELOAD"] == "YES"
    assert float(control["PART-HOLD-BACK"]) >= 3 * 0.32
    assert float(control["HOLD-BACK"]) >= 3 * TARGET_S
    assert float(control["CAN-SKIP-UNTIL"]) >= 6 * TARGET_S


def test_low_latency_playlists_must_hint_at_the_next_part() -> None:
    """RFC 8216bis, 4.4.5.3 and appendix B.1: the hint names what the next playlist lists as its newest part."""
    before = ""
    for lines in as_it_grows(12):
        parts = [attributes(value)["URI"] for value in tagged(lines, "#EXT-X-PART")]
        if before:
            assert parts[-1] == before
        hint = attributes(tagged(lines, "#EXT-X-PRELOAD-HINT")[0])
        assert hint["TYPE"] == "PART"
        assert hint["URI"] not in parts
        before = hint["URI"]


def test_each_other_rendition_must_be_reported() -> None:
    """RFC 8216bis, appendix B.1: EXT-X-RENDITION-REPORT with the last sequence and part numbers."""
    segmenter = segmenter_of(blank(960, 100 * SEGMENT, 400))
    report = attributes(tagged(lines_of(segmenter), "#EXT-X-RENDITION-REPORT")[0])
    assert report == {"URI": "../aac-high/live.m3u8", "LAST-MSN": "104", "LAST-PART": "0"}


def test_live_playlists_must_have_a_program_date_time() -> None:
    """Authoring specification, "Media playlists": EXT-X-PROGRAM-DATE-TIME, the same in every rendition."""
    for lines in as_it_grows(12):
        for index, line in enumerate(lines):
            if match := re.fullmatch(r"(\d+)\.m4s", line):
                said = [each for each in lines[:index] if each.startswith("#EXT-X-PROGRAM-DATE-TIME")][-1]
                at = datetime.fromisoformat(said.partition(":")[2])
                assert at == BEGAN_AT + timedelta(milliseconds=int(match[1]) * SEGMENT * 1000 // CLOCK_HZ)


def test_a_live_playlist_must_have_at_least_six_segments() -> None:
    """Authoring specification, "Delivery": at least six target durations are kept, once there was time for them."""
    *_, last = as_it_grows()
    assert sum(float(value.rstrip(",")) for value in tagged(last, "#EXTINF")) >= 6 * TARGET_S


def test_the_extmap_must_be_there_for_fragmented_mp4_and_the_version_say_so() -> None:
    """RFC 8216bis, 3.1.2 and section 8: EXT-X-MAP from version 6, EXT-X-SKIP from 9."""
    lines = next(as_it_grows(8))
    assert tagged(lines, "#EXT-X-MAP") == ['URI="init.mp4"']
    assert int(tagged(lines, "#EXT-X-VERSION")[0]) >= 9
    assert "#EXT-X-INDEPENDENT-SEGMENTS" in lines


def test_a_delta_update_must_skip_only_what_is_older_than_the_skip_boundary() -> None:
    """RFC 8216bis, 6.2.5.1: and with what it skips it is the playlist that it replaces."""
    segmenter = segmenter_of(blank(960, 100 * SEGMENT, 50 * 40))
    full, delta = lines_of(segmenter), lines_of(segmenter, skip=True)
    skipped = int(attributes(tagged(delta, "#EXT-X-SKIP")[0])["SKIPPED-SEGMENTS"])
    durations = [float(value.rstrip(",")) for value in tagged(full, "#EXTINF")]
    assert skipped > 0
    growing = segmenter.segments[-1].duration / CLOCK_HZ
    assert sum(durations[skipped:]) + growing >= 12.0 > sum(durations[skipped + 1 :])
    names = [line for line in full if re.fullmatch(r"\d+\.m4s", line)]
    assert names[skipped:] == [line for line in delta if re.fullmatch(r"\d+\.m4s", line)]
    assert tagged(delta, "#EXT-X-MEDIA-SEQUENCE") == tagged(full, "#EXT-X-MEDIA-SEQUENCE")
    short = segmenter_of(blank(960, 100 * SEGMENT, 400))
    assert lines_of(short, skip=True) == lines_of(short), "with nothing to skip it is a whole playlist"


def test_a_segment_that_cannot_be_had_is_marked_as_a_gap() -> None:
    """RFC 8216bis, 4.4.4.7 and 4.4.4.9: EXT-X-GAP, and GAP=YES of a part."""
    packets = [p for p in blank(960, 0, 400) if not 2 * SEGMENT <= p.pts < 3 * SEGMENT + 960 * 20]
    lines = lines_of(segmenter_of(packets))
    assert lines[lines.index("2.m4s") - 2] == "#EXT-X-GAP"
    assert lines[lines.index("1.m4s") - 2] != "#EXT-X-GAP"
    assert attributes(next(line for line in lines if '"3.0.m4s"' in line))["GAP"] == "YES"


def test_an_ended_playlist_must_say_so_and_hint_at_nothing() -> None:
    """RFC 8216bis, 4.4.3.4: EXT-X-ENDLIST; and it neither lists parts nor hints at any."""
    segmenter = segmenter_of(blank(960, 0, 500))
    segmenter.finish()
    lines = lines_of(segmenter)
    assert lines[-1] == "#EXT-X-ENDLIST"
    assert not tagged(lines, "#EXT-X-PART")
    assert not tagged(lines, "#EXT-X-PRELOAD-HINT")


def test_every_variant_must_have_bandwidth_average_bandwidth_and_codecs() -> None:
    """Authoring specification, "Multivariant playlists"; the bandwidths of a codec grow."""
    lines = master(LADDER, "token").decode().splitlines()
    variants = [attributes(value) for value in tagged(lines, "#EXT-X-STREAM-INF")]
    assert [variant["CODECS"] for variant in variants] == ["mp4a.40.2"] * 4 + ["opus"] * 4
    for of_codec in (variants[:4], variants[4:]):
        peaks = [int(variant["BANDWIDTH"]) for variant in of_codec]
        assert peaks == sorted(peaks)
        assert all(int(v["AVERAGE-BANDWIDTH"]) < int(v["BANDWIDTH"]) for v in of_codec)
    assert lines[lines.index("token/aac-low/live.m3u8") - 1].endswith('STABLE-VARIANT-ID="aac-low"')
    assert "#EXT-X-INDEPENDENT-SEGMENTS" in lines


def test_the_bandwidth_is_what_a_segment_takes() -> None:
    """Authoring specification: the average of a live stream is within a tenth of AVERAGE-BANDWIDTH."""
    for rendition in LADDER:
        size = 1024 if rendition.codec is Codec.AAC else 960
        length = rendition.bitrate_bps * size // 8 // CLOCK_HZ
        packets = [Packet(i * size, size, bytes(length)) for i in range(SEGMENT // size)]
        segment = segmenter_of(packets).segments[0]
        measured = len(segment.data) * 8 * CLOCK_HZ / segment.duration
        assert abs(measured / bandwidth_bps(rendition) - 1) < 0.1


def test_a_recording_is_vod_and_ends() -> None:
    """RFC 8216bis, 4.4.3.5: PLAYLIST-TYPE VOD, and the target duration is that of the longest segment."""
    lines = recorded([288_000, 288_000, 48_000], BEGAN_AT).decode().splitlines()
    assert tagged(lines, "#EXT-X-PLAYLIST-TYPE") == ["VOD"]
    assert tagged(lines, "#EXT-X-TARGETDURATION") == ["6"]
    assert tagged(lines, "#EXTINF") == ["6.00000,", "6.00000,", "1.00000,"]
    assert tagged(lines, "#EXT-X-PROGRAM-DATE-TIME")[2] == "2026-01-02T03:04:17.000Z"
    assert lines[-1] == "#EXT-X-ENDLIST"


def test_delivery_directives_are_read_and_what_is_none_is_refused() -> None:
    """RFC 8216bis, 6.2.5: _HLS_part needs _HLS_msn; everything is a decimal integer."""
    asked = read_directives("x=1&_HLS_msn=12&_HLS_part=3&_HLS_skip=YES")
    assert (asked.msn, asked.part, asked.skip) == (12, 3, True)
    assert read_directives("token=abc") == read_directives("")
    for bad in (
        "_HLS_part=1",
        "_HLS_msn=-1",
        "_HLS_msn=",
        "_HLS_msn=1e3",
        "_HLS_msn=٣",
        "_HLS_msn=1&_HLS_skip=NO",
    ):
        with pytest.raises(WhisprError) as refused:
            read_directives(bad)
        assert "_HLS_" in refused.value.message
