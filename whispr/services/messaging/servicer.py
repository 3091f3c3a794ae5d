"""MessagingService's RPCs, put together."""

from __future__ import annotations

from whispr.services.messaging.for_services import ForServices
from whispr.services.messaging.on_conversations import OnConversations
from whispr.services.messaging.on_messages import OnMessages
from whispr.services.messaging.on_own_state import OnOwnState


class MessagingServicer(OnConversations, OnMessages, OnOwnState, ForServices):
    """Every RPC of MessagingService."""
