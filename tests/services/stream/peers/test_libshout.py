"""Icecast's own clients send to the ingest: libshout's `shout`, and ezstream."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.services.stream.sounds import contained
from tests.services.stream.test_engine import Ears
from tests.services.stream.test_engine_icecast import KEY, LOW, Station, station

__all__ = ["station"]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

SECONDS = 6.0
OPUS, VORBIS, MP3 = ("ogg-opus", "ogg", "opus"), ("ogg-vorbis", "ogg", "vorbis"), ("mp3", "mp3", "mp3")
CONFIGURATION = """<ezstream>
<servers><server><hostname>127.0.0.1</hostname><port>{port}</port><user>source</user><password>{key}</password>
<tls>none</tls></server></servers>
<streams><stream><mountpoint>/ingest/s</mountpoint><format>{format}</format></stream></streams>
<intakes><intake><filename>{sound}</filename><stream_once>yes</stream_once></intake></intakes>
<metadata><format_str>@a@ - @t@</format_str><refresh_interval>-1</refresh_interval></metadata>
</ezstream>
"""


def installed(name: str) -> str:
    """The program's path; skips the test where it is not installed."""
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed")
    return found


async def heard_of(station: Station, command: list[str], stdin: bytes, codec: str) -> None:
    """Run a source until it has sent all it has; the tone must have been heard, of this codec."""
    ears = Ears()
    with trio.fail_after(90):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(station.listening, ears)
            run = partial(
                trio.run_process, stdin=stdin, capture_stdout=True, capture_stderr=True, check=False
            )
            done = await run(command)
            assert done.returncode == 0, (done.stdout, done.stderr)
    live = station.lives.get("s")
    assert live is not None
    assert live.source.codec == codec
    assert ears.purest(LOW, 440.0) > 0.9


@pytest.mark.parametrize(("sound", "form", "codec"), [OPUS, VORBIS])
async def test_shout_publishes(station: Station, sound: str, form: str, codec: str) -> None:
    """Libshout's own program sends what it reads, at its pace, and its tone is heard.

    Not MP3: of version 2.4.6 it refuses its own `--format mp3` before it connects.
    """
    command = [
        installed("shout"), "--host", "127.0.0.1", "--port", str(station.port), "--mount", "/ingest/s",
        "--user", "source", "--pass", KEY, "--format", form, "--tls-mode", "disabled",
    ]  # fmt: skip
    await heard_of(station, command, contained(sound, SECONDS), codec)


@pytest.mark.parametrize(("sound", "form", "codec"), [OPUS, VORBIS, MP3])
async def test_ezstream_publishes(
    station: Station, tmp_path: Path, sound: str, form: str, codec: str
) -> None:
    """Ezstream sends a file; of MP3 it says what is played by /admin/metadata, and that arrives.

    Opus in a file named `.opus`: of one named `.ogg`, version 1.0.2 ends by a segmentation fault, whoever answers.
    """
    program = installed("ezstream")
    file, settings = tmp_path / f"tone.{codec if codec == 'opus' else form}", tmp_path / "ezstream.xml"
    file.write_bytes(contained(sound, SECONDS, title="a tone"))
    settings.write_text(
        CONFIGURATION.format(
            port=station.port, key=KEY, format=form.capitalize() if form == "ogg" else "MP3", sound=file
        )
    )
    settings.chmod(0o600)
    await heard_of(station, [program, "-v", "-c", str(settings)], b"", codec)
    if form == "mp3":
        assert [stream_id for stream_id, _ in station.described]
