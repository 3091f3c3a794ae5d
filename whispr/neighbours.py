"""How the services of this process reach the others: over its channels, with its service token."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from importlib import import_module

import trio
from google.protobuf import descriptor_pool

from whispr.config import SERVICES
from whispr.errors import Code, WhisprError
from whispr.online import Online
from whispr.rpc.channel import Channel
from whispr.services.auth.neighbours import Neighbours as AuthNeighbours
from whispr.services.auth.neighbours import Standing
from whispr.services.user.neighbours import Neighbours as UserNeighbours
from whispr.v1 import auth_pb2, common_pb2, media_pb2, user_pb2
from whispr.v1.auth_grpc import AuthServiceStub
from whispr.v1.media_grpc import MediaServiceStub
from whispr.v1.user_grpc import UserServiceStub

EXPORT = "ExportUserData"

Metadata = Callable[[str], Sequence[tuple[str, str]]]
"""Makes the metadata of a call on behalf of a person."""


def services_with_data() -> list[str]:
    """Name the services whose protos say that they hold data about people."""
    found = []
    for name in SERVICES:
        import_module(f"whispr.v1.{name}_pb2")  # Registers its descriptors.
        service = descriptor_pool.Default().FindServiceByName(f"whispr.v1.{name.capitalize()}Service")
        if EXPORT in service.methods_by_name:
            found.append(name)
    return found


def of_user(channels: Mapping[str, Channel], acting_for: Metadata, online: Online) -> UserNeighbours:
    """Return what the user service asks of others. `channels` are all there by the time it is called itself."""

    async def set_display_name(user_id: str, name: str) -> str:
        request = auth_pb2.SetDisplayNameRequest(user_id=user_id, display_name=name)
        reply = await AuthServiceStub(channels["auth"]).SetDisplayName(request, metadata=acting_for(user_id))
        return reply.display_name

    async def owns_picture(user_id: str, media_id: str) -> bool:
        request = media_pb2.ValidateMediaAccessRequest(media_id=media_id, user_id=user_id)
        reply = await MediaServiceStub(channels["media"]).ValidateMediaAccess(
            request, metadata=acting_for(user_id)
        )
        found = reply.metadata
        is_picture = found.upload_status == "ready" and found.content_type.startswith("image/")
        return reply.access_granted and "delete" in reply.permissions and is_picture

    return UserNeighbours(set_display_name, owns_picture, online.last_seen)


def of_auth(channels: Mapping[str, Channel], acting_for: Metadata, started: trio.Event) -> AuthNeighbours:
    """Return what auth asks of others. `channels` are all there once `started` is set."""

    async def standing(user_id: str, conversation_id: str) -> Standing | None:
        await started.wait()
        request = user_pb2.ValidateConversationAccessRequest(
            user_id=user_id, conversation_id=conversation_id, action="read"
        )
        try:
            reply = await UserServiceStub(channels["user"]).ValidateConversationAccess(
                request, metadata=acting_for(user_id)
            )
        except WhisprError as error:
            if error.code is Code.NOT_FOUND:
                return None
            raise
        return Standing(reply.role, dict(reply.permissions))

    @asynccontextmanager
    async def records(service: str, user_id: str) -> AsyncIterator[AsyncIterator[common_pb2.DataRecord]]:
        await started.wait()
        method = channels[service].unary_stream(
            f"/whispr.v1.{service.capitalize()}Service/{EXPORT}",
            common_pb2.ExportUserDataRequest,
            common_pb2.DataRecord,
        )
        request = common_pb2.ExportUserDataRequest(user_id=user_id)
        async with method(request, metadata=acting_for(user_id), wait_for_ready=False) as call:
            yield call

    return AuthNeighbours(standing, services_with_data(), records)
