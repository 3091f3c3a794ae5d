"""The product in this process, with people of every kind in it, and any of its RPCs by name.

async with open_world(db, cache, bus, folder) as world:
    reply = await world.call("MessagingService/GetMessages", {"conversation_id": id}, "member")
"""

from __future__ import annotations

import base64
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
from whispr.credentials import mint
from whispr.node import Node
from whispr.rpc.channel import Channel, open_channel
from whispr.rpc.stubs import UnaryStream, UnaryUnary

PASSWORD = "correct horse battery"
CALL_S = 10.0
"""How long one call may take before the test fails."""

PEOPLE = ("stranger", "member", "moderator", "owner", "admin")
"""Roles that sign in. `admin` is of the whole installation and a member of nothing."""
ROLES = ("anonymous", *PEOPLE, "service")


@dataclass
class Person:
    """Somebody with an account."""

    user_id: str
    username: str
    token: str
    refresh_token: str
    session_id: str


@dataclass
class World:
    """A running node and the people who know it."""

    node: Node
    db: Postgres
    settings: Settings
    channels: Mapping[str, Channel]
    people: dict[str, Person] = field(default_factory=dict)

    def token(self, role: str) -> str:
        """The token that somebody of this role shows; none for anonymous."""
        if role == "anonymous":
            return ""
        return mint(self.settings, "test", 600) if role == "service" else self.people[role].token

    async def new_token(self, role: str) -> str:
        """A token of a session of its own."""
        if role not in self.people:
            return self.token(role)
        body = {"username": self.people[role].username, "password": PASSWORD}
        return str((await self.call("AuthService/Login", body, "anonymous")).access_token)

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

    async def sign_up(self) -> Person:
        """Register somebody new."""
        username = f"person{uuid4().hex[:12]}"
        reply = await self.call(
            "AuthService/Register", {"username": username, "password": PASSWORD}, "anonymous"
        )
        return Person(reply.user.id, username, reply.access_token, reply.refresh_token, reply.session_id)

    async def group(self, *more: str) -> str:
        """Make a group with owner, moderator and member in it, and the people of these ids."""
        people = [self.id("moderator"), self.id("member"), *more]
        body = {"kind": "group", "name": "group", "member_ids": people}
        group: str = (await self.call("MessagingService/CreateConversation", body)).conversation.id
        role = {"conversation_id": group, "user_id": self.id("moderator"), "role": "moderator"}
        await self.call("MessagingService/SetMemberRole", role)
        return group

    async def room(self, *more: Person) -> str:
        """Make an open public room with owner, moderator and member in it, and these people."""
        body = {"name": f"room {uuid4().hex[:12]}", "type": "PUBLIC", "visibility": "OPEN"}
        room: str = (await self.call("ChatService/CreateRoom", body)).room.id
        for person in (self.people["moderator"], self.people["member"], *more):
            await self.call_with("ChatService/JoinRoom", {"room_id": room}, person.token)
        role = {"room_id": room, "user_id": self.id("moderator"), "role": "moderator"}
        await self.call("ChatService/SetMemberRole", role)
        return room

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
    async with trio.open_nursery() as nursery, AsyncExitStack() as stack:
        node = Node(settings, SERVICES, db, cache, bus)
        await nursery.start(node.run)
        channels = {
            name: await stack.enter_async_context(open_channel(f"127.0.0.1:{node.ports[name]}"))
            for name in SERVICES
        }
        world = World(node, db, settings, channels)
        for role in PEOPLE:
            world.people[role] = await world.sign_up()
        await world.db.execute("UPDATE auth.accounts SET role = 'admin' WHERE id = $1", world.id("admin"))
        admin = world.people["admin"]
        body = {"username": admin.username, "password": PASSWORD}
        reply = await world.call("AuthService/Login", body, "anonymous")
        world.people["admin"] = Person(
            admin.user_id, admin.username, reply.access_token, reply.refresh_token, reply.session_id
        )
        yield world
        nursery.cancel_scope.cancel(reason="the test is over")


def unlimited() -> Limits:
    """Limits without those that count per minute or hour."""
    return Limits(**{name: 0 for name in Limits.model_fields if "_per_" in name})


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
