"""What people were told last, told again while PostgreSQL is away: an rpc interceptor.

A client that starts, or comes back, asks for its conversations, who is in them, what was said last, and who somebody
is. These answers are remembered, each for the person who got it and for exactly what they asked; while the service
cannot answer for want of something it depends on, they get it again. So nobody is told anything that they have not
been told before, by a service that had checked whether they may know. An answer is forgotten when the membership of
whoever got it changes, when somebody blocks them, when a message of the conversation is deleted, and after
`AGE_S_MAX`. What stands in says so: its head carries `whispr-stale`, the age of the answer in seconds, which REST
passes on with `age` (RFC 9111, section 5.1).

List it after the interceptors that authorise and limit.
"""

from __future__ import annotations

from typing import Any

import trio

from whispr.errors import WhisprError
from whispr.identity import actor_on
from whispr.resilience.fallback import AWAY, STALE_KEY, LastGood
from whispr.rpc.call import Call
from whispr.rpc.interceptors import Proceed
from whispr.rpc.server_call import ServerCall

AGE_S_MAX = 900.0
ANSWERS_MAX = 20_000
BYTES_MAX = 32 * 1024 * 1024
"""Of all answers remembered; one larger than a hundredth of it is not."""

_METHODS = {
    "Auth": ("GetUserInfo",),
    "Chat": ("GetDirectMessages", "GetMessageHistory", "GetRoomInfo", "ListRoomMembers", "ListRooms"),
    "Messaging": (
        "GetConversation", "GetMessage", "GetMessages", "ListConversations", "ListMembers", "ListPins",
    ),
    "User": ("GetConversationParticipants", "GetProfile", "ListContacts"),
}  # fmt: skip
METHODS = frozenset(
    f"/whispr.v1.{service}Service/{method}" for service, methods in _METHODS.items() for method in methods
)
"""What a client needs to show where it was; the answers of others are either for services or soon of no use."""
_ABOUT = ("conversation_id", "room_id", "user_id", "other_user_id")
"""Fields of requests that name what an answer is about."""

_Key = tuple[str, str, bytes]
"""Method, person, request."""


class StaleReads:
    """Those of one process."""

    def __init__(self) -> None:
        self._answers: LastGood[_Key, Any] = LastGood(
            "reads", trio.current_time, len_max=ANSWERS_MAX, age_s_max=AGE_S_MAX, bytes_max=BYTES_MAX
        )

    def wants(self, call: Call) -> bool:
        """Tell whether the answer to a call is remembered."""
        return call.method in METHODS

    async def __call__(self, call: Call, proceed: Proceed) -> Any:
        """Answer one call; see the module."""
        actor = actor_on(call)
        if actor is None or not actor.user_id or not isinstance(call, ServerCall):
            return await proceed()
        call.keeps_request = True
        changes = self._answers.changes
        try:
            answer = await proceed()
        except WhisprError as error:
            if error.code not in AWAY or call.request is None:
                raise
            found = self._answers.stand_in(_key(call, actor.user_id))
            if found is None:
                raise
            answer, age_s = found
            call.set_initial([(STALE_KEY, str(round(age_s)))])
            return answer
        key = _key(call, actor.user_id)
        size = len(key[2]) + answer.ByteSize()
        self._answers.keep(key, answer, 0.0, (actor.user_id, *_named(call.request)), changes, size=size)
        return answer

    def forget(self, *ids: str) -> None:
        """Forget every answer to or about these people and conversations, for something about them changed."""
        self._answers.forget(*ids)

    def forget_all(self) -> None:
        """Forget everything, as after a time in which changes may have been missed."""
        self._answers.forget_all()


def _key(call: ServerCall, user_id: str) -> _Key:
    return call.method, user_id, call.request.SerializeToString(deterministic=True)


def _named(request: Any) -> list[str]:
    named = (getattr(request, field, "") for field in _ABOUT)
    return [each for each in named if each]
