"""The product in this process, with people of every kind in it, and any of its RPCs by name.

async with open_world(db, cache, bus, folder) as world:
    reply = await world.call("MessagingService/GetMessages", {"conversation_id": id}, "member")
"""

from __future__ import annotations

import base64
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import cache as remembered
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any
from uuid import uuid4

import trio
from google.protobuf import json_format, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from whispr import v1
from whispr.adapters.bus import Bus
from whispr.adapters.cache import Cache
from whispr.adapters.postgres import Postgres
from whispr.config import SERVICES, Limits, Settings
from whispr.credentials import key_folder, mint
from whispr.node import Node
from whispr.rpc.channel import Channel, open_channel
from whispr.rpc.stubs import UnaryStream, UnaryUnary
from whispr.services.auth.keys import load_keys
from whispr.services.auth.passwords import owasp_hasher
from whispr.tokens import Signer, user_claims

PASSWORD = "correct horse battery"
CALL_S = 10.0
"""How long one call may take before the test fails."""

PEOPLE = ("stranger", "member", "moderator", "owner", "admin")
"""Roles that sign in. `admin` is of the whole installation and a member of nothing."""
ROLES = ("anonymous", *PEOPLE, "service")
ACCOUNT_ROLES = {"admin": "admin", "owner": "premium"}
"""Of those whose accounts have more than a person's usual role: owners of streams need it."""


@dataclass
class Person:
    """Somebody with an account."""

    user_id: str
    username: str
    role: str
    token: str
    session_id: str


@dataclass
class World:
    """A running product and the people who know it."""

    ports: Mapping[str, int]
    db: Postgres
    settings: Settings
    channels: Mapping[str, Channel]
    signer: Signer
    password_hash: str
    people: dict[str, Person] = field(default_factory=dict)
    node: Node | None = None
    """Of the product, if it runs in this process."""
    kept_group: str = ""
    kept_room: str = ""
    kept_stream: str = ""

    def token(self, role: str) -> str:
        """The token that somebody of this role shows; none for anonymous."""
        if role == "anonymous":
            return ""
        return mint(self.settings, "test", 600) if role == "service" else self.people[role].token

    async def new_token(self, role: str) -> str:
        """A token of a session of its own."""
        if role not in self.people:
            return self.token(role)
        person = self.people[role]
        return await self._sign_in(person.user_id, person.username, person.role, str(uuid4()))

    def id(self, role: str) -> str:
        """The user id of somebody of this role; the member's where the role is nobody's."""
        return self.people[role if role in self.people else "member"].user_id

    async def call(self, method: str, request: Mapping[str, Any], role: str = "owner") -> Any:
        """Make a call as somebody of this role; the request is proto3 JSON. Raises WhisprError."""
        return await self.call_with(method, request, self.token(role))

    async def call_with(self, method: str, request: Mapping[str, Any], token: str) -> Any:
        """Make a call with a token. Of a stream of answers, the first is returned, None if there is none."""
        descriptor = METHODS[method]
        channel = self.channels[method.partition("Service/")[0].lower()]
        metadata = [("authorization", f"Bearer {token}")] if token else []
        message = json_format.ParseDict(dict(request), _message(descriptor.input_type)())
        name = f"/{descriptor.containing_service.full_name}/{descriptor.name}"
        answer = _message(descriptor.output_type)
        with trio.fail_after(CALL_S):
            if not descriptor.server_streaming:
                unary: UnaryUnary[Message, Message] = UnaryUnary(channel, name, answer)
                return await unary(message, metadata=metadata)
            stream: UnaryStream[Message, Message] = UnaryStream(channel, name, answer)
            async with stream(message, metadata=metadata) as call:
                async for reply in call:
                    return reply
        return None

    # Making things to ask about

    async def sign_up(self, role: str = "user") -> Person:
        """Make an account with a session, by SQL: hashing a password takes as long as a hundred calls."""
        user_id, session_id, username = str(uuid4()), str(uuid4()), f"person{uuid4().hex[:12]}"
        await self.db.execute(
            "INSERT INTO auth.accounts (id, username, display_name, role, password_hash)"
            " VALUES ($1, $2, $2, $3, $4)",
            user_id,
            username,
            role,
            self.password_hash,
        )
        token = await self._sign_in(user_id, username, role, session_id)
        return Person(user_id, username, role, token, session_id)

    async def _sign_in(self, user_id: str, username: str, role: str, session_id: str) -> str:
        await self.db.execute(
            "INSERT INTO auth.sessions (id, account_id, expires_at) VALUES ($1, $2, now() + interval '1 day')",
            session_id,
            user_id,
        )
        claims = user_claims(
            user_id=user_id,
            session_id=session_id,
            username=username,
            role=role,
            now=time.time(),
            lifetime_s=900,
        )
        return self.signer.sign(claims)

    async def group(self, *more: str) -> str:
        """A group with owner, moderator and member in it, and the people of these ids; the same until `renew`."""
        if not self.kept_group:
            people = [self.id("moderator"), self.id("member")]
            body = {"kind": "group", "name": "group", "member_ids": people}
            self.kept_group = (await self.call("MessagingService/CreateConversation", body)).conversation.id
            role = {"conversation_id": self.kept_group, "user_id": self.id("moderator"), "role": "moderator"}
            await self.call("MessagingService/SetMemberRole", role)
        if more:
            body = {"conversation_id": self.kept_group, "user_ids": list(more)}
            await self.call("MessagingService/AddMember", body)
        return self.kept_group

    async def room(self, *more: Person) -> str:
        """An open public room with owner, moderator and member in it, and these people; the same until `renew`."""
        people = list(more)
        if not self.kept_room:
            body = {"name": f"room {uuid4().hex[:12]}", "type": "PUBLIC", "visibility": "OPEN"}
            self.kept_room = (await self.call("ChatService/CreateRoom", body)).room.id
            people += [self.people["moderator"], self.people["member"]]
        for person in people:
            await self.call_with("ChatService/JoinRoom", {"room_id": self.kept_room}, person.token)
        if len(people) > len(more):
            role = {"room_id": self.kept_room, "user_id": self.id("moderator"), "role": "moderator"}
            await self.call("ChatService/SetMemberRole", role)
        return self.kept_room

    async def stream(self) -> str:
        """A public stream of the owner's that runs; the same until `renew`."""
        if not self.kept_stream:
            self.kept_stream = (await self.call("StreamService/CreateStream", {"title": "stream"})).stream.id
            await self.call("StreamService/StartStream", {"stream_id": self.kept_stream})
        return self.kept_stream

    def renew(self) -> None:
        """Forget the group, the room and the stream: the next ones are new."""
        self.kept_group = self.kept_room = self.kept_stream = ""

    async def room_message(self, room_id: str, by: str = "member") -> Any:
        """Send a message to a room as somebody of this role."""
        body = {"room_id": room_id, "content": _base64(f"hello {uuid4().hex}")}
        return (await self.call("ChatService/SendMessage", body, by)).message

    async def medium(self, by: str = "member") -> str:
        """Announce a file as somebody of this role; return its id."""
        body = {"filename": "a.png", "content_type": "image/png", "file_size": 100}
        created = await self.call("MediaService/CreateUpload", body, by)
        medium: str = created.media_id
        return medium

    async def message(self, conversation_id: str, by: str = "member", text: str = "hello") -> Any:
        """Send a message as somebody of this role."""
        body = {"conversation_id": conversation_id, "content": _base64(text)}
        return (await self.call("MessagingService/SendMessage", body, by)).message


