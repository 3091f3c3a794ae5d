"""What `whispr account` does, through the running auth service."""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeAlias

import trio

from whispr import limits, ports
from whispr.config import Settings
from whispr.credentials import mint
from whispr.errors import Code, WhisprError, conflict, unavailable
from whispr.rpc.channel import open_channel
from whispr.tokens import ADMINISTER
from whispr.v1 import auth_pb2
from whispr.v1.auth_grpc import AuthServiceStub

CALL_S = 10.0
TOKEN_S = 3600.0
NAME = "operator"
"""The subject of the tokens these commands show."""
EVERYTHING = "*:*"
"""An operator makes administrators, and nobody gives what they do not have."""
LOOK_EVERY_S = 0.3


@dataclass(frozen=True, slots=True)
class Desk:
    """The auth service, and the token to show it."""

    auth: AuthServiceStub
    metadata: Sequence[tuple[str, str]]

    async def named(self, name: str) -> auth_pb2.UserInfo:
        """Return the account of this name. Raises NOT_FOUND."""
        request = auth_pb2.GetUserInfoRequest(username=name)
        return (await self.auth.GetUserInfo(request, metadata=self.metadata)).user


Work: TypeAlias = Callable[[Desk], Awaitable[Sequence[str]]]


async def reach(settings: Settings, work: Work) -> Sequence[str]:
    """Do the work. Raises UNAVAILABLE when the auth service does not answer, FAILED_PRECONDITION without keys."""
    token = mint(settings, NAME, TOKEN_S, (ADMINISTER, EVERYTHING))
    target = _target(settings)
    async with open_channel(target, limits=limits.rpc(settings), tls=limits.rpc_tls(settings)) as channel:
        desk = Desk(AuthServiceStub(channel), [("authorization", f"Bearer {token}")])
        try:
            return await work(desk)
        except trio.TooSlowError:
            raise unavailable(f"the auth service at {target} did not answer in time") from None
        except WhisprError as error:
            if error.code is Code.UNAVAILABLE:
                raise unavailable(
                    f"the auth service cannot be reached at {target}: is it running? ({error.message})"
                ) from error
            raise


def _target(settings: Settings) -> str:
    """Where the auth service is: as set, as the running process says, or at its usual port."""
    if settings.auth.endpoint:
        return settings.auth.endpoint
    port = ports.read(settings.data_dir).get("auth", settings.auth.port)
    return f"{settings.reach_host('auth')}:{port}"


def showing(name: str) -> Work:
    """Show an account."""

    async def work(desk: Desk) -> Sequence[str]:
        with trio.fail_after(CALL_S):
            return _lines(await desk.named(name))

    return work


def giving_role(name: str, role: str) -> Work:
    """Give a role."""

    async def work(desk: Desk) -> Sequence[str]:
        with trio.fail_after(CALL_S):
            user = await desk.named(name)
            request = auth_pb2.SetRoleRequest(user_id=user.id, role=role)
            return _lines((await desk.auth.SetRole(request, metadata=desk.metadata)).user)

    return work


def deactivating(name: str, reason: str) -> Work:
    """Close an account."""

    async def work(desk: Desk) -> Sequence[str]:
        with trio.fail_after(CALL_S):
            user = await desk.named(name)
            request = auth_pb2.DeactivateUserRequest(user_id=user.id, reason=reason)
            return _lines((await desk.auth.DeactivateUser(request, metadata=desk.metadata)).user)

    return work


def reactivating(name: str) -> Work:
    """Open an account."""

    async def work(desk: Desk) -> Sequence[str]:
        with trio.fail_after(CALL_S):
            user = await desk.named(name)
            request = auth_pb2.ReactivateUserRequest(user_id=user.id)
            return _lines((await desk.auth.ReactivateUser(request, metadata=desk.metadata)).user)

    return work


def deleting(name: str) -> Work:
    """Delete an account."""

    async def work(desk: Desk) -> Sequence[str]:
        with trio.fail_after(CALL_S):
            user = await desk.named(name)
            request = auth_pb2.DeleteAccountRequest(user_id=user.id)
            await desk.auth.DeleteAccount(request, metadata=desk.metadata)
            return [f"{user.username} ({user.id}) is deleted; every service is erasing what it holds"]

    return work


def exporting(name: str, out: Path, wait_s: float) -> Work:
    """Write a data export to a file that only its owner may read."""

    async def work(desk: Desk) -> Sequence[str]:
        with _created(out) as file:
            try:
                with trio.fail_after(wait_s):
                    size = await _export(desk, name, file)
            except BaseException:
                out.unlink()  # noqa: ASYNC240  # the command ends here
                raise
        return [f"{out}: {size} bytes"]

    return work


async def _export(desk: Desk, name: str, file: BinaryIO) -> int:
    user = await desk.named(name)
    request = auth_pb2.RequestDataExportRequest(user_id=user.id)
    export = (await desk.auth.RequestDataExport(request, metadata=desk.metadata)).export
    while export.state in ("queued", "running"):
        await trio.sleep(LOOK_EVERY_S)
        look = auth_pb2.GetDataExportRequest(export_id=export.id)
        export = (await desk.auth.GetDataExport(look, metadata=desk.metadata)).export
    if export.state != "done":
        missing = ", ".join(export.failed_services) or "none"
        raise conflict(
            f"the export failed: {export.error} (services that failed: {missing})", "export_failed"
        )
    for part in range(export.part_count):
        wanted = auth_pb2.GetDataExportPartRequest(export_id=export.id, part=part)
        piece = await desk.auth.GetDataExportPart(wanted, metadata=desk.metadata)
        await trio.to_thread.run_sync(file.write, piece.content)
    return export.size_bytes


def _created(path: Path) -> BinaryIO:
    """Make a file for its owner alone. Raises FAILED_PRECONDITION when it is there or cannot be made."""
    try:
        return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb")
    except OSError as error:
        raise conflict(f"cannot make {path}: {error.strerror}", "not_writable") from error


def _lines(user: auth_pb2.UserInfo) -> list[str]:
    state = "active" if user.is_active else "closed"
    return [f"{user.username}  {user.id}  {user.role}  {state}  since {user.created_at.ToJsonString()}"]
