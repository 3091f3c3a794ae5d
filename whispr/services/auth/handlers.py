"""RPCs of AuthService ⇄ its use cases."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from google.protobuf.timestamp_pb2 import Timestamp

from whispr.conversations.ids import parse_id
from whispr.errors import Code, WhisprError, denied
from whispr.identity import client_address, current_actor
from whispr.services.auth.domain import Account
from whispr.tokens import Claims
from whispr.v1 import auth_pb2
from whispr.v1.auth_grpc import AuthServiceServicer

if TYPE_CHECKING:
    from whispr.services.auth.service import AuthService, Grant

_REFUSALS = (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED)


class AuthServicer(AuthServiceServicer):
    """Speaks gRPC for an AuthService."""

    def __init__(self, auth: AuthService) -> None:
        self._auth = auth

    async def Register(self, input_message: auth_pb2.RegisterRequest) -> auth_pb2.SessionTokens:
        """See the proto."""
        address = await client_address(self._auth.identity)
        message = input_message
        grant = await self._auth.register(
            message.username, message.password, message.display_name, message.email, address
        )
        return _tokens(grant)

    async def Login(self, input_message: auth_pb2.LoginRequest) -> auth_pb2.SessionTokens:
        """See the proto."""
        address = await client_address(self._auth.identity)
        message = input_message
        return _tokens(await self._auth.login(message.username, message.password, message.device, address))

    async def Refresh(self, input_message: auth_pb2.RefreshRequest) -> auth_pb2.SessionTokens:
        """See the proto."""
        return _tokens(await self._auth.refresh(input_message.refresh_token))

    async def Logout(self, input_message: auth_pb2.LogoutRequest) -> auth_pb2.LogoutResponse:
        """See the proto."""
        actor = current_actor()
        if actor.is_service:
            raise denied("a service has no session to end", reason="no_session")
        await self._auth.logout(actor.claims.session_id)
        return auth_pb2.LogoutResponse()

    async def ValidateToken(
        self, input_message: auth_pb2.ValidateTokenRequest
    ) -> auth_pb2.ValidateTokenResponse:
        """See the proto."""
        try:
            claims, account = await self._auth.validate(input_message.token, input_message.service)
        except WhisprError as error:
            if error.code not in _REFUSALS:
                raise
            return auth_pb2.ValidateTokenResponse(valid=False, reason=error.reason)
        return auth_pb2.ValidateTokenResponse(valid=True, user=_user_claims(claims, account))

    async def GetUserInfo(self, input_message: auth_pb2.GetUserInfoRequest) -> auth_pb2.GetUserInfoResponse:
        """See the proto. `me`, or nothing, is the caller."""
        actor = current_actor()
        wanted = input_message.user_id
        user_id = actor.user_id if wanted in ("", "me") else wanted
        account = await self._auth.account(parse_id(user_id, "user_id"))
        info = _user_info(account)
        if not actor.is_service and actor.user_id != info.id:
            info.email = ""
            info.ClearField("last_login_at")
        return auth_pb2.GetUserInfoResponse(user=info)

    async def GetJwks(self, input_message: auth_pb2.GetJwksRequest) -> auth_pb2.Jwks:
        """See the proto."""
        return auth_pb2.Jwks(keys=[auth_pb2.Jwk(**key.to_jwk()) for key in self._auth.public_keys])


def _tokens(grant: Grant) -> auth_pb2.SessionTokens:
    return auth_pb2.SessionTokens(
        user=_user_info(grant.account),
        access_token=grant.access_token,
        refresh_token=grant.refresh_token,
        expires_in=grant.expires_in_s,
        session_id=grant.session_id,
    )


def _user_info(account: Account) -> auth_pb2.UserInfo:
    return auth_pb2.UserInfo(
        id=str(account.id),
        username=account.username,
        email=account.email or "",
        display_name=account.display_name,
        role=account.role,
        is_active=account.is_active,
        is_verified=account.is_verified,
        created_at=_timestamp(account.created_at),
        last_login_at=_timestamp(account.last_login_at) if account.last_login_at else None,
    )


def _user_claims(claims: Claims, account: Account | None) -> auth_pb2.UserClaims:
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
    )


def _timestamp(at: datetime) -> Timestamp:
    stamp = Timestamp()
    stamp.FromDatetime(at)
    return stamp
