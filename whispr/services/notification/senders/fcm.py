"""Firebase Cloud Messaging, HTTP v1 (https://firebase.google.com/docs/reference/fcm/rest/v1/projects.messages).

Access tokens come from the service account's own key by the JWT bearer grant (RFC 7523), are kept until they are
about to expire, and are fetched anew when FCM does not take one any more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import jwt
import msgspec
import trio

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

FCM_URL = "https://fcm.googleapis.com"
SCOPE = "https://www.googleapis.com/auth/firebase.messaging"
GRANT = "urn:ietf:params:oauth:grant-type:jwt-bearer"
ASSERTION_S = 3600
RENEW_S = 60
"""A token with less than this to live is replaced."""
COLLAPSE_BYTES_MAX = 64


class Account(msgspec.Struct, frozen=True):
    """A service account, as the file from the Firebase console describes it."""

    project_id: str
    client_email: str
    private_key: str
    token_uri: str
    private_key_id: str = ""


def read_account(path: Path) -> Account:
    """Read a service account's file. Raises FAILED_PRECONDITION."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Account)
    except (OSError, msgspec.MsgspecError) as error:
        raise conflict(f"{path} is no service account of Firebase: {error}", "keys_unusable") from error


class _TokenRefusedError(Exception):
    """The token endpoint does not give us a token; waiting does not help."""


class Fcm:
    """Sends through FCM."""

    def __init__(
        self, http: Http, account: Account, *, url: str = FCM_URL, wall_clock: Callable[[], float] = time.time
    ) -> None:
        self._http = http
        self._account = account
        self._url = f"{url.rstrip('/')}/v1/projects/{account.project_id}/messages:send"
        self._clock = wall_clock
        self._token, self._expires_at = "", 0.0
        self._fetching = trio.Lock()

    async def send(self, target: Target, push: Push, delivery_id: str, ttl_s: float) -> Outcome:
        """Send once; a second time when the access token has gone stale."""
        del delivery_id
        body = msgspec.json.encode({"message": message_of(target.token, push, ttl_s)})
        try:
            token = await self._access_token()
            answer = await self._post(token, body)
            if answer.status == 401:
                answer = await self._post(await self._access_token(instead_of=token), body)
        except UnreachableError as error:
            return Later(str(error), error.after_s)
        except (ForbiddenError, _TokenRefusedError) as error:
            return Later(f"no access token for FCM: {error}")
        return _outcome(answer)

    async def _post(self, token: str, body: bytes) -> Answer:
        headers = [("content-type", "application/json"), ("authorization", f"Bearer {token}")]
        return await self._http.request("POST", self._url, headers, body)

    async def _access_token(self, *, instead_of: str = "") -> str:
        """Return a token, fetched once for all who wait. Raises UnreachableError, _TokenRefusedError."""
        async with self._fetching:
            stale = self._expires_at - self._clock() < RENEW_S or self._token == instead_of
            if not self._token or stale:
                await self._fetch()
            return self._token

    async def _fetch(self) -> None:
        now = int(self._clock())
        claims = {
            "iss": self._account.client_email,
            "scope": SCOPE,
            "aud": self._account.token_uri,
            "iat": now,
            "exp": now + ASSERTION_S,
        }
        headers = {"kid": self._account.private_key_id} if self._account.private_key_id else None
        assertion = jwt.encode(claims, self._account.private_key, algorithm="RS256", headers=headers)
        form = urlencode({"grant_type": GRANT, "assertion": assertion}).encode()
        kind = [("content-type", "application/x-www-form-urlencoded")]
        answer = await self._http.request("POST", self._account.token_uri, kind, form)
        if answer.status == 429 or answer.status >= 500:
            raise UnreachableError(f"the token endpoint answered {answer.status}")
        granted = _json(answer)
        if answer.status != 200 or not isinstance(granted.get("access_token"), str):
            raise _TokenRefusedError(f"{answer.status} {granted.get('error', '')}".strip())
        self._token = granted["access_token"]
        self._expires_at = self._clock() + float(granted.get("expires_in") or ASSERTION_S)


def message_of(token: str, push: Push, ttl_s: float) -> dict[str, Any]:
    """Build the `message` of a push. A silent one carries data alone, which the app handles unseen."""
    loud = push.priority >= Priority.HIGH and not push.silent
    android: dict[str, Any] = {"priority": "HIGH" if loud else "NORMAL", "ttl": f"{int(ttl_s)}s"}
    message: dict[str, Any] = {"token": token, "data": strings_of(push), "android": android}
    if push.collapse_key:
        android["collapse_key"] = push.collapse_key[:COLLAPSE_BYTES_MAX]
    if not push.silent:
        message["notification"] = {"title": push.title, "body": push.body}
        if push.collapse_key:
            # The same tag on the device: a later notification takes the place of the one shown.
            android["notification"] = {"tag": push.collapse_key, "notification_count": push.badge}
    return message


def _outcome(answer: Answer) -> Outcome:
    """Read FCM's answer (https://firebase.google.com/docs/reference/fcm/rest/v1/ErrorCode)."""
    if answer.status == 200:
        return Delivered()
    error = _json(answer).get("error")
    error = error if isinstance(error, dict) else {}
    details = [each for each in error.get("details") or () if isinstance(each, dict)]
    code = next((each["errorCode"] for each in details if "errorCode" in each), error.get("status", ""))
    said = f"FCM answered {answer.status} {code}".strip()
    if code == "UNREGISTERED" or answer.status == 404 or code == "SENDER_ID_MISMATCH":
        return Gone(said)
    if code == "INVALID_ARGUMENT" and _blames_token(details):
        return Gone(said)
    if answer.status in (401, 429) or answer.status >= 500:
        return Later(said, answer.retry_after_s)
    return Refused(said)


def _blames_token(details: list[dict[str, Any]]) -> bool:
    violations = (each.get("fieldViolations") for each in details)
    return any(
        isinstance(violation, dict) and violation.get("field") == "message.token"
        for found in violations
        if isinstance(found, list)
        for violation in found
    )


def _json(answer: Answer) -> dict[str, Any]:
    try:
        found = msgspec.json.decode(answer.body)
    except msgspec.DecodeError:
        return {}
    return found if isinstance(found, dict) else {}
