"""The terminal of the chat client: a prompt that stays at the bottom while lines appear above it.

On a terminal, keys are read one by one, so that others can be told that somebody types. Elsewhere (a pipe, a
file) whole lines are read and nothing is drawn but the conversation, so that a script can talk too.
"""

from __future__ import annotations

import os
import shutil
import sys
import termios
import tty
import unicodedata
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import trio

from whispr.chat.lineedit import EndOfInput, Event, LineEditor

_CLEAR_LINE = "\r\x1b[K"


def printable(text: str) -> str:
    """Return foreign text without anything that could steer the terminal (escape sequences, bidi overrides)."""
    kept = (c if c == "\t" or unicodedata.category(c)[0] != "C" else "\ufffd" for c in text)
    return "".join(kept).replace("\t", "    ")


class Screen:
    """Standard input and output as a chat."""

    def __init__(self) -> None:
        self._editor = LineEditor()
        self._prompt = ""
        self.interactive = sys.stdin.isatty() and sys.stdout.isatty()
        self._colour = self.interactive and not os.environ.get("NO_COLOR")

    @contextmanager
    def keys(self) -> Iterator[None]:
        """Read key by key for the length of the block; the terminal is put back afterwards."""
        if not self.interactive:
            yield
            return
        before = termios.tcgetattr(sys.stdin)
        tty.setcbreak(sys.stdin)
        try:
            yield
        finally:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
            self._write(_CLEAR_LINE)

    async def events(self) -> AsyncIterator[Event]:
        """What the person does, until the end of input."""
        while data := await self._read():
            for event in self._editor.feed(data):
                yield event
                if isinstance(event, EndOfInput):
                    return
            self._draw()
        yield EndOfInput()

    async def _read(self) -> bytes:
        if self.interactive:
            await trio.lowlevel.wait_readable(sys.stdin)
            return os.read(sys.stdin.fileno(), 4096)
        # A regular file cannot be polled, and a pipe's reader may be left waiting when we leave.
        return await trio.to_thread.run_sync(os.read, sys.stdin.fileno(), 4096, abandon_on_cancel=True)

    def say(self, text: str, *, dim: bool = False) -> None:
        """Print a line above the prompt."""
        styled = f"\x1b[2m{text}\x1b[0m" if dim and self._colour else text
        self._write((_CLEAR_LINE if self.interactive else "") + styled + "\n")
        self._draw()

    def prompt(self, text: str) -> None:
        """Change what stands before the line being typed."""
        if text != self._prompt:
            self._prompt = text
            self._draw()

    def _draw(self) -> None:
        if not self.interactive:
            return
        columns = shutil.get_terminal_size().columns
        shown, cursor = self._editor.view(columns - len(self._prompt) - 1)
        back = len(shown) - cursor
        self._write(_CLEAR_LINE + self._prompt + shown + (f"\x1b[{back}D" if back > 0 else ""))

    @staticmethod
    def _write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
