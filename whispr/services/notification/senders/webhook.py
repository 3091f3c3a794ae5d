"""Webhooks: signed JSON to a URL of the user's choice.

    POST <url>
    Whispr-Delivery: <id of the delivery; the same when it is tried again>
    Whispr-Signature: t=<Unix seconds>,v1=<hex HMAC-SHA256 of "<t>.<body>" under the device's secret>

A receiver checks the signature, and that `t` is recent, so that nothing can be replayed to it. 2xx is taken, 410
removes the webhook. Redirects are not followed: the address that was checked is the one that is called.
"""

from __future__ import annotations

import hashlib
import hmac
import time
from collections.abc import Callable

from whispr.services.notification.senders.http import ForbiddenError, Http, UnreachableError
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

SIGNATURE = "whispr-signature"
DELIVERY = "whispr-delivery"


def signature_of(secret: str, at_s: int, body: bytes) -> str:
    """Sign a body as of a time in Unix seconds."""
    digest = hmac.new(secret.encode(), b"%d." % at_s + body, hashlib.sha256).hexdigest()
    return f"t={at_s},v1={digest}"


class Webhook:
    """Sends to URLs."""

    def __init__(self, http: Http, *, wall_clock: Callable[[], float] = time.time) -> None:
        self._http = http
        self._clock = wall_clock

    async def send(self, target: Target, push: Push, delivery_id: str, ttl_s: float) -> Outcome:
        """Send once."""
        del ttl_s
        body = payload_of(push)
        headers = [
            ("content-type", "application/json"),
            ("user-agent", "Whispr"),
            (DELIVERY, delivery_id),
            (SIGNATURE, signature_of(target.secret, int(self._clock()), body)),
        ]
        try:
            answer = await self._http.request("POST", target.token, headers, body)
        except UnreachableError as error:
            return Later(str(error), error.after_s)
        except ForbiddenError as error:
            return Refused(str(error))
        if 200 <= answer.status < 300:
            return Delivered()
        if answer.status == 410:
            return Gone("the webhook has ended (410)")
        if answer.status in (408, 425, 429) or answer.status >= 500:
            return Later(f"the webhook answered {answer.status}", answer.retry_after_s)
        return Refused(f"the webhook answered {answer.status}")
