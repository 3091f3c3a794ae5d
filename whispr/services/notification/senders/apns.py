"""Apple Push Notification service over HTTP/2, with provider tokens.

https://developer.apple.com/documentation/usernotifications/sending-notification-requests-to-apns
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
import msgspec

from whispr.errors import conflict
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
    strings_of,
)

APNS_URL = "https://api.push.apple.com"
TOKEN_S = 40 * 60
"""Age at which a provider token is replaced: Apple wants it neither under 20 min nor over 60 min old."""
COLLAPSE_BYTES_MAX = 64

_GONE = frozenset({"BadDeviceToken", "DeviceTokenNotForTopic", "Unregistered", "ExpiredToken"})
_STALE = frozenset({"ExpiredProviderToken", "InvalidProviderToken"})


@dataclass(frozen=True, slots=True)
class Team:
    """Whose pushes they are: the developer's key, and the app's bundle id."""

    key: str
    """The .p8 file's content: a P-256 key in PEM."""
    key_id: str
    team_id: str
    topic: str


def read_key(path: Path) -> str:
    """Read a .p8 file. Raises FAILED_PRECONDITION."""
    try:
        key = path.read_text()
        jwt.encode({}, key, algorithm="ES256")
    except (OSError, ValueError, TypeError, jwt.PyJWTError) as error:
        raise conflict(f"{path} is no key of APNs: {error}", "keys_unusable") from error
    return key


class Apns:
    """Sends through APNs; the Http must speak HTTP/2."""

    def __init__(
        self, http: Http, team: Team, *, url: str = APNS_URL, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._http = http
        self._team = team
        self._url = url.rstrip("/")
        self._clock = wall_clock
        self._token, self._made_at = "", 0.0

    async def send(self, target: Target, push: Push, delivery_id: str, ttl_s: float) -> Outcome:
        """Send once; a second time when the provider token has gone stale."""
        expires_at = int(self._clock() + ttl_s)
        body = msgspec.json.encode(payload_of(push))
        try:
            token = self._provider_token()
            answer = await self._post(target, push, delivery_id, expires_at, token, body)
            if answer.status == 403 and _reason(answer) in _STALE:
                token = self._provider_token(instead_of=token)
                answer = await self._post(target, push, delivery_id, expires_at, token, body)
        except UnreachableError as error:
            return Later(str(error), error.after_s)
        except ForbiddenError as error:
            return Refused(str(error))
        return _outcome(answer)

    async def _post(
        self, target: Target, push: Push, delivery_id: str, expires_at: int, token: str, body: bytes
    ) -> Answer:
        headers = [
            ("authorization", f"bearer {token}"),
            ("apns-id", delivery_id),
            ("apns-topic", self._team.topic),
            ("apns-push-type", "background" if push.silent else "alert"),
            ("apns-priority", priority_of(push)),
            ("apns-expiration", str(expires_at)),
        ]
        if push.collapse_key:
            headers.append(("apns-collapse-id", push.collapse_key[:COLLAPSE_BYTES_MAX]))
        return await self._http.request("POST", f"{self._url}/3/device/{target.token}", headers, body)

    def _provider_token(self, *, instead_of: str = "") -> str:
        now = self._clock()
        if not self._token or now - self._made_at > TOKEN_S or self._token == instead_of:
            self._made_at = now
            claims = {"iss": self._team.team_id, "iat": int(now)}
            self._token = jwt.encode(
                claims, self._team.key, algorithm="ES256", headers={"kid": self._team.key_id}
            )
        return self._token


def priority_of(push: Push) -> str:
    """Return `apns-priority`: 10 at once, 5 sparing the battery, which background pushes must be, 1 sparing more."""
    if push.silent or push.priority is Priority.NORMAL:
        return "5"
    return "1" if push.priority is Priority.LOW else "10"


def payload_of(push: Push) -> dict[str, Any]:
    """Build the payload: `aps` for the system, the rest for the app."""
    aps: dict[str, Any] = {"badge": push.badge}
    if push.silent:
        aps["content-available"] = 1
    else:
        aps |= {"alert": {"title": push.title, "body": push.body}, "sound": "default"}
        aps["thread-id"] = push.collapse_key or push.type
        aps["interruption-level"] = _INTERRUPTION[push.priority]
    return {**strings_of(push), "aps": aps}


_INTERRUPTION = {
    Priority.LOW: "passive",
    Priority.NORMAL: "active",
    Priority.HIGH: "active",
    Priority.URGENT: "time-sensitive",
}


def _outcome(answer: Answer) -> Outcome:
    """Read the answer.

    https://developer.apple.com/documentation/usernotifications/handling-notification-responses-from-apns
    """
    if answer.status == 200:
        return Delivered()
    reason = _reason(answer)
    said = f"APNs answered {answer.status} {reason}".strip()
    if answer.status == 410 or reason in _GONE:
        return Gone(said)
    if (
        answer.status == 429
        or answer.status >= 500
        or reason in _STALE
        or reason == "TooManyProviderTokenUpdates"
    ):
        return Later(said, answer.retry_after_s)
    return Refused(said)


def _reason(answer: Answer) -> str:
    try:
        found = msgspec.json.decode(answer.body)
    except msgspec.DecodeError:
        return ""
    return str(found.get("reason", "")) if isinstance(found, dict) else ""
