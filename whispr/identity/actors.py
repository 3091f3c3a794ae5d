"""Who a call is made for, and where that is told: in metadata, and on the call once it has been authorised."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

from whispr.errors import denied, unauthenticated
from whispr.rpc.call import Call, Metadata, current_call
from whispr.tokens import Claims

ACTOR_KEY = "x-whispr-actor"
"""Metadata in which a service names the person it acts for."""

CLIENT_ADDRESS_KEY = "x-whispr-client-address"
"""Metadata in which the gateway names the address of its client; believed beside a service's token only."""

VOUCHER_KEY = "x-whispr-voucher"
"""Metadata with the service token that vouches for `x-whispr-client-address`. It is not `authorization`,
where the client's own token travels."""

STATE = "actor"
"""Where a call's state holds its Actor."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who a call is made for."""

    user_id: str
    """The person; empty when a service acts for nobody."""
    claims: Claims

    @property
    def person(self) -> str:
        """The person, of a call that must be made for one. Raises PERMISSION_DENIED."""
        if not self.user_id:
            raise denied("a service says for whom it acts, in x-whispr-actor")
        return self.user_id

    @property
    def is_service(self) -> bool:
        """Whether a service makes the call, possibly for a person."""
        return self.claims.is_service


def bearer_of(metadata: Metadata) -> str:
    """Return the token in `authorization: Bearer …`. Raises UNAUTHENTICATED when there is not exactly one."""
    values = metadata.get_all("authorization")
    if not values:
        raise unauthenticated("no access token: send `authorization: Bearer <token>`")
    if len(values) > 1 or not isinstance(values[0], str):
        raise unauthenticated("more than one authorization")
    scheme, _, token = values[0].partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise unauthenticated("the authorization is not `Bearer <token>`")
    return token.strip()


def actor_of(claims: Claims, named: str | None) -> Actor:
    """Return who a call is made for. A service may name a person; a person may name nobody else.

    Raises PERMISSION_DENIED (actor_mismatch).
    """
    if claims.is_service:
        return Actor(named or "", claims)
    if named and named != claims.user_id:
        raise denied("a person acts for nobody else", reason="actor_mismatch")
    return Actor(claims.user_id, claims)


def current_actor() -> Actor:
    """Return who the call in progress is made for. Raises UNAUTHENTICATED in a method that anybody may call."""
    actor: Actor | None = current_call().state.get(STATE)
    if actor is None:
        raise unauthenticated("this call has not been authenticated")
    return actor


def actor_on(call: Call) -> Actor | None:
    """Return who a call is made for, once it has been authorised; None in a method that anybody may call."""
    actor: Actor | None = call.state.get(STATE)
    return actor


def host_of(peer: str) -> str:
    """`tcp:127.0.0.1:50312` and `tcp:[::1]:50312` → the address; anything else (a Unix socket) as it is."""
    host = peer.removeprefix("tcp:").rpartition(":")[0].strip("[]")
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return peer
