"""Readers by others of what the origin serves: hls-parser, which holds playlists to the rules, mp4box, and FFmpeg."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from tests.audio.tones import tone
from tests.services.stream.player import HERE, installed_players
from whispr.audio import playlist
from whispr.audio.fmp4 import init_segment
from whispr.audio.packets import Codec, Quality, Rendition
from whispr.audio.segments import PART, PARTS, SEGMENT, Segmenter

pytestmark = pytest.mark.slow

LADDER = [Rendition(codec, quality) for codec in (Codec.AAC, Codec.OPUS) for quality in Quality]


def read(asked: Sequence[dict[str, str]]) -> list[dict[str, Any]]:
    """Have the readers read."""
    installed_players()
    node = shutil.which("node")
    assert node is not None, "npm comes with it"
    lines = "".join(json.dumps(each) + "\n" for each in asked)
    done = subprocess.run(
        [node, HERE / "js" / "check.mjs"], input=lines, capture_output=True, text=True, timeout=50, check=True
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def segmented(rendition: Rendition, seconds: float = 40.0) -> Segmenter:
    segmenter = Segmenter(16)
    segmenter.add(tone(rendition, seconds, start=SEGMENT * 100 + PART))
    return segmenter


def test_hls_parser_finds_no_rule_broken() -> None:
    """Strictly: whole playlists and delta updates at every part of a segment, the master, an end, a recording."""
    segmenter, at, asked = Segmenter(16), datetime.now(UTC), []
    for packet in tone(Rendition(Codec.OPUS, Quality.LOW), 36.0, start=SEGMENT * 100 + PART):
        if segmenter.add([packet]) and segmenter.first_whole and segmenter.last:
            reports = [playlist.Report("opus-high", segmenter.last)]
            asked += [
                playlist.live(segmenter, at, prefix="", reports=reports, skip=skip) for skip in (False, True)
            ]
    segmenter.finish()
    asked += [playlist.live(segmenter, at, prefix=""), playlist.master(LADDER, "session")]
    asked += [playlist.recorded([288_000, 12_000], at), playlist.recorded_master(LADDER[0], 64_000, 80_000)]
    said = read([{"playlist": text.decode()} for text in asked])
    assert [each["error"] for each in said if "error" in each] == []
    assert len(said) == len(asked) > 2 * 6 * PARTS
    whole = said[0]["playlist"]
    assert whole["lowLatencyCompatibility"]["canBlockReload"] is True
    assert whole["partTargetDuration"] == PART / 48_000
    assert len(said[-3]["playlist"]["variants"]) == len(LADDER)


def test_mp4box_reads_every_sample() -> None:
    """Tracks, times, sizes, and that each sample is one to begin with."""
    for rendition in (Rendition(Codec.AAC, Quality.MEDIUM), Rendition(Codec.OPUS, Quality.MEDIUM)):
        packets = tone(rendition, 4.0, start=SEGMENT * 100)
        segmenter = Segmenter(16)
        segmenter.add(packets)
        data = init_segment(rendition) + b"".join(segment.data for segment in segmenter.segments)
        (said,) = read([{"mp4": base64.b64encode(data).decode()}])
        assert "error" not in said, said
        (track,) = said["mp4"]["tracks"]
        assert track["codec"] in ("mp4a.40.2", "opus", "Opus")
        assert track["audio"] == {"sample_rate": 48_000, "channel_count": 2, "sample_size": 16}
        samples = said["mp4"]["samples"]
        expected = [(p.pts, p.duration, len(p.data)) for p in packets][: len(samples)]
        assert [(s["dts"], s["duration"], s["size"]) for s in samples] == expected
        assert all(s["is_sync"] for s in samples)
        assert len(samples) > 170


def test_ffprobe_reads_a_playlist_to_its_end(tmp_path: Path) -> None:
    """Codec, duration and every packet, of a live playlist that has ended."""
    ffprobe = shutil.which("ffprobe")
    if ffprobe is None:
        pytest.skip("ffprobe is not installed")
    for rendition in (Rendition(Codec.AAC, Quality.LOW), Rendition(Codec.OPUS, Quality.LOW)):
        segmenter = segmented(rendition, 10.0)
        segmenter.finish()
        (tmp_path / "init.mp4").write_bytes(init_segment(rendition))
        for segment in segmenter.segments:
            (tmp_path / f"{segment.msn}.m4s").write_bytes(segment.data)
        listing = tmp_path / "live.m3u8"
        listing.write_bytes(playlist.live(segmenter, datetime.now(UTC), prefix=""))
        command = [ffprobe, "-v", "warning", "-count_packets", "-show_streams", "-of", "json", str(listing)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True)
        (stream,) = json.loads(done.stdout)["streams"]
        assert stream["codec_name"] == rendition.codec
        size = 1024 if rendition.codec is Codec.AAC else 960
        assert int(stream["nb_read_packets"]) == sum(s.duration for s in segmenter.segments) // size
        assert "error" not in done.stderr.lower(), done.stderr
