"""Accounts, sessions and exports as protobuf messages."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from whispr.services.auth.domain import Account, Session
from whispr.services.auth.exports import Export
from whispr.tokens import Claims
from whispr.v1 import auth_pb2

if TYPE_CHECKING:
    from whispr.services.auth.service import Grant


def tokens(grant: Grant) -> auth_pb2.SessionTokens:
    """What signing in gives."""
    return auth_pb2.SessionTokens(
        user=user_info(grant.account),
        access_token=grant.access_token,
        refresh_token=grant.refresh_token,
        expires_in=grant.expires_in_s,
        session_id=grant.session_id,
    )


def user_info(account: Account) -> auth_pb2.UserInfo:
    """An account, with all that its owner may see."""
    return auth_pb2.UserInfo(
        id=str(account.id),
        username=account.username,
        email=account.email or "",
        display_name=account.display_name,
        role=account.role,
        is_active=account.is_active,
        is_verified=account.is_verified,
        created_at=timestamp(account.created_at),
        last_login_at=timestamp(account.last_login_at) if account.last_login_at else None,
    )


def user_claims(claims: Claims, account: Account | None) -> auth_pb2.UserClaims:
    """What a token says, with what the account adds."""
    issued_at, expires_at = Timestamp(), Timestamp()
    issued_at.FromSeconds(int(claims.issued_at))
    expires_at.FromSeconds(int(claims.expires_at))
    return auth_pb2.UserClaims(
        user_id=claims.user_id,
        username=claims.username,
        email=(account.email or "") if account else "",
        role=claims.role,
        is_active=account.is_active if account else True,
        services=claims.services,
        permissions=claims.permissions,
        issued_at=issued_at,
        expires_at=expires_at,
        session_id=claims.session_id,
        token_id=claims.token_id,
    )


def timestamp(at: datetime) -> Timestamp:
    """A time on the wire."""
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp


def session(session: Session, current_id: str) -> auth_pb2.Session:
    """A session; `current_id` is that of the call."""
    return auth_pb2.Session(
        session_id=session.id,
        device=session.device,
        created_at=timestamp(session.created_at),
        last_seen_at=timestamp(session.last_seen_at),
        expires_at=timestamp(session.expires_at),
        current=session.id == current_id,
        address=session.address,
    )


def export(export: Export) -> auth_pb2.DataExport:
    """A data export."""
    return auth_pb2.DataExport(
        id=export.id,
        user_id=export.account_id,
        state=export.state,
        requested_at=timestamp(export.requested_at),
        finished_at=timestamp(export.finished_at) if export.finished_at else None,
        expires_at=timestamp(export.expires_at) if export.expires_at else None,
        size_bytes=export.size_bytes,
        part_count=export.part_count,
        failed_services=export.failed_services,
        error=export.error,
    )
