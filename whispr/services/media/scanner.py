"""Has files looked at for viruses: by a command, or by ClamAV's daemon.

A scanner says clean or infected; anything else is its being away, and is tried again for as long as it takes.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Awaitable, Callable
from math import inf
from pathlib import Path
from typing import Final

import trio

from whispr.errors import conflict, unavailable
from whispr.resilience.retry import RetryRules
from whispr.resilience.target import CallRules, Target

Scan = Callable[[Path], Awaitable[str]]
"""Returns what a file is infected with, empty when it is clean. Raises UNAVAILABLE when nobody can tell."""

_SCAN = CallRules(deadline_s=inf, retry=RetryRules(attempts=1))
"""A scan has a time of its own below, and the worker tries again."""


def guarded(scan: Scan, target: Target) -> Scan:
    """A scanner that is left alone for a moment when it fails again and again."""

    async def run(path: Path) -> str:
        return await target.run(lambda: scan(path), _SCAN)

    return run


SCAN_S: Final = 120.0
CHUNK_BYTES: Final = 256 * 1024
REPLY_BYTES_MAX: Final = 4096
INFECTED_EXIT: Final = 1
"""What clamscan, clamdscan and most others exit with for an infected file; 0 is clean."""


def make_scan(command: str, clamd: str) -> Scan | None:
    """Return the scanner of the settings, None when there is none.

    Raises FAILED_PRECONDITION (bad_setting) when there are two, or when one makes no sense.
    """
    if command and clamd:
        raise conflict("set WHISPR_MEDIA_SCAN_COMMAND or WHISPR_MEDIA_SCAN_CLAMD, not both", "bad_setting")
    if command:
        return _by_command(command)
    return _by_clamd(clamd) if clamd else None


def _by_command(command: str) -> Scan:
    """Run a command with the file's path after its arguments: 0 is clean, 1 infected, with the name on stdout."""
    try:
        arguments = shlex.split(command)
    except ValueError as error:
        raise conflict(f"WHISPR_MEDIA_SCAN_COMMAND: {error}", "bad_setting") from None

    async def scan(path: Path) -> str:
        try:
            with trio.fail_after(SCAN_S):
                done = await trio.run_process(
                    [*arguments, str(path)],
                    stdin=b"",
                    capture_stdout=True,
                    stderr=subprocess.DEVNULL,
                    check=False,
                )
        except OSError as error:
            raise unavailable(f"the virus scanner cannot be run: {error.strerror}") from error
        except trio.TooSlowError:
            raise unavailable(f"the virus scanner took over {SCAN_S:g} s") from None
        if done.returncode == INFECTED_EXIT:
            said = done.stdout.decode("utf-8", "replace").strip().splitlines()
            return said[0][:200] if said else "infected"
        if done.returncode:
            raise unavailable(f"the virus scanner failed with exit code {done.returncode}")
        return ""

    return scan


def _by_clamd(where: str) -> Scan:
    """Send the file to clamd at `unix:/path` or `host:port` (clamd(8), INSTREAM)."""
    host, _, port = where.rpartition(":")
    path = where.removeprefix("unix:") if where.startswith("unix:") else ""
    if not path and not (host and port.isdecimal()):
        raise conflict(
            f"WHISPR_MEDIA_SCAN_CLAMD: {where!r} is neither host:port nor unix:/path", "bad_setting"
        )

    async def connect() -> trio.abc.Stream:
        if path:
            return await trio.open_unix_socket(path)
        return await trio.open_tcp_stream(host.strip("[]"), int(port))

    async def scan(file: Path) -> str:
        try:
            with trio.fail_after(SCAN_S):
                async with await connect() as stream:
                    return _meaning(await _instream(stream, file))
        except (OSError, trio.BrokenResourceError) as error:
            raise unavailable(f"clamd cannot be reached: {error}") from error
        except trio.TooSlowError:
            raise unavailable(f"clamd took over {SCAN_S:g} s") from None

    return scan


async def _instream(stream: trio.abc.Stream, file: Path) -> bytes:
    await stream.send_all(b"zINSTREAM\0")
    async with await trio.open_file(file, "rb") as content:
        while chunk := await content.read(CHUNK_BYTES):
            await stream.send_all(len(chunk).to_bytes(4, "big") + chunk)
    await stream.send_all(bytes(4))
    reply = b""
    while not reply.endswith(b"\0") and len(reply) < REPLY_BYTES_MAX:
        some = await stream.receive_some(REPLY_BYTES_MAX)
        if not some:
            break
        reply += some
    return reply


def _meaning(reply: bytes) -> str:
    """`stream: OK`, `stream: <name> FOUND`, or an error."""
    said = reply.rstrip(b"\0").decode("utf-8", "replace").strip()
    if said == "stream: OK":
        return ""
    if said.startswith("stream: ") and said.endswith(" FOUND"):
        return said[len("stream: ") : -len(" FOUND")][:200]
    raise unavailable(f"clamd said: {said[:200] or 'nothing'}")
