"""MediaService's RPCs."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Protocol

import msgspec

from whispr.conversations.paging import from_token, to_token
from whispr.errors import denied, invalid, not_found
from whispr.identity import current_actor
from whispr.ids import UUID_PATTERN, parse_id
from whispr.services.media import domain, types
from whispr.services.media.domain import (
    Access,
    MediaLimits,
    Medium,
    Status,
    announced,
    not_there_yet,
    too_large,
)
from whispr.services.media.protobuf import Shown
from whispr.services.media.store import MediaStore
from whispr.services.media.types import OPAQUE
from whispr.services.media.urls import ORIGINAL, SignedUrls
from whispr.v1 import common_pb2
from whispr.v1 import media_pb2 as pb
from whispr.v1.media_grpc import MediaServiceServicer

ACCESS_TYPES: Final = ("read", "link", "download")
EXPORT_URL_S: Final = 7 * 24 * 3600.0
"""How long the URLs of a data export hold: its owner may take days to come for it."""

_Id = Annotated[str, msgspec.Meta(pattern=UUID_PATTERN)]


class Limiter(Protocol):
    """Counts calls: `whispr.adapters.rate_limit.RateLimiter`."""

    async def take(self, key: str, limit: float, period_s: float) -> None:
        """Raises RESOURCE_EXHAUSTED over the limit."""


class MediaServicer(MediaServiceServicer):
    """Answers people about media that are theirs or linked where they are, and services about all."""

    def __init__(
        self, store: MediaStore, urls: SignedUrls, shown: Shown, limiter: Limiter, limits: MediaLimits
    ) -> None:
        super().__init__()
        self._store = store
        self._urls = urls
        self._shown = shown
        self._limiter = limiter
        self._limits = limits

    async def CreateUpload(self, input_message: pb.CreateUploadRequest) -> pb.CreateUploadResponse:
        """Announce a file."""
        person = _person()
        file, faults = announced(
            input_message.filename,
            input_message.content_type,
            input_message.file_size,
            input_message.custom_metadata,
            self._limits,
        )
        if faults:
            raise invalid(faults)
        if 0 < self._limits.file_bytes < file.file_size:
            raise too_large(self._limits.file_bytes)
        conversation_id = await self._meant_for(person, input_message.conversation_id)
        await self._limiter.take(f"media-uploads:{person}", self._limits.uploads_per_min, 60)
        medium = await self._store.create(person, file, conversation_id, self._limits)
        url = self._urls.upload(medium.id, medium.upload_expires_at.timestamp())
        return pb.CreateUploadResponse(
            media_id=medium.id,
            upload_url=url,
            expires_at=medium.upload_expires_at,
            metadata=self._shown.metadata(medium),
        )

    async def _meant_for(self, person: str, conversation_id: str) -> str | None:
        """Return the conversation an upload is meant for, if it is for one. Raises PERMISSION_DENIED."""
        if not conversation_id:
            return None
        conversation_id = parse_id(conversation_id, "conversation_id")
        if not await self._store.is_member(conversation_id, person):
            raise denied("you are not a member of this conversation", reason="not_a_member")
        return conversation_id

    async def GetMediaMetadata(
        self, input_message: pb.GetMediaMetadataRequest
    ) -> pb.GetMediaMetadataResponse:
        """Return what is known of a medium that the caller may read."""
        media_id = parse_id(input_message.media_id, "media_id")
        access = await self._seen(media_id)
        if access is None:
            return pb.GetMediaMetadataResponse(found=False)
        metadata = self._shown.metadata(access.medium, thumbnails=input_message.include_thumbnails)
        return pb.GetMediaMetadataResponse(found=True, metadata=metadata)

    async def GetDownloadUrl(self, input_message: pb.GetDownloadUrlRequest) -> pb.GetDownloadUrlResponse:
        """Return a signed URL of the content."""
        media_id = parse_id(input_message.media_id, "media_id")
        access = await self._seen(media_id)
        if access is None:
            raise not_found("medium", media_id)
        if (missing := not_there_yet(access.medium)) is not None:
            raise missing
        name = input_message.variant or ORIGINAL
        variant = access.medium.variant(name)
        if variant is None:
            known = ", ".join(each.name for each in access.medium.variants)
            raise invalid({"variant": f"there are {known}"})
        until = self._shown.until()
        url = self._shown.url(access.medium, name, until, as_attachment=input_message.as_attachment)
        return pb.GetDownloadUrlResponse(
            url=url,
            expires_at=datetime.fromtimestamp(until, UTC),
            content_type=variant.type,
            file_size=variant.bytes,
        )

    async def DeleteMedia(self, input_message: pb.DeleteMediaRequest) -> pb.DeleteMediaResponse:
        """Delete a medium of the caller's."""
        media_id = parse_id(input_message.media_id, "media_id")
        person = _person()
        access = await self._store.access(media_id, person)
        if access is None or not access.may_read:
            raise not_found("medium", media_id)
        if not access.is_owner:
            raise denied("only its owner deletes a medium")
        if not await self._store.delete(media_id, person, "deleted"):
            raise not_found("medium", media_id)
        return pb.DeleteMediaResponse()

    async def ListMedia(self, input_message: pb.ListMediaRequest) -> pb.ListMediaResponse:
        """Return the caller's media, latest first."""
        person = _person()
        size = self._page_size(input_message.page_size)
        before = from_token(input_message.page_token, _Id)
        found = await self._store.page(person, size + 1, before)
        page = found[:size]
        return pb.ListMediaResponse(
            media=[self._shown.metadata(medium) for medium in page],
            next_page_token=to_token(page[-1].id) if len(found) > size else "",
            used_bytes=await self._store.used_bytes(person),
            quota_bytes=self._limits.user_bytes,
        )

    def _page_size(self, asked: int) -> int:
        if asked < 0:
            raise invalid({"page_size": "must not be negative"})
        return min(asked or self._limits.page_size, self._limits.page_size_max)

    async def ValidateMediaAccess(
        self, input_message: pb.ValidateMediaAccessRequest
    ) -> pb.ValidateMediaAccessResponse:
        """Say whether a person may read, link or download a medium."""
        media_id = parse_id(input_message.media_id, "media_id")
        user_id = _subject(input_message.user_id)
        wanted = input_message.access_type or "read"
        if wanted not in ACCESS_TYPES:
            raise invalid({"access_type": f"must be one of {', '.join(ACCESS_TYPES)}"})
        conversation_id = None
        if input_message.conversation_id:
            conversation_id = parse_id(input_message.conversation_id, "conversation_id")
        access = await self._store.access(media_id, user_id, None if wanted == "link" else conversation_id)
        if access is None or not access.may_read:
            known = access is not None and current_actor().is_service
            return pb.ValidateMediaAccessResponse(reason="forbidden" if known else "not_found")
        reason = _why_not(access.medium, wanted)
        if not reason and wanted == "link" and conversation_id is not None:
            reason = "" if await self._store.is_member(conversation_id, user_id) else "not_a_member"
        return pb.ValidateMediaAccessResponse(
            access_granted=not reason,
            reason=reason,
            metadata=self._shown.metadata(access.medium),
            permissions=_permissions(access),
        )

    async def ValidateMediaMetadata(
        self, input_message: pb.ValidateMediaMetadataRequest
    ) -> pb.ValidateMediaMetadataResponse:
        """Say beforehand what CreateUpload would say."""
        person = _person()
        asked = input_message
        file, faults = announced(asked.filename, asked.content_type, asked.file_size, {}, self._limits)
        errors = [f"{field}: {why}" for field, why in faults.items()]
        if 0 < self._limits.file_bytes < asked.file_size:
            errors.append(f"file_size: {too_large(self._limits.file_bytes).message}")
        elif self._limits.user_bytes:
            left = self._limits.user_bytes - await self._store.used_bytes(person)
            if asked.file_size > left:
                errors.append(f"file_size: {max(0, left)} bytes of your {self._limits.user_bytes} are left")
        if asked.conversation_id:
            conversation_id = parse_id(asked.conversation_id, "conversation_id")
            if not await self._store.is_member(conversation_id, person):
                errors.append("conversation_id: you are not a member of it")
        suggested = _suggested(file, asked.filename)
        return pb.ValidateMediaMetadataResponse(
            is_valid=not errors,
            errors=errors,
            warnings=_warnings(file, asked, suggested),
            suggested_metadata=suggested,
        )

    async def LinkMediaToMessage(
        self, input_message: pb.LinkMediaToMessageRequest
    ) -> pb.LinkMediaToMessageResponse:
        """Link a medium to a message of the person acted for."""
        link = await self._store.link(
            parse_id(input_message.media_id, "media_id"),
            parse_id(input_message.message_id, "message_id"),
            parse_id(input_message.conversation_id, "conversation_id"),
            _person(),
            parse_id(input_message.link_id, "link_id") if input_message.link_id else "",
        )
        return pb.LinkMediaToMessageResponse(link_id=link.id, linked_at=link.linked_at)

    async def ExportUserData(
        self, input_message: common_pb2.ExportUserDataRequest
    ) -> AsyncIterator[common_pb2.DataRecord]:
        """Yield everything held about a person."""
        user_id = parse_id(input_message.user_id, "user_id")
        before: str | None = None
        while page := await self._store.page(user_id, self._limits.page_size_max, before):
            for medium in page:
                yield self._record("medium", self._exported(medium))
            before = page[-1].id
        async with aclosing(self._store.exported_links(user_id)) as links:
            async for link in links:
                yield self._record("media_link", msgspec.to_builtins(link))

    def _record(self, kind: str, value: Any) -> common_pb2.DataRecord:
        return common_pb2.DataRecord(source="media", kind=kind, json=msgspec.json.encode(value))

    def _exported(self, medium: Medium) -> dict[str, Any]:
        kept = {
            "id",
            "filename",
            "content_type",
            "kind",
            "status",
            "custom_metadata",
            "created_at",
            "ready_at",
        }
        held = {name: value for name, value in msgspec.to_builtins(medium).items() if name in kept}
        original = medium.variant(ORIGINAL)
        if original is not None:
            until = self._shown.until(EXPORT_URL_S)
            held |= {"bytes": original.bytes, "sha256": original.sha256}
            held["url"] = self._shown.url(medium, ORIGINAL, until, as_attachment=True)
        return held

    async def _seen(self, media_id: str) -> Access | None:
        """Return a medium if the caller may read it; a service that acts for nobody reads all."""
        actor = current_actor()
        if actor.is_service and not actor.user_id:
            medium = await self._store.get(media_id)
            return Access(medium, is_owner=False, through_link=True) if medium is not None else None
        access = await self._store.access(media_id, _person())
        return access if access is not None and access.may_read else None


