"""Titles within a stream, as SHOUTcast and Icecast put them for players that ask by `Icy-MetaData: 1`. Pure.

After every `icy-metaint` bytes of sound comes a byte that says how many 16 bytes of metadata follow, mostly 0.
"""

from __future__ import annotations

from typing import Final

INTERVAL: Final = 16_000
"""Bytes of sound between two metadata blocks, as Icecast has it."""

_BLOCK = 16
_BLOCKS_MAX = 255


class TitleWeaver:
    """What one listener is sent: sound, with a title in it whenever that has changed."""

    def __init__(self, interval: int = INTERVAL) -> None:
        self._interval = interval
        self._left = interval
        self._said: str | None = None

    def weave(self, sound: bytes, title: str) -> bytes:
        """Return the sound with metadata blocks where they are due."""
        if len(sound) < self._left:
            self._left -= len(sound)
            return sound
        pieces: list[bytes] = []
        at = 0
        while len(sound) - at >= self._left:
            pieces += [sound[at : at + self._left], self._block(title)]
            at += self._left
            self._left = self._interval
        pieces.append(sound[at:])
        self._left -= len(sound) - at
        return b"".join(pieces)

    def _block(self, title: str) -> bytes:
        if title == self._said:
            return b"\0"
        self._said = title
        return title_block(title)


def title_block(title: str) -> bytes:
    """Return a metadata block of a title, which is cut if it is too long for one."""
    # There is no way to escape: players look for the first "';".
    plain = title.replace("'", "\u2019").replace("\0", "").replace(";", ",")
    room = _BLOCKS_MAX * _BLOCK - len(b"StreamTitle='';")
    text = b"StreamTitle='%b';" % plain.encode()[:room].decode(errors="ignore").encode()
    blocks = -(-len(text) // _BLOCK)
    return bytes([blocks]) + text.ljust(blocks * _BLOCK, b"\0")