@asynccontextmanager
async def open_world(
    db: Postgres, cache: Cache, bus: Bus, folder: Path, **sections: Mapping[str, Any]
) -> AsyncIterator[World]:
    """Run a node with every service, without rate limits, and sign everybody up."""
    everywhere = {name: {"port": 0} for name in ("gateway", "websocket", *SERVICES)}
    for name, values in sections.items():
        everywhere[name] = {**everywhere.get(name, {}), **values}
    settings = Settings(data_dir=folder, limits=unlimited(), **everywhere)  # type: ignore[arg-type]  # validated
    async with trio.open_nursery() as nursery:
        node = Node(settings, SERVICES, db, cache, bus)
        await nursery.start(node.run)
        async with acquainted(settings, db, node.ports) as world:
            world.node = node
            yield world
        nursery.cancel_scope.cancel(reason="the test is over")


@asynccontextmanager
async def acquainted(settings: Settings, db: Postgres, ports: Mapping[str, int]) -> AsyncIterator[World]:
    """Sign everybody up with a product that runs, in this process or another."""
    async with AsyncExitStack() as stack:
        channels = {
            name: await stack.enter_async_context(open_channel(f"127.0.0.1:{ports[name]}"))
            for name in SERVICES
        }
        world = World(ports, db, settings, channels, _signer(settings), owasp_hasher().hash(PASSWORD))
        for role in PEOPLE:
            world.people[role] = await world.sign_up(ACCOUNT_ROLES.get(role, "user"))
        yield world


def _signer(settings: Settings) -> Signer:
    return load_keys(key_folder(settings)).signer


def unlimited() -> Limits:
    """Limits without those that count per minute or hour, or that tests of many streams reach."""
    return Limits(**{name: 0 for name in Limits.model_fields if "_per_" in name}, user_streams=0)


def _methods() -> dict[str, MethodDescriptor]:
    """Find every RPC of the product: "MessagingService/SendMessage" → its descriptor."""
    modules = [import_module(f"whispr.v1.{module.name}") for module in iter_modules(v1.__path__)]
    files = [module.DESCRIPTOR for module in modules if hasattr(module, "DESCRIPTOR")]
    services = [service for file in files for service in file.services_by_name.values()]
    return {f"{s.name}/{m.name}": m for s in services for m in s.methods}


METHODS = _methods()


@remembered
def _message(descriptor: Any) -> type[Message]:
    return message_factory.GetMessageClass(descriptor)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
