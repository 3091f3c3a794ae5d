"""Players that people have, mpv and VLC, hear a stream: progressively with its titles, and by HLS."""

from __future__ import annotations

import os
import subprocess
from array import array
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from tests.services.stream.hearing import STREAM, Doorkeeper, TonedLive, finder
from tests.services.stream.peers.test_libshout import installed
from tests.services.stream.player import in_real_time, served
from tests.services.stream.sounds import level_of, share_of
from whispr.audio.packets import CLOCK_HZ, Quality
from whispr.services.stream.domain import Metadata, Stream
from whispr.services.stream.listening.hls import HlsOrigin
from whispr.services.stream.listening.progressive import Progressive
from whispr.services.stream.listening.shelves import Shelves

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

HZ = 468.75
"""Whole waves in every frame of AAC, so that a second of it can be repeated."""
SECONDS = 5
PATHS = [f"/listen/{STREAM}", f"/listen/{STREAM}.aac", f"/hls/{STREAM}/master.m3u8"]
NOBODY = 65534


@asynccontextmanager
async def on_air(metadata: Metadata) -> AsyncIterator[str]:
    """Serve a tone in real time, progressively and by HLS; gives where."""
    live, door = TonedLive(dict.fromkeys(Quality, HZ)), Doorkeeper()
    live.started_at = datetime.now(UTC)
    live.advance(8.0)
    shelves = Shelves(finder(live))

    async def describe(stream_id: str) -> Stream:
        await trio.lowlevel.checkpoint()
        return door.stream

    hls = HlsOrigin(shelves, cast(Any, door), describe, lambda scope, headers: "127.0.0.1")
    progressive = Progressive(
        finder(live), cast(Any, door), lambda scope, headers: "127.0.0.1", lambda stream_id: metadata
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(shelves.run)
        nursery.start_soon(in_real_time, [live])
        async with served(("/hls/", hls), ("/listen/", progressive)) as base:
            yield base
        nursery.cancel_scope.cancel(reason="the test is over")


async def said(command: list[str]) -> subprocess.CompletedProcess[bytes]:
    """Run a player to its end, which must come by itself."""
    with trio.fail_after(60):
        done: subprocess.CompletedProcess[bytes] = await trio.run_process(
            command, capture_stdout=True, capture_stderr=True, check=False
        )
    assert done.returncode == 0, (done.stdout[-2000:], done.stderr[-2000:])
    return done


def is_the_tone(pcm: bytes) -> None:
    """Expect enough of the tone, and nothing but it: one channel of 16 bits, 48 kHz."""
    heard = array("h", pcm[: len(pcm) // 2 * 2])
    assert len(heard) > CLOCK_HZ * (SECONDS - 2)
    middle = [each / 32768 for each in heard[CLOCK_HZ : CLOCK_HZ * 2]]
    assert share_of(HZ, middle) > 0.95
    assert level_of(middle) > 0.05


def mpv(*arguments: str) -> list[str]:
    """The command that plays some seconds as mpv does where nobody has configured it."""
    return [
        installed("mpv"), "--no-config", "--no-video", "--no-input-terminal", f"--length={SECONDS}", *arguments,
    ]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
async def test_mpv_hears_the_tone(tmp_path: Path, path: str) -> None:
    """Ogg Opus, ADTS, and HLS from its master playlist."""
    file = tmp_path / "heard.raw"
    command = mpv(
        "--ao=pcm", "--ao-pcm-waveheader=no", f"--ao-pcm-file={file}",
        "--audio-format=s16", "--audio-samplerate=48000", "--audio-channels=mono",
    )  # fmt: skip
    async with on_air(Metadata()) as base:
        await said([*command, base + path])
    is_the_tone(file.read_bytes())


async def test_mpv_shows_the_titles() -> None:
    """It asks for ICY metadata by itself, and shows what is played."""
    async with on_air(Metadata(artist="Somebody", current_track="One")) as base:
        done = await said([*mpv("--ao=null"), base + PATHS[1]])
    assert "icy-title: Somebody - One" in done.stdout.decode(), done.stdout


def as_nobody() -> list[str]:
    """How a program is run that refuses to be root's, which VLC does; nothing where one is not."""
    if os.geteuid() != 0:
        return []
    return [installed("setpriv"), f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]


@pytest.mark.parametrize("path", PATHS)
async def test_vlc_hears_the_tone(path: str) -> None:
    """The same three."""
    out = "#transcode{acodec=s16l,channels=1,samplerate=48000}:std{access=file,mux=wav,dst=-}"
    command = [
        *as_nobody(), installed("cvlc"), "--ignore-config", "--no-sout-video", "--no-interact",
        f"--run-time={SECONDS + 3}", "--play-and-exit", "--sout", out,
    ]  # fmt: skip
    async with on_air(Metadata()) as base:
        done = await said([*command, base + path, "vlc://quit"])
    is_the_tone(done.stdout[44:])
