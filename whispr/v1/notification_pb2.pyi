import datetime

from google.api import annotations_pb2 as _annotations_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from whispr.v1 import common_pb2 as _common_pb2
from whispr.v1 import options_pb2 as _options_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SendMessageNotificationRequest(_message.Message):
    __slots__ = ("message_id", "conversation_id", "sender_id", "recipient_ids", "message_type", "preview_text", "metadata", "priority", "silent")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    SENDER_ID_FIELD_NUMBER: _ClassVar[int]
    RECIPIENT_IDS_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_TYPE_FIELD_NUMBER: _ClassVar[int]
    PREVIEW_TEXT_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    SILENT_FIELD_NUMBER: _ClassVar[int]
    message_id: str
    conversation_id: str
    sender_id: str
    recipient_ids: _containers.RepeatedScalarFieldContainer[str]
    message_type: str
    preview_text: str
    metadata: _containers.ScalarMap[str, str]
    priority: Notification.Priority
    silent: bool
    def __init__(self, message_id: _Optional[str] = ..., conversation_id: _Optional[str] = ..., sender_id: _Optional[str] = ..., recipient_ids: _Optional[_Iterable[str]] = ..., message_type: _Optional[str] = ..., preview_text: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., priority: _Optional[_Union[Notification.Priority, str]] = ..., silent: _Optional[bool] = ...) -> None: ...

class SendNotificationResponse(_message.Message):
    __slots__ = ("notification_id", "delivery_statuses")
    NOTIFICATION_ID_FIELD_NUMBER: _ClassVar[int]
    DELIVERY_STATUSES_FIELD_NUMBER: _ClassVar[int]
    notification_id: str
    delivery_statuses: _containers.RepeatedCompositeFieldContainer[DeliveryStatus]
    def __init__(self, notification_id: _Optional[str] = ..., delivery_statuses: _Optional[_Iterable[_Union[DeliveryStatus, _Mapping]]] = ...) -> None: ...

class DeliveryStatus(_message.Message):
    __slots__ = ("user_id", "device_id", "delivered", "error_message", "delivered_at")
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    DELIVERED_AT_FIELD_NUMBER: _ClassVar[int]
    user_id: str
    device_id: str
    delivered: bool
    error_message: str
    delivered_at: _timestamp_pb2.Timestamp
    def __init__(self, user_id: _Optional[str] = ..., device_id: _Optional[str] = ..., delivered: _Optional[bool] = ..., error_message: _Optional[str] = ..., delivered_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class SendBulkNotificationsRequest(_message.Message):
    __slots__ = ("notifications", "fail_on_error", "batch_size")
    NOTIFICATIONS_FIELD_NUMBER: _ClassVar[int]
    FAIL_ON_ERROR_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    notifications: _containers.RepeatedCompositeFieldContainer[SendMessageNotificationRequest]
    fail_on_error: bool
    batch_size: int
    def __init__(self, notifications: _Optional[_Iterable[_Union[SendMessageNotificationRequest, _Mapping]]] = ..., fail_on_error: _Optional[bool] = ..., batch_size: _Optional[int] = ...) -> None: ...

class SendBulkNotificationsResponse(_message.Message):
    __slots__ = ("total_sent", "total_failed", "results", "errors")
    TOTAL_SENT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FAILED_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    total_sent: int
    total_failed: int
    results: _containers.RepeatedCompositeFieldContainer[SendNotificationResponse]
    errors: _containers.RepeatedCompositeFieldContainer[BulkError]
    def __init__(self, total_sent: _Optional[int] = ..., total_failed: _Optional[int] = ..., results: _Optional[_Iterable[_Union[SendNotificationResponse, _Mapping]]] = ..., errors: _Optional[_Iterable[_Union[BulkError, _Mapping]]] = ...) -> None: ...

class BulkError(_message.Message):
    __slots__ = ("index", "reason", "message")
    INDEX_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    index: int
    reason: str
    message: str
    def __init__(self, index: _Optional[int] = ..., reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class SendConversationNotificationRequest(_message.Message):
    __slots__ = ("conversation_id", "event_type", "actor_id", "recipient_ids", "title", "body", "data", "priority")
    class DataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    ACTOR_ID_FIELD_NUMBER: _ClassVar[int]
    RECIPIENT_IDS_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    conversation_id: str
    event_type: str
    actor_id: str
    recipient_ids: _containers.RepeatedScalarFieldContainer[str]
    title: str
    body: str
    data: _containers.ScalarMap[str, str]
    priority: Notification.Priority
    def __init__(self, conversation_id: _Optional[str] = ..., event_type: _Optional[str] = ..., actor_id: _Optional[str] = ..., recipient_ids: _Optional[_Iterable[str]] = ..., title: _Optional[str] = ..., body: _Optional[str] = ..., data: _Optional[_Mapping[str, str]] = ..., priority: _Optional[_Union[Notification.Priority, str]] = ...) -> None: ...

class MarkNotificationsAsReadRequest(_message.Message):
    __slots__ = ("notification_ids", "conversation_id", "read_at", "device_id")
    NOTIFICATION_IDS_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    READ_AT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    notification_ids: _containers.RepeatedScalarFieldContainer[str]
    conversation_id: str
    read_at: _timestamp_pb2.Timestamp
    device_id: str
    def __init__(self, notification_ids: _Optional[_Iterable[str]] = ..., conversation_id: _Optional[str] = ..., read_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., device_id: _Optional[str] = ...) -> None: ...

class MarkNotificationsAsReadResponse(_message.Message):
    __slots__ = ("marked_count", "failed_notification_ids", "unread_count")
    MARKED_COUNT_FIELD_NUMBER: _ClassVar[int]
    FAILED_NOTIFICATION_IDS_FIELD_NUMBER: _ClassVar[int]
    UNREAD_COUNT_FIELD_NUMBER: _ClassVar[int]
    marked_count: int
    failed_notification_ids: _containers.RepeatedScalarFieldContainer[str]
    unread_count: int
    def __init__(self, marked_count: _Optional[int] = ..., failed_notification_ids: _Optional[_Iterable[str]] = ..., unread_count: _Optional[int] = ...) -> None: ...

class ListNotificationsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "unread_only", "conversation_id")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    UNREAD_ONLY_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    unread_only: bool
    conversation_id: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., unread_only: _Optional[bool] = ..., conversation_id: _Optional[str] = ...) -> None: ...

