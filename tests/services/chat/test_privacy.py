"""Members of rooms are shown as they want to be seen."""

from __future__ import annotations

from tests.conversations.kit import sign_up
from tests.services.chat.kit import World
from tests.services.kit import as_
from whispr.v1 import chat_pb2 as pb
from whispr.v1 import user_pb2


async def online(world: World, viewer: str, room_id: str) -> set[str]:
    request = pb.ListRoomMembersRequest(room_id=room_id)
    reply = await world.chat.ListRoomMembers(request, metadata=as_(viewer))
    return {member.user_id for member in reply.members if member.is_online}


async def test_members_are_shown_online_to_whom_they_like(world: World) -> None:
    """Whoever keeps their presence to themselves, or blocked the one who looks, does not show as online."""
    one, two, three = await sign_up(world.db, 3)
    room_id = await world.room(one, two, three)
    async with world.server.connect(one), world.server.connect(two), world.server.connect(three):
        assert await online(world, one, room_id) == {one, two, three}
        hidden = user_pb2.UpdateProfileRequest(presence_privacy="nobody")
        await world.users.UpdateProfile(hidden, metadata=as_(two))
        await world.users.BlockUser(user_pb2.BlockUserRequest(user_id=one), metadata=as_(three))
        assert await online(world, one, room_id) == {one}
        assert await online(world, two, room_id) == {one, two, three}
        assert await online(world, three, room_id) == {three}
