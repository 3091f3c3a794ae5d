"""RPCs of AuthService ⇄ its use cases. What only administrators may do is in `administration`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import structlog

from whispr.errors import Code, WhisprError, denied, invalid
from whispr.identity import Actor, client_address, current_actor
from whispr.ids import parse_id
from whispr.services.auth import administration, domain, permissions, wire
from whispr.services.auth.administration import administers, check_administers
from whispr.services.auth.domain import Account
from whispr.tokens import Claims
from whispr.v1 import auth_pb2, common_pb2
from whispr.v1.auth_grpc import AuthServiceServicer

if TYPE_CHECKING:
    from whispr.services.auth.service import AuthService

log = structlog.get_logger("whispr.auth")

_REFUSALS = (Code.UNAUTHENTICATED, Code.PERMISSION_DENIED)


class AuthServicer(AuthServiceServicer):
    """Speaks gRPC for an AuthService."""

    def __init__(self, auth: AuthService) -> None:
        self._auth = auth

    # Signing in and out

    async def Register(self, input_message: auth_pb2.RegisterRequest) -> auth_pb2.SessionTokens:
        """See the proto."""
        address = await client_address(self._auth.identity)
        message = input_message
        grant = await self._auth.register(
            message.username, message.password, message.display_name, message.email, address
        )
        return wire.tokens(grant)

    async def Login(self, input_message: auth_pb2.LoginRequest) -> auth_pb2.SessionTokens:
        """See the proto."""
        address = await client_address(self._auth.identity)
        message = input_message
        return wire.tokens(
            await self._auth.login(message.username, message.password, message.device, address)
        )

    async def Refresh(self, input_message: auth_pb2.RefreshRequest) -> auth_pb2.SessionTokens:
        """See the proto."""
        address = await client_address(self._auth.identity)
        return wire.tokens(await self._auth.refresh(input_message.refresh_token, address))

    async def Logout(self, input_message: auth_pb2.LogoutRequest) -> auth_pb2.LogoutResponse:
        """See the proto."""
        await self._auth.logout(_session().session_id)
        return auth_pb2.LogoutResponse()

    async def ListSessions(
        self, input_message: auth_pb2.ListSessionsRequest
    ) -> auth_pb2.ListSessionsResponse:
        """See the proto."""
        actor = current_actor()
        sessions = await self._auth.sessions(_account(actor, input_message.user_id))
        current = actor.claims.session_id
        return auth_pb2.ListSessionsResponse(sessions=[wire.session(each, current) for each in sessions])

    async def RevokeSession(
        self, input_message: auth_pb2.RevokeSessionRequest
    ) -> auth_pb2.RevokeSessionResponse:
        """See the proto."""
        session_id = parse_id(input_message.session_id, "session_id")
        actor = current_actor()
        account_id = _account(actor, input_message.user_id)
        await self._auth.revoke_session(account_id, session_id)
        if account_id != actor.user_id:
            log.info("session_revoked", session=session_id, account=account_id, by=actor.claims.user_id)
        return auth_pb2.RevokeSessionResponse()

    async def RevokeToken(self, input_message: auth_pb2.RevokeTokenRequest) -> auth_pb2.RevokeTokenResponse:
        """See the proto."""
        reason = domain.reason(input_message.reason) or "revoked"
        await self._revoke(input_message.token, reason)
        return auth_pb2.RevokeTokenResponse()

    async def _revoke(self, token: str, reason: str) -> None:
        if token.count(".") != 2:
            found = await self._auth.session_of_refresh(token)
            if found is not None:
                session_id, account_id = found
                _check_own(account_id)
                await self._auth.revoker.revoke(session_id, reason)
            return
        try:
            claims = await self._auth.identity.authenticate(token)
        except WhisprError as error:
            if error.code is not Code.UNAUTHENTICATED:
                raise
            return  # It is no good already.
        _check_own(claims.user_id)
        if claims.is_service:
            await self._auth.revoker.revoke_token(claims.token_id, reason, claims.expires_at)
        else:
            await self._auth.revoker.revoke(claims.session_id, reason)

    async def ChangePassword(
        self, input_message: auth_pb2.ChangePasswordRequest
    ) -> auth_pb2.ChangePasswordResponse:
        """See the proto."""
        address = await client_address(self._auth.identity)
        ended = await self._auth.change_password(
            _session(), input_message.current_password, input_message.new_password, address
        )
        return auth_pb2.ChangePasswordResponse(sessions_ended=ended)

    async def DeleteAccount(
        self, input_message: auth_pb2.DeleteAccountRequest
    ) -> auth_pb2.DeleteAccountResponse:
        """See the proto."""
        named, actor = input_message.user_id, current_actor()
        if named and parse_id(named, "user_id") != actor.user_id:
            await administration.delete(self._auth, actor, parse_id(named, "user_id"))
        else:
            address = await client_address(self._auth.identity)
            await self._auth.delete_own_account(_session(), input_message.password, address)
        return auth_pb2.DeleteAccountResponse()

    # Who may what

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
        return auth_pb2.ValidateTokenResponse(valid=True, user=wire.user_claims(claims, account))

    async def CheckPermissions(
        self, input_message: auth_pb2.CheckPermissionsRequest
    ) -> auth_pb2.CheckPermissionsResponse:
        """See the proto."""
        message = input_message
        user_id = self._subject(message.user_id)
        verdict = await permissions.check(
            self._auth.neighbours,
            await self._auth.account(user_id),
            message.resource,
            message.action,
            message.resource_id,
        )
        return auth_pb2.CheckPermissionsResponse(
            allowed=verdict.allowed, permissions=verdict.permissions, resource_role=verdict.resource_role
        )

    async def GetUserInfo(self, input_message: auth_pb2.GetUserInfoRequest) -> auth_pb2.GetUserInfoResponse:
        """See the proto. `me`, or nothing, is the caller."""
        actor = current_actor()
        info = wire.user_info(await self._wanted(input_message, actor))
        if not (actor.is_service or actor.user_id == info.id or administers(actor)):
            info.email = ""
            info.ClearField("last_login_at")
        return auth_pb2.GetUserInfoResponse(user=info)

    async def _wanted(self, message: auth_pb2.GetUserInfoRequest, actor: Actor) -> Account:
        if not message.username:
            return await self._auth.account(self._named(message.user_id))
        if message.user_id:
            raise invalid({"username": "give it or user_id, not both"})
        if not actor.is_service:
            check_administers(actor)
        return await self._auth.account_named(message.username)

    async def GetJwks(self, input_message: auth_pb2.GetJwksRequest) -> auth_pb2.Jwks:
        """See the proto."""
        return auth_pb2.Jwks(keys=[auth_pb2.Jwk(**key.to_jwk()) for key in self._auth.public_keys])

    # Administration

    async def IssueServiceToken(
        self, input_message: auth_pb2.IssueServiceTokenRequest
    ) -> auth_pb2.IssueServiceTokenResponse:
        """See the proto."""
        return await administration.issue_service_token(self._auth, current_actor(), input_message)

    async def SetRole(self, input_message: auth_pb2.SetRoleRequest) -> auth_pb2.SetRoleResponse:
        """See the proto."""
        user_id = parse_id(input_message.user_id, "user_id")
        account = await administration.set_role(self._auth, current_actor(), user_id, input_message.role)
        return auth_pb2.SetRoleResponse(user=wire.user_info(account))

    async def DeactivateUser(
        self, input_message: auth_pb2.DeactivateUserRequest
    ) -> auth_pb2.DeactivateUserResponse:
        """See the proto."""
        user_id = parse_id(input_message.user_id, "user_id")
        reason = domain.reason(input_message.reason)
        account = await administration.deactivate(self._auth, current_actor(), user_id, reason)
        return auth_pb2.DeactivateUserResponse(user=wire.user_info(account))

    async def ReactivateUser(
        self, input_message: auth_pb2.ReactivateUserRequest
    ) -> auth_pb2.ReactivateUserResponse:
        """See the proto."""
        user_id = parse_id(input_message.user_id, "user_id")
        account = await administration.reactivate(self._auth, current_actor(), user_id)
        return auth_pb2.ReactivateUserResponse(user=wire.user_info(account))

    async def SetDisplayName(
        self, input_message: auth_pb2.SetDisplayNameRequest
    ) -> auth_pb2.SetDisplayNameResponse:
        """See the proto."""
        user_id = parse_id(input_message.user_id, "user_id")
        name = await self._auth.set_display_name(user_id, input_message.display_name)
        return auth_pb2.SetDisplayNameResponse(display_name=name)

    # What is held about a person

    async def RequestDataExport(
        self, input_message: auth_pb2.RequestDataExportRequest
    ) -> auth_pb2.RequestDataExportResponse:
        """See the proto."""
        actor = current_actor()
        user_id = self._named(input_message.user_id)
        if user_id != actor.user_id:
            check_administers(actor)
        export = await self._auth.exports.request(user_id, actor.claims.user_id)
        return auth_pb2.RequestDataExportResponse(export=wire.export(export))

    async def GetDataExport(
        self, input_message: auth_pb2.GetDataExportRequest
    ) -> auth_pb2.GetDataExportResponse:
        """See the proto."""
        export_id = parse_id(input_message.export_id, "export_id")
        export = await self._auth.exports.get(export_id, _owner_unless_admin())
        return auth_pb2.GetDataExportResponse(export=wire.export(export))

    async def GetDataExportPart(
        self, input_message: auth_pb2.GetDataExportPartRequest
    ) -> auth_pb2.GetDataExportPartResponse:
        """See the proto."""
        export_id = parse_id(input_message.export_id, "export_id")
        content = await self._auth.exports.part(export_id, input_message.part, _owner_unless_admin())
        return auth_pb2.GetDataExportPartResponse(content=content)

    async def ExportUserData(
        self, input_message: common_pb2.ExportUserDataRequest
    ) -> AsyncIterator[common_pb2.DataRecord]:
        """See the proto."""
        user_id = parse_id(input_message.user_id, "user_id")
        for kind, row in await self._auth.held(user_id):
            yield common_pb2.DataRecord(source="auth", kind=kind, json=row)

    def _named(self, user_id: str) -> str:
        """The id asked about; `me`, or nothing, is the caller."""
        return _person(current_actor()) if user_id in ("", "me") else parse_id(user_id, "user_id")

    def _subject(self, user_id: str) -> str:
        """The id asked about, of another only for services and administrators."""
        actor, subject = current_actor(), self._named(user_id)
        if subject != actor.user_id and not actor.is_service:
            check_administers(actor)
        return subject


def _session() -> Claims:
    """The caller's session. Raises PERMISSION_DENIED (no_session) for a service."""
    actor = current_actor()
    if actor.is_service:
        raise denied("a service has no session", reason="no_session")
    return actor.claims


def _person(actor: Actor) -> str:
    """The person a call is made for. Raises PERMISSION_DENIED when a service names nobody."""
    return parse_id(actor.person, "x-whispr-actor")


def _account(actor: Actor, named: str) -> str:
    """The account a call is about: the caller's, or the one an administrator names. Raises PERMISSION_DENIED."""
    if not named or (account_id := parse_id(named, "user_id")) == actor.user_id:
        return _person(actor)
    check_administers(actor)
    return account_id


def _check_own(user_id: str) -> None:
    """Admit the owner of a token, administrators and services. Raises PERMISSION_DENIED."""
    actor = current_actor()
    if not actor.is_service and actor.user_id != user_id and not administers(actor):
        raise denied("this is somebody else's")


def _owner_unless_admin() -> str | None:
    actor = current_actor()
    return None if administers(actor) else _person(actor)
