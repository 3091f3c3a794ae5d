import datetime

from google.api import annotations_pb2 as _annotations_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from whispr.v1 import common_pb2 as _common_pb2
from whispr.v1 import messaging_pb2 as _messaging_pb2
from whispr.v1 import options_pb2 as _options_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Room(_message.Message):
    __slots__ = ("id", "name", "description", "type", "visibility", "created_by", "created_at", "member_count", "online_count", "is_active", "slow_mode_seconds", "member_limit", "antispam", "role", "last_seq")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        TYPE_UNSPECIFIED: _ClassVar[Room.Type]
        PUBLIC: _ClassVar[Room.Type]
        PRIVATE: _ClassVar[Room.Type]
        DIRECT: _ClassVar[Room.Type]
        PREMIUM: _ClassVar[Room.Type]
    TYPE_UNSPECIFIED: Room.Type
    PUBLIC: Room.Type
    PRIVATE: Room.Type
    DIRECT: Room.Type
    PREMIUM: Room.Type
    class Visibility(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        VISIBILITY_UNSPECIFIED: _ClassVar[Room.Visibility]
        OPEN: _ClassVar[Room.Visibility]
        INVITE_ONLY: _ClassVar[Room.Visibility]
        HIDDEN: _ClassVar[Room.Visibility]
    VISIBILITY_UNSPECIFIED: Room.Visibility
    OPEN: Room.Visibility
    INVITE_ONLY: Room.Visibility
    HIDDEN: Room.Visibility
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    VISIBILITY_FIELD_NUMBER: _ClassVar[int]
    CREATED_BY_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    MEMBER_COUNT_FIELD_NUMBER: _ClassVar[int]
    ONLINE_COUNT_FIELD_NUMBER: _ClassVar[int]
    IS_ACTIVE_FIELD_NUMBER: _ClassVar[int]
    SLOW_MODE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MEMBER_LIMIT_FIELD_NUMBER: _ClassVar[int]
    ANTISPAM_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQ_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    description: str
    type: Room.Type
    visibility: Room.Visibility
    created_by: str
    created_at: _timestamp_pb2.Timestamp
    member_count: int
    online_count: int
    is_active: bool
    slow_mode_seconds: int
    member_limit: int
    antispam: bool
    role: str
    last_seq: int
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., description: _Optional[str] = ..., type: _Optional[_Union[Room.Type, str]] = ..., visibility: _Optional[_Union[Room.Visibility, str]] = ..., created_by: _Optional[str] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., member_count: _Optional[int] = ..., online_count: _Optional[int] = ..., is_active: _Optional[bool] = ..., slow_mode_seconds: _Optional[int] = ..., member_limit: _Optional[int] = ..., antispam: _Optional[bool] = ..., role: _Optional[str] = ..., last_seq: _Optional[int] = ...) -> None: ...

