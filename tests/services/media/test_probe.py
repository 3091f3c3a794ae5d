"""Files are looked into by a child process that may break, be greedy, or never end."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import trio
from PIL import Image

from tests.services.media.samples import encoded, photo
from whispr.services.media import probe as module
from whispr.services.media.findings import Bounds, Refused
from whispr.services.media.probe import INPUT, probe
from whispr.services.media.types import OPAQUE


async def test_a_file_is_examined_elsewhere(tmp_path: Path) -> None:
    """The child's findings come back, and its files are where they were promised."""
    (tmp_path / INPUT).write_bytes(photo(width=400))
    result = await probe(tmp_path, "image/jpeg", Bounds())
    assert (result.width, result.height) == (400, 40)
    assert all((tmp_path / variant.file).stat().st_size == variant.bytes for variant in result.variants)


async def test_a_refusal_comes_back(tmp_path: Path) -> None:
    """What is not what it is said to be is refused here as there."""
    (tmp_path / INPUT).write_bytes(photo("PNG"))
    with pytest.raises(Refused) as caught:
        await probe(tmp_path, "image/jpeg", Bounds())
    assert caught.value.reason == "content_type_mismatch"


async def test_the_memory_it_may_take_is_bounded(tmp_path: Path) -> None:
    """A picture that takes more memory than allowed is refused, however small its file."""
    (tmp_path / INPUT).write_bytes(encoded(Image.new("L", (12_000, 4000)), "PNG", compress_level=1))
    with pytest.raises(Refused) as caught:
        await probe(tmp_path, "image/png", Bounds(memory_bytes=120 * 1024**2))
    assert caught.value.reason == "too_complex"


async def test_what_it_may_write_is_bounded(tmp_path: Path) -> None:
    """A file that would become too large is refused."""
    (tmp_path / INPUT).write_bytes(encoded(Image.effect_noise((600, 600), 90), "PNG"))
    with pytest.raises(Refused):
        await probe(tmp_path, "image/png", Bounds(file_bytes=64 * 1024))


async def test_the_time_it_may_take_is_bounded(tmp_path: Path) -> None:
    """A file that keeps the processor busy for too long is refused."""
    with (tmp_path / INPUT).open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(Refused, match="too much time"):
        await probe(tmp_path, OPAQUE, Bounds(cpu_s=1))


async def test_one_that_never_ends_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock on the wall counts, too: also a child that waits is stopped."""
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\nimport time\ntime.sleep(60)\n")
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    monkeypatch.setattr(module, "WALL_S", 0.3)
    with trio.fail_after(10), pytest.raises(Refused, match="took over"):
        await probe(tmp_path, "image/png", Bounds())


@pytest.mark.parametrize("answer", [
    "{}", "nonsense", '{"result": {"content_type": "a/b", "kind": "image"}}',
    '{"result": {"content_type": "a/b", "kind": "image", "variants":'
    ' [{"name": "original", "file": "../../etc/passwd", "type": "", "bytes": 1, "sha256": ""}]}}',
])  # fmt: skip
async def test_an_answer_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """A child that a file has taken over cannot have us give out files of ours."""
    script = tmp_path / "python"
    script.write_text(f"#!{sys.executable}\nopen('result.json', 'w').write({answer!r})\n")
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    with pytest.raises(Refused, match="nothing that makes sense"):
        await probe(tmp_path, "image/png", Bounds())
