"""Runs `examine` in a child process, within bounds of time, memory and files, and reads what came of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import msgspec
import structlog
import trio

from whispr.errors import unavailable
from whispr.services.media.examine import INPUT, RESULT
from whispr.services.media.findings import Bounds, Refused, Result

__all__ = ["INPUT", "probe"]

WALL_S: Final = 120.0
"""However slowly the machine runs just now."""
RESULT_BYTES_MAX: Final = 256 * 1024
STDERR_BYTES_SHOWN: Final = 2000

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
            done = await trio.run_process(
                command, env={"LANG": "C.UTF-8"}, cwd=folder, stdin=b"", capture_stdout=False,
                stdout=subprocess.DEVNULL, capture_stderr=True, check=False,
            )  # fmt: skip
    except OSError as error:
        raise unavailable(f"no process could be started to look into a file: {error.strerror}") from error
    if wall.cancelled_caught:
        raise Refused("too_complex", f"looking into it took over {WALL_S:g} s")
    path = folder / RESULT
    if done.returncode == 0 and path.is_file() and path.stat().st_size <= RESULT_BYTES_MAX:
        return _read(path.read_bytes())
    raise _ended(done.returncode, done.stderr)


def _read(answer: bytes) -> Result:
    """The child is not to be trusted after what it has read: its answer is checked like any other's."""
    try:
        read = msgspec.json.decode(answer, type=_Answer)
    except msgspec.MsgspecError:
        raise Refused("unreadable", "looking into it led to nothing that makes sense") from None
    if (
        read.result is not None
        and read.result.variants
        and all(_is_ours(v.file) for v in read.result.variants)
    ):
        return read.result
    if read.refused is not None:
        raise Refused(read.refused.reason[:64], read.refused.message[:500])
    raise Refused("unreadable", "looking into it led to nothing that makes sense")


def _is_ours(name: str) -> bool:
    return name == INPUT or name == "original" or (name.startswith("thumbnail_") and name[10:].isdecimal())


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
