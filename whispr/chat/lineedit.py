"""A one-line editor: keys in, edits and finished lines out. Pure: no terminal, no I/O.

Understands what a chat line needs: UTF-8, backspace, arrows, Home/End, Ctrl-A/E/U/W/K, Enter, Ctrl-D on an
empty line. Other control keys and escape sequences (ECMA-48 CSI) are skipped.
"""

from __future__ import annotations

import codecs
from dataclasses import dataclass

LINE_LEN_MAX = 4000
"""Characters a line holds; further keys are ignored until some are removed."""

_ENTER, _END_OF_INPUT, _ESCAPE = "\r\n", "\x04", "\x1b"


@dataclass(frozen=True)
class Line:
    """The person pressed Enter on this text."""

    text: str


class Edited:
    """The text changed, or the cursor moved."""


class EndOfInput:
    """The person is done: Ctrl-D on an empty line."""


Event = Line | Edited | EndOfInput


class LineEditor:
    """The text being typed and where the cursor is in it."""

    def __init__(self) -> None:
        self.text = ""
        self.cursor = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._escape = ""

    def feed(self, data: bytes) -> list[Event]:
        """Take what the terminal sent; return what came of it, in order."""
        events = [self._key(key) for key in self._decoder.decode(data)]
        return [event for event in events if event is not None]

    def view(self, columns: int) -> tuple[str, int]:
        """Return the part of the text that fits `columns` around the cursor, and the cursor's place in it."""
        columns = max(1, columns)
        start = max(0, self.cursor - columns + 1)
        return self.text[start : start + columns], self.cursor - start

    def _key(self, key: str) -> Event | None:
        if self._escape:
            return self._in_escape(key)
        if key == _ESCAPE:
            self._escape = key
            return None
        if key in _ENTER:
            line = Line(self.text)
            self.text, self.cursor = "", 0
            return line
        if key == _END_OF_INPUT:
            return None if self.text else EndOfInput()
        before = (self.text, self.cursor)
        self._edit(key)
        return Edited() if before != (self.text, self.cursor) else None

    def _in_escape(self, key: str) -> Event | None:
        """Collect an escape sequence; act on the few that move the cursor."""
        self._escape += key
        introducer = len(self._escape) == 2 and key in "[O"
        if introducer or (self._escape[1] in "[O" and not "@" <= key <= "~"):
            return None
        sequence, self._escape = self._escape[2:], ""
        before = self.cursor
        if sequence == "C":
            self.cursor = min(len(self.text), self.cursor + 1)
        elif sequence == "D":
            self.cursor = max(0, self.cursor - 1)
        elif sequence in ("H", "1~"):
            self.cursor = 0
        elif sequence in ("F", "4~"):
            self.cursor = len(self.text)
        return Edited() if self.cursor != before else None

    def _edit(self, key: str) -> None:
        left, right = self.text[: self.cursor], self.text[self.cursor :]
        if key in "\x7f\b":
            left = left[:-1]
        elif key == "\x15":
            left = ""
        elif key == "\x17":
            kept = left.rstrip()
            left = kept[: kept.rfind(" ") + 1]
        elif key == "\x0b":
            right = ""
        elif key == "\x01":
            self.cursor = 0
            return
        elif key == "\x05":
            self.cursor = len(self.text)
            return
        elif key.isprintable() and len(self.text) < LINE_LEN_MAX:
            left += key
        self.text, self.cursor = left + right, len(left)