def _person() -> str:
    """Return the id of the person who calls, or for whom a service acts. Raises PERMISSION_DENIED."""
    return parse_id(current_actor().person, "x-whispr-actor")


def _subject(user_id: str) -> str:
    """Return whom a call is about: the caller when empty, another only for services."""
    if user_id in ("", "me"):
        return _person()
    subject, actor = parse_id(user_id, "user_id"), current_actor()
    if subject != actor.user_id and not actor.is_service:
        raise denied("user_id is somebody else")
    return subject


def _why_not(medium: Medium, wanted: str) -> str:
    """Return the reason why a medium that may be read cannot be linked or downloaded, empty when it can."""
    if medium.status is Status.ERROR and wanted != "read":
        return "failed"
    return "not_ready" if wanted == "download" and medium.status is not Status.READY else ""


def _permissions(access: Access) -> list[str]:
    granted = [wanted for wanted in ACCESS_TYPES if not _why_not(access.medium, wanted)]
    return [*granted, "delete"] if access.is_owner else granted


def _suggested(file: domain.Announced, filename: str) -> dict[str, str]:
    """Say how a file would be taken, and what its name suggests where its type will not do."""
    by_name = types.type_by_name(file.filename or filename)
    content_type = file.content_type or by_name or OPAQUE
    suggested = {"content_type": content_type, "kind": types.kind_of(content_type).value}
    return suggested | ({"filename": file.filename} if file.filename else {})


def _warnings(
    file: domain.Announced, asked: pb.ValidateMediaMetadataRequest, suggested: dict[str, str]
) -> list[str]:
    warnings = []
    if file.filename and file.filename != asked.filename:
        warnings.append(f"filename: will be {file.filename}")
    by_name = types.type_by_name(file.filename)
    if file.content_type == OPAQUE and by_name:
        warnings.append(f"content_type: kept unseen, without thumbnails; the name suggests {by_name}")
    elif by_name and file.content_type and types.family_of(by_name) != types.family_of(file.content_type):
        warnings.append(f"content_type: the name suggests {by_name}")
    if suggested["kind"] in ("image", "video"):
        warnings.append("what it says beside the picture, such as where it was taken, will be removed")
    return warnings
