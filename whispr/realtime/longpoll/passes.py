"""What proves to any process of a deployment that a session's token was given out by one of them.

A token is shown to whichever process the client's connection leads to, and one that names another process costs a
message on the bus. So its signature is under a key that all processes share, and what does not verify is answered
here. How they come to share it is their affair (`whispr.polling`); until a process has learnt of it, it signs with a
key of its own and passes on what it cannot judge.
"""

from __future__ import annotations

import hmac
import secrets
from base64 import urlsafe_b64encode
from hashlib import sha256

KEY_BYTES = 32
_SIGNATURE_BYTES = 18


class Passes:
    """Signs and checks tokens of one process."""

    def __init__(self) -> None:
        self._own = secrets.token_bytes(KEY_BYTES)
        self._shared: tuple[bytes, ...] = ()
        """The key in force, then the one before it."""

    @property
    def key(self) -> bytes:
        """What this process signs with."""
        return self._shared[0] if self._shared else self._own

    def share(self, key: bytes) -> None:
        """Sign with a key that all processes know; tokens under the one before it are still good."""
        if key not in self._shared[:1]:
            self._shared = (key, *self._shared[:1])

    def sign(self, text: str) -> str:
        """Return the text with its signature."""
        return f"{text}.{_signature(self.key, text)}"

    def may_be_ours(self, token: str) -> bool:
        """Tell whether some process has signed the token, as far as that can be told here."""
        text, _, signature = token.rpartition(".")
        keys = (*self._shared, self._own)
        good = any(hmac.compare_digest(_signature(key, text), signature) for key in keys)
        return good or not self._shared


def _signature(key: bytes, text: str) -> str:
    return urlsafe_b64encode(hmac.digest(key, text.encode(), sha256)[:_SIGNATURE_BYTES]).decode()
