"""Files are looked into by a child process that may break, be greedy, or never end."""

from __future__ import annotations

import ctypes
import json
import sys
from pathlib import Path
from typing import Any

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


async def test_it_sees_its_own_folder_alone(tmp_path: Path) -> None:
    """A child that a file has taken over reads no file of ours, writes none, and reaches nobody."""
    if ctypes.CDLL(None).syscall(444, None, 0, 1) < 1:
        pytest.skip("this kernel has no Landlock")
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_text("secret")
    script = f"""
from pathlib import Path
from whispr.services.media.confine import confine
from whispr.services.media.findings import Bounds
confine(Path({str(folder)!r}), Bounds())
Path({str(folder)!r}, "mine").write_text("mine")
link = Path({str(folder)!r}, "link")
for forbidden in (
    lambda: Path({str(tmp_path / "secret")!r}).read_text(),
    lambda: Path({str(tmp_path / "outside")!r}).write_text("x"),
    lambda: (link.symlink_to({str(tmp_path / "secret")!r}), link.read_text()),
    lambda: list(Path("/proc/1").iterdir()),
    lambda: list(Path({str(tmp_path)!r}).iterdir()),
):
    try:
        forbidden()
    except PermissionError:
        continue
    raise SystemExit("it could")
import av, PIL.Image
print("fenced in")
"""
    done = await trio.run_process(
        [sys.executable, "-I", "-c", script], capture_stdout=True, capture_stderr=True
    )
    assert done.stdout == b"fenced in\n"
    assert (folder / "mine").read_text() == "mine"
    assert not (tmp_path / "outside").exists()


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


async def test_one_that_takes_its_time_is_let_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Threads that end meanwhile, as idle ones do, take no child with them that is tied to its parent's life."""
    monkeypatch.setattr("trio._core._thread_cache.IDLE_TIMEOUT", 0.01)
    script = tmp_path / "python"
    code = "import ctypes, time\nctypes.CDLL(None).prctl(1, 9, 0, 0, 0)\ntime.sleep(0.5)\n"
    script.write_text(f"#!{sys.executable}\n{code}open('result.json', 'w').write({told()!r})\n")
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    assert (await probe(tmp_path, "image/png", Bounds())).kind == "image"


GOOD: dict[str, Any] = {
    "content_type": "image/png", "kind": "image", "width": 1, "height": 1, "duration_s": 0, "waveform": [1],
    "variants": [
        {"name": "original", "file": "original", "type": "image/png", "bytes": 1, "sha256": "ab" * 32},
        {"name": "thumbnail_160", "file": "thumbnail_160", "type": "image/webp", "bytes": 1, "sha256": "ab" * 32},
    ],
}  # fmt: skip


def told(**changes: Any) -> str:
    """What a child might say: something good, but for some of it."""
    answer = json.loads(json.dumps(GOOD))
    for name, value in changes.items():
        if name in answer:
            answer[name] = value
        else:
            answer["variants"][0][name] = value
    return json.dumps({"result": answer})


@pytest.mark.parametrize("answer", [
    "{}", "nonsense", "[]", told(variants=[]), told(file="../../etc/passwd"), told(file="result.json"),
    told(name="thumbnail_160"), told(type="text/html"), told(content_type="text/html"), told(kind="program"),
    told(content_type="image/png\r\nx: y"), told(width=2**40), told(duration_s=1e300), told(waveform=[1] * 65),
    told(waveform=[101]), told(bytes=-1), told(sha256="AB" * 32), told(variants=GOOD["variants"][1:]),
])  # fmt: skip
async def test_an_answer_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """A child that a file has taken over cannot have us give out files of ours, nor store what makes no sense."""
    await answered(tmp_path, monkeypatch, told())
    with pytest.raises(Refused, match="nothing that makes sense"):
        await answered(tmp_path, monkeypatch, answer)


async def test_a_refusal_is_not_trusted_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says is cut, and fit to be stored and shown."""
    answer = json.dumps({"refused": {"reason": "r\0" * 100, "message": "m\n\0" + "x" * 10_000}})
    with pytest.raises(Refused) as caught:
        await answered(tmp_path, monkeypatch, answer)
    assert caught.value.reason == "r " * 32
    assert caught.value.message == "m  " + "x" * 497


async def answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: str) -> None:
    """Have a child say something."""
    (tmp_path / "answer").write_text(answer)
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\ncp answer result.json\n")
    script.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(script))
    await probe(tmp_path, "image/png", Bounds())
