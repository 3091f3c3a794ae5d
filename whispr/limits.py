"""From the one `[limits]` section to the limits each package takes. Pure.

A package that knows what 0 means gets it as it is; one that wants a number gets one that nothing reaches.
"""

from __future__ import annotations

import os

from whispr.adapters.jetstream import StreamLimits
from whispr.asgi.limits import HttpLimits
from whispr.call_rules import rules_of
from whispr.config import Settings
from whispr.conversations.domain import Limits as ConversationLimits
from whispr.conversations.room_rules import RoomLimits
from whispr.gateway.rest import RestLimits
from whispr.gateway.server import GatewayOptions
from whispr.http2.limits import Limits as Http2Limits
from whispr.quotas import Quota
from whispr.realtime.limits import Limits as SocketLimits
from whispr.rpc.limits import RpcLimits
from whispr.rpc.tls import TlsFiles
from whispr.services.auth.service import AuthLimits
from whispr.services.media.domain import MediaLimits
from whispr.services.media.findings import Bounds
from whispr.services.media.service import MediaOptions
from whispr.services.notification.notifier import Options as NotificationOptions
from whispr.services.notification.requests import Addresses
from whispr.services.notification.service import Setup as PushSetup
from whispr.services.stream.domain import StreamLimits as AudioLimits
from whispr.services.stream.engine.lives import EngineOptions
from whispr.services.stream.service import StreamOptions
from whispr.services.stream.webrtc.service import WebRtcSetup
from whispr.services.user.service import UserLimits
from whispr.webrtc.endpoint import Options as WebRtcOptions

NEVER_REACHED = 2**31 - 1


def _lifted(limit: int) -> int:
    return limit or NEVER_REACHED


def rpc(settings: Settings) -> RpcLimits:
    """Limits of rpc connections, both sides."""
    limits = settings.limits
    return RpcLimits(
        message_bytes_max=_lifted(limits.grpc_message_bytes),
        accepted_connections_max=_lifted(limits.grpc_connections),
        inflated_bytes_max=_lifted(limits.grpc_inflated_bytes),
        unfinished_s=limits.grpc_unfinished_s,
        untaken_s=limits.grpc_untaken_s,
        http2=Http2Limits(
            streams_max=_lifted(limits.streams_per_connection),
            header_list_bytes_max=_lifted(limits.header_list_bytes),
            queued_bytes_max=_lifted(limits.grpc_queued_bytes),
        ),
    )


def sockets(settings: Settings) -> SocketLimits:
    """Limits of WebSockets."""
    limits = settings.limits
    return SocketLimits(
        frame_bytes=_lifted(limits.websocket_frame_bytes),
        buffer_bytes=_lifted(limits.socket_buffer_bytes),
        user_sockets=limits.user_sockets,
        operations_per_min=limits.socket_operations_per_min,
        chatter_per_min=limits.socket_chatter_per_min,
        fragments=limits.socket_fragments,
        refused_joins_per_min=limits.user_refused_joins_per_min,
        handshakes=limits.handshakes,
        address_connections=limits.address_connections,
        deflate=settings.websocket.deflate,
        deflate_bytes=settings.websocket.deflate_bytes,
        presence_s=settings.websocket.presence_s,
        presence_per_s=limits.topic_presence_per_s,
        typing_s=limits.typing_interval_s,
        drain_s=settings.drain_s,
        drain_batch=settings.websocket.drain_batch,
        drain_spread_s=min(settings.websocket.drain_spread_s, settings.drain_s / 2),
    )


def conversations(settings: Settings) -> ConversationLimits:
    """Limits of conversations and pages."""
    limits = settings.limits
    return ConversationLimits(
        message_body_bytes=limits.message_body_bytes,
        group_members=limits.group_members,
        user_messages_per_min=limits.user_messages_per_min,
        conversation_messages_per_min=limits.conversation_messages_per_min,
        page_size=limits.page_size,
        page_size_max=limits.page_size_max,
        typing_expires_s=limits.typing_expires_s,
        edit_window_s=limits.edit_window_s,
        erase_window_s=limits.erase_window_s,
        message_reactions=limits.message_reactions,
        conversation_pins=limits.conversation_pins,
        user_scheduled=limits.user_scheduled,
        resume_len=limits.resume_len,
    )


