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

class MediaMetadata(_message.Message):
    __slots__ = ("media_id", "filename", "content_type", "file_size", "width", "height", "duration_seconds", "upload_status", "thumbnail_urls", "custom_metadata", "created_at", "expires_at", "owner_id", "kind", "waveform", "sha256", "error_reason", "error_message", "received_bytes")
    class CustomMetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    MEDIA_ID_FIELD_NUMBER: _ClassVar[int]
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    FILE_SIZE_FIELD_NUMBER: _ClassVar[int]
    WIDTH_FIELD_NUMBER: _ClassVar[int]
    HEIGHT_FIELD_NUMBER: _ClassVar[int]
    DURATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_STATUS_FIELD_NUMBER: _ClassVar[int]
    THUMBNAIL_URLS_FIELD_NUMBER: _ClassVar[int]
    CUSTOM_METADATA_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    OWNER_ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    WAVEFORM_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    ERROR_REASON_FIELD_NUMBER: _ClassVar[int]
    ERROR_MESSAGE_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    media_id: str
    filename: str
    content_type: str
    file_size: int
    width: int
    height: int
    duration_seconds: float
    upload_status: str
    thumbnail_urls: _containers.RepeatedScalarFieldContainer[str]
    custom_metadata: _containers.ScalarMap[str, str]
    created_at: _timestamp_pb2.Timestamp
    expires_at: _timestamp_pb2.Timestamp
    owner_id: str
    kind: str
    waveform: _containers.RepeatedScalarFieldContainer[int]
    sha256: str
    error_reason: str
    error_message: str
    received_bytes: int
    def __init__(self, media_id: _Optional[str] = ..., filename: _Optional[str] = ..., content_type: _Optional[str] = ..., file_size: _Optional[int] = ..., width: _Optional[int] = ..., height: _Optional[int] = ..., duration_seconds: _Optional[float] = ..., upload_status: _Optional[str] = ..., thumbnail_urls: _Optional[_Iterable[str]] = ..., custom_metadata: _Optional[_Mapping[str, str]] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., owner_id: _Optional[str] = ..., kind: _Optional[str] = ..., waveform: _Optional[_Iterable[int]] = ..., sha256: _Optional[str] = ..., error_reason: _Optional[str] = ..., error_message: _Optional[str] = ..., received_bytes: _Optional[int] = ...) -> None: ...

class CreateUploadRequest(_message.Message):
    __slots__ = ("filename", "content_type", "file_size", "conversation_id", "custom_metadata")
    class CustomMetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    FILE_SIZE_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    CUSTOM_METADATA_FIELD_NUMBER: _ClassVar[int]
    filename: str
    content_type: str
    file_size: int
    conversation_id: str
    custom_metadata: _containers.ScalarMap[str, str]
    def __init__(self, filename: _Optional[str] = ..., content_type: _Optional[str] = ..., file_size: _Optional[int] = ..., conversation_id: _Optional[str] = ..., custom_metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class CreateUploadResponse(_message.Message):
    __slots__ = ("media_id", "upload_url", "expires_at", "metadata")
    MEDIA_ID_FIELD_NUMBER: _ClassVar[int]
    UPLOAD_URL_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    media_id: str
    upload_url: str
    expires_at: _timestamp_pb2.Timestamp
    metadata: MediaMetadata
    def __init__(self, media_id: _Optional[str] = ..., upload_url: _Optional[str] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., metadata: _Optional[_Union[MediaMetadata, _Mapping]] = ...) -> None: ...

class GetMediaMetadataRequest(_message.Message):
    __slots__ = ("media_id", "include_thumbnails")
    MEDIA_ID_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_THUMBNAILS_FIELD_NUMBER: _ClassVar[int]
    media_id: str
    include_thumbnails: bool
    def __init__(self, media_id: _Optional[str] = ..., include_thumbnails: _Optional[bool] = ...) -> None: ...

class GetMediaMetadataResponse(_message.Message):
    __slots__ = ("found", "metadata")
    FOUND_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    found: bool
    metadata: MediaMetadata
    def __init__(self, found: _Optional[bool] = ..., metadata: _Optional[_Union[MediaMetadata, _Mapping]] = ...) -> None: ...

class GetDownloadUrlRequest(_message.Message):
    __slots__ = ("media_id", "variant", "as_attachment")
    MEDIA_ID_FIELD_NUMBER: _ClassVar[int]
    VARIANT_FIELD_NUMBER: _ClassVar[int]
    AS_ATTACHMENT_FIELD_NUMBER: _ClassVar[int]
    media_id: str
    variant: str
    as_attachment: bool
    def __init__(self, media_id: _Optional[str] = ..., variant: _Optional[str] = ..., as_attachment: _Optional[bool] = ...) -> None: ...

class GetDownloadUrlResponse(_message.Message):
    __slots__ = ("url", "expires_at", "content_type", "file_size")
    URL_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    FILE_SIZE_FIELD_NUMBER: _ClassVar[int]
    url: str
    expires_at: _timestamp_pb2.Timestamp
    content_type: str
    file_size: int
    def __init__(self, url: _Optional[str] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., content_type: _Optional[str] = ..., file_size: _Optional[int] = ...) -> None: ...

class DeleteMediaRequest(_message.Message):
    __slots__ = ("media_id",)
    MEDIA_ID_FIELD_NUMBER: _ClassVar[int]
    media_id: str
    def __init__(self, media_id: _Optional[str] = ...) -> None: ...

class DeleteMediaResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListMediaRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListMediaResponse(_message.Message):
    __slots__ = ("media", "next_page_token", "used_bytes", "quota_bytes")
    MEDIA_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    QUOTA_BYTES_FIELD_NUMBER: _ClassVar[int]
    media: _containers.RepeatedCompositeFieldContainer[MediaMetadata]
    next_page_token: str
    used_bytes: int
    quota_bytes: int
    def __init__(self, media: _Optional[_Iterable[_Union[MediaMetadata, _Mapping]]] = ..., next_page_token: _Optional[str] = ..., used_bytes: _Optional[int] = ..., quota_bytes: _Optional[int] = ...) -> None: ...

class ValidateMediaAccessRequest(_message.Message):
    __slots__ = ("media_id", "user_id", "conversation_id", "access_type")
    MEDIA_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    ACCESS_TYPE_FIELD_NUMBER: _ClassVar[int]
    media_id: str
    user_id: str
    conversation_id: str
    access_type: str
    def __init__(self, media_id: _Optional[str] = ..., user_id: _Optional[str] = ..., conversation_id: _Optional[str] = ..., access_type: _Optional[str] = ...) -> None: ...

class ValidateMediaAccessResponse(_message.Message):
    __slots__ = ("access_granted", "reason", "metadata", "permissions")
    ACCESS_GRANTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    PERMISSIONS_FIELD_NUMBER: _ClassVar[int]
    access_granted: bool
    reason: str
    metadata: MediaMetadata
    permissions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, access_granted: _Optional[bool] = ..., reason: _Optional[str] = ..., metadata: _Optional[_Union[MediaMetadata, _Mapping]] = ..., permissions: _Optional[_Iterable[str]] = ...) -> None: ...

