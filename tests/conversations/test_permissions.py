"""What is remembered of the user service's answers, and for how long."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from whispr.conversations.domain import Action
from whispr.conversations.permissions import (
    CALL_S,
    DENIAL_TTL_S,
    GRANT_TTL_S,
    STAND_IN_S,
    Permissions,
    UserStub,
)
from whispr.errors import Code, WhisprError, unavailable
from whispr.v1 import user_pb2


class Users:
    """A user service in the test's hand."""

    def __init__(self) -> None:
        self.granted = True
        self.reason = ""
        self.asked: list[Any] = []
        self.actors: list[str] = []
        self.trouble: Callable[[], Any] | None = None

    async def _answer(self, request: Any, metadata: Any) -> tuple[bool, str]:
        self.asked.append(request)
        self.actors.append(dict(metadata)["x-whispr-actor"])
        granted, reason = self.granted, self.reason
        await trio.lowlevel.checkpoint()
        if self.trouble is not None:
            await self.trouble()
        return granted, reason

    async def ValidateMessagePermissions(self, request: Any, *, metadata: Any) -> Any:  # noqa: N802  # an RPC
        granted, reason = await self._answer(request, metadata)
        return user_pb2.ValidateMessagePermissionsResponse(permission_granted=granted, reason=reason)

    async def ValidateConversationAccess(self, request: Any, *, metadata: Any) -> Any:  # noqa: N802  # an RPC
        granted, reason = await self._answer(request, metadata)
        return user_pb2.ValidateConversationAccessResponse(access_granted=granted, reason=reason)


async def away() -> None:
    raise unavailable("the user service is away")


@pytest.fixture
def users() -> Users:
    return Users()


@pytest.fixture
def permissions(users: Users) -> Permissions:
    return Permissions(cast("UserStub", users), lambda user: [("x-whispr-actor", user)], answers_max=3)


async def refusal(permissions: Permissions, user: str = "u", conversation: str = "c") -> str:
    with pytest.raises(WhisprError) as refused:
        await permissions.check_send(user, conversation, "text")
    return refused.value.reason


async def test_a_grant_is_remembered_for_a_while(
    users: Users, permissions: Permissions, autojump_clock: MockClock
) -> None:
    """One question serves until the grant's time is over; then it is asked again."""
    assert not permissions.may_send_now("u", "c", "text")
    for _ in range(3):
        await permissions.check_send("u", "c", "text")
    assert permissions.may_send_now("u", "c", "text")
    assert len(users.asked) == 1
    assert users.actors == ["u"]
    await trio.sleep(GRANT_TTL_S)
    assert not permissions.may_send_now("u", "c", "text")
    await permissions.check_send("u", "c", "text")
    assert len(users.asked) == 2


async def test_each_question_has_its_own_answer(users: Users, permissions: Permissions) -> None:
    """User, conversation, message type and action are told apart."""
    await permissions.check_send("u", "c", "text")
    for key in (("v", "c", "text"), ("u", "d", "text"), ("u", "c", "media")):
        assert not permissions.may_send_now(*key)
    await permissions.check_access("u", "c", Action.READ)
    await permissions.check_access("u", "c", Action.JOIN)
    assert len(users.asked) == 3


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("not_a_member", Code.PERMISSION_DENIED),
        ("blocked", Code.PERMISSION_DENIED),
        ("forbidden", Code.PERMISSION_DENIED),
        ("", Code.PERMISSION_DENIED),
    ],
)
async def test_a_denial_is_raised_and_remembered_briefly(
    users: Users, permissions: Permissions, autojump_clock: MockClock, reason: str, code: Code
) -> None:
    """Denials keep their reason and are asked again soon."""
    users.granted, users.reason = False, reason
    for _ in range(2):
        assert await refusal(permissions) == (reason or "forbidden")
    assert not permissions.may_send_now("u", "c", "text")
    assert len(users.asked) == 1
    users.granted = True
    await trio.sleep(DENIAL_TTL_S)
    await permissions.check_send("u", "c", "text")


async def test_the_last_answer_stands_in_while_the_service_is_away(
    users: Users, permissions: Permissions, autojump_clock: MockClock
) -> None:
    """An expired answer serves while nobody answers, a denial as a denial; the service is tried again."""
    await permissions.check_send("u", "c", "text")
    users.granted, users.reason = False, "blocked"
    assert await refusal(permissions, "v") == "blocked"
    await trio.sleep(GRANT_TTL_S)
    users.trouble = away
    await permissions.check_send("u", "c", "text")
    assert permissions.may_send_now("u", "c", "text")
    assert await refusal(permissions, "v") == "blocked"
    assert await refusal(permissions, "w") == "unavailable"
    await trio.sleep(STAND_IN_S)
    users.trouble = None
    assert await refusal(permissions) == "blocked"


async def test_a_service_that_hangs_is_not_waited_for(
    users: Users, permissions: Permissions, autojump_clock: MockClock
) -> None:
    """After CALL_S the last answer stands in, and those without one hear UNAVAILABLE."""
    await permissions.check_send("u", "c", "text")
    await trio.sleep(GRANT_TTL_S)
    users.trouble = trio.sleep_forever
    began = trio.current_time()
    await permissions.check_send("u", "c", "text")
    assert trio.current_time() - began == pytest.approx(CALL_S)
    await permissions.check_send("u", "c", "text")
    assert trio.current_time() - began == pytest.approx(CALL_S)
    assert await refusal(permissions, "v") == "unavailable"


async def test_what_changed_is_forgotten_at_once(
    users: Users, permissions: Permissions, autojump_clock: MockClock
) -> None:
    """forget(user or conversation) makes the next check ask, and leaves no stand-in."""
    ways: list[Callable[[], None]] = [
        lambda: permissions.forget("u"),
        lambda: permissions.forget("c"),
        permissions.forget_all,
    ]
    for forget in ways:
        users.trouble = None
        await permissions.check_send("u", "c", "text")
        forget()
        assert not permissions.may_send_now("u", "c", "text")
        users.trouble = away
        assert await refusal(permissions) == "unavailable"


async def test_an_answer_that_crossed_a_change_is_not_remembered(
    users: Users, permissions: Permissions
) -> None:
    """A grant given before a change, arriving after it, is used once."""

    async def change() -> None:
        permissions.forget("u")

    users.trouble = change
    await permissions.check_send("u", "c", "text")
    assert not permissions.may_send_now("u", "c", "text")


async def test_memory_is_bounded(users: Users, permissions: Permissions) -> None:
    """Past answers_max the least recently used answer goes, and its traces with it."""
    for user in ("a", "b", "c", "a", "d"):
        await permissions.check_send(user, "x", "text")
    assert [user for user in "abcd" if permissions.may_send_now(user, "x", "text")] == ["a", "c", "d"]
    assert "b" not in permissions._answers._keys_of
    permissions.forget("x")
    assert permissions._answers._keys_of == {}