def users(settings: Settings) -> UserLimits:
    """How many people one person may block or know."""
    return UserLimits(blocks=settings.limits.blocks, contacts=settings.limits.contacts)


def rooms(settings: Settings) -> RoomLimits:
    """Limits of rooms, invitations, reports and subscriptions."""
    limits = settings.limits
    return RoomLimits(
        public_members=limits.public_room_members,
        private_members=limits.private_room_members,
        premium_members=limits.premium_room_members,
        rooms_per_hour=limits.user_rooms_per_hour,
        invitations=limits.room_invitations,
        reports_per_hour=limits.user_reports_per_hour,
        flag_reports=limits.flag_reports,
        hide_reports=limits.hide_reports,
        event_queue_len=limits.room_event_queue,
        subscriptions=limits.user_subscriptions,
    )


def auth(settings: Settings) -> AuthLimits:
    """Lives of tokens, and attempts at getting them."""
    return AuthLimits(
        access_token_s=settings.auth.access_token_s,
        refresh_token_s=settings.auth.refresh_token_s,
        attempts_per_hour=settings.limits.auth_attempts_per_hour,
        account_attempts_per_hour=settings.limits.auth_account_attempts_per_hour,
        account_sessions=settings.limits.account_sessions,
        data_exports_per_day=settings.limits.data_exports_per_day,
    )


def notifications(settings: Settings) -> NotificationOptions:
    """Whom to tell, and how much is kept."""
    own = settings.notification
    return NotificationOptions(
        batch_s=own.batch_s,
        push_ttl_s=own.push_ttl_s,
        everyone_max=own.everyone_max,
        inbox_length=settings.limits.inbox_entries,
        inbox_days=settings.limits.inbox_days,
        user_devices=settings.limits.user_devices,
    )


def pushes(settings: Settings) -> PushSetup:
    """The push services to use."""
    own = settings.notification
    return PushSetup(
        vapid_key_file=own.vapid_key_file or settings.data_dir / "push" / "vapid.pem",
        vapid_contact=own.vapid_contact or f"https://{settings.public_host or settings.host}",
        addresses=Addresses(own.allow_private_addresses, own.allow_http),
        host_requests=settings.limits.push_host_requests,
        calls=rules_of(settings).of_target("push"),
        fcm_account_file=own.fcm_service_account_file,
        fcm_url=own.fcm_url,
        apns_key_file=own.apns_key_file,
        apns_key_id=own.apns_key_id,
        apns_team_id=own.apns_team_id,
        apns_topic=own.apns_topic,
        apns_url=own.apns_url,
    )


def gateway(settings: Settings) -> GatewayOptions:
    """Limits and choices of the HTTP listener."""
    own, limits = settings.gateway, settings.limits
    return GatewayOptions(
        rest=RestLimits(body_bytes=limits.http_body_bytes, deadline_s=limits.http_deadline_s),
        http=HttpLimits(
            line_bytes=limits.http_line_bytes,
            head_bytes=limits.header_list_bytes,
            headers=limits.http_headers,
            head_s=limits.http_head_s,
            idle_s=limits.http_idle_s,
            body_gap_s=limits.http_body_gap_s,
            send_gap_s=limits.http_send_gap_s,
            connections=limits.http_connections,
        ),
        tls=TlsFiles(own.tls_certificate, own.tls_key, alpn="http/1.1") if own.tls_certificate else None,
        drain_s=settings.drain_s,
        cors_origins=settings.gateway.cors_origins,
        trusted_proxies=settings.gateway.trusted_proxies,
    )