class ValidateMediaMetadataRequest(_message.Message):
    __slots__ = ("filename", "content_type", "file_size", "conversation_id")
    FILENAME_FIELD_NUMBER: _ClassVar[int]
    CONTENT_TYPE_FIELD_NUMBER: _ClassVar[int]
    FILE_SIZE_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    filename: str
    content_type: str
    file_size: int
    conversation_id: str
    def __init__(self, filename: _Optional[str] = ..., content_type: _Optional[str] = ..., file_size: _Optional[int] = ..., conversation_id: _Optional[str] = ...) -> None: ...

class ValidateMediaMetadataResponse(_message.Message):
    __slots__ = ("is_valid", "errors", "warnings", "suggested_metadata")
    class SuggestedMetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    IS_VALID_FIELD_NUMBER: _ClassVar[int]
    ERRORS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    SUGGESTED_METADATA_FIELD_NUMBER: _ClassVar[int]
    is_valid: bool
    errors: _containers.RepeatedScalarFieldContainer[str]
    warnings: _containers.RepeatedScalarFieldContainer[str]
    suggested_metadata: _containers.ScalarMap[str, str]
    def __init__(self, is_valid: _Optional[bool] = ..., errors: _Optional[_Iterable[str]] = ..., warnings: _Optional[_Iterable[str]] = ..., suggested_metadata: _Optional[_Mapping[str, str]] = ...) -> None: ...

class LinkMediaToMessageRequest(_message.Message):
    __slots__ = ("media_id", "message_id", "conversation_id", "link_id")
    MEDIA_ID_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_ID_FIELD_NUMBER: _ClassVar[int]
    CONVERSATION_ID_FIELD_NUMBER: _ClassVar[int]
    LINK_ID_FIELD_NUMBER: _ClassVar[int]
    media_id: str
    message_id: str
    conversation_id: str
    link_id: str
    def __init__(self, media_id: _Optional[str] = ..., message_id: _Optional[str] = ..., conversation_id: _Optional[str] = ..., link_id: _Optional[str] = ...) -> None: ...

class LinkMediaToMessageResponse(_message.Message):
    __slots__ = ("link_id", "linked_at")
    LINK_ID_FIELD_NUMBER: _ClassVar[int]
    LINKED_AT_FIELD_NUMBER: _ClassVar[int]
    link_id: str
    linked_at: _timestamp_pb2.Timestamp
    def __init__(self, link_id: _Optional[str] = ..., linked_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...
