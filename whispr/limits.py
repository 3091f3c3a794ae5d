"""From the one `[limits]` section to the limits each package takes. Pure.

A package that knows what 0 means gets it as it is; one that wants a number gets one that nothing reaches.
"""

from __future__ import annotations

from whispr.adapters.jetstream import StreamLimits
from whispr.config import Settings
from whispr.conversations.domain import Limits as ConversationLimits
from whispr.gateway.rest import RestLimits
from whispr.gateway.server import GatewayOptions
from whispr.http2.limits import Limits as Http2Limits
from whispr.realtime.limits import Limits as SocketLimits
from whispr.rpc.limits import RpcLimits
from whispr.services.auth.service import AuthLimits

NEVER_REACHED = 2**31 - 1


def _lifted(limit: int) -> int:
    return limit or NEVER_REACHED


def rpc(settings: Settings) -> RpcLimits:
    """Limits of rpc connections, both sides."""
    limits = settings.limits
    return RpcLimits(
        message_bytes_max=_lifted(limits.grpc_message_bytes),
        http2=Http2Limits(
            streams_max=_lifted(limits.streams_per_connection),
            header_list_bytes_max=_lifted(limits.header_list_bytes),
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
        drain_s=settings.drain_s,
    )


def conversations(settings: Settings) -> ConversationLimits:
    """Limits of conversations and pages."""
    limits = settings.limits
    return ConversationLimits(
        message_body_bytes=limits.message_body_bytes,
        group_members=limits.group_members,
        user_messages_per_min=limits.user_messages_per_min,
        page_size=limits.page_size,
        page_size_max=limits.page_size_max,
        typing_expires_s=limits.typing_expires_s,
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


def gateway(settings: Settings) -> GatewayOptions:
    """Limits and choices of the HTTP listener."""
    return GatewayOptions(
        rest=RestLimits(body_bytes=settings.limits.http_body_bytes),
        headers_bytes=_lifted(settings.limits.header_list_bytes),
        drain_s=settings.drain_s,
        cors_origins=settings.gateway.cors_origins,
        trusted_proxies=settings.gateway.trusted_proxies,
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
