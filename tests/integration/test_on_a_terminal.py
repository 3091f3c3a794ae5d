"""What follows on the command line, on a real terminal: `whispr status` and `whispr tree --watch`."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.product import UNLIMITED, Product, spawn, start, wait_ready

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

PATIENCE_S = 60.0
CTRL_C = b"\x03"
HIDES, SHOWS, CLEARS = b"\x1b[?25l", b"\x1b[?25h", b"\x1b[H\x1b[2J"
UP_A_LINE = b"\x1b[1A"


class Terminal:
    """One command on a terminal of its own, 100 by 30."""

    def __init__(self, product: Product, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        environ = {**os.environ, "WHISPR_DATA_DIR": str(product.data_dir), "TERM": "xterm-256color"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _OWN_TERMINAL, *arguments],
            stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True, env=environ,
        )  # fmt: skip
        os.close(theirs)
        self.said = b""

    def until(self, what: bytes) -> None:
        """Read until it has said something since the last time it was asked for."""
        before, deadline = len(self.said), time.monotonic() + PATIENCE_S
        while what not in self.said[before:]:
            assert time.monotonic() < deadline, (what, self.said[-2000:])
            assert self._read(), (what, self.said[-2000:])

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self._ours, keys)

    def end(self) -> int:
        """Read to its end; return its exit code."""
        deadline = time.monotonic() + PATIENCE_S
        while self._read():
            assert time.monotonic() < deadline, self.said[-2000:]
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """End it, whatever it does."""
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def _read(self) -> bool:
        """Read what is there, or within a second; False at the end."""
        if not select.select([self._ours], [], [], 1.0)[0]:
            return True
        try:
            part = os.read(self._ours, 65536)
        except OSError:  # EIO: nobody has the other side open any more
            return False
        self.said += part
        return bool(part)


# Ctrl-C reaches whoever has the terminal as its own.
_OWN_TERMINAL = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from whispr.cli import main
main()
"""


@contextmanager
def terminal(product: Product, *arguments: str) -> Iterator[Terminal]:
    """A command on a terminal, for the length of a block."""
    opened = Terminal(product, *arguments)
    try:
        yield opened
    finally:
        opened.close()


def test_status_follows_in_place_through_a_crash_until_ctrl_c(tmp_path: Path) -> None:
    """The table is drawn over itself; a gateway that is gone is said so and found again; Ctrl-C leaves no mess."""
    product = start(tmp_path / "data", UNLIMITED)
    try:
        with terminal(product, "status", "--watch") as screen:
            screen.until(b"postgres")
            screen.until(UP_A_LINE)
            screen.until(b"postgres")
            product.kill()
            screen.until(b"127.0.0.1")
            ports = {f"WHISPR_{name.upper()}_PORT": str(port) for name, port in product.ports.items()}
            product = wait_ready(spawn(product.data_dir, UNLIMITED | ports))
            screen.until(b"postgres")
            screen.press(CTRL_C)
            assert screen.end() == 130
            assert b"Traceback" not in screen.said
            assert screen.said.rfind(SHOWS) > screen.said.rfind(HIDES) >= 0, "the cursor is there again"
    finally:
        product.stop()


def test_the_tree_of_every_worker_follows_in_place(tmp_path: Path) -> None:
    """Each worker's tree under its number, the screen cleared for each; one alone when it is asked for."""
    product = start(tmp_path / "data", UNLIMITED, "--workers", "2")
    try:
        with terminal(product, "tree", "--watch") as screen:
            screen.until(CLEARS)
            screen.until(b"worker 2 of 2")
            assert screen.said.find(b"worker 1 of 2") < screen.said.find(b"worker 2 of 2")
            screen.until(CLEARS)
            screen.press(CTRL_C)
            assert screen.end() == 130
            assert b"Traceback" not in screen.said
        with terminal(product, "tree", "--worker", "2") as screen:
            assert screen.end() == 0
            assert b"worker 2 of 2" in screen.said
            assert b"worker 1 of 2" not in screen.said
        with terminal(product, "tree", "--worker", "7") as screen:
            assert screen.end() == 1
            assert b"there are 1, 2" in screen.said
        with terminal(product, "status", "--watch", "--once") as screen:
            assert screen.end() == 2
    finally:
        product.stop()
