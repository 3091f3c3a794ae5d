"""What tests of the service's RPCs do again and again."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import pytest

from tests.services.kit import World, as_
from whispr.errors import Code, WhisprError
from whispr.v1 import messaging_pb2 as pb


async def refusal(call: Awaitable[Any]) -> tuple[Code, str]:
    """Why a call fails."""
    with pytest.raises(WhisprError) as refused:
        await call
    return refused.value.code, refused.value.reason


async def send(
    services: World, conversation: str, sender: str, text: str = "hi", **fields: Any
) -> pb.Message:
    """Send a message as somebody."""
    request = pb.SendMessageRequest(conversation_id=conversation, content=text.encode(), **fields)
    return (await services.messaging.SendMessage(request, metadata=as_(sender))).message
