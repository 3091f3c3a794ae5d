"""A media service on a real database, with its RPCs in memory and its bytes over real HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import trio

from tests.services.kit import Tokens, as_, as_service
from whispr.adapters.objects import Objects, objects_at
from whispr.adapters.postgres import Postgres
from whispr.errors import WhisprError, exhausted
from whispr.gateway.server import Endpoint, Gateway, GatewayOptions
from whispr.identity import AuthInterceptor, Identity
from whispr.ids import new_id
from whispr.services.media.domain import MediaLimits
from whispr.services.media.service import PATH, MediaOptions, MediaService
from whispr.testing import open_rpc_pair
from whispr.v1 import media_pb2 as pb
from whispr.v1.media_grpc import MediaServiceStub

TUS = {"tus-resumable": "1.0.0", "content-type": "application/offset+octet-stream"}
UNHURRIED = MediaLimits(uploads_per_min=0)


@dataclass
class Counted:
    """A rate limiter that counts, and refuses past the limit."""

    taken: list[str] = field(default_factory=list)

    async def take(self, key: str, limit: float, period_s: float) -> None:
        assert period_s == 60
        await trio.lowlevel.checkpoint()
        self.taken.append(key)
        if limit and self.taken.count(key) > limit:
            raise exhausted("too many", 1.5)


@dataclass
class Media:
    """A media service that runs, and clients to it."""

    db: Postgres
    objects: Objects
    service: MediaService
    stub: MediaServiceStub
    http: httpx.AsyncClient
    base: str
    options: MediaOptions
    owner: str = field(default_factory=new_id)

    async def announce(self, size: int, content_type: str = "application/pdf", **more: Any) -> Any:
        """Announce a file of the owner's, or of `by`."""
        by = more.pop("by", self.owner)
        request = pb.CreateUploadRequest(
            **{"filename": "file", "content_type": content_type, "file_size": size, **more}
        )
        return await self.stub.CreateUpload(request, metadata=as_(by))

    async def patch(self, url: str, offset: int, content: Any, **headers: str) -> httpx.Response:
        """Send bytes as tus does."""
        said = {**TUS, "upload-offset": str(offset), **{k.replace("_", "-"): v for k, v in headers.items()}}
        return await self.http.patch(url, content=content, headers=said)

    async def head(self, url: str) -> httpx.Response:
        """Ask how far an upload is."""
        return await self.http.head(url, headers={"tus-resumable": "1.0.0"})

    async def upload(self, content: bytes, content_type: str = "application/pdf", **more: Any) -> str:
        """Announce a file and send it whole; return its id."""
        created = await self.announce(len(content), content_type, **more)
        answer = await self.patch(created.upload_url, 0, content)
        assert answer.status_code == 204, answer.text
        return str(created.media_id)

    async def metadata(self, media_id: str, by: str = "") -> Any:
        """What is known of a medium, as its owner or somebody else sees it; None if they do not."""
        request = pb.GetMediaMetadataRequest(media_id=media_id, include_thumbnails=True)
        reply = await self.stub.GetMediaMetadata(request, metadata=as_(by or self.owner))
        return reply.metadata if reply.found else None

    async def settled(self, media_id: str) -> Any:
        """Wait until a medium is ready or has failed; return what is known of it then."""

        async def done() -> Any:
            known = await self.metadata(media_id)
            return known if known.upload_status in ("ready", "error") else None

        return await eventually(done)

    async def ready(self, content: bytes, content_type: str = "application/pdf", **more: Any) -> str:
        """Upload a file and wait until it can be given out; return its id."""
        media_id = await self.upload(content, content_type, **more)
        known = await self.settled(media_id)
        assert known.upload_status == "ready", known
        return media_id

    async def url(self, media_id: str, by: str = "", **more: Any) -> str:
        """A signed URL of a medium's content."""
        request = pb.GetDownloadUrlRequest(media_id=media_id, **more)
        return str((await self.stub.GetDownloadUrl(request, metadata=as_(by or self.owner))).url)

    async def link(self, media_id: str, message_id: str, conversation_id: str, by: str = "") -> Any:
        """Link a medium to a message, as the messaging service does for somebody."""
        request = pb.LinkMediaToMessageRequest(
            media_id=media_id, message_id=message_id, conversation_id=conversation_id
        )
        return await self.stub.LinkMediaToMessage(request, metadata=as_service(by or self.owner))

    async def conversation(self, *people: str) -> str:
        """Make a conversation of these people; return its id."""
        made = new_id()
        await self.db.execute(
            "INSERT INTO conversations.conversations (id, kind, created_by) VALUES ($1, 'group', $2)",
            made, self.owner,
        )  # fmt: skip
        await self.db.executemany(
            "INSERT INTO conversations.members (conversation_id, user_id, role) VALUES ($1, $2, 'member')",
            [(made, person) for person in people],
        )
        return made

    async def events(self, kind: str) -> list[Any]:
        """What has been told of that kind, oldest first: the data of each event."""
        rows = await self.db.fetch(
            "SELECT data FROM events.outbox WHERE stream_subject = $1 ORDER BY position",
            f"user.events.{kind}",
        )
        return [json.loads(row["data"]) for row in rows]

    async def stored(self) -> list[str]:
        """The keys of all objects there are."""
        return sorted(
            [key async for key in self.objects.list("")]
            if self.objects.path_of("") is None
            else self._files()
        )

    def _files(self) -> list[str]:
        root = self.objects.path_of("")
        assert root is not None
        return [str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()]