def rpc_tls(settings: Settings) -> TlsFiles | None:
    """What the services show each other, and whom they believe; None to speak without TLS."""
    own = settings.rpc
    if own.tls_certificate is None:
        return None
    name = own.tls_server_name or None
    return TlsFiles(own.tls_certificate, own.tls_key, own.tls_authorities, server_name=name)


def media(settings: Settings) -> MediaOptions:
    """Limits and choices of media."""
    own, limits = settings.media, settings.limits
    return MediaOptions(
        key_folder=own.key_dir or settings.data_dir / "keys" / "media",
        work_folder=settings.data_dir / "media" / "work",
        limits=MediaLimits(
            file_bytes=limits.media_file_bytes,
            user_bytes=limits.media_user_bytes,
            pending_uploads=limits.media_pending_uploads,
            uploads_per_min=limits.media_uploads_per_min,
            streams=limits.media_streams,
            page_size=limits.page_size,
            page_size_max=limits.page_size_max,
            upload_url_s=own.upload_url_s,
            download_url_s=own.download_url_s,
            unlinked_s=own.unlinked_h * 3600.0,
        ),
        bounds=Bounds(pixels=limits.media_pixels),
        workers=own.workers,
        scan_command=own.scan_command,
        scan_clamd=own.scan_clamd,
    )


def share(whole: int, worker: int, workers: int) -> int:
    """Return a worker's share of what a node has: together they have all of it, and each at least one.

    0 is no limit, for each of them, too.
    """
    return max(1, whole // workers + (worker <= whole % workers)) if whole else 0


def streaming(settings: Settings, worker: int = 1, workers: int = 1) -> StreamOptions:
    """Limits and choices of live audio, for the first of several workers or another, which share the node's cores."""
    own, limits = settings.stream, settings.limits
    return StreamOptions(
        key_folder=own.key_dir or settings.data_dir / "keys" / "streams",
        work_folder=settings.data_dir / "streams" / "work",
        countries_file=own.countries_file,
        idle_s=own.idle_s,
        hls_shared_files=own.hls_shared_files,
        engine=EngineOptions(
            streams=share(limits.node_streams, worker, workers),
            cores=share(len(os.sched_getaffinity(0)), worker, workers),
            takeover=own.takeover,
            grace_s=own.grace_s,
        ),
        webrtc=WebRtcSetup(
            host=settings.bind_host("stream"),
            port=own.webrtc_port + worker - 1 if own.webrtc_port else 0,
            endpoint=WebRtcOptions(advertised=own.webrtc_addresses),
            origins=settings.gateway.cors_origins,
            ice_servers=own.webrtc_ice_servers,
            turn_secret=own.webrtc_turn_secret.get_secret_value(),
        ),
        limits=AudioLimits(
            user_streams=limits.user_streams,
            user_streams_per_hour=limits.user_streams_per_hour,
            listeners=limits.stream_listeners,
            address_listeners=limits.address_listeners,
            user_listeners=limits.user_listeners,
            invitations=limits.stream_invitations,
            recording_days=limits.recording_days,
            subscriptions=limits.user_subscriptions,
            event_queue=limits.room_event_queue,
            page_size=limits.page_size,
            page_size_max=limits.page_size_max,
            listen_url_s=own.listen_url_s,
            anonymous=own.anonymous,
        ),
    )


def streams(settings: Settings) -> StreamLimits:
    """How much the event streams keep."""
    events = settings.events
    return StreamLimits(
        age_s=events.max_age_s,
        bytes_max=events.max_bytes,
        duplicates_s=events.duplicates_s,
        replicas=events.replicas,
    )


def quota(settings: Settings) -> Quota:
    """How many calls a minute people, addresses and connections may make."""
    limits = settings.limits
    return Quota(
        user=limits.user_calls_per_min,
        address=limits.address_calls_per_min,
        connection=limits.connection_calls_per_min,
        handshakes=limits.address_handshakes_per_min,
    )
