"""What only administrators may do: people with the role, and service tokens with the permission `auth:admin`."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

import structlog
from google.protobuf.timestamp_pb2 import Timestamp

from whispr.errors import denied, invalid
from whispr.identity import Actor
from whispr.services.auth.domain import Account
from whispr.services.auth.keys import SERVICE_TOKEN_LIFETIME_S
from whispr.tokens import ADMINISTER, ROLE_PERMISSIONS, USER_SERVICES, permits, service_claims
from whispr.v1 import auth_pb2

if TYPE_CHECKING:
    from whispr.services.auth.service import AuthService

SERVICE_TOKEN_LIFETIME_MAX_S = 30 * 24 * 3600
PERMISSIONS_MAX = 64

_SERVICE_NAME = re.compile(r"[a-z][a-z0-9-]{0,62}")
_PERMISSION = re.compile(r"(\*|[a-z][a-z0-9_]{0,62}):(\*|[a-z][a-z0-9_]{0,62})")

log = structlog.get_logger("whispr.auth")


def administers(actor: Actor) -> bool:
    """Whether a call is an administrator's."""
    return actor.claims.allows(ADMINISTER)


def check_administers(actor: Actor) -> None:
    """Raise PERMISSION_DENIED unless a call is an administrator's."""
    if not administers(actor):
        raise denied("only an administrator may do this")


async def set_role(auth: AuthService, actor: Actor, user_id: str, role: str) -> Account:
    """Give an account a role. Raises as the proto says."""
    check_administers(actor)
    if role not in ROLE_PERMISSIONS:
        raise invalid({"role": f"must be one of {', '.join(ROLE_PERMISSIONS)}"})
    _check_not_beyond(actor, ROLE_PERMISSIONS[role])
    changed = await auth.accounts.set_role(user_id, role, _by(actor))
    await auth.tell_ended(changed, "role_changed")
    return changed.account


async def deactivate(auth: AuthService, actor: Actor, user_id: str, reason: str) -> Account:
    """Close an account. Raises as the proto says."""
    check_administers(actor)
    changed = await auth.accounts.close(user_id, reason, _by(actor))
    await auth.tell_ended(changed, "account_inactive")
    return changed.account


async def reactivate(auth: AuthService, actor: Actor, user_id: str) -> Account:
    """Open a closed account. Raises as the proto says."""
    check_administers(actor)
    return (await auth.accounts.reopen(user_id, _by(actor))).account


async def delete(auth: AuthService, actor: Actor, user_id: str) -> None:
    """Delete an account, on a request that its owner made otherwise. Raises as the proto says."""
    check_administers(actor)
    await auth.delete_account(user_id, _by(actor))


async def issue_service_token(
    auth: AuthService, actor: Actor, request: auth_pb2.IssueServiceTokenRequest
) -> auth_pb2.IssueServiceTokenResponse:
    """Sign a token for a service. Raises as the proto says."""
    check_administers(actor)
    _check(request)
    _check_not_beyond(actor, request.permissions)
    if missing := [
        each for each in request.services if not actor.claims.grants_service(each) and not _everything(actor)
    ]:
        raise denied(f"nobody grants the services {', '.join(missing)} without having them")
    claims = service_claims(
        request.service,
        now=auth.now(),
        lifetime_s=request.lifetime_seconds or SERVICE_TOKEN_LIFETIME_S,
        services=request.services,
        permissions=request.permissions,
    )
    log.info("service_token_issued", service=request.service, token=claims.token_id, by=actor.claims.user_id)
    expires_at = Timestamp()
    expires_at.FromSeconds(int(claims.expires_at))
    return auth_pb2.IssueServiceTokenResponse(
        token=auth.issue(claims), expires_at=expires_at, token_id=claims.token_id
    )


def _check(request: auth_pb2.IssueServiceTokenRequest) -> None:
    known = ("*", *USER_SERVICES)
    unknown = [each for each in request.services if each not in known]
    malformed = [each for each in request.permissions if not _PERMISSION.fullmatch(each)]
    faults = {}
    if not _SERVICE_NAME.fullmatch(request.service):
        faults["service"] = "1 to 63 of a-z, 0-9 and dashes, a letter first"
    if unknown:
        faults["services"] = f"no such service: {', '.join(unknown)} (there are {', '.join(known)})"
    if malformed or len(request.permissions) > PERMISSIONS_MAX:
        faults["permissions"] = f"at most {PERMISSIONS_MAX}, each as resource:action; wrong: {malformed}"
    if not 0 <= request.lifetime_seconds <= SERVICE_TOKEN_LIFETIME_MAX_S:
        faults["lifetime_seconds"] = f"0 to {SERVICE_TOKEN_LIFETIME_MAX_S}"
    if faults:
        raise invalid(faults)


def _check_not_beyond(actor: Actor, permissions: Iterable[str]) -> None:
    """Nobody gives what they do not have. Raises PERMISSION_DENIED."""
    beyond = [each for each in permissions if not permits(actor.claims.permissions, each)]
    if beyond:
        raise denied(f"nobody grants {', '.join(beyond)} without having it")


def _everything(actor: Actor) -> bool:
    return "*:*" in actor.claims.permissions


def _by(actor: Actor) -> str | None:
    """The person who acts, for the event; none for a service by itself."""
    return actor.user_id or None