class ListNotificationsResponse(_message.Message):
    __slots__ = ("notifications", "next_page_token", "unread_count")
    NOTIFICATIONS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    UNREAD_COUNT_FIELD_NUMBER: _ClassVar[int]
    notifications: _containers.RepeatedCompositeFieldContainer[Notification]
    next_page_token: str
    unread_count: int
    def __init__(self, notifications: _Optional[_Iterable[_Union[Notification, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., unread_count: _Optional[int] = ...) -> None: ...

class Notification(_message.Message):
    __slots__ = ("id", "type", "conversation_id", "actor_id", "title", "body", "data", "priority", "count", "created_at", "read_at")
    class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        PRIORITY_UNSPECIFIED: _ClassVar[Notification.Priority]
        LOW: _ClassVar[Notification.Priority]
        NORMAL: _ClassVar[Notification.Priority]
        HIGH: _ClassVar[Notification.Priority]
        URGENT: _ClassVar[Notification.Priority]
    PRIORITY_UNSPECIFIED: Notification.Priority
    LOW: Notification.Priority
    NORMAL: Notification.Priority
    HIGH: Notification.Priority
    URGENT: Notification.Priority
    class DataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    TYPE_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    ACTOR_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    BODY_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    READ_AT_FIELD_NUMBER: _ClassVar[int]
    id: str
    type: str
    conversation_id: str
    actor_id: str
    title: str
    body: str
    data: _containers.ScalarMap[str, str]
    priority: Notification.Priority
    count: int
    created_at: _timestamp_pb2.Timestamp
    read_at: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., type: _Optional[str] = ..., conversation_id: _Optional[str] = ..., actor_id: _Optional[str] = ..., title: _Optional[str] = ..., body: _Optional[str] = ..., data: _Optional[_Mapping[str, str]] = ..., priority: _Optional[_Union[Notification.Priority, str]] = ..., count: _Optional[int] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., read_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class RegisterDeviceRequest(_message.Message):
    __slots__ = ("platform", "token", "p256dh", "auth", "name")
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    P256DH_FIELD_NUMBER: _ClassVar[int]
    AUTH_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    platform: str
    token: str
    p256dh: str
    auth: str
    name: str
    def __init__(self, platform: _Optional[str] = ..., token: _Optional[str] = ..., p256dh: _Optional[str] = ..., auth: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class RegisterDeviceResponse(_message.Message):
    __slots__ = ("device", "secret")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    device: Device
    secret: str
    def __init__(self, device: _Optional[_Union[Device, _Mapping]] = ..., secret: _Optional[str] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("id", "platform", "name", "created_at", "last_delivered_at")
    ID_FIELD_NUMBER: _ClassVar[int]
    PLATFORM_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    LAST_DELIVERED_AT_FIELD_NUMBER: _ClassVar[int]
    id: str
    platform: str
    name: str
    created_at: _timestamp_pb2.Timestamp
    last_delivered_at: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., platform: _Optional[str] = ..., name: _Optional[str] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_delivered_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class UnregisterDeviceRequest(_message.Message):
    __slots__ = ("device_id",)
    DEVICE_ID_FIELD_NUMBER: _ClassVar[int]
    device_id: str
    def __init__(self, device_id: _Optional[str] = ...) -> None: ...

class UnregisterDeviceResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListDevicesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListDevicesResponse(_message.Message):
    __slots__ = ("devices",)
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    def __init__(self, devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ...) -> None: ...

class GetPushConfigRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetPushConfigResponse(_message.Message):
    __slots__ = ("vapid_public_key", "platforms")
    VAPID_PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    PLATFORMS_FIELD_NUMBER: _ClassVar[int]
    vapid_public_key: str
    platforms: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, vapid_public_key: _Optional[str] = ..., platforms: _Optional[_Iterable[str]] = ...) -> None: ...

class Preferences(_message.Message):
    __slots__ = ("enabled", "previews", "quiet_hours", "types", "conversations")
    class TypesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bool
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bool] = ...) -> None: ...
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    PREVIEWS_FIELD_NUMBER: _ClassVar[int]
    QUIET_HOURS_FIELD_NUMBER: _ClassVar[int]
    TYPES_FIELD_NUMBER: _ClassVar[int]
    CONVERSATIONS_FIELD_NUMBER: _ClassVar[int]
    enabled: bool
    previews: bool
    quiet_hours: QuietHours
    types: _containers.ScalarMap[str, bool]
    conversations: _containers.RepeatedCompositeFieldContainer[ConversationPreference]
    def __init__(self, enabled: _Optional[bool] = ..., previews: _Optional[bool] = ..., quiet_hours: _Optional[_Union[QuietHours, _Mapping]] = ..., types: _Optional[_Mapping[str, bool]] = ..., conversations: _Optional[_Iterable[_Union[ConversationPreference, _Mapping]]] = ...) -> None: ...

class QuietHours(_message.Message):
    __slots__ = ("to", "time_zone", "days", "also_urgent")
    FROM_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    TIME_ZONE_FIELD_NUMBER: _ClassVar[int]
    DAYS_FIELD_NUMBER: _ClassVar[int]
    ALSO_URGENT_FIELD_NUMBER: _ClassVar[int]
    to: str
    time_zone: str
    days: _containers.RepeatedScalarFieldContainer[int]
    also_urgent: bool
    def __init__(self, to: _Optional[str] = ..., time_zone: _Optional[str] = ..., days: _Optional[_Iterable[int]] = ..., also_urgent: _Optional[bool] = ..., **kwargs) -> None: ...

class ConversationPreference(_message.Message):
    __slots__ = ("conversation_id", "level", "muted_until")
    class Level(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        DEFAULT: _ClassVar[ConversationPreference.Level]
        ALL: _ClassVar[ConversationPreference.Level]
        MENTIONS: _ClassVar[ConversationPreference.Level]
        NONE: _ClassVar[ConversationPreference.Level]
    DEFAULT: ConversationPreference.Level
    ALL: ConversationPreference.Level
    MENTIONS: ConversationPreference.Level
    NONE: ConversationPreference.Level
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    MUTED_UNTIL_FIELD_NUMBER: _ClassVar[int]
    conversation_id: str
    level: ConversationPreference.Level
    muted_until: _timestamp_pb2.Timestamp
    def __init__(self, conversation_id: _Optional[str] = ..., level: _Optional[_Union[ConversationPreference.Level, str]] = ..., muted_until: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class GetPreferencesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetPreferencesResponse(_message.Message):
    __slots__ = ("preferences",)
    PREFERENCES_FIELD_NUMBER: _ClassVar[int]
    preferences: Preferences
    def __init__(self, preferences: _Optional[_Union[Preferences, _Mapping]] = ...) -> None: ...

class UpdatePreferencesRequest(_message.Message):
    __slots__ = ("enabled", "previews", "quiet_hours", "clear_quiet_hours", "types", "conversations")
    class TypesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: bool
        def __init__(self, key: _Optional[str] = ..., value: _Optional[bool] = ...) -> None: ...
    ENABLED_FIELD_NUMBER: _ClassVar[int]
    PREVIEWS_FIELD_NUMBER: _ClassVar[int]
    QUIET_HOURS_FIELD_NUMBER: _ClassVar[int]
    CLEAR_QUIET_HOURS_FIELD_NUMBER: _ClassVar[int]
    TYPES_FIELD_NUMBER: _ClassVar[int]
    CONVERSATIONS_FIELD_NUMBER: _ClassVar[int]
    enabled: bool
    previews: bool
    quiet_hours: QuietHours
    clear_quiet_hours: bool
    types: _containers.ScalarMap[str, bool]
    conversations: _containers.RepeatedCompositeFieldContainer[ConversationPreference]
    def __init__(self, enabled: _Optional[bool] = ..., previews: _Optional[bool] = ..., quiet_hours: _Optional[_Union[QuietHours, _Mapping]] = ..., clear_quiet_hours: _Optional[bool] = ..., types: _Optional[_Mapping[str, bool]] = ..., conversations: _Optional[_Iterable[_Union[ConversationPreference, _Mapping]]] = ...) -> None: ...

class UpdatePreferencesResponse(_message.Message):
    __slots__ = ("preferences",)
    PREFERENCES_FIELD_NUMBER: _ClassVar[int]
    preferences: Preferences
    def __init__(self, preferences: _Optional[_Union[Preferences, _Mapping]] = ...) -> None: ...
