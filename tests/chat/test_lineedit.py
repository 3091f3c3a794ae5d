"""The line editor of the terminal client."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whispr.chat.lineedit import LINE_LEN_MAX, Edited, EndOfInput, Line, LineEditor


def lines(editor: LineEditor, data: bytes) -> list[str]:
    return [event.text for event in editor.feed(data) if isinstance(event, Line)]


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        (b"hello\r", "hello"),
        (b"helo\x1b[Dl\r", "hello"),
        (b"hello\x7f\x7fp\r", "help"),
        (b"one two\x17three\r", "one three"),
        (b"abc\x01X\x05Y\r", "XabcY"),
        (b"gone\x15kept\r", "kept"),
        (b"abc\x1b[H\x0b\r", ""),
        (b"a\x1b[31;5~b\x1bOPc\r", "abc"),
        ("żółw 🐢\r".encode(), "żółw 🐢"),
        (b"a\x00\x02\x07b\r", "ab"),
    ],
)
def test_keys_make_the_line_a_person_expects(keys: bytes, line: str) -> None:
    """Editing keys edit; keys that mean nothing here leave no trace in the line."""
    assert lines(LineEditor(), keys) == [line]


@given(st.text(st.characters(categories=["L", "N", "P", "S"]), max_size=50), st.integers(1, 7))
def test_bytes_may_be_split_anywhere(text: str, size: int) -> None:
    """However the terminal cuts its bytes, also inside a character, the line is the same."""
    data = text.encode() + b"\r"
    editor = LineEditor()
    got = [line for i in range(0, len(data), size) for line in lines(editor, data[i : i + size])]
    assert got == [text]


def test_end_of_input_only_on_an_empty_line() -> None:
    """Ctrl-D leaves, unless that would lose what is being typed."""
    editor = LineEditor()
    assert [type(event) for event in editor.feed(b"a\x04")] == [Edited]
    assert [type(event) for event in editor.feed(b"\x7f\x04")] == [Edited, EndOfInput]


def test_a_line_is_bounded() -> None:
    """Keys past the longest line are ignored."""
    editor = LineEditor()
    assert len(lines(editor, b"x" * (LINE_LEN_MAX + 10) + b"\r")[0]) == LINE_LEN_MAX


@given(st.text(max_size=200), st.integers(0, 200), st.integers(1, 80))
def test_the_view_always_shows_the_cursor(text: str, back: int, columns: int) -> None:
    """What is shown fits the width and contains the cursor."""
    editor = LineEditor()
    editor.feed(text.encode("utf-8", "replace"))
    editor.feed(b"\x1b[D" * back)
    shown, cursor = editor.view(columns)
    assert len(shown) <= columns
    assert 0 <= cursor <= max(len(shown), columns - 1)
