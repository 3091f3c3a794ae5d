"""Web Push: RFC 8030, encrypted for the browser (RFC 8291) and signed for its push service (RFC 8292)."""

from __future__ import annotations

import hashlib

import http_ece
from cryptography.hazmat.primitives.asymmetric import ec

from whispr.services.notification.domain import Priority
from whispr.services.notification.senders.http import Answer, ForbiddenError, Http, UnreachableError
from whispr.services.notification.senders.port import (
    Delivered,
    Gone,
    Later,
    Outcome,
    Push,
    Refused,
    Target,
    payload_of,
)
from whispr.services.notification.senders.vapid import Vapid, b64url

P256DH_BYTES = 65
AUTH_BYTES = 16
RECORD_BYTES = 4096
"""Push services take at least this much (RFC 8030, section 7.2); a payload is one record."""

_URGENCY = {
    Priority.LOW: "low",
    Priority.NORMAL: "normal",
    Priority.HIGH: "high",
    Priority.URGENT: "high",
}


def encrypt(
    plaintext: bytes,
    p256dh: bytes,
    auth: bytes,
    *,
    key: ec.EllipticCurvePrivateKey | None = None,
    salt: bytes | None = None,
) -> bytes:
    """Encrypt for a subscription with `aes128gcm` (RFC 8291, section 3). Key and salt are fresh unless given."""
    sealed: bytes = http_ece.encrypt(
        plaintext,
        salt=salt,
        private_key=key or ec.generate_private_key(ec.SECP256R1()),
        dh=p256dh,
        auth_secret=auth,
        rs=RECORD_BYTES,
        version="aes128gcm",
    )
    return sealed


def topic_of(collapse_key: str) -> str:
    """Return a `Topic` (at most 32 URL-safe characters, RFC 8030, section 5.4) that tells nothing of the key."""
    return b64url(hashlib.sha256(collapse_key.encode()).digest())[:32]


class WebPush:
    """Sends to browsers."""

    def __init__(self, http: Http, vapid: Vapid) -> None:
        self._http = http
        self._vapid = vapid

    async def send(self, target: Target, push: Push, delivery_id: str, ttl_s: float) -> Outcome:
        """Send once."""
        del delivery_id
        headers = [
            ("content-type", "application/octet-stream"),
            ("content-encoding", "aes128gcm"),
            ("ttl", str(int(ttl_s))),
            ("urgency", _URGENCY[push.priority]),
            ("authorization", self._vapid.authorization(target.token)),
        ]
        if push.collapse_key:
            headers.append(("topic", topic_of(push.collapse_key)))
        sealed = encrypt(payload_of(push), target.p256dh, target.auth)
        try:
            answer = await self._http.request("POST", target.token, headers, sealed)
        except UnreachableError as error:
            return Later(str(error), error.after_s)
        except ForbiddenError as error:
            return Refused(str(error))
        return _outcome(answer)


def _outcome(answer: Answer) -> Outcome:
    """Read the answer of a push service (RFC 8030, sections 5 and 7.3)."""
    if answer.status in (200, 201, 202):
        return Delivered()
    if answer.status in (404, 410):
        return Gone(f"the subscription has ended ({answer.status})")
    if answer.status == 429 or answer.status >= 500:
        return Later(f"the push service answered {answer.status}", answer.retry_after_s)
    return Refused(f"the push service answered {answer.status}")