class RoomMember(_message.Message):
    __slots__ = ("user_id", "username", "role", "joined_at", "is_online", "last_seen", "muted_until")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    USERNAME_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    JOINED_AT_FIELD_NUMBER: _ClassVar[int]
    IS_ONLINE_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    MUTED_UNTIL_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    username: str
    role: str
    joined_at: _timestamp_pb2.Timestamp
    is_online: bool
    last_seen: _timestamp_pb2.Timestamp
    muted_until: _timestamp_pb2.Timestamp
    def __init__(self, user_id: _Optional[str] = ..., username: _Optional[str] = ..., role: _Optional[str] = ..., joined_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., is_online: _Optional[bool] = ..., last_seen: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., muted_until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class CreateRoomRequest(_message.Message):
    __slots__ = ("name", "description", "type", "visibility", "member_ids", "slow_mode_seconds")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    VISIBILITY_FIELD_NUMBER: _ClassVar[int]
    MEMBER_IDS_FIELD_NUMBER: _ClassVar[int]
    SLOW_MODE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    description: str
    type: Room.Type
    visibility: Room.Visibility
    member_ids: _containers.RepeatedScalarFieldContainer[str]
    slow_mode_seconds: int
    def __init__(self, name: _Optional[str] = ..., description: _Optional[str] = ..., type: _Optional[_Union[Room.Type, str]] = ..., visibility: _Optional[_Union[Room.Visibility, str]] = ..., member_ids: _Optional[_Iterable[str]] = ..., slow_mode_seconds: _Optional[int] = ...) -> None: ...

class CreateRoomResponse(_message.Message):
    __slots__ = ("room",)
    ROOM_FIELD_NUMBER: _ClassVar[int]
    room: Room
    def __init__(self, room: _Optional[_Union[Room, _Mapping]] = ...) -> None: ...

class JoinRoomRequest(_message.Message):
    __slots__ = ("room_id", "invite_code")
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    INVITE_CODE_FIELD_NUMBER: _ClassVar[int]
    room_id: str
    invite_code: str
    def __init__(self, room_id: _Optional[str] = ..., invite_code: _Optional[str] = ...) -> None: ...

class JoinRoomResponse(_message.Message):
    __slots__ = ("member", "room")
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    ROOM_FIELD_NUMBER: _ClassVar[int]
    member: RoomMember
    room: Room
    def __init__(self, member: _Optional[_Union[RoomMember, _Mapping]] = ..., room: _Optional[_Union[Room, _Mapping]] = ...) -> None: ...

class LeaveRoomRequest(_message.Message):
    __slots__ = ("room_id",)
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    room_id: str
    def __init__(self, room_id: _Optional[str] = ...) -> None: ...

class LeaveRoomResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetRoomInfoRequest(_message.Message):
    __slots__ = ("room_id",)
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    room_id: str
    def __init__(self, room_id: _Optional[str] = ...) -> None: ...

class GetRoomInfoResponse(_message.Message):
    __slots__ = ("room",)
    ROOM_FIELD_NUMBER: _ClassVar[int]
    room: Room
    def __init__(self, room: _Optional[_Union[Room, _Mapping]] = ...) -> None: ...

class ListRoomsRequest(_message.Message):
    __slots__ = ("visibility", "page", "limit", "query")
    VISIBILITY_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    visibility: Room.Visibility
    page: int
    limit: int
    query: str
    def __init__(self, visibility: _Optional[_Union[Room.Visibility, str]] = ..., page: _Optional[int] = ..., limit: _Optional[int] = ..., query: _Optional[str] = ...) -> None: ...

class ListRoomsResponse(_message.Message):
    __slots__ = ("rooms", "total")
    ROOMS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    rooms: _containers.RepeatedCompositeFieldContainer[Room]
    total: int
    def __init__(self, rooms: _Optional[_Iterable[_Union[Room, _Mapping]]] = ..., total: _Optional[int] = ...) -> None: ...

class UpdateRoomRequest(_message.Message):
    __slots__ = ("room_id", "name", "description", "visibility", "slow_mode_seconds", "member_limit", "antispam")
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    VISIBILITY_FIELD_NUMBER: _ClassVar[int]
    SLOW_MODE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MEMBER_LIMIT_FIELD_NUMBER: _ClassVar[int]
    ANTISPAM_FIELD_NUMBER: _ClassVar[int]
    room_id: str
    name: str
    description: str
    visibility: Room.Visibility
    slow_mode_seconds: int
    member_limit: int
    antispam: bool
    def __init__(self, room_id: _Optional[str] = ..., name: _Optional[str] = ..., description: _Optional[str] = ..., visibility: _Optional[_Union[Room.Visibility, str]] = ..., slow_mode_seconds: _Optional[int] = ..., member_limit: _Optional[int] = ..., antispam: _Optional[bool] = ...) -> None: ...

class UpdateRoomResponse(_message.Message):
    __slots__ = ("room",)
    ROOM_FIELD_NUMBER: _ClassVar[int]
    room: Room
    def __init__(self, room: _Optional[_Union[Room, _Mapping]] = ...) -> None: ...

class CloseRoomRequest(_message.Message):
    __slots__ = ("room_id", "reason")
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    room_id: str
    reason: str
    def __init__(self, room_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class CloseRoomResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SendRoomMessageRequest(_message.Message):
    __slots__ = ("room_id", "content", "type", "reply_to", "client_id", "metadata")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        TYPE_UNSPECIFIED: _ClassVar[SendRoomMessageRequest.Type]
        TEXT: _ClassVar[SendRoomMessageRequest.Type]
        IMAGE: _ClassVar[SendRoomMessageRequest.Type]
        FILE: _ClassVar[SendRoomMessageRequest.Type]
        AUDIO: _ClassVar[SendRoomMessageRequest.Type]
        VIDEO: _ClassVar[SendRoomMessageRequest.Type]
        SYSTEM: _ClassVar[SendRoomMessageRequest.Type]
    TYPE_UNSPECIFIED: SendRoomMessageRequest.Type
    TEXT: SendRoomMessageRequest.Type
    IMAGE: SendRoomMessageRequest.Type
    FILE: SendRoomMessageRequest.Type
    AUDIO: SendRoomMessageRequest.Type
    VIDEO: SendRoomMessageRequest.Type
    SYSTEM: SendRoomMessageRequest.Type
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    REPLY_TO_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    room_id: str
    content: bytes
    type: SendRoomMessageRequest.Type
    reply_to: str
    client_id: str
    metadata: _containers.ScalarMap[str, str]
    def __init__(self, room_id: _Optional[str] = ..., content: _Optional[bytes] = ..., type: _Optional[_Union[SendRoomMessageRequest.Type, str]] = ..., reply_to: _Optional[str] = ..., client_id: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class SendRoomMessageResponse(_message.Message):
    __slots__ = ("message",)
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    message: _messaging_pb2.Message
    def __init__(self, message: _Optional[_Union[_messaging_pb2.Message, _Mapping]] = ...) -> None: ...

class GetMessageHistoryRequest(_message.Message):
    __slots__ = ("room_id", "limit", "before_id")
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    BEFORE_ID_FIELD_NUMBER: _ClassVar[int]
    room_id: str
    limit: int
    before_id: str
    def __init__(self, room_id: _Optional[str] = ..., limit: _Optional[int] = ..., before_id: _Optional[str] = ...) -> None: ...

class GetMessageHistoryResponse(_message.Message):
    __slots__ = ("messages", "has_more")
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    HAS_MORE_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[_messaging_pb2.Message]
    has_more: bool
    def __init__(self, messages: _Optional[_Iterable[_Union[_messaging_pb2.Message, _Mapping]]] = ..., has_more: _Optional[bool] = ...) -> None: ...

class DeleteRoomMessageRequest(_message.Message):
    __slots__ = ("room_id", "message_id", "reason")
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    room_id: str
    message_id: str
    reason: str
    def __init__(self, room_id: _Optional[str] = ..., message_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class DeleteRoomMessageResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class SendDirectMessageRequest(_message.Message):
    __slots__ = ("recipient_id", "content", "type", "reply_to", "client_id", "metadata", "other_user_id")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    RECIPIENT_ID_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    REPLY_TO_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    OTHER_USER_ID_FIELD_NUMBER: _ClassVar[int]
    recipient_id: str
    content: bytes
    type: SendRoomMessageRequest.Type
    reply_to: str
    client_id: str
    metadata: _containers.ScalarMap[str, str]
    other_user_id: str
    def __init__(self, recipient_id: _Optional[str] = ..., content: _Optional[bytes] = ..., type: _Optional[_Union[SendRoomMessageRequest.Type, str]] = ..., reply_to: _Optional[str] = ..., client_id: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., other_user_id: _Optional[str] = ...) -> None: ...

class SendDirectMessageResponse(_message.Message):
    __slots__ = ("message",)
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    message: _messaging_pb2.Message
    def __init__(self, message: _Optional[_Union[_messaging_pb2.Message, _Mapping]] = ...) -> None: ...

class GetDirectMessagesRequest(_message.Message):
    __slots__ = ("other_user_id", "limit", "before_id")
    OTHER_USER_ID_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    BEFORE_ID_FIELD_NUMBER: _ClassVar[int]
    other_user_id: str
    limit: int
    before_id: str
    def __init__(self, other_user_id: _Optional[str] = ..., limit: _Optional[int] = ..., before_id: _Optional[str] = ...) -> None: ...

class GetDirectMessagesResponse(_message.Message):
    __slots__ = ("messages", "has_more")
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    HAS_MORE_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[_messaging_pb2.Message]
    has_more: bool
    def __init__(self, messages: _Optional[_Iterable[_Union[_messaging_pb2.Message, _Mapping]]] = ..., has_more: _Optional[bool] = ...) -> None: ...

class ListRoomMembersRequest(_message.Message):
    __slots__ = ("room_id", "page_size", "page_token")
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    room_id: str
    page_size: int
    page_token: str
    def __init__(self, room_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListRoomMembersResponse(_message.Message):
    __slots__ = ("members", "next_page_token")
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    members: _containers.RepeatedCompositeFieldContainer[RoomMember]
    next_page_token: str
    def __init__(self, members: _Optional[_Iterable[_Union[RoomMember, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class SetRoomMemberRoleRequest(_message.Message):
    __slots__ = ("room_id", "user_id", "role")
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    room_id: str
    user_id: str
    role: str
    def __init__(self, room_id: _Optional[str] = ..., user_id: _Optional[str] = ..., role: _Optional[str] = ...) -> None: ...

class SetRoomMemberRoleResponse(_message.Message):
    __slots__ = ("member",)
    MEMBER_FIELD_NUMBER: _ClassVar[int]
    member: RoomMember
    def __init__(self, member: _Optional[_Union[RoomMember, _Mapping]] = ...) -> None: ...

class Invitation(_message.Message):
    __slots__ = ("id", "room_id", "user_id", "code", "created_by", "created_at", "expires_at", "uses_max", "uses")
    ID_FIELD_NUMBER: _ClassVar[int]
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    CODE_FIELD_NUMBER: _ClassVar[int]
    CREATED_BY_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    USES_MAX_FIELD_NUMBER: _ClassVar[int]
    USES_FIELD_NUMBER: _ClassVar[int]
    id: str
    room_id: str
    user_id: str
    code: str
    created_by: str
    created_at: _timestamp_pb2.Timestamp
    expires_at: _timestamp_pb2.Timestamp
    uses_max: int
    uses: int
    def __init__(self, id: _Optional[str] = ..., room_id: _Optional[str] = ..., user_id: _Optional[str] = ..., code: _Optional[str] = ..., created_by: _Optional[str] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., uses_max: _Optional[int] = ..., uses: _Optional[int] = ...) -> None: ...

class InviteUserRequest(_message.Message):
    __slots__ = ("room_id", "user_id", "expires_in_seconds", "uses_max")
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_IN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    USES_MAX_FIELD_NUMBER: _ClassVar[int]
    room_id: str
    user_id: str
    expires_in_seconds: int
    uses_max: int
    def __init__(self, room_id: _Optional[str] = ..., user_id: _Optional[str] = ..., expires_in_seconds: _Optional[int] = ..., uses_max: _Optional[int] = ...) -> None: ...

class InviteUserResponse(_message.Message):
    __slots__ = ("invitation",)
    INVITATION_FIELD_NUMBER: _ClassVar[int]
    invitation: Invitation
    def __init__(self, invitation: _Optional[_Union[Invitation, _Mapping]] = ...) -> None: ...

class ListInvitationsRequest(_message.Message):
    __slots__ = ("room_id", "page_size", "page_token")
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    room_id: str
    page_size: int
    page_token: str
    def __init__(self, room_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListInvitationsResponse(_message.Message):
    __slots__ = ("invitations", "next_page_token")
    INVITATIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    invitations: _containers.RepeatedCompositeFieldContainer[Invitation]
    next_page_token: str
    def __init__(self, invitations: _Optional[_Iterable[_Union[Invitation, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class RevokeInvitationRequest(_message.Message):
    __slots__ = ("room_id", "invitation_id")
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    INVITATION_ID_FIELD_NUMBER: _ClassVar[int]
    room_id: str
    invitation_id: str
    def __init__(self, room_id: _Optional[str] = ..., invitation_id: _Optional[str] = ...) -> None: ...

class RevokeInvitationResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MuteUserRequest(_message.Message):
    __slots__ = ("room_id", "user_id", "duration_seconds", "reason")
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    DURATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    room_id: str
    user_id: str
    duration_seconds: int
    reason: str
    def __init__(self, room_id: _Optional[str] = ..., user_id: _Optional[str] = ..., duration_seconds: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class MuteUserResponse(_message.Message):
    __slots__ = ("muted_until",)
    MUTED_UNTIL_FIELD_NUMBER: _ClassVar[int]
    muted_until: _timestamp_pb2.Timestamp
    def __init__(self, muted_until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class UnmuteUserRequest(_message.Message):
    __slots__ = ("room_id", "user_id", "reason")
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    room_id: str
    user_id: str
    reason: str
    def __init__(self, room_id: _Optional[str] = ..., user_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class UnmuteUserResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class BanUserRequest(_message.Message):
    __slots__ = ("room_id", "user_id", "reason", "duration_seconds")
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DURATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    room_id: str
    user_id: str
    reason: str
    duration_seconds: int
    def __init__(self, room_id: _Optional[str] = ..., user_id: _Optional[str] = ..., reason: _Optional[str] = ..., duration_seconds: _Optional[int] = ...) -> None: ...

class BanUserResponse(_message.Message):
    __slots__ = ("banned_until",)
    BANNED_UNTIL_FIELD_NUMBER: _ClassVar[int]
    banned_until: _timestamp_pb2.Timestamp
    def __init__(self, banned_until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class UnbanUserRequest(_message.Message):
    __slots__ = ("room_id", "user_id", "reason")
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    room_id: str
    user_id: str
    reason: str
    def __init__(self, room_id: _Optional[str] = ..., user_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class UnbanUserResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class KickUserRequest(_message.Message):
    __slots__ = ("room_id", "user_id", "reason")
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    room_id: str
    user_id: str
    reason: str
    def __init__(self, room_id: _Optional[str] = ..., user_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class KickUserResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Ban(_message.Message):
    __slots__ = ("user_id", "banned_by", "banned_at", "banned_until", "reason")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    BANNED_BY_FIELD_NUMBER: _ClassVar[int]
    BANNED_AT_FIELD_NUMBER: _ClassVar[int]
    BANNED_UNTIL_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    banned_by: str
    banned_at: _timestamp_pb2.Timestamp
    banned_until: _timestamp_pb2.Timestamp
    reason: str
    def __init__(self, user_id: _Optional[str] = ..., banned_by: _Optional[str] = ..., banned_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., banned_until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., reason: _Optional[str] = ...) -> None: ...

class ListBansRequest(_message.Message):
    __slots__ = ("room_id", "page_size", "page_token")
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    room_id: str
    page_size: int
    page_token: str
    def __init__(self, room_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListBansResponse(_message.Message):
    __slots__ = ("bans", "next_page_token")
    BANS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    bans: _containers.RepeatedCompositeFieldContainer[Ban]
    next_page_token: str
    def __init__(self, bans: _Optional[_Iterable[_Union[Ban, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ModerateMessageRequest(_message.Message):
    __slots__ = ("message_id", "action", "reason", "content")
    class Action(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        ACTION_UNSPECIFIED: _ClassVar[ModerateMessageRequest.Action]
        WARN: _ClassVar[ModerateMessageRequest.Action]
        DELETE: _ClassVar[ModerateMessageRequest.Action]
        EDIT: _ClassVar[ModerateMessageRequest.Action]
        FLAG: _ClassVar[ModerateMessageRequest.Action]
        RESTORE: _ClassVar[ModerateMessageRequest.Action]
    ACTION_UNSPECIFIED: ModerateMessageRequest.Action
    WARN: ModerateMessageRequest.Action
    DELETE: ModerateMessageRequest.Action
    EDIT: ModerateMessageRequest.Action
    FLAG: ModerateMessageRequest.Action
    RESTORE: ModerateMessageRequest.Action
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    message_id: str
    action: ModerateMessageRequest.Action
    reason: str
    content: bytes
    def __init__(self, message_id: _Optional[str] = ..., action: _Optional[_Union[ModerateMessageRequest.Action, str]] = ..., reason: _Optional[str] = ..., content: _Optional[bytes] = ...) -> None: ...

class ModerateMessageResponse(_message.Message):
    __slots__ = ("message",)
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    message: _messaging_pb2.Message
    def __init__(self, message: _Optional[_Union[_messaging_pb2.Message, _Mapping]] = ...) -> None: ...

class ReportMessageRequest(_message.Message):
    __slots__ = ("message_id", "reason")
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    message_id: str
    reason: str
    def __init__(self, message_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ReportMessageResponse(_message.Message):
    __slots__ = ("flagged", "hidden")
    FLAGGED_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    flagged: bool
    hidden: bool
    def __init__(self, flagged: _Optional[bool] = ..., hidden: _Optional[bool] = ...) -> None: ...

class FlaggedMessage(_message.Message):
    __slots__ = ("message", "reports", "reasons", "hidden", "flagged_at", "conversation_kind", "conversation_name")
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_FIELD_NUMBER: _ClassVar[int]
    FLAGGED_AT_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_KIND_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_NAME_FIELD_NUMBER: _ClassVar[int]
    message: _messaging_pb2.Message
    reports: int
    reasons: _containers.RepeatedScalarFieldContainer[str]
    hidden: bool
    flagged_at: _timestamp_pb2.Timestamp
    conversation_kind: str
    conversation_name: str
    def __init__(self, message: _Optional[_Union[_messaging_pb2.Message, _Mapping]] = ..., reports: _Optional[int] = ..., reasons: _Optional[_Iterable[str]] = ..., hidden: _Optional[bool] = ..., flagged_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., conversation_kind: _Optional[str] = ..., conversation_name: _Optional[str] = ...) -> None: ...

class ListFlaggedMessagesRequest(_message.Message):
    __slots__ = ("room_id", "page_size", "page_token")
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    room_id: str
    page_size: int
    page_token: str
    def __init__(self, room_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListFlaggedMessagesResponse(_message.Message):
    __slots__ = ("messages", "next_page_token")
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[FlaggedMessage]
    next_page_token: str
    def __init__(self, messages: _Optional[_Iterable[_Union[FlaggedMessage, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class AuditEntry(_message.Message):
    __slots__ = ("id", "room_id", "at", "actor_id", "action", "target_id", "message_id", "reason", "details")
    class DetailsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    ACTOR_ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    TARGET_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAILS_FIELD_NUMBER: _ClassVar[int]
    id: str
    room_id: str
    at: _timestamp_pb2.Timestamp
    actor_id: str
    action: str
    target_id: str
    message_id: str
    reason: str
    details: _containers.ScalarMap[str, str]
    def __init__(self, id: _Optional[str] = ..., room_id: _Optional[str] = ..., at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., actor_id: _Optional[str] = ..., action: _Optional[str] = ..., target_id: _Optional[str] = ..., message_id: _Optional[str] = ..., reason: _Optional[str] = ..., details: _Optional[_Mapping[str, str]] = ...) -> None: ...

class GetAuditLogRequest(_message.Message):
    __slots__ = ("room_id", "page_size", "page_token", "target_id")
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TARGET_ID_FIELD_NUMBER: _ClassVar[int]
    room_id: str
    page_size: int
    page_token: str
    target_id: str
    def __init__(self, room_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., target_id: _Optional[str] = ...) -> None: ...

class GetAuditLogResponse(_message.Message):
    __slots__ = ("entries", "next_page_token")
    ENTRIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    entries: _containers.RepeatedCompositeFieldContainer[AuditEntry]
    next_page_token: str
    def __init__(self, entries: _Optional[_Iterable[_Union[AuditEntry, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class GetRoomStatsRequest(_message.Message):
    __slots__ = ("room_id",)
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    room_id: str
    def __init__(self, room_id: _Optional[str] = ...) -> None: ...

class RoomStats(_message.Message):
    __slots__ = ("room_id", "total_members", "online_members", "messages_today", "total_messages", "active_users")
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MEMBERS_FIELD_NUMBER: _ClassVar[int]
    ONLINE_MEMBERS_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_TODAY_FIELD_NUMBER: _ClassVar[int]
    TOTAL_MESSAGES_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_USERS_FIELD_NUMBER: _ClassVar[int]
    room_id: str
    total_members: int
    online_members: int
    messages_today: int
    total_messages: int
    active_users: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, room_id: _Optional[str] = ..., total_members: _Optional[int] = ..., online_members: _Optional[int] = ..., messages_today: _Optional[int] = ..., total_messages: _Optional[int] = ..., active_users: _Optional[_Iterable[str]] = ...) -> None: ...

class GetUserActivityRequest(_message.Message):
    __slots__ = ("user_id",)
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    def __init__(self, user_id: _Optional[str] = ...) -> None: ...

class UserActivity(_message.Message):
    __slots__ = ("user_id", "rooms_joined", "messages_sent", "last_activity", "is_online", "current_status")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    ROOMS_JOINED_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_SENT_FIELD_NUMBER: _ClassVar[int]
    LAST_ACTIVITY_FIELD_NUMBER: _ClassVar[int]
    IS_ONLINE_FIELD_NUMBER: _ClassVar[int]
    CURRENT_STATUS_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    rooms_joined: int
    messages_sent: int
    last_activity: _timestamp_pb2.Timestamp
    is_online: bool
    current_status: str
    def __init__(self, user_id: _Optional[str] = ..., rooms_joined: _Optional[int] = ..., messages_sent: _Optional[int] = ..., last_activity: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., is_online: _Optional[bool] = ..., current_status: _Optional[str] = ...) -> None: ...

class SubscribeRoomEventsRequest(_message.Message):
    __slots__ = ("room_id", "since_seq", "event_types")
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    SINCE_SEQ_FIELD_NUMBER: _ClassVar[int]
    EVENT_TYPES_FIELD_NUMBER: _ClassVar[int]
    room_id: str
    since_seq: int
    event_types: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, room_id: _Optional[str] = ..., since_seq: _Optional[int] = ..., event_types: _Optional[_Iterable[str]] = ...) -> None: ...

class RoomEvent(_message.Message):
    __slots__ = ("type", "room_id", "seq", "time", "data")
    TYPE_FIELD_NUMBER: _ClassVar[int]
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    SEQ_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    type: str
    room_id: str
    seq: int
    time: _timestamp_pb2.Timestamp
    data: str
    def __init__(self, type: _Optional[str] = ..., room_id: _Optional[str] = ..., seq: _Optional[int] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., data: _Optional[str] = ...) -> None: ...
