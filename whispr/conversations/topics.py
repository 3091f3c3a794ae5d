"""The names of the topics that conversations and people have on the hub."""

from __future__ import annotations

from whispr.conversations.domain import Kind

PREFIXES = ("conversation", "room")


def topic_of(kind: Kind, conversation_id: str) -> str:
    """Name the topic of a conversation's events."""
    return f"room:{conversation_id}" if kind is Kind.ROOM else f"conversation:{conversation_id}"


def user_topic(user_id: str) -> str:
    """Name the topic of what concerns one user."""
    return f"user:{user_id}"


def is_conversation(topic: str) -> bool:
    """Tell whether a topic is a conversation's."""
    return topic.startswith(("conversation:", "room:"))