async def eventually(ask: Callable[[], Awaitable[Any]]) -> Any:
    """Ask until the answer is something; return it."""
    with trio.fail_after(20):
        while not (answer := await ask()):  # noqa: ASYNC110  # what is waited for is in the database
            await trio.sleep(0.02)
    return answer


async def nothing_missing() -> dict[str, str]:
    await trio.lowlevel.checkpoint()
    return {}


@asynccontextmanager
async def open_media(
    db: Postgres,
    folder: Path,
    *,
    objects: Objects | None = None,
    limits: MediaLimits = UNHURRIED,
    run: bool = True,
    limiter: Counted | None = None,
    **more: Any,
) -> AsyncIterator[Media]:
    """Run a media service until the block ends; without its background jobs unless `run`."""
    options = MediaOptions(
        key_folder=folder / "keys", work_folder=folder / "work", limits=limits, part_bytes=64 * 1024
    )
    options = replace(options, **more)
    store = objects or objects_at(db.bridge, "", folder / "objects")
    ports: list[int] = []
    service = MediaService(
        db, store, limiter=limiter or Counted(), base_url=lambda: f"http://127.0.0.1:{ports[0]}", options=options
    )  # fmt: skip
    gateway = Gateway(
        {},
        readiness=nothing_missing,
        voucher=lambda: "",
        options=GatewayOptions(cors_origins=("https://app.test",), drain_s=1),
        endpoints=[Endpoint("media", PATH, service.endpoints)],
    )
    interceptors = [AuthInterceptor(cast("Identity", Tokens()))]
    async with trio.open_nursery() as nursery:
        ports.append(await nursery.start(gateway.serve, "127.0.0.1", 0))
        if run:
            await nursery.start(service.run)
        base = f"http://127.0.0.1:{ports[0]}"
        async with (
            open_rpc_pair([service.servicer], server_interceptors=interceptors) as pair,
            httpx.AsyncClient(trust_env=False, timeout=20) as http,
        ):
            yield Media(db, store, service, MediaServiceStub(pair.channel), http, base, options)
        nursery.cancel_scope.cancel(reason="the test is over")


@pytest.fixture
async def media(db: Postgres, tmp_path: Path) -> AsyncIterator[Media]:
    """A media service with small parts and no rate limit, that runs."""
    async with open_media(db, tmp_path) as media:
        yield media


def reason_of(caught: pytest.ExceptionInfo[WhisprError]) -> str:
    """The reason of a refusal."""
    return caught.value.reason


def people(count: int) -> Sequence[str]:
    """Ids of people."""
    return [new_id() for _ in range(count)]
