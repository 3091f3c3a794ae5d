import datetime

from google.api import annotations_pb2 as _annotations_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from whispr.v1 import common_pb2 as _common_pb2
from whispr.v1 import options_pb2 as _options_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ValidateMessagePermissionsRequest(_message.Message):
    __slots__ = ("sender_id", "conversation_id", "participant_ids", "message_type")
    SENDER_ID_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    PARTICIPANT_IDS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_TYPE_FIELD_NUMBER: _ClassVar[int]
    sender_id: str
    conversation_id: str
    participant_ids: _containers.RepeatedScalarFieldContainer[str]
    message_type: str
    def __init__(self, sender_id: _Optional[str] = ..., conversation_id: _Optional[str] = ..., participant_ids: _Optional[_Iterable[str]] = ..., message_type: _Optional[str] = ...) -> None: ...

class ValidateMessagePermissionsResponse(_message.Message):
    __slots__ = ("permission_granted", "reason", "allowed_recipients", "blocked_recipients")
    PERMISSION_GRANTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    ALLOWED_RECIPIENTS_FIELD_NUMBER: _ClassVar[int]
    BLOCKED_RECIPIENTS_FIELD_NUMBER: _ClassVar[int]
    permission_granted: bool
    reason: str
    allowed_recipients: _containers.RepeatedScalarFieldContainer[str]
    blocked_recipients: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, permission_granted: _Optional[bool] = ..., reason: _Optional[str] = ..., allowed_recipients: _Optional[_Iterable[str]] = ..., blocked_recipients: _Optional[_Iterable[str]] = ...) -> None: ...

class ValidateConversationAccessRequest(_message.Message):
    __slots__ = ("user_id", "conversation_id", "action")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    conversation_id: str
    action: str
    def __init__(self, user_id: _Optional[str] = ..., conversation_id: _Optional[str] = ..., action: _Optional[str] = ...) -> None: ...

class ValidateConversationAccessResponse(_message.Message):
    __slots__ = ("access_granted", "reason", "permissions", "role", "shows_presence")
    class PermissionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bool
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bool] = ...) -> None: ...
    ACCESS_GRANTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    PERMISSIONS_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    SHOWS_PRESENCE_FIELD_NUMBER: _ClassVar[int]
    access_granted: bool
    reason: str
    permissions: _containers.ScalarMap[str, bool]
    role: str
    shows_presence: bool
    def __init__(self, access_granted: _Optional[bool] = ..., reason: _Optional[str] = ..., permissions: _Optional[_Mapping[str, bool]] = ..., role: _Optional[str] = ..., shows_presence: _Optional[bool] = ...) -> None: ...

class GetConversationParticipantsRequest(_message.Message):
    __slots__ = ("conversation_id", "include_inactive", "page_size", "page_token")
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_INACTIVE_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    conversation_id: str
    include_inactive: bool
    page_size: int
    page_token: str
    def __init__(self, conversation_id: _Optional[str] = ..., include_inactive: _Optional[bool] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class GetConversationParticipantsResponse(_message.Message):
    __slots__ = ("participants", "total_count", "next_page_token")
    PARTICIPANTS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_COUNT_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    participants: _containers.RepeatedCompositeFieldContainer[Participant]
    total_count: int
    next_page_token: str
    def __init__(self, participants: _Optional[_Iterable[_Union[Participant, _Mapping]]] = ..., total_count: _Optional[int] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class Participant(_message.Message):
    __slots__ = ("user_id", "role", "is_active", "joined_at", "last_seen")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    ROLE_FIELD_NUMBER: _ClassVar[int]
    IS_ACTIVE_FIELD_NUMBER: _ClassVar[int]
    JOINED_AT_FIELD_NUMBER: _ClassVar[int]
    LAST_SEEN_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    role: str
    is_active: bool
    joined_at: _timestamp_pb2.Timestamp
    last_seen: _timestamp_pb2.Timestamp
    def __init__(self, user_id: _Optional[str] = ..., role: _Optional[str] = ..., is_active: _Optional[bool] = ..., joined_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_seen: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class CheckUserBlocksRequest(_message.Message):
    __slots__ = ("user_id", "target_user_ids")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    TARGET_USER_IDS_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    target_user_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, user_id: _Optional[str] = ..., target_user_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class CheckUserBlocksResponse(_message.Message):
    __slots__ = ("is_blocked", "has_blocked", "may_message")
    class IsBlockedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bool
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bool] = ...) -> None: ...
    class HasBlockedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bool
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bool] = ...) -> None: ...
    class MayMessageEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bool
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bool] = ...) -> None: ...
    IS_BLOCKED_FIELD_NUMBER: _ClassVar[int]
    HAS_BLOCKED_FIELD_NUMBER: _ClassVar[int]
    MAY_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    is_blocked: _containers.ScalarMap[str, bool]
    has_blocked: _containers.ScalarMap[str, bool]
    may_message: _containers.ScalarMap[str, bool]
    def __init__(self, is_blocked: _Optional[_Mapping[str, bool]] = ..., has_blocked: _Optional[_Mapping[str, bool]] = ..., may_message: _Optional[_Mapping[str, bool]] = ...) -> None: ...

