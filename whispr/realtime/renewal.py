"""How a socket outlives its access token: the client hands in a new one, in band.

    server → client   token_expiring {expires_at, expires_in_s}    on every joined channel, `Limits.renew_s` before
    client → server   refresh_token {token}                        on any joined channel, or on the topic `phoenix`
    server → client   ok {expires_at}, or an error: unauthorized, token_expired, session_revoked, forbidden
    server → client   token_expired {reason}, then close 1008      when nothing came in time

With phoenix.js: `channel.on("token_expiring", async () => channel.push("refresh_token", {token: await fresh()}))`.
`access_token {access_token}` says the same, for clients that know it by that name (Supabase's).

The new token is verified as the first one was, revocations included, and must be the same user's. From then on its
session is the socket's, the one whose end closes the socket. A token that expires sooner than the one in use changes
nothing. What the user may do on a channel is not in the token; the channel's service decides on it.
"""

from __future__ import annotations

from datetime import UTC, datetime

from whispr.errors import invalid

RENEWALS = {"refresh_token": "token", "access_token": "access_token"}
"""Event → the field of its payload that holds the token."""


def token_in(event: str, payload: object) -> str:
    """Return the token that a renewal carries. Raises INVALID_ARGUMENT."""
    name = RENEWALS[event]
    token = payload.get(name) if isinstance(payload, dict) else None
    if not isinstance(token, str) or not token:
        raise invalid({name: "a new access token is needed"})
    return token


def moment(unix_s: float) -> str:
    """Word a time as RFC 3339."""
    return datetime.fromtimestamp(unix_s, UTC).isoformat().replace("+00:00", "Z")


def expiring(expires_at: float, now_s: float) -> dict[str, object]:
    """Build the payload of `token_expiring`."""
    return {"expires_at": moment(expires_at), "expires_in_s": max(0, round(expires_at - now_s))}
