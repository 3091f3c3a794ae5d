"""The user service's word on who may do what, asked over gRPC and remembered for a while.

A remembered answer saves the call, and stands in when the user service is away: the last good answer, never a
wider one. What is known to have changed is forgotten at once, also as a stand-in; an answer that was on its
way during a change is used once and not remembered. None of this admits a message by itself: the append
checks membership again under its lock.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

import msgspec
import trio

from whispr.conversations.domain import Action, not_a_member
from whispr.errors import Code, WhisprError, denied, not_found, unavailable
from whispr.resilience.fallback import AWAY, LastGood
from whispr.v1 import user_pb2

if TYPE_CHECKING:
    from whispr.rpc.stubs import UnaryUnary

GRANT_TTL_S = 10.0
"""How long a grant is used without asking again, at most. Each lasts between half of this and all of it, so that
grants asked for together, as after a deploy, are not asked for together ever after."""
DENIAL_TTL_S = 1.0
"""The same for a denial: short, for it may rest on a membership that was just given elsewhere."""
ANSWERS_MAX = 20_000
"""Answers remembered; the least recently used goes first."""
CALL_S = 2.0
"""How long the user service may take before the last good answer stands in."""

GOOD_S = 3600.0
"""How old a last good answer may be that stands in."""
STAND_IN_S = 1.0
"""How long a stand-in serves before the user service is tried again."""

Metadata = Callable[[str], Sequence[tuple[str, str]]]
"""Makes the metadata of a call on behalf of a user: our service token and `x-whispr-actor`."""

Asked = Awaitable[tuple[bool, str, bool]]
"""Whether it is granted, why not, and whether the user is shown there when present."""

CONTACTS_MAX = 10_000
"""Contacts of a person whose presence is followed."""


class UserStub(Protocol):
    """What is needed of the generated `UserServiceStub`."""

    @property
    def ValidateMessagePermissions(  # noqa: N802  # the RPC's name
        self,
    ) -> UnaryUnary[user_pb2.ValidateMessagePermissionsRequest, user_pb2.ValidateMessagePermissionsResponse]:
        """Ask who may send."""

    @property
    def ValidateConversationAccess(  # noqa: N802  # the RPC's name
        self,
    ) -> UnaryUnary[user_pb2.ValidateConversationAccessRequest, user_pb2.ValidateConversationAccessResponse]:
        """Ask who may join, leave, read or write."""

    @property
    def CheckUserBlocks(  # noqa: N802  # the RPC's name
        self,
    ) -> UnaryUnary[user_pb2.CheckUserBlocksRequest, user_pb2.CheckUserBlocksResponse]:
        """Ask who blocked whom."""

    @property
    def CheckPresenceVisibility(  # noqa: N802  # the RPC's name
        self,
    ) -> UnaryUnary[user_pb2.CheckPresenceVisibilityRequest, user_pb2.CheckPresenceVisibilityResponse]:
        """Ask whose presence somebody may see."""

    @property
    def ListVisibleContacts(  # noqa: N802  # the RPC's name
        self,
    ) -> UnaryUnary[user_pb2.ListVisibleContactsRequest, user_pb2.ListVisibleContactsResponse]:
        """Ask which contacts show themselves."""


class _Answer(msgspec.Struct, frozen=True):
    granted: bool
    reason: str
    shows: bool = False


_Key = tuple[str, str, str]
"""User, conversation, and what was asked: an action, or `send:<message type>`."""


class Permissions:
    """Asks the user service and remembers. All checks raise the WhisprError of a refusal."""

    def __init__(
        self,
        users: UserStub,
        metadata: Metadata,
        *,
        grant_ttl_s: float = GRANT_TTL_S,
        denial_ttl_s: float = DENIAL_TTL_S,
        answers_max: int = ANSWERS_MAX,
    ) -> None:
        self._users = users
        self._metadata = metadata
        self._grant_ttl_s = grant_ttl_s
        self._denial_ttl_s = denial_ttl_s
        self._answers: LastGood[_Key, _Answer] = LastGood(
            "permissions", trio.current_time, len_max=answers_max, age_s_max=GOOD_S, stand_in_s=STAND_IN_S
        )

    def may_send_now(self, user_id: str, conversation_id: str, message_type: str) -> bool:
        """Tell whether a fresh grant is at hand, so that `check_send` need not be awaited."""
        answer = self._answers.fresh((user_id, conversation_id, f"send:{message_type}"))
        return answer is not None and answer.granted

    async def check_send(self, user_id: str, conversation_id: str, message_type: str) -> None:
        """Check that a person may send to a conversation.

        Raises PERMISSION_DENIED (not_a_member, blocked, forbidden), NOT_FOUND, UNAVAILABLE.
        """
        # Asking about the sender alone keeps the answer small: recipients of a group change nothing.
        request = user_pb2.ValidateMessagePermissionsRequest(
            sender_id=user_id,
            conversation_id=conversation_id,
            participant_ids=[user_id],
            message_type=message_type,
        )

        async def ask() -> tuple[bool, str, bool]:
            reply = await self._users.ValidateMessagePermissions(request, metadata=self._metadata(user_id))
            return reply.permission_granted, reply.reason, False

        await self._check((user_id, conversation_id, f"send:{message_type}"), ask)

    async def check_access(self, user_id: str, conversation_id: str, action: Action) -> None:
        """Check that a person may join, leave, read or write. Raises as `check_send`."""
        await self._access(user_id, conversation_id, action)

    async def shows(self, user_id: str, conversation_id: str) -> bool:
        """Tell whether a person is shown to the others there when present; strangers are not. Raises UNAVAILABLE."""
        try:
            return (await self._access(user_id, conversation_id, Action.JOIN)).shows
        except WhisprError as error:
            if error.code in (Code.PERMISSION_DENIED, Code.NOT_FOUND):
                return False
            raise

    async def visible(self, viewer_id: str, user_ids: Collection[str]) -> set[str]:
        """Return those of the users whose presence a person may see: themselves alone while nobody can say.

        Never answered from memory.
        """
        found = {user_id for user_id in user_ids if user_id == viewer_id}
        request = user_pb2.CheckPresenceVisibilityRequest(viewer_id=viewer_id, user_ids=user_ids)
        with trio.move_on_after(CALL_S):
            try:
                reply = await self._users.CheckPresenceVisibility(request, metadata=self._metadata(viewer_id))
            except WhisprError as error:
                if error.code not in AWAY:
                    raise
            else:
                found.update(reply.visible_user_ids)
        return found

    async def visible_contacts(self, user_id: str, among: Sequence[str] = ()) -> dict[str, bool]:
        """Return a person's contacts, of `among` if given, and whether each shows them their presence.

        Never answered from memory. Raises UNAVAILABLE.
        """
        found: dict[str, bool] = {}
        request = user_pb2.ListVisibleContactsRequest(user_id=user_id, among=among)
        with trio.move_on_after(CALL_S) as scope:
            while len(found) < CONTACTS_MAX:
                reply = await self._users.ListVisibleContacts(request, metadata=self._metadata(user_id))
                found.update(dict.fromkeys(reply.visible_user_ids, True))
                found.update(dict.fromkeys(reply.hidden_user_ids, False))
                request.page_token = reply.next_page_token
                if not request.page_token:
                    break
        if scope.cancelled_caught:
            raise unavailable("the user service did not answer in time")
        return found

    async def _access(self, user_id: str, conversation_id: str, action: Action) -> _Answer:
        request = user_pb2.ValidateConversationAccessRequest(
            user_id=user_id, conversation_id=conversation_id, action=action.value
        )

        async def ask() -> tuple[bool, str, bool]:
            reply = await self._users.ValidateConversationAccess(request, metadata=self._metadata(user_id))
            return reply.access_granted, reply.reason, reply.shows_presence

        return await self._check((user_id, conversation_id, action.value), ask)

    async def check_contact(self, user_id: str, other_id: str) -> None:
        """Check that a person may open a direct conversation with another; never answered from memory.

        Raises PERMISSION_DENIED, with reason blocked only when it is the person's own block: whom others
        blocked is theirs to know, and so is of whom they take messages. UNAVAILABLE when the user service is away.
        """
        request = user_pb2.CheckUserBlocksRequest(user_id=user_id, target_user_ids=[other_id])
        with trio.move_on_after(CALL_S) as scope:
            reply = await self._users.CheckUserBlocks(request, metadata=self._metadata(user_id))
        if scope.cancelled_caught:
            raise unavailable("the user service did not answer in time")
        if reply.is_blocked[other_id]:
            raise denied("you have blocked this person", reason="blocked")
        if reply.has_blocked[other_id] or not reply.may_message[other_id]:
            raise denied("you cannot open a conversation with this person")

    def forget(self, *ids: str) -> None:
        """Forget every answer about these users and conversations, for something about them changed."""
        self._answers.forget(*ids)

    def forget_all(self) -> None:
        """Forget everything, as after a time in which changes may have been missed."""
        self._answers.forget_all()

    async def _check(self, key: _Key, ask: Callable[[], Asked]) -> _Answer:
        answer = self._answers.fresh(key)
        if answer is None:
            answer = await self._answers.ask(key, partial(self._ask, ask), names=key[:2])
        if not answer.granted:
            raise _refusal(answer.reason, key[1])
        return answer

    async def _ask(self, ask: Callable[[], Asked]) -> tuple[_Answer, float]:
        """Ask; return the answer and the seconds for which it need not be asked again."""
        try:
            with trio.fail_after(CALL_S):
                granted, reason, shows = await ask()
        except trio.TooSlowError:
            raise unavailable("the user service did not answer in time") from None
        except WhisprError as error:
            if error.code is not Code.NOT_FOUND:
                raise
            granted, reason, shows = False, "not_found", False
        spread = random.uniform(0.5, 1.0)  # noqa: S311  # spreads load, keeps no secret
        return _Answer(granted, reason, shows), self._grant_ttl_s * spread if granted else self._denial_ttl_s


def _refusal(reason: str, conversation_id: str) -> WhisprError:
    match reason:
        case "not_a_member":
            return not_a_member()
        case "not_found":
            return not_found("conversation", conversation_id)
        case "blocked":
            return denied("one of you has blocked the other", reason="blocked")
        case "privacy":
            return denied("they do not take your direct messages", reason="privacy")
        case _:
            return denied("you may not do this in this conversation", reason=reason or "forbidden")
