"""Requests that are not served, and why. Pure."""

from __future__ import annotations

from collections.abc import Callable
from http import HTTPStatus

Rendered = tuple[bytes, bytes]
"""A content type and a body."""


class Refusal(Exception):  # noqa: N818 - an answer, not a defect
    """A request that the server answers itself; the connection is closed after it.

    `reason` is for counters and programs, `message` for people: it quotes nothing that the client sent.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.status} {self.reason}: {self.message}"


Renderer = Callable[[Refusal], Rendered]
"""Puts a refusal into words for the client."""


def plain(refusal: Refusal) -> Rendered:
    """Render as a line of text."""
    phrase = HTTPStatus(refusal.status).phrase
    return b"text/plain; charset=utf-8", f"{phrase}: {refusal.message}\n".encode()


def bad_request(reason: str, message: str) -> Refusal:
    """400: what came is not HTTP, or could be read in two ways (RFC 9112, section 11)."""
    return Refusal(400, reason, message)
