"""Runs `examine` in a child process, within bounds of time, memory and files, and reads what came of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog
import trio

from whispr.errors import unavailable
from whispr.nurseries import ungrouped
from whispr.services.media.examine import INPUT, RESULT
from whispr.services.media.findings import SIDE_PX_MAX, Bounds, Refused, Result, Variant
from whispr.services.media.pictures import THUMBNAILS_PX
from whispr.services.media.recordings import PEAKS
from whispr.services.media.types import Kind, TypeFault, essence
from whispr.services.media.urls import ORIGINAL

__all__ = ["INPUT", "nonsense", "probe", "shown"]

WALL_S: Final = 120.0
"""However slowly the machine runs just now."""
RESULT_BYTES_MAX: Final = 256 * 1024
STDERR_BYTES_SHOWN: Final = 2000

DURATION_S_MAX: Final = 1e9
_DIGEST = re.compile(r"[0-9a-f]{64}")
_CRASHES = frozenset({signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL})

log = structlog.get_logger("whispr.media")


class _Refusal(msgspec.Struct):
    reason: str
    message: str


class _Answer(msgspec.Struct):
    result: Result | None = None
    refused: _Refusal | None = None


async def probe(folder: Path, declared: str, bounds: Bounds) -> Result:
    """Look into `folder/input`; variants are left beside it.

    Raises Refused for a file that will not be given out, also when the child was stopped for what it took, and
    UNAVAILABLE when there was no child or it ended for a reason of the machine's.
    """
    given = {"declared": declared, "bounds": msgspec.to_builtins(bounds), "parent": os.getpid()}
    module = ["-I", "-W", "ignore", "-m", "whispr.services.media.examine"]
    command = [sys.executable, *module, str(folder), msgspec.json.encode(given).decode()]
    try:
        with trio.move_on_after(WALL_S) as wall:
            code, complaint = await _Child(command, folder).run()
    except OSError as error:
        raise unavailable(f"no process could be started to look into a file: {error.strerror}") from error
    if wall.cancelled_caught:
        raise Refused("too_complex", f"looking into it took over {WALL_S:g} s")
    path = folder / RESULT
    if code == 0 and path.is_file() and path.stat().st_size <= RESULT_BYTES_MAX:
        return _read(path.read_bytes())
    raise _ended(code, complaint)


class _Child:
    """A process, and the thread that starts it and stays until it has ended.

    The child dies when the *thread* that started it does (prctl(2), PR_SET_PDEATHSIG). Those in which Trio starts
    processes end after some idle seconds, and would take whatever is looked into for longer with them.
    """

    def __init__(self, command: Sequence[str], folder: Path) -> None:
        self._command = command
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._unwanted = False

    async def run(self) -> tuple[int, bytes]:
        """Return the exit code, and what came on stderr; cancelled, kill the child. Raises OSError."""
        with ungrouped():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._kill_in_the_end)
                ended = await trio.to_thread.run_sync(self._run)
                nursery.cancel_scope.cancel(reason="the child has ended")
        return ended

    def _run(self) -> tuple[int, bytes]:
        with subprocess.Popen(  # noqa: S603 - our own interpreter and module
            self._command, env={"LANG": "C.UTF-8"}, cwd=self._folder, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        ) as self._process:  # fmt: skip
            if self._unwanted:  # It was cancelled before there was anything to kill.
                self._process.kill()
            _, complaint = self._process.communicate()
        return self._process.returncode, complaint

    async def _kill_in_the_end(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self._unwanted = True
            if self._process is not None:
                self._process.kill()


def _read(answer: bytes) -> Result:
    """The child is not to be trusted after what it has read: its answer is checked like any other's."""
    try:
        read = msgspec.json.decode(answer, type=_Answer)
    except msgspec.MsgspecError:
        raise nonsense() from None
    if read.refused is not None:
        raise Refused(shown(read.refused.reason, 64), shown(read.refused.message, 500))
    if read.result is None or not _makes_sense(read.result):
        raise nonsense()
    return read.result


def nonsense() -> Refused:
    """What is said when the child says what it cannot have found."""
    return Refused("unreadable", "looking into it led to nothing that makes sense")


def shown(text: str, chars_max: int) -> str:
    """Return what others have said of a file in a form that can be stored and shown."""
    return "".join(c if c.isprintable() else " " for c in text[:chars_max])


def _makes_sense(found: Result) -> bool:
    names = [variant.name for variant in found.variants]
    return (
        found.kind in tuple(Kind)
        and _is_type(found.content_type)
        and names[:1] == [ORIGINAL]
        and found.variants[0].type == found.content_type
        and len(set(names)) == len(names)
        and all(_is_ours(variant) for variant in found.variants)
        and all(0 <= side <= SIDE_PX_MAX for side in (found.width, found.height))
        and 0 <= found.duration_s < DURATION_S_MAX
        and len(found.waveform) <= PEAKS
        and all(0 <= peak <= 100 for peak in found.waveform)
    )


def _is_type(content_type: str) -> bool:
    try:
        return essence(content_type) == content_type
    except TypeFault:
        return False


def _is_ours(variant: Variant) -> bool:
    """Whether a file is one of those that the child may leave."""
    sizes = 0 <= variant.width <= SIDE_PX_MAX and 0 <= variant.height <= SIDE_PX_MAX
    sane = sizes and variant.bytes > 0 and _DIGEST.fullmatch(variant.sha256) is not None
    if variant.name == ORIGINAL:
        return sane and variant.file in (INPUT, ORIGINAL)
    small = variant.name in {f"thumbnail_{size}" for size in THUMBNAILS_PX}
    return sane and small and variant.file == variant.name and variant.type == "image/webp"


def _ended(code: int, stderr: bytes) -> Exception:
    """What it means that the child ended without an answer."""
    said = stderr[-STDERR_BYTES_SHOWN:].decode("utf-8", "replace")
    if code == -signal.SIGXCPU:
        return Refused("too_complex", "looking into it took too much time")
    if -code in _CRASHES:
        log.warning("examination_crashed", signal=signal.Signals(-code).name, stderr=said)
        return Refused("unreadable", "it cannot be decoded")
    if "MemoryError" in said:
        return Refused("too_complex", "it takes too much memory to look into")
    log.error("examination_failed", code=code, stderr=said)
    return unavailable("looking into a file failed")
