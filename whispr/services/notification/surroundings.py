"""What notifications need to know of the rest of the product."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Sequence
from typing import Protocol

import structlog
import trio

from whispr.conversations.domain import Kind
from whispr.errors import WhisprError, unavailable
from whispr.resilience.fallback import LastGood
from whispr.services.notification.senders.port import Push, Sender
from whispr.v1 import messaging_pb2, user_pb2

log = structlog.get_logger("whispr.notification")

CALL_S = 5.0
"""How long another service may take."""
NAME_S = 60.0
"""How long a conversation's name is used without asking again."""
NAMES_MAX = 5_000
NAMES_GOOD_S = 3600.0
"""How old a name may be that is told while the user service is away."""
TARGETS_MAX = 1_000

Metadata = Callable[[str], Sequence[tuple[str, str]]]
"""Makes the metadata of a call on behalf of a user: our service token and `x-whispr-actor`."""

Announce = Callable[[str, str, object], object]
"""Broadcasts (topic, event, payload) to sockets of every node. Never waits."""


class Presence(Protocol):
    """What is needed of `whispr.online.Online`."""

    async def connected(self, user_ids: Collection[str]) -> set[str]:
        """Return those of the users who have a socket."""

    def readers_here(self, topic: str) -> set[str]:
        """Return the users who have the topic joined in this process: some of `reading`, at no cost."""

    async def reading(self, topic: str, among: Collection[str] | None = None) -> set[str]:
        """Return the users who have the topic joined, of those of `among`."""


class Neighbours(Protocol):
    """What is asked of other services."""

    async def blocked(self, sender_id: str, user_ids: Sequence[str]) -> set[str]:
        """Return those between whom and the sender a block stands, either way. Raises UNAVAILABLE."""

    async def name_of(self, conversation_id: str, kind: Kind, member_id: str) -> str:
        """Return what a group or room is called; empty when nobody says so."""


class CheckBlocks(Protocol):
    """The RPC UserService.CheckUserBlocks."""

    def __call__(
        self, request: user_pb2.CheckUserBlocksRequest, *, metadata: Sequence[tuple[str, str]]
    ) -> Awaitable[user_pb2.CheckUserBlocksResponse]: ...


class GetConversation(Protocol):
    """The RPC MessagingService.GetConversation."""

    def __call__(
        self, request: messaging_pb2.GetConversationRequest, *, metadata: Sequence[tuple[str, str]]
    ) -> Awaitable[messaging_pb2.GetConversationResponse]: ...


class Services:
    """The user and messaging services, asked over gRPC."""

    def __init__(
        self, check_blocks: CheckBlocks, get_conversation: GetConversation, metadata: Metadata
    ) -> None:
        self._check_blocks = check_blocks
        self._get_conversation = get_conversation
        self._metadata = metadata
        self._names: LastGood[str, str] = LastGood(
            "names", trio.current_time, len_max=NAMES_MAX, age_s_max=NAMES_GOOD_S
        )

    async def blocked(self, sender_id: str, user_ids: Sequence[str]) -> set[str]:
        """Return those between whom and the sender a block stands. Raises UNAVAILABLE."""
        found: set[str] = set()
        for start in range(0, len(user_ids), TARGETS_MAX):
            part = user_ids[start : start + TARGETS_MAX]
            request = user_pb2.CheckUserBlocksRequest(user_id=sender_id, target_user_ids=part)
            with trio.fail_after(CALL_S):
                answer = await self._check_blocks(request, metadata=self._metadata(sender_id))
            found.update(each for each in part if answer.is_blocked[each] or answer.has_blocked[each])
        return found

    async def name_of(self, conversation_id: str, kind: Kind, member_id: str) -> str:
        """Return what a group or room is called; asked for a member, and remembered for a while."""
        if kind is Kind.DIRECT:
            return ""
        request = messaging_pb2.GetConversationRequest(conversation_id=conversation_id)

        async def ask() -> tuple[str, float]:
            with trio.move_on_after(CALL_S):
                answer = await self._get_conversation(request, metadata=self._metadata(member_id))
                return answer.conversation.name, NAME_S
            raise unavailable("the messaging service did not answer in time")

        try:
            return await self._names.ask(conversation_id, ask)
        except WhisprError as error:
            log.debug("name_unknown", conversation_id=conversation_id, error=str(error))
            return ""  # it is told without


__all__ = ["Announce", "Neighbours", "Presence", "Push", "Sender", "Services"]
