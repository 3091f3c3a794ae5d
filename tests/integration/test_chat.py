"""`whispr chat`: two people talk with nothing but terminals, or pipes."""

from __future__ import annotations

import codecs
import itertools
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.product import Product

WAIT_S = 20
_names = itertools.count()


def command(product: Product, user: str, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """Return how to start a client: its command line and environment."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WHISPR_")}
    environ = clean | {
        "WHISPR_DATA_DIR": str(product.data_dir),
        "CHAT_PASSWORD": "correct horse",
        "TERM": "xterm",
    }
    return [sys.executable, "-m", "whispr.cli", "chat", "--user", user, *arguments], environ


def piped(product: Product, user: str, lines: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Talk through pipes: send lines, leave at the end of input."""
    argv, environ = command(product, user, *arguments)
    return subprocess.run(
        argv, env=environ, input=lines, capture_output=True, text=True, timeout=60, check=False
    )


class Terminal:
    """A client on a terminal of its own."""

    def __init__(self, product: Product, user: str, peer: str) -> None:
        self._ours, theirs = pty.openpty()
        argv, environ = command(product, user, "--with", peer)
        self.process = subprocess.Popen(
            argv, env=environ, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
        )
        os.close(theirs)
        self._shown = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._ours, keys.encode())

    def see(self, pattern: str) -> None:
        """Wait until the pattern has been shown, and forget all up to it."""
        deadline = time.monotonic() + WAIT_S
        while (match := re.search(pattern, self._shown)) is None:
            readable, _, _ = select.select([self._ours], [], [], max(0, deadline - time.monotonic()))
            assert readable, f"{pattern!r} not seen in {self._shown!r}"
            self._shown += self._decoder.decode(os.read(self._ours, 65536))
        self._shown = self._shown[match.end() :]

    def close(self) -> None:
        """Hang up."""
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@pytest.fixture
def names() -> tuple[str, str]:
    """Two usernames that nobody has yet."""
    number = next(_names)
    return f"alice-{number}", f"bob-{number}"


@pytest.fixture
def terminals(product: Product, names: tuple[str, str]) -> Iterator[tuple[Terminal, Terminal]]:
    """Two people at terminals, each talking to the other."""
    alice, bob = names
    first, second = Terminal(product, alice, bob), Terminal(product, bob, alice)
    yield first, second
    first.close()
    second.close()


@pytest.mark.slow
def test_two_terminals(terminals: tuple[Terminal, Terminal], names: tuple[str, str]) -> None:
    """Both sign up, see each other come online, type and talk; what one reads the other learns."""
    (at_alice, at_bob), (alice, bob) = terminals, names
    at_alice.see(f"signed up as {alice}")
    at_bob.see(f"signed up as {bob}")
    at_alice.see(rf"{bob} \(online\)")
    at_bob.see(rf"{alice} \(online\)")
    at_alice.type("hello")
    at_bob.see(rf"{alice} \(typing…\)")
    at_alice.type(" bob\r")
    at_bob.see(rf"\d\d:\d\d {alice}: hello bob")
    at_alice.see(f"read by {bob}")
    at_bob.type("hi alice\r")
    at_alice.see(f"{bob}: hi alice")
    at_bob.type("\x04")
    assert at_bob.process.wait(WAIT_S) == 0
    at_alice.see(rf"{bob} \(offline\)")
    at_alice.process.send_signal(signal.SIGINT)
    assert at_alice.process.wait(WAIT_S) == 130


@pytest.mark.slow
def test_pipes_and_history(product: Product, names: tuple[str, str]) -> None:
    """Piped lines are all acknowledged before the client leaves; the other finds them as history, in order."""
    alice, bob = names
    product.sign_up(bob)
    sent = piped(product, alice, "".join(f"line {i}\n" for i in range(30)), "--with", bob)
    assert sent.returncode == 0, sent.stderr
    read = piped(product, bob, "/list\n", "--with", alice)
    assert read.returncode == 0, read.stderr
    shown = [line.split(": ", 1)[1] for line in read.stdout.splitlines() if f" {alice}: " in line]
    assert shown == [f"line {i}" for i in range(10, 30)]


def test_refusals(product: Product, names: tuple[str, str]) -> None:
    """A wrong password, a password that is too short and an address where nothing is are said in one line."""
    alice, _ = names
    product.sign_up(alice)
    wrong = piped(product, alice, "", "--password", "not the one")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
    assert "password" in wrong.stderr
    short = piped(product, "somebody-new", "", "--password", "short")
    assert short.returncode == 1
    assert "8" in short.stderr
    nowhere = piped(product, alice, "", "--url", "http://127.0.0.1:1")
    assert nowhere.returncode == 1
    assert "127.0.0.1:1" in nowhere.stderr
