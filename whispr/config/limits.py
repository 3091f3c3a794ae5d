"""The table `[limits]`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, model_validator

from whispr.config.fields import Limit, Section


class Limits(Section):
    """Every limit an operator may move; 0 lifts one. Units come last in a name."""

    message_body_bytes: Limit = 64 * 1024
    grpc_message_bytes: Limit = 4 * 1024 * 1024
    http_body_bytes: Limit = 1024 * 1024
    grpc_connections: Limit = 10_000
    """Connections that a service accepts."""
    grpc_queued_bytes: Limit = 64 * 1024 * 1024
    """What may wait for one client that does not read."""
    grpc_inflated_bytes: Limit = 64 * 1024 * 1024
    """Compressed requests of one connection, all together, when inflated."""
    grpc_unfinished_s: Annotated[float, Field(gt=0)] = 30
    """For the rest of a frame that has begun."""
    grpc_untaken_s: Annotated[float, Field(gt=0)] = 300
    """For a client that takes nothing of what waits for it."""
    streams_per_connection: Limit = 1000
    header_list_bytes: Limit = 16 * 1024
    http_connections: Limit = 10_000
    http_line_bytes: Limit = 8 * 1024
    """The line of a request with its URL; `header_list_bytes` has room for it."""
    http_headers: Limit = 100
    http_head_s: Annotated[float, Field(gt=0)] = 10
    """For the headers of a request, and for the handshake of TLS."""
    http_idle_s: Annotated[float, Field(gt=0)] = 30
    """Between two requests."""
    http_body_gap_s: Annotated[float, Field(gt=0)] = 20
    """Between two pieces of a body."""
    http_send_gap_s: Annotated[float, Field(gt=0)] = 60
    """For a client that takes nothing of its answer."""
    http_deadline_s: Annotated[float, Field(gt=0)] = 5
    """For an API request, from its first byte to its answer's last."""
    websocket_frame_bytes: Limit = 1024 * 1024
    socket_buffer_bytes: Limit = 1024 * 1024
    user_sockets: Limit = 20
    user_messages_per_min: Limit = 100
    socket_operations_per_min: Limit = 200
    socket_chatter_per_min: Limit = 3000
    """Pings, heartbeats, leaves and operations past the budget; a socket with more is closed."""
    topic_presence_per_s: Limit = 20_000
    """Deliveries a second that presence may cost a topic; a large one hears of changes less often."""
    typing_interval_s: Annotated[float, Field(ge=0, le=10)] = 0.5
    """A user's typing indicators on a topic go out at most this often."""
    socket_fragments: Limit = 4096
    """Frames of one message."""
    user_refused_joins_per_min: Limit = 60
    """Refused joins of one person, after which all of theirs wait."""
    handshakes: Limit = 1024
    """Openings of sockets under way in one process."""
    conversation_messages_per_min: Limit = 3000
    """Of all its members together."""
    user_calls_per_min: Limit = 3000
    """RPCs and REST requests of one person, over all services."""
    address_calls_per_min: Limit = 6000
    """Of one client address, whoever calls from there; services are not counted."""
    address_handshakes_per_min: Limit = 3000
    """Sockets and long-poll sessions that are opened from one client address; they count as calls too."""
    address_connections: Limit = 10_000
    """WebSockets and long polls of one client address, their openings included, on one process. Many people may share
    an address; of IPv6, a network of 64 bits counts as one."""
    connection_calls_per_min: Limit = 6000
    """Of one gRPC connection that is no service's."""
    auth_attempts_per_hour: Limit = 20
    auth_account_attempts_per_hour: Limit = 100
    """Failed sign-ins to one account from addresses it was never used at, all together."""
    account_sessions: Limit = 100
    """Sessions of an account; signing in beyond ends the one that was not seen for longest."""
    contacts: Limit = 5000
    blocks: Limit = 5000
    data_exports_per_day: Limit = 3
    group_members: Limit = 1000
    public_room_members: Limit = 10_000
    private_room_members: Limit = 1000
    premium_room_members: Limit = 10_000
    user_rooms_per_hour: Limit = 100
    """Rooms one person opens."""
    room_invitations: Limit = 100
    """Good invitations that one member has out for one room."""
    user_reports_per_hour: Limit = 30
    flag_reports: Limit = 3
    """Distinct people whose reports flag a message for review."""
    hide_reports: Limit = 5
    """Distinct people whose reports hide a message until it is reviewed."""
    room_event_queue: Annotated[int, Field(ge=1)] = 256
    """Events that wait for one reader of SubscribeRoomEvents or SubscribeToStreamEvents before it is told to begin
    again."""
    user_subscriptions: Limit = 20
    """Readers of SubscribeRoomEvents, and of SubscribeToStreamEvents, that one person has on one process."""
    page_size: Annotated[int, Field(ge=1)] = 50
    page_size_max: Annotated[int, Field(ge=1)] = 100
    user_devices: Limit = 20
    inbox_entries: Limit = 500
    inbox_days: Limit = 90
    push_host_requests: Annotated[int, Field(ge=1)] = 8
    media_file_bytes: Limit = 100 * 1024 * 1024
    media_user_bytes: Limit = 1024 * 1024 * 1024
    media_pending_uploads: Limit = 100
    media_uploads_per_min: Limit = 60
    media_streams: Limit = 64
    """Uploads that one process receives at the same time."""
    media_pixels: Annotated[int, Field(ge=1, le=200_000_000)] = 50_000_000
    """Of a picture or film; what it takes to look into one is about 16 bytes each."""
    user_streams: Limit = 20
    """Streams of one person that have not ended."""
    user_streams_per_hour: Limit = 60
    """Streams one person makes."""
    node_streams: Limit = 0
    """Streams that one process encodes; 0 for as many as its cores can, as measured."""
    stream_listeners: Limit = 0
    """Of one stream, over all nodes; the stream's own limit may be lower."""
    address_listeners: Limit = 200
    """Listeners of one client address on one process."""
    user_listeners: Limit = 20
    """Listeners that are one person on one process."""
    stream_invitations: Limit = 1000
    """People invited to one stream."""
    recording_days: Limit = 0
    """How long recordings are kept; 0 for ever."""
    typing_expires_s: Annotated[int, Field(ge=1)] = 10
    edit_window_s: Limit = 24 * 3600
    erase_window_s: Limit = 48 * 3600
    """For how long its sender may delete a message for everyone; moderators always may."""
    message_reactions: Limit = 50
    """Different emoji on one message."""
    conversation_pins: Limit = 10
    user_scheduled: Limit = 100
    resume_len: Annotated[int, Field(gt=0, le=10_000)] = 1000
    """Messages, and changes, that one join replays; the rest is paged through with the cursor of its reply."""
    """Messages of one person that wait to be sent."""

    @model_validator(mode="after")
    def _relations(self) -> Limits:
        if self.page_size > self.page_size_max:
            raise ValueError(f"page_size {self.page_size} is over page_size_max {self.page_size_max}")
        if 0 < self.header_list_bytes < self.http_line_bytes:
            raise ValueError(
                f"http_line_bytes {self.http_line_bytes} is over header_list_bytes {self.header_list_bytes}"
            )
        if 0 < self.grpc_inflated_bytes < self.grpc_message_bytes:
            raise ValueError(
                f"grpc_inflated_bytes {self.grpc_inflated_bytes} cannot hold grpc_message_bytes "
                f"{self.grpc_message_bytes}"
            )
        for carrier in ("grpc_message_bytes", "http_body_bytes", "websocket_frame_bytes"):
            room = getattr(self, carrier)
            if room and self.message_body_bytes and room < self.message_body_bytes:
                raise ValueError(
                    f"{carrier} {room} cannot carry message_body_bytes {self.message_body_bytes}"
                )
        return self