class BlockUserRequest(_message.Message):
    __slots__ = ("user_id",)
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    def __init__(self, user_id: _Optional[str] = ...) -> None: ...

class BlockUserResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UnblockUserRequest(_message.Message):
    __slots__ = ("user_id",)
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    def __init__(self, user_id: _Optional[str] = ...) -> None: ...

class UnblockUserResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListBlocksRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListBlocksResponse(_message.Message):
    __slots__ = ("blocks", "next_page_token")
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    blocks: _containers.RepeatedCompositeFieldContainer[Block]
    next_page_token: str
    def __init__(self, blocks: _Optional[_Iterable[_Union[Block, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class Block(_message.Message):
    __slots__ = ("user_id", "blocked_at")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    BLOCKED_AT_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    blocked_at: _timestamp_pb2.Timestamp
    def __init__(self, user_id: _Optional[str] = ..., blocked_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class GetProfileRequest(_message.Message):
    __slots__ = ("user_id",)
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    def __init__(self, user_id: _Optional[str] = ...) -> None: ...

class GetProfileResponse(_message.Message):
    __slots__ = ("profile",)
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    profile: Profile
    def __init__(self, profile: _Optional[_Union[Profile, _Mapping]] = ...) -> None: ...

class Profile(_message.Message):
    __slots__ = ("id", "username", "display_name", "created_at", "bio", "avatar_media_id", "status_text", "locale", "time_zone", "message_privacy", "presence_privacy")
    ID_FIELD_NUMBER: _ClassVar[int]
    USERNAME_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    BIO_FIELD_NUMBER: _ClassVar[int]
    AVATAR_MEDIA_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_TEXT_FIELD_NUMBER: _ClassVar[int]
    LOCALE_FIELD_NUMBER: _ClassVar[int]
    TIME_ZONE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_PRIVACY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PRIVACY_FIELD_NUMBER: _ClassVar[int]
    id: str
    username: str
    display_name: str
    created_at: _timestamp_pb2.Timestamp
    bio: str
    avatar_media_id: str
    status_text: str
    locale: str
    time_zone: str
    message_privacy: str
    presence_privacy: str
    def __init__(self, id: _Optional[str] = ..., username: _Optional[str] = ..., display_name: _Optional[str] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., bio: _Optional[str] = ..., avatar_media_id: _Optional[str] = ..., status_text: _Optional[str] = ..., locale: _Optional[str] = ..., time_zone: _Optional[str] = ..., message_privacy: _Optional[str] = ..., presence_privacy: _Optional[str] = ...) -> None: ...

class UpdateProfileRequest(_message.Message):
    __slots__ = ("display_name", "bio", "avatar_media_id", "status_text", "locale", "time_zone", "message_privacy", "presence_privacy")
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    BIO_FIELD_NUMBER: _ClassVar[int]
    AVATAR_MEDIA_ID_FIELD_NUMBER: _ClassVar[int]
    STATUS_TEXT_FIELD_NUMBER: _ClassVar[int]
    LOCALE_FIELD_NUMBER: _ClassVar[int]
    TIME_ZONE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_PRIVACY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PRIVACY_FIELD_NUMBER: _ClassVar[int]
    display_name: str
    bio: str
    avatar_media_id: str
    status_text: str
    locale: str
    time_zone: str
    message_privacy: str
    presence_privacy: str
    def __init__(self, display_name: _Optional[str] = ..., bio: _Optional[str] = ..., avatar_media_id: _Optional[str] = ..., status_text: _Optional[str] = ..., locale: _Optional[str] = ..., time_zone: _Optional[str] = ..., message_privacy: _Optional[str] = ..., presence_privacy: _Optional[str] = ...) -> None: ...

class UpdateProfileResponse(_message.Message):
    __slots__ = ("profile",)
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    profile: Profile
    def __init__(self, profile: _Optional[_Union[Profile, _Mapping]] = ...) -> None: ...

class AddContactRequest(_message.Message):
    __slots__ = ("user_id",)
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    def __init__(self, user_id: _Optional[str] = ...) -> None: ...

class AddContactResponse(_message.Message):
    __slots__ = ("contact",)
    CONTACT_FIELD_NUMBER: _ClassVar[int]
    contact: Contact
    def __init__(self, contact: _Optional[_Union[Contact, _Mapping]] = ...) -> None: ...

class RemoveContactRequest(_message.Message):
    __slots__ = ("user_id",)
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    def __init__(self, user_id: _Optional[str] = ...) -> None: ...

class RemoveContactResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListContactsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListContactsResponse(_message.Message):
    __slots__ = ("contacts", "next_page_token")
    CONTACTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    contacts: _containers.RepeatedCompositeFieldContainer[Contact]
    next_page_token: str
    def __init__(self, contacts: _Optional[_Iterable[_Union[Contact, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class Contact(_message.Message):
    __slots__ = ("profile", "added_at", "mutual")
    PROFILE_FIELD_NUMBER: _ClassVar[int]
    ADDED_AT_FIELD_NUMBER: _ClassVar[int]
    MUTUAL_FIELD_NUMBER: _ClassVar[int]
    profile: Profile
    added_at: _timestamp_pb2.Timestamp
    mutual: bool
    def __init__(self, profile: _Optional[_Union[Profile, _Mapping]] = ..., added_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., mutual: _Optional[bool] = ...) -> None: ...

class CheckPresenceVisibilityRequest(_message.Message):
    __slots__ = ("viewer_id", "user_ids")
    VIEWER_ID_FIELD_NUMBER: _ClassVar[int]
    USER_IDS_FIELD_NUMBER: _ClassVar[int]
    viewer_id: str
    user_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, viewer_id: _Optional[str] = ..., user_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class CheckPresenceVisibilityResponse(_message.Message):
    __slots__ = ("visible_user_ids",)
    VISIBLE_USER_IDS_FIELD_NUMBER: _ClassVar[int]
    visible_user_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, visible_user_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class ListVisibleContactsRequest(_message.Message):
    __slots__ = ("user_id", "page_size", "page_token", "among")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    AMONG_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    page_size: int
    page_token: str
    among: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, user_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., among: _Optional[_Iterable[str]] = ...) -> None: ...

class ListVisibleContactsResponse(_message.Message):
    __slots__ = ("visible_user_ids", "hidden_user_ids", "next_page_token")
    VISIBLE_USER_IDS_FIELD_NUMBER: _ClassVar[int]
    HIDDEN_USER_IDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    visible_user_ids: _containers.RepeatedScalarFieldContainer[str]
    hidden_user_ids: _containers.RepeatedScalarFieldContainer[str]
    next_page_token: str
    def __init__(self, visible_user_ids: _Optional[_Iterable[str]] = ..., hidden_user_ids: _Optional[_Iterable[str]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class SearchUsersRequest(_message.Message):
    __slots__ = ("query", "page_size", "page_token")
    QUERY_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    query: str
    page_size: int
    page_token: str
    def __init__(self, query: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class SearchUsersResponse(_message.Message):
    __slots__ = ("users", "next_page_token")
    USERS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    users: _containers.RepeatedCompositeFieldContainer[Profile]
    next_page_token: str
    def __init__(self, users: _Optional[_Iterable[_Union[Profile, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...
