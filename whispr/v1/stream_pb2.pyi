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

class Stream(_message.Message):
    __slots__ = ("id", "title", "description", "category", "visibility", "streamer_id", "streamer_username", "status", "current_quality", "listener_count", "created_at", "started_at", "duration", "is_recording", "metadata", "ended_at", "end_reason", "room_id", "has_source", "volume", "max_listeners")
    class Category(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        CATEGORY_UNSPECIFIED: _ClassVar[Stream.Category]
        MUSIC: _ClassVar[Stream.Category]
        TALK: _ClassVar[Stream.Category]
        PODCAST: _ClassVar[Stream.Category]
        GAMING: _ClassVar[Stream.Category]
        NEWS: _ClassVar[Stream.Category]
        EDUCATION: _ClassVar[Stream.Category]
        ENTERTAINMENT: _ClassVar[Stream.Category]
        OTHER: _ClassVar[Stream.Category]
    CATEGORY_UNSPECIFIED: Stream.Category
    MUSIC: Stream.Category
    TALK: Stream.Category
    PODCAST: Stream.Category
    GAMING: Stream.Category
    NEWS: Stream.Category
    EDUCATION: Stream.Category
    ENTERTAINMENT: Stream.Category
    OTHER: Stream.Category
    class Visibility(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        VISIBILITY_UNSPECIFIED: _ClassVar[Stream.Visibility]
        PUBLIC_STREAM: _ClassVar[Stream.Visibility]
        UNLISTED: _ClassVar[Stream.Visibility]
        PRIVATE_STREAM: _ClassVar[Stream.Visibility]
        PREMIUM_ONLY: _ClassVar[Stream.Visibility]
    VISIBILITY_UNSPECIFIED: Stream.Visibility
    PUBLIC_STREAM: Stream.Visibility
    UNLISTED: Stream.Visibility
    PRIVATE_STREAM: Stream.Visibility
    PREMIUM_ONLY: Stream.Visibility
    class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATUS_UNSPECIFIED: _ClassVar[Stream.Status]
        CREATED: _ClassVar[Stream.Status]
        LIVE: _ClassVar[Stream.Status]
        PAUSED: _ClassVar[Stream.Status]
        ENDED: _ClassVar[Stream.Status]
        ERROR: _ClassVar[Stream.Status]
    STATUS_UNSPECIFIED: Stream.Status
    CREATED: Stream.Status
    LIVE: Stream.Status
    PAUSED: Stream.Status
    ENDED: Stream.Status
    ERROR: Stream.Status
    class Quality(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        AUTO: _ClassVar[Stream.Quality]
        LOW: _ClassVar[Stream.Quality]
        MEDIUM: _ClassVar[Stream.Quality]
        HIGH: _ClassVar[Stream.Quality]
        ULTRA: _ClassVar[Stream.Quality]
    AUTO: Stream.Quality
    LOW: Stream.Quality
    MEDIUM: Stream.Quality
    HIGH: Stream.Quality
    ULTRA: Stream.Quality
    ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    VISIBILITY_FIELD_NUMBER: _ClassVar[int]
    STREAMER_ID_FIELD_NUMBER: _ClassVar[int]
    STREAMER_USERNAME_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    CURRENT_QUALITY_FIELD_NUMBER: _ClassVar[int]
    LISTENER_COUNT_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    IS_RECORDING_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    END_REASON_FIELD_NUMBER: _ClassVar[int]
    ROOM_ID_FIELD_NUMBER: _ClassVar[int]
    HAS_SOURCE_FIELD_NUMBER: _ClassVar[int]
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    MAX_LISTENERS_FIELD_NUMBER: _ClassVar[int]
    id: str
    title: str
    description: str
    category: Stream.Category
    visibility: Stream.Visibility
    streamer_id: str
    streamer_username: str
    status: Stream.Status
    current_quality: Stream.Quality
    listener_count: int
    created_at: _timestamp_pb2.Timestamp
    started_at: _timestamp_pb2.Timestamp
    duration: int
    is_recording: bool
    metadata: StreamMetadata
    ended_at: _timestamp_pb2.Timestamp
    end_reason: str
    room_id: str
    has_source: bool
    volume: int
    max_listeners: int
    def __init__(self, id: _Optional[str] = ..., title: _Optional[str] = ..., description: _Optional[str] = ..., category: _Optional[_Union[Stream.Category, str]] = ..., visibility: _Optional[_Union[Stream.Visibility, str]] = ..., streamer_id: _Optional[str] = ..., streamer_username: _Optional[str] = ..., status: _Optional[_Union[Stream.Status, str]] = ..., current_quality: _Optional[_Union[Stream.Quality, str]] = ..., listener_count: _Optional[int] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., started_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., duration: _Optional[int] = ..., is_recording: _Optional[bool] = ..., metadata: _Optional[_Union[StreamMetadata, _Mapping]] = ..., ended_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_reason: _Optional[str] = ..., room_id: _Optional[str] = ..., has_source: _Optional[bool] = ..., volume: _Optional[int] = ..., max_listeners: _Optional[int] = ...) -> None: ...

class StreamMetadata(_message.Message):
    __slots__ = ("current_track", "artist", "album", "genre", "custom_fields")
    class CustomFieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CURRENT_TRACK_FIELD_NUMBER: _ClassVar[int]
    ARTIST_FIELD_NUMBER: _ClassVar[int]
    ALBUM_FIELD_NUMBER: _ClassVar[int]
    GENRE_FIELD_NUMBER: _ClassVar[int]
    CUSTOM_FIELDS_FIELD_NUMBER: _ClassVar[int]
    current_track: str
    artist: str
    album: str
    genre: str
    custom_fields: _containers.ScalarMap[str, str]
    def __init__(self, current_track: _Optional[str] = ..., artist: _Optional[str] = ..., album: _Optional[str] = ..., genre: _Optional[str] = ..., custom_fields: _Optional[_Mapping[str, str]] = ...) -> None: ...

class StreamConfig(_message.Message):
    __slots__ = ("quality", "bitrate", "sample_rate", "codec", "enable_recording", "enable_chat", "max_listeners")
    class Codec(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        CODEC_UNSPECIFIED: _ClassVar[StreamConfig.Codec]
        MP3: _ClassVar[StreamConfig.Codec]
        AAC: _ClassVar[StreamConfig.Codec]
        OPUS: _ClassVar[StreamConfig.Codec]
        FLAC: _ClassVar[StreamConfig.Codec]
    CODEC_UNSPECIFIED: StreamConfig.Codec
    MP3: StreamConfig.Codec
    AAC: StreamConfig.Codec
    OPUS: StreamConfig.Codec
    FLAC: StreamConfig.Codec
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    BITRATE_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_RATE_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    ENABLE_RECORDING_FIELD_NUMBER: _ClassVar[int]
    ENABLE_CHAT_FIELD_NUMBER: _ClassVar[int]
    MAX_LISTENERS_FIELD_NUMBER: _ClassVar[int]
    quality: Stream.Quality
    bitrate: int
    sample_rate: int
    codec: StreamConfig.Codec
    enable_recording: bool
    enable_chat: bool
    max_listeners: int
    def __init__(self, quality: _Optional[_Union[Stream.Quality, str]] = ..., bitrate: _Optional[int] = ..., sample_rate: _Optional[int] = ..., codec: _Optional[_Union[StreamConfig.Codec, str]] = ..., enable_recording: _Optional[bool] = ..., enable_chat: _Optional[bool] = ..., max_listeners: _Optional[int] = ...) -> None: ...

class CreateStreamRequest(_message.Message):
    __slots__ = ("title", "description", "category", "visibility", "default_quality")
    TITLE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    VISIBILITY_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_QUALITY_FIELD_NUMBER: _ClassVar[int]
    title: str
    description: str
    category: Stream.Category
    visibility: Stream.Visibility
    default_quality: Stream.Quality
    def __init__(self, title: _Optional[str] = ..., description: _Optional[str] = ..., category: _Optional[_Union[Stream.Category, str]] = ..., visibility: _Optional[_Union[Stream.Visibility, str]] = ..., default_quality: _Optional[_Union[Stream.Quality, str]] = ...) -> None: ...

class IngestUrls(_message.Message):
    __slots__ = ("whip", "icecast", "topic")
    WHIP_FIELD_NUMBER: _ClassVar[int]
    ICECAST_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    whip: str
    icecast: str
    topic: str
    def __init__(self, whip: _Optional[str] = ..., icecast: _Optional[str] = ..., topic: _Optional[str] = ...) -> None: ...

class CreateStreamResponse(_message.Message):
    __slots__ = ("stream", "stream_key", "ingest")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    STREAM_KEY_FIELD_NUMBER: _ClassVar[int]
    INGEST_FIELD_NUMBER: _ClassVar[int]
    stream: Stream
    stream_key: str
    ingest: IngestUrls
    def __init__(self, stream: _Optional[_Union[Stream, _Mapping]] = ..., stream_key: _Optional[str] = ..., ingest: _Optional[_Union[IngestUrls, _Mapping]] = ...) -> None: ...

class StartStreamRequest(_message.Message):
    __slots__ = ("stream_id", "config")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    config: StreamConfig
    def __init__(self, stream_id: _Optional[str] = ..., config: _Optional[_Union[StreamConfig, _Mapping]] = ...) -> None: ...

class StartStreamResponse(_message.Message):
    __slots__ = ("stream", "stream_url", "hls_urls", "ingest")
    STREAM_FIELD_NUMBER: _ClassVar[int]
    STREAM_URL_FIELD_NUMBER: _ClassVar[int]
    HLS_URLS_FIELD_NUMBER: _ClassVar[int]
    INGEST_FIELD_NUMBER: _ClassVar[int]
    stream: Stream
    stream_url: str
    hls_urls: _containers.RepeatedScalarFieldContainer[str]
    ingest: IngestUrls
    def __init__(self, stream: _Optional[_Union[Stream, _Mapping]] = ..., stream_url: _Optional[str] = ..., hls_urls: _Optional[_Iterable[str]] = ..., ingest: _Optional[_Union[IngestUrls, _Mapping]] = ...) -> None: ...

class StopStreamRequest(_message.Message):
    __slots__ = ("stream_id", "reason")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    reason: str
    def __init__(self, stream_id: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class StreamSummary(_message.Message):
    __slots__ = ("total_duration", "max_listeners", "unique_listeners", "total_listen_time", "average_listen_duration")
    TOTAL_DURATION_FIELD_NUMBER: _ClassVar[int]
    MAX_LISTENERS_FIELD_NUMBER: _ClassVar[int]
    UNIQUE_LISTENERS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_LISTEN_TIME_FIELD_NUMBER: _ClassVar[int]
    AVERAGE_LISTEN_DURATION_FIELD_NUMBER: _ClassVar[int]
    total_duration: int
    max_listeners: int
    unique_listeners: int
    total_listen_time: int
    average_listen_duration: float
    def __init__(self, total_duration: _Optional[int] = ..., max_listeners: _Optional[int] = ..., unique_listeners: _Optional[int] = ..., total_listen_time: _Optional[int] = ..., average_listen_duration: _Optional[float] = ...) -> None: ...

class StopStreamResponse(_message.Message):
    __slots__ = ("summary",)
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    summary: StreamSummary
    def __init__(self, summary: _Optional[_Union[StreamSummary, _Mapping]] = ...) -> None: ...

class PauseStreamRequest(_message.Message):
    __slots__ = ("stream_id",)
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    def __init__(self, stream_id: _Optional[str] = ...) -> None: ...

class PauseStreamResponse(_message.Message):
    __slots__ = ("stream",)
    STREAM_FIELD_NUMBER: _ClassVar[int]
    stream: Stream
    def __init__(self, stream: _Optional[_Union[Stream, _Mapping]] = ...) -> None: ...

class ResumeStreamRequest(_message.Message):
    __slots__ = ("stream_id",)
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    def __init__(self, stream_id: _Optional[str] = ...) -> None: ...

class ResumeStreamResponse(_message.Message):
    __slots__ = ("stream",)
    STREAM_FIELD_NUMBER: _ClassVar[int]
    stream: Stream
    def __init__(self, stream: _Optional[_Union[Stream, _Mapping]] = ...) -> None: ...

class GetStreamInfoRequest(_message.Message):
    __slots__ = ("stream_id",)
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    def __init__(self, stream_id: _Optional[str] = ...) -> None: ...

class GetStreamInfoResponse(_message.Message):
    __slots__ = ("stream",)
    STREAM_FIELD_NUMBER: _ClassVar[int]
    stream: Stream
    def __init__(self, stream: _Optional[_Union[Stream, _Mapping]] = ...) -> None: ...

class UpdateStreamRequest(_message.Message):
    __slots__ = ("stream_id", "title", "description", "category", "visibility", "default_quality", "metadata", "max_listeners")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    VISIBILITY_FIELD_NUMBER: _ClassVar[int]
    DEFAULT_QUALITY_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    MAX_LISTENERS_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    title: str
    description: str
    category: Stream.Category
    visibility: Stream.Visibility
    default_quality: Stream.Quality
    metadata: StreamMetadata
    max_listeners: int
    def __init__(self, stream_id: _Optional[str] = ..., title: _Optional[str] = ..., description: _Optional[str] = ..., category: _Optional[_Union[Stream.Category, str]] = ..., visibility: _Optional[_Union[Stream.Visibility, str]] = ..., default_quality: _Optional[_Union[Stream.Quality, str]] = ..., metadata: _Optional[_Union[StreamMetadata, _Mapping]] = ..., max_listeners: _Optional[int] = ...) -> None: ...

class UpdateStreamResponse(_message.Message):
    __slots__ = ("stream",)
    STREAM_FIELD_NUMBER: _ClassVar[int]
    stream: Stream
    def __init__(self, stream: _Optional[_Union[Stream, _Mapping]] = ...) -> None: ...

class RotateStreamKeyRequest(_message.Message):
    __slots__ = ("stream_id",)
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    def __init__(self, stream_id: _Optional[str] = ...) -> None: ...

class RotateStreamKeyResponse(_message.Message):
    __slots__ = ("stream_key",)
    STREAM_KEY_FIELD_NUMBER: _ClassVar[int]
    stream_key: str
    def __init__(self, stream_key: _Optional[str] = ...) -> None: ...

class ListActiveStreamsRequest(_message.Message):
    __slots__ = ("category", "page", "limit", "sort_by")
    class SortBy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        LISTENERS: _ClassVar[ListActiveStreamsRequest.SortBy]
        RECENT: _ClassVar[ListActiveStreamsRequest.SortBy]
        POPULAR: _ClassVar[ListActiveStreamsRequest.SortBy]
        TITLE: _ClassVar[ListActiveStreamsRequest.SortBy]
    LISTENERS: ListActiveStreamsRequest.SortBy
    RECENT: ListActiveStreamsRequest.SortBy
    POPULAR: ListActiveStreamsRequest.SortBy
    TITLE: ListActiveStreamsRequest.SortBy
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    SORT_BY_FIELD_NUMBER: _ClassVar[int]
    category: Stream.Category
    page: int
    limit: int
    sort_by: ListActiveStreamsRequest.SortBy
    def __init__(self, category: _Optional[_Union[Stream.Category, str]] = ..., page: _Optional[int] = ..., limit: _Optional[int] = ..., sort_by: _Optional[_Union[ListActiveStreamsRequest.SortBy, str]] = ...) -> None: ...

class ListActiveStreamsResponse(_message.Message):
    __slots__ = ("streams", "total")
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    streams: _containers.RepeatedCompositeFieldContainer[Stream]
    total: int
    def __init__(self, streams: _Optional[_Iterable[_Union[Stream, _Mapping]]] = ..., total: _Optional[int] = ...) -> None: ...

class ListOwnStreamsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListOwnStreamsResponse(_message.Message):
    __slots__ = ("streams", "next_page_token")
    STREAMS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    streams: _containers.RepeatedCompositeFieldContainer[Stream]
    next_page_token: str
    def __init__(self, streams: _Optional[_Iterable[_Union[Stream, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ListenUrls(_message.Message):
    __slots__ = ("hls", "whep", "progressive", "topic")
    HLS_FIELD_NUMBER: _ClassVar[int]
    WHEP_FIELD_NUMBER: _ClassVar[int]
    PROGRESSIVE_FIELD_NUMBER: _ClassVar[int]
    TOPIC_FIELD_NUMBER: _ClassVar[int]
    hls: str
    whep: str
    progressive: str
    topic: str
    def __init__(self, hls: _Optional[str] = ..., whep: _Optional[str] = ..., progressive: _Optional[str] = ..., topic: _Optional[str] = ...) -> None: ...

class JoinStreamRequest(_message.Message):
    __slots__ = ("stream_id", "preferred_quality")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    PREFERRED_QUALITY_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    preferred_quality: Stream.Quality
    def __init__(self, stream_id: _Optional[str] = ..., preferred_quality: _Optional[_Union[Stream.Quality, str]] = ...) -> None: ...

class JoinStreamResponse(_message.Message):
    __slots__ = ("stream_url", "actual_quality", "buffer_duration_ms", "urls", "expires_at", "stream")
    STREAM_URL_FIELD_NUMBER: _ClassVar[int]
    ACTUAL_QUALITY_FIELD_NUMBER: _ClassVar[int]
    BUFFER_DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    URLS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    STREAM_FIELD_NUMBER: _ClassVar[int]
    stream_url: str
    actual_quality: Stream.Quality
    buffer_duration_ms: int
    urls: ListenUrls
    expires_at: _timestamp_pb2.Timestamp
    stream: Stream
    def __init__(self, stream_url: _Optional[str] = ..., actual_quality: _Optional[_Union[Stream.Quality, str]] = ..., buffer_duration_ms: _Optional[int] = ..., urls: _Optional[_Union[ListenUrls, _Mapping]] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., stream: _Optional[_Union[Stream, _Mapping]] = ...) -> None: ...

class LeaveStreamRequest(_message.Message):
    __slots__ = ("stream_id",)
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    def __init__(self, stream_id: _Optional[str] = ...) -> None: ...

class LeaveStreamResponse(_message.Message):
    __slots__ = ("listen_duration",)
    LISTEN_DURATION_FIELD_NUMBER: _ClassVar[int]
    listen_duration: int
    def __init__(self, listen_duration: _Optional[int] = ...) -> None: ...

class StreamListener(_message.Message):
    __slots__ = ("listener_id", "user_id", "transport", "quality", "joined_at", "buffer_ms", "latency_ms", "rebuffers", "dropped_frames", "country", "username")
    LISTENER_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    JOINED_AT_FIELD_NUMBER: _ClassVar[int]
    BUFFER_MS_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    REBUFFERS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FRAMES_FIELD_NUMBER: _ClassVar[int]
    COUNTRY_FIELD_NUMBER: _ClassVar[int]
    USERNAME_FIELD_NUMBER: _ClassVar[int]
    listener_id: str
    user_id: str
    transport: str
    quality: Stream.Quality
    joined_at: _timestamp_pb2.Timestamp
    buffer_ms: int
    latency_ms: float
    rebuffers: int
    dropped_frames: int
    country: str
    username: str
    def __init__(self, listener_id: _Optional[str] = ..., user_id: _Optional[str] = ..., transport: _Optional[str] = ..., quality: _Optional[_Union[Stream.Quality, str]] = ..., joined_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., buffer_ms: _Optional[int] = ..., latency_ms: _Optional[float] = ..., rebuffers: _Optional[int] = ..., dropped_frames: _Optional[int] = ..., country: _Optional[str] = ..., username: _Optional[str] = ...) -> None: ...

class GetListenersRequest(_message.Message):
    __slots__ = ("stream_id", "limit")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    limit: int
    def __init__(self, stream_id: _Optional[str] = ..., limit: _Optional[int] = ...) -> None: ...

class GetListenersResponse(_message.Message):
    __slots__ = ("listeners", "total_count")
    LISTENERS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_COUNT_FIELD_NUMBER: _ClassVar[int]
    listeners: _containers.RepeatedCompositeFieldContainer[StreamListener]
    total_count: int
    def __init__(self, listeners: _Optional[_Iterable[_Union[StreamListener, _Mapping]]] = ..., total_count: _Optional[int] = ...) -> None: ...

class RemoveListenerRequest(_message.Message):
    __slots__ = ("stream_id", "listener_id", "user_id")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    LISTENER_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    listener_id: str
    user_id: str
    def __init__(self, stream_id: _Optional[str] = ..., listener_id: _Optional[str] = ..., user_id: _Optional[str] = ...) -> None: ...

class RemoveListenerResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InviteListenerRequest(_message.Message):
    __slots__ = ("stream_id", "user_id")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    user_id: str
    def __init__(self, stream_id: _Optional[str] = ..., user_id: _Optional[str] = ...) -> None: ...

class InviteListenerResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class UninviteListenerRequest(_message.Message):
    __slots__ = ("stream_id", "user_id")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    user_id: str
    def __init__(self, stream_id: _Optional[str] = ..., user_id: _Optional[str] = ...) -> None: ...

class UninviteListenerResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class CreateListenUrlRequest(_message.Message):
    __slots__ = ("stream_id", "expires_in_s", "quality")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_IN_S_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    expires_in_s: int
    quality: Stream.Quality
    def __init__(self, stream_id: _Optional[str] = ..., expires_in_s: _Optional[int] = ..., quality: _Optional[_Union[Stream.Quality, str]] = ...) -> None: ...

class CreateListenUrlResponse(_message.Message):
    __slots__ = ("urls", "expires_at")
    URLS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    urls: ListenUrls
    expires_at: _timestamp_pb2.Timestamp
    def __init__(self, urls: _Optional[_Union[ListenUrls, _Mapping]] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ChangeQualityRequest(_message.Message):
    __slots__ = ("stream_id", "quality")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    quality: Stream.Quality
    def __init__(self, stream_id: _Optional[str] = ..., quality: _Optional[_Union[Stream.Quality, str]] = ...) -> None: ...

class ChangeQualityResponse(_message.Message):
    __slots__ = ("new_stream_url",)
    NEW_STREAM_URL_FIELD_NUMBER: _ClassVar[int]
    new_stream_url: str
    def __init__(self, new_stream_url: _Optional[str] = ...) -> None: ...

class SetVolumeRequest(_message.Message):
    __slots__ = ("stream_id", "volume")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    VOLUME_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    volume: int
    def __init__(self, stream_id: _Optional[str] = ..., volume: _Optional[int] = ...) -> None: ...

class SetVolumeResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetAudioMetricsRequest(_message.Message):
    __slots__ = ("stream_id",)
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    def __init__(self, stream_id: _Optional[str] = ...) -> None: ...

class AudioMetrics(_message.Message):
    __slots__ = ("stream_id", "current_bitrate", "buffer_health", "latency_ms", "dropped_frames", "quality_stats", "measured_at", "levels", "source_kind", "source_codec", "source_loss", "silence", "listener_count", "has_source")
    class QualityStats(_message.Message):
        __slots__ = ("quality_distribution", "average_buffer_duration", "rebuffer_events")
        class QualityDistributionEntry(_message.Message):
            __slots__ = ("key", "value")
            KEY_FIELD_NUMBER: _ClassVar[int]
            VALUE_FIELD_NUMBER: _ClassVar[int]
            key: str
            value: int
            def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
        QUALITY_DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
        AVERAGE_BUFFER_DURATION_FIELD_NUMBER: _ClassVar[int]
        REBUFFER_EVENTS_FIELD_NUMBER: _ClassVar[int]
        quality_distribution: _containers.ScalarMap[str, int]
        average_buffer_duration: float
        rebuffer_events: int
        def __init__(self, quality_distribution: _Optional[_Mapping[str, int]] = ..., average_buffer_duration: _Optional[float] = ..., rebuffer_events: _Optional[int] = ...) -> None: ...
    class Levels(_message.Message):
        __slots__ = ("momentary", "short_term", "integrated", "peak")
        MOMENTARY_FIELD_NUMBER: _ClassVar[int]
        SHORT_TERM_FIELD_NUMBER: _ClassVar[int]
        INTEGRATED_FIELD_NUMBER: _ClassVar[int]
        PEAK_FIELD_NUMBER: _ClassVar[int]
        momentary: float
        short_term: float
        integrated: float
        peak: float
        def __init__(self, momentary: _Optional[float] = ..., short_term: _Optional[float] = ..., integrated: _Optional[float] = ..., peak: _Optional[float] = ...) -> None: ...
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    CURRENT_BITRATE_FIELD_NUMBER: _ClassVar[int]
    BUFFER_HEALTH_FIELD_NUMBER: _ClassVar[int]
    LATENCY_MS_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FRAMES_FIELD_NUMBER: _ClassVar[int]
    QUALITY_STATS_FIELD_NUMBER: _ClassVar[int]
    MEASURED_AT_FIELD_NUMBER: _ClassVar[int]
    LEVELS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_KIND_FIELD_NUMBER: _ClassVar[int]
    SOURCE_CODEC_FIELD_NUMBER: _ClassVar[int]
    SOURCE_LOSS_FIELD_NUMBER: _ClassVar[int]
    SILENCE_FIELD_NUMBER: _ClassVar[int]
    LISTENER_COUNT_FIELD_NUMBER: _ClassVar[int]
    HAS_SOURCE_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    current_bitrate: int
    buffer_health: float
    latency_ms: float
    dropped_frames: int
    quality_stats: AudioMetrics.QualityStats
    measured_at: _timestamp_pb2.Timestamp
    levels: AudioMetrics.Levels
    source_kind: str
    source_codec: str
    source_loss: float
    silence: float
    listener_count: int
    has_source: bool
    def __init__(self, stream_id: _Optional[str] = ..., current_bitrate: _Optional[int] = ..., buffer_health: _Optional[float] = ..., latency_ms: _Optional[float] = ..., dropped_frames: _Optional[int] = ..., quality_stats: _Optional[_Union[AudioMetrics.QualityStats, _Mapping]] = ..., measured_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., levels: _Optional[_Union[AudioMetrics.Levels, _Mapping]] = ..., source_kind: _Optional[str] = ..., source_codec: _Optional[str] = ..., source_loss: _Optional[float] = ..., silence: _Optional[float] = ..., listener_count: _Optional[int] = ..., has_source: _Optional[bool] = ...) -> None: ...

class RecordingConfig(_message.Message):
    __slots__ = ("quality", "codec", "auto_upload", "title")
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    AUTO_UPLOAD_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    quality: Stream.Quality
    codec: StreamConfig.Codec
    auto_upload: bool
    title: str
    def __init__(self, quality: _Optional[_Union[Stream.Quality, str]] = ..., codec: _Optional[_Union[StreamConfig.Codec, str]] = ..., auto_upload: _Optional[bool] = ..., title: _Optional[str] = ...) -> None: ...

class Recording(_message.Message):
    __slots__ = ("id", "stream_id", "title", "duration", "file_size", "quality", "codec", "file_url", "thumbnail_url", "created_at", "status", "hls_url", "expires_at", "error")
    class Status(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        STATUS_UNSPECIFIED: _ClassVar[Recording.Status]
        RECORDING: _ClassVar[Recording.Status]
        PROCESSING: _ClassVar[Recording.Status]
        COMPLETED: _ClassVar[Recording.Status]
        FAILED: _ClassVar[Recording.Status]
    STATUS_UNSPECIFIED: Recording.Status
    RECORDING: Recording.Status
    PROCESSING: Recording.Status
    COMPLETED: Recording.Status
    FAILED: Recording.Status
    ID_FIELD_NUMBER: _ClassVar[int]
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    FILE_SIZE_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    FILE_URL_FIELD_NUMBER: _ClassVar[int]
    THUMBNAIL_URL_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    HLS_URL_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: str
    stream_id: str
    title: str
    duration: float
    file_size: int
    quality: Stream.Quality
    codec: StreamConfig.Codec
    file_url: str
    thumbnail_url: str
    created_at: _timestamp_pb2.Timestamp
    status: Recording.Status
    hls_url: str
    expires_at: _timestamp_pb2.Timestamp
    error: str
    def __init__(self, id: _Optional[str] = ..., stream_id: _Optional[str] = ..., title: _Optional[str] = ..., duration: _Optional[float] = ..., file_size: _Optional[int] = ..., quality: _Optional[_Union[Stream.Quality, str]] = ..., codec: _Optional[_Union[StreamConfig.Codec, str]] = ..., file_url: _Optional[str] = ..., thumbnail_url: _Optional[str] = ..., created_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., status: _Optional[_Union[Recording.Status, str]] = ..., hls_url: _Optional[str] = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., error: _Optional[str] = ...) -> None: ...

class StartRecordingRequest(_message.Message):
    __slots__ = ("stream_id", "config")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    config: RecordingConfig
    def __init__(self, stream_id: _Optional[str] = ..., config: _Optional[_Union[RecordingConfig, _Mapping]] = ...) -> None: ...

class StartRecordingResponse(_message.Message):
    __slots__ = ("recording_id", "recording")
    RECORDING_ID_FIELD_NUMBER: _ClassVar[int]
    RECORDING_FIELD_NUMBER: _ClassVar[int]
    recording_id: str
    recording: Recording
    def __init__(self, recording_id: _Optional[str] = ..., recording: _Optional[_Union[Recording, _Mapping]] = ...) -> None: ...

class StopRecordingRequest(_message.Message):
    __slots__ = ("recording_id",)
    RECORDING_ID_FIELD_NUMBER: _ClassVar[int]
    recording_id: str
    def __init__(self, recording_id: _Optional[str] = ...) -> None: ...

class StopRecordingResponse(_message.Message):
    __slots__ = ("recording",)
    RECORDING_FIELD_NUMBER: _ClassVar[int]
    recording: Recording
    def __init__(self, recording: _Optional[_Union[Recording, _Mapping]] = ...) -> None: ...

class GetRecordingsRequest(_message.Message):
    __slots__ = ("streamer_id", "page", "limit")
    STREAMER_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    streamer_id: str
    page: int
    limit: int
    def __init__(self, streamer_id: _Optional[str] = ..., page: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class GetRecordingsResponse(_message.Message):
    __slots__ = ("recordings", "total")
    RECORDINGS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    recordings: _containers.RepeatedCompositeFieldContainer[Recording]
    total: int
    def __init__(self, recordings: _Optional[_Iterable[_Union[Recording, _Mapping]]] = ..., total: _Optional[int] = ...) -> None: ...

class DeleteRecordingRequest(_message.Message):
    __slots__ = ("recording_id",)
    RECORDING_ID_FIELD_NUMBER: _ClassVar[int]
    recording_id: str
    def __init__(self, recording_id: _Optional[str] = ...) -> None: ...

class DeleteRecordingResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetStreamAnalyticsRequest(_message.Message):
    __slots__ = ("stream_id", "start_time", "end_time")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    def __init__(self, stream_id: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class HourlyActivity(_message.Message):
    __slots__ = ("timestamp", "listener_count", "new_listeners", "listeners_left", "listen_time", "rebuffers")
    TIMESTAMP_FIELD_NUMBER: _ClassVar[int]
    LISTENER_COUNT_FIELD_NUMBER: _ClassVar[int]
    NEW_LISTENERS_FIELD_NUMBER: _ClassVar[int]
    LISTENERS_LEFT_FIELD_NUMBER: _ClassVar[int]
    LISTEN_TIME_FIELD_NUMBER: _ClassVar[int]
    REBUFFERS_FIELD_NUMBER: _ClassVar[int]
    timestamp: _timestamp_pb2.Timestamp
    listener_count: int
    new_listeners: int
    listeners_left: int
    listen_time: int
    rebuffers: int
    def __init__(self, timestamp: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., listener_count: _Optional[int] = ..., new_listeners: _Optional[int] = ..., listeners_left: _Optional[int] = ..., listen_time: _Optional[int] = ..., rebuffers: _Optional[int] = ...) -> None: ...

class StreamAnalytics(_message.Message):
    __slots__ = ("stream_id", "start_time", "end_time", "unique_listeners", "max_concurrent", "total_listen_time", "average_session_duration", "geographic_distribution", "hourly_activity", "quality_distribution", "rebuffer_events", "bytes_sent")
    class GeographicDistributionEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class QualityDistributionEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    UNIQUE_LISTENERS_FIELD_NUMBER: _ClassVar[int]
    MAX_CONCURRENT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_LISTEN_TIME_FIELD_NUMBER: _ClassVar[int]
    AVERAGE_SESSION_DURATION_FIELD_NUMBER: _ClassVar[int]
    GEOGRAPHIC_DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    HOURLY_ACTIVITY_FIELD_NUMBER: _ClassVar[int]
    QUALITY_DISTRIBUTION_FIELD_NUMBER: _ClassVar[int]
    REBUFFER_EVENTS_FIELD_NUMBER: _ClassVar[int]
    BYTES_SENT_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    unique_listeners: int
    max_concurrent: int
    total_listen_time: int
    average_session_duration: float
    geographic_distribution: _containers.ScalarMap[str, int]
    hourly_activity: _containers.RepeatedCompositeFieldContainer[HourlyActivity]
    quality_distribution: _containers.ScalarMap[str, int]
    rebuffer_events: int
    bytes_sent: int
    def __init__(self, stream_id: _Optional[str] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., unique_listeners: _Optional[int] = ..., max_concurrent: _Optional[int] = ..., total_listen_time: _Optional[int] = ..., average_session_duration: _Optional[float] = ..., geographic_distribution: _Optional[_Mapping[str, int]] = ..., hourly_activity: _Optional[_Iterable[_Union[HourlyActivity, _Mapping]]] = ..., quality_distribution: _Optional[_Mapping[str, int]] = ..., rebuffer_events: _Optional[int] = ..., bytes_sent: _Optional[int] = ...) -> None: ...

class GetUserListeningHistoryRequest(_message.Message):
    __slots__ = ("limit",)
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    limit: int
    def __init__(self, limit: _Optional[int] = ...) -> None: ...

class ListeningSession(_message.Message):
    __slots__ = ("stream_id", "title", "streamer_id", "joined_at", "left_at", "duration", "transport", "quality")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    STREAMER_ID_FIELD_NUMBER: _ClassVar[int]
    JOINED_AT_FIELD_NUMBER: _ClassVar[int]
    LEFT_AT_FIELD_NUMBER: _ClassVar[int]
    DURATION_FIELD_NUMBER: _ClassVar[int]
    TRANSPORT_FIELD_NUMBER: _ClassVar[int]
    QUALITY_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    title: str
    streamer_id: str
    joined_at: _timestamp_pb2.Timestamp
    left_at: _timestamp_pb2.Timestamp
    duration: int
    transport: str
    quality: Stream.Quality
    def __init__(self, stream_id: _Optional[str] = ..., title: _Optional[str] = ..., streamer_id: _Optional[str] = ..., joined_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., left_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., duration: _Optional[int] = ..., transport: _Optional[str] = ..., quality: _Optional[_Union[Stream.Quality, str]] = ...) -> None: ...

class GetUserListeningHistoryResponse(_message.Message):
    __slots__ = ("sessions", "total_listen_time", "streams_listened")
    SESSIONS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_LISTEN_TIME_FIELD_NUMBER: _ClassVar[int]
    STREAMS_LISTENED_FIELD_NUMBER: _ClassVar[int]
    sessions: _containers.RepeatedCompositeFieldContainer[ListeningSession]
    total_listen_time: int
    streams_listened: int
    def __init__(self, sessions: _Optional[_Iterable[_Union[ListeningSession, _Mapping]]] = ..., total_listen_time: _Optional[int] = ..., streams_listened: _Optional[int] = ...) -> None: ...

class SubscribeToStreamEventsRequest(_message.Message):
    __slots__ = ("stream_id", "event_types")
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    EVENT_TYPES_FIELD_NUMBER: _ClassVar[int]
    stream_id: str
    event_types: _containers.RepeatedScalarFieldContainer[StreamEvent.Type]
    def __init__(self, stream_id: _Optional[str] = ..., event_types: _Optional[_Iterable[_Union[StreamEvent.Type, str]]] = ...) -> None: ...

class StreamEvent(_message.Message):
    __slots__ = ("type", "stream_id", "time", "data")
    class Type(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
        __slots__ = ()
        TYPE_UNSPECIFIED: _ClassVar[StreamEvent.Type]
        LISTENER_JOINED: _ClassVar[StreamEvent.Type]
        LISTENER_LEFT: _ClassVar[StreamEvent.Type]
        QUALITY_CHANGED: _ClassVar[StreamEvent.Type]
        METADATA_UPDATED: _ClassVar[StreamEvent.Type]
        STREAM_PAUSED: _ClassVar[StreamEvent.Type]
        STREAM_RESUMED: _ClassVar[StreamEvent.Type]
        ERROR_OCCURRED: _ClassVar[StreamEvent.Type]
        STREAM_STARTED: _ClassVar[StreamEvent.Type]
        STREAM_STOPPED: _ClassVar[StreamEvent.Type]
        SOURCE_CONNECTED: _ClassVar[StreamEvent.Type]
        SOURCE_LOST: _ClassVar[StreamEvent.Type]
        LISTENER_COUNT: _ClassVar[StreamEvent.Type]
        RECORDING_STARTED: _ClassVar[StreamEvent.Type]
        RECORDING_COMPLETED: _ClassVar[StreamEvent.Type]
    TYPE_UNSPECIFIED: StreamEvent.Type
    LISTENER_JOINED: StreamEvent.Type
    LISTENER_LEFT: StreamEvent.Type
    QUALITY_CHANGED: StreamEvent.Type
    METADATA_UPDATED: StreamEvent.Type
    STREAM_PAUSED: StreamEvent.Type
    STREAM_RESUMED: StreamEvent.Type
    ERROR_OCCURRED: StreamEvent.Type
    STREAM_STARTED: StreamEvent.Type
    STREAM_STOPPED: StreamEvent.Type
    SOURCE_CONNECTED: StreamEvent.Type
    SOURCE_LOST: StreamEvent.Type
    LISTENER_COUNT: StreamEvent.Type
    RECORDING_STARTED: StreamEvent.Type
    RECORDING_COMPLETED: StreamEvent.Type
    TYPE_FIELD_NUMBER: _ClassVar[int]
    STREAM_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    type: StreamEvent.Type
    stream_id: str
    time: _timestamp_pb2.Timestamp
    data: bytes
    def __init__(self, type: _Optional[_Union[StreamEvent.Type, str]] = ..., stream_id: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., data: _Optional[bytes] = ...) -> None: ...
