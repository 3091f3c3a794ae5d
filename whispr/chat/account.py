"""The REST half of the terminal client: signing up or in, finding people, opening conversations.

Calls run in a worker thread, because the standard library's HTTP client blocks; each is bounded by
`CALL_S`, so an abandoned one ends by itself.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote

import trio
from google.rpc.error_details_pb2 import ErrorInfo

from whispr.errors import DOMAIN, Code, WhisprError, unavailable

CALL_S = 10.0


@dataclass(frozen=True)
class Person:
    """Somebody with an account."""

    id: str
    username: str
    display_name: str

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Person:
        """Read a `UserInfo` or `Profile` in JSON."""
        return cls(data["id"], data["username"], data.get("display_name") or data["username"])


class Account:
    """A signed-in person at a gateway."""

    def __init__(self, base_url: str, signed_in: Mapping[str, Any]) -> None:
        self.base_url = base_url
        self._refreshing = trio.Lock()
        self._accept(signed_in)

    def _accept(self, signed_in: Mapping[str, Any]) -> None:
        self.me = Person.of(signed_in["user"])
        self.access_token: str = signed_in["access_token"]
        self._refresh_token: str = signed_in["refresh_token"]

    async def refresh(self) -> None:
        """Exchange the refresh token for new tokens. Raises WhisprError UNAUTHENTICATED when signed out."""
        spent = self._refresh_token
        async with self._refreshing:  # one that is shown twice ends the session
            if self._refresh_token == spent:
                body = {"refresh_token": spent}
                self._accept(await call(self.base_url, "POST", "/v1/auth/refresh", body))

    async def new_token(self) -> str:
        """Return a new access token. Raises as `refresh`."""
        await self.refresh()
        return self.access_token

    async def find(self, username: str) -> Person | None:
        """Look a person up by username, compared without case."""
        found = await self._call("GET", f"/v1/users?query={quote(username)}&page_size=10")
        people = [Person.of(user) for user in found["users"]]
        return next((p for p in people if p.username.lower() == username.lower()), None)

    async def direct(self, person_id: str) -> str:
        """Return the id of the one direct conversation with a person, opening it if there is none."""
        body = {"kind": "direct", "member_ids": [person_id]}
        return str((await self._call("POST", "/v1/conversations", body))["conversation"]["id"])

    async def conversations(self) -> list[dict[str, Any]]:
        """The person's conversations, the most recently active first."""
        return list((await self._call("GET", "/v1/conversations"))["conversations"])

    async def _call(self, method: str, path: str, body: object = None) -> Any:
        """Call as this person, refreshing an expired token once."""
        try:
            return await call(self.base_url, method, path, body, self.access_token)
        except WhisprError as error:
            if error.code is not Code.UNAUTHENTICATED:
                raise
        await self.refresh()
        return await call(self.base_url, method, path, body, self.access_token)


async def sign_in(base_url: str, username: str, password: str, device: str) -> tuple[Account, bool]:
    """Sign in, or sign up when the name is new; return the account and whether it is new.

    Raises WhisprError: UNAUTHENTICATED for a wrong password, INVALID_ARGUMENT for a name or password that
    cannot be used.
    """
    body = {"username": username, "password": password}
    try:
        return Account(
            base_url, await call(base_url, "POST", "/v1/auth/login", body | {"device": device})
        ), False
    except WhisprError as error:
        if error.code is not Code.UNAUTHENTICATED:
            raise
        refused = error
    try:
        return Account(base_url, await call(base_url, "POST", "/v1/auth/register", body)), True
    except WhisprError as taken:
        if taken.code is Code.ALREADY_EXISTS:
            raise refused from None
        raise


async def call(base_url: str, method: str, path: str, body: object = None, token: str = "") -> Any:
    """Make one REST call. Raises WhisprError as the server sent it, UNAVAILABLE when it cannot be reached."""
    request = urllib.request.Request(base_url + path, method=method)  # noqa: S310 - the scheme is checked below
    if request.type not in ("http", "https"):
        raise WhisprError(Code.INVALID_ARGUMENT, f"not an HTTP address: {base_url}")
    if body is not None:
        request.data = json.dumps(body).encode()
        request.add_header("Content-Type", "application/json")
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    return await trio.to_thread.run_sync(partial(_send, request), abandon_on_cancel=True)


def _send(request: urllib.request.Request) -> Any:
    try:
        with urllib.request.urlopen(request, timeout=CALL_S) as response:  # noqa: S310 - as above
            return json.load(response)
    except urllib.error.HTTPError as refused:
        with refused:
            raise _error_of(refused.code, refused.read()) from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise unavailable(f"cannot reach {request.host}: {reason}") from error


def _error_of(status: int, content: bytes) -> WhisprError:
    """Read the gateway's error form; anything else (a proxy's page, say) is UNAVAILABLE."""
    try:
        data = json.loads(content)
        reasons = [ErrorInfo(reason=d["reason"], domain=DOMAIN) for d in data["details"] if "reason" in d]
        return WhisprError(Code(data["code"]), data["message"], reasons)
    except (ValueError, KeyError, TypeError):
        return unavailable(f"the server answered HTTP {status}")
