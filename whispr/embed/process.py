"""Child processes whose life is tied to ours, and what earlier ones of ours left running.

A child is started through `_launch.py` in a session of its own (a Ctrl-C at the terminal is ours to act on,
not the children's) with a parent-death signal, and is waited for through a pidfd.

What an earlier run left behind is found without trusting pid files, which lie once a pid is reused: a
process is ours if it runs one of our server programs with the server's data folder as its working
directory. Signals go through a pidfd opened before that check, so they cannot hit a stranger.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import trio

_LAUNCHER = Path(__file__).with_name("_launch.py")

AS_OURSELVES = "self"
IN_NAMESPACE = "namespace"


class Process:
    """A running child and its pidfd. Close it after it has ended."""

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self._popen = popen
        self._pidfd = os.pidfd_open(popen.pid)

    @property
    def pid(self) -> int:
        """The child's pid; the launcher execs, so this is the server's own."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether the child has not ended yet."""
        return self._popen.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Signal the child, if it is still there."""
        self._popen.send_signal(number)

    async def wait(self) -> int:
        """Wait until the child has ended; return its exit code, or minus the signal that killed it."""
        await trio.lowlevel.wait_readable(self._pidfd)
        return self._popen.wait()

    async def stop(self, signals: Sequence[tuple[signal.Signals, float]]) -> None:
        """Send each signal and wait its bound in seconds, then SIGKILL; shielded, so it always ends it."""
        for number, bound_s in signals:
            self.send(number)
            with trio.move_on_after(bound_s, shield=True):
                await self.wait()
            if not self.running:
                break
        self.send(signal.SIGKILL)  # to nobody, if it has ended: Popen knows
        with trio.CancelScope(shield=True):
            await self.wait()

    def kill_all(self) -> None:
        """SIGKILL the child, which leads a process group of its own, and whatever it started there."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)

    def close(self) -> None:
        """Give the descriptor back."""
        os.close(self._pidfd)


def spawn(
    argv: Sequence[str],
    *,
    cwd: Path,
    output: int,
    death_signal: signal.Signals,
    identity: str = AS_OURSELVES,
    stdin: bytes = b"",
    stdout: int | None = None,
    env: Mapping[str, str] | None = None,
) -> Process:
    """Start a child from this very thread, which the parent-death signal is bound to (prctl(2)).

    Blocks for the few milliseconds of fork and exec. `output` is the descriptor for stdout and stderr, `stdout` one
    for the former alone; `stdin` must fit a pipe (64 KiB). Without `env` the child gets next to nothing of ours.
    """
    launcher = [sys.executable, "-I", "-S", str(_LAUNCHER)]
    settings = [str(os.getpid()), str(int(death_signal)), identity, str(cwd), "--"]
    reader, writer = os.pipe()
    try:
        os.write(writer, stdin)
        os.close(writer)
        popen = subprocess.Popen(  # noqa: S603 - our own launcher and server programs
            [*launcher, *settings, *argv],
            stdin=reader,
            stdout=output if stdout is None else stdout,
            stderr=output,
            env=env or {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
            start_new_session=True,
        )
    finally:
        os.close(reader)
    return Process(popen)


async def run(argv: Sequence[str], *, cwd: Path, output: int, identity: str, stdin: bytes = b"") -> int:
    """Run a helper program to its end and return its exit code; a cancellation kills it and its children."""
    process = spawn(argv, cwd=cwd, output=output, death_signal=signal.SIGKILL, identity=identity, stdin=stdin)
    try:
        return await process.wait()
    finally:
        if process.running:
            process.kill_all()
            await process.stop([])
        process.close()


class Blind(Exception):  # noqa: N818 - says what we are, not that something failed
    """Some processes cannot be looked at, so nobody can say that none of them is ours."""


def occupants(folder: Path, program: str) -> list[int]:
    """Pids of processes that run `program` in `folder`. Raises `Blind` if a candidate is hidden from us."""
    pids = (int(entry.name) for entry in os.scandir("/proc") if entry.name.isdigit())
    return [pid for pid in pids if _occupies(pid, folder, program)]


def _occupies(pid: int, folder: Path, program: str) -> bool:
    try:
        if Path(f"/proc/{pid}/comm").read_text().strip() != program[:15]:
            return False
        if Path(f"/proc/{pid}").stat().st_uid != folder.stat().st_uid:
            return False
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX" and os.readlink(f"/proc/{pid}/cwd") == str(folder)
    except (FileNotFoundError, ProcessLookupError):
        return False
    except PermissionError as hidden:
        raise Blind(f"process {pid} runs {program} and cannot be looked at") from hidden


async def evict(folder: Path, program: str, number: signal.Signals, bound_s: float) -> int:
    """End what runs `program` in `folder`: the signal, `bound_s` seconds, then SIGKILL. Returns how many."""
    pids = occupants(folder, program)
    with contextlib.ExitStack() as stack:
        pidfds = [fd for pid in pids for fd in stack.enter_context(_held(pid, folder, program))]
        for fd in pidfds:
            _signal(fd, number)
        with trio.move_on_after(bound_s) as bound:
            await _all_ended(pidfds)
        if bound.cancelled_caught:
            for fd in pidfds:
                _signal(fd, signal.SIGKILL)
            await _all_ended(pidfds)
    return len(pids)


@contextlib.contextmanager
def _held(pid: int, folder: Path, program: str) -> Iterator[list[int]]:
    """Hold a pidfd of the process, checked to be ours after opening; empty if it is gone."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        yield []
        return
    try:
        yield [fd] if _occupies(pid, folder, program) else []
    finally:
        os.close(fd)


def _signal(pidfd: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        signal.pidfd_send_signal(pidfd, number)


async def _all_ended(pidfds: Sequence[int]) -> None:
    for fd in pidfds:
        await trio.lowlevel.wait_readable(fd)
