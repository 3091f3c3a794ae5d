"""How much each field of each request holds: the rule that every text, list and map of the protos has.

Rules are found by `Service/Method.path`, then by the field's own name. Bounds are the product's constants, so a
bound that moves moves its test. `ANYTHING` is for ids, tokens and words of a vocabulary: nothing long is any of
those, and the answer to it is one like any other.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from google.protobuf.descriptor import Descriptor, FieldDescriptor

from tests.world import METHODS
from whispr.config import Limits
from whispr.conversations import domain as conversation
from whispr.conversations import room_lists, room_rules, search
from whispr.services.auth import administration
from whispr.services.auth import domain as account
from whispr.services.chat import messages as room_messages
from whispr.services.media import domain as medium
from whispr.services.media import types as media_types
from whispr.services.notification import domain as notification
from whispr.services.notification import notifier, requests
from whispr.services.notification import servicer as notification_calls
from whispr.services.stream import domain as stream
from whispr.services.stream import on_listening, on_streams
from whispr.services.user import domain as profile
from whispr.services.user import servicer as user_calls

FAR = 50
"""How many times the bound is far over it, as far as a body holds that."""
FAR_BYTES_MAX = 600_000


@dataclass(frozen=True)
class Rule:
    """What a field holds."""

    bound: int
    make: Callable[[int], Any]
    """A value of that size, as proto3 JSON."""
    item_bytes: int = 1
    """Of one of what the bound counts."""
    reason: str = ""
    """Of the error that refuses more, where it names no field."""

    def sizes(self) -> Mapping[str, int]:
        """The sizes to try, by what they are."""
        far = max(self.bound + 2, min(FAR * self.bound, FAR_BYTES_MAX // self.item_bytes))
        return {"at": self.bound, "over": self.bound + 1, "far over": far}


@dataclass(frozen=True)
class Anything:
    """A field that nothing long fits."""

    make: Callable[[int], Any]
    size: int


def text(bound: int) -> Rule:
    """Characters."""
    return Rule(bound, lambda size: "x" * size)


def blob(bound: int, reason: str = "") -> Rule:
    """Bytes."""
    return Rule(bound, lambda size: base64.b64encode(b"x" * size).decode(), reason=reason)


def ids(bound: int) -> Rule:
    """Different ids."""
    return Rule(bound, lambda size: [str(uuid4()) for _ in range(size)], item_bytes=40)


def pairs(bound: int) -> Rule:
    """Entries of a map."""
    return Rule(bound, lambda size: {f"key{n}": "x" for n in range(size)}, item_bytes=12)


def json_bytes(bound: int) -> Rule:
    """Bytes of a map as JSON."""
    return Rule(bound, lambda size: {"k": "x" * (size - len('{"k":""}'))})


def words(bound: int, word: str) -> Rule:
    """Words in a list."""
    return Rule(bound, lambda size: [word] * size, item_bytes=len(word) + 3)


ANYTHING = Anything(lambda size: "x" * size, 20_000)
ANY_BYTES = Anything(lambda size: base64.b64encode(b"x" * size).decode(), 20_000)
ANY_IDS = Anything(lambda size: [str(uuid4()) for _ in range(size)], 8_000)
ANY_WORDS = Anything(lambda size: ["xxxxx"] * size, 20_000)
ANY_PAIRS = Anything(lambda size: {f"key{n}": "x" for n in range(size)}, 20_000)
ANY_DAYS = Anything(lambda size: [1] * size, 20_000)

BODY = Limits().message_body_bytes

RULES: Mapping[str, Rule | Anything] = {
    **dict.fromkeys(
        (
            "access_type", "action", "actor_id", "auth", "avatar_media_id", "before_id", "content_type",
            "conversation_id", "creator_id", "current_password", "device_id", "emoji", "event_type", "export_id",
            "from", "group_id", "invitation_id", "invite_code", "kind", "link_id", "media_id", "media_type",
            "message_id", "message_privacy", "message_type", "other_user_id", "p256dh", "page_token", "platform",
            "presence_privacy", "recipient_id", "refresh_token", "reply_to", "reply_to_id", "resource",
            "resource_id", "role", "room_id", "scheduled_id", "sender_id", "service", "session_id", "since",
            "target_id", "time_zone", "to", "token", "user_id", "username", "variant", "viewer_id",
            "listener_id", "recording_id", "stream_id", "streamer_id",
        ),
        ANYTHING,
    ),
    "AuthService/Login.password": ANYTHING,  # not told apart from a wrong one
    "AuthService/DeleteAccount.password": ANYTHING,
    "AuthService/Login.device": ANYTHING,  # cut to size: nobody is kept out by the name of a device
    "MediaService/ValidateMediaMetadata.filename": ANYTHING,  # the answer says what is wrong with it
    # So does the answer to each notification of many.
    "NotificationService/SendBulkNotifications.notifications.recipient_ids": ANY_IDS,
    "NotificationService/SendBulkNotifications.notifications.preview_text": ANYTHING,
    "NotificationService/SendBulkNotifications.notifications.metadata": ANY_PAIRS,
    "among": ANY_IDS,
    "conversation_ids": ANY_IDS,
    "days": ANY_DAYS,
    "metrics": ANY_WORDS,
    "services": ANY_WORDS,
    "types": Anything(lambda size: {f"type{n}": True for n in range(size)}, 20_000),  # counted with those kept
    # The whole list has one bound, and each of its notifications those of a single one.
    "notifications": Rule(
        notification_calls.BULK_MAX, lambda size: [{"message_id": str(uuid4())}] * size, item_bytes=56
    ),
    "conversations": Rule(
        requests.PREFERENCES_MAX, lambda size: [{"conversation_id": str(uuid4())} for _ in range(size)], item_bytes=62
    ),
    "bio": text(profile.BIO_CHARS_MAX),
    "body": text(notification.BODY_CHARS_MAX),
    "client_id": text(conversation.CLIENT_ID_CHARS_MAX),
    "content": blob(BODY, "message_too_large"),
    "ChatService/ModerateMessage.content": ANY_BYTES,  # only an edit has any
    "custom_metadata": pairs(medium.CUSTOM_KEYS_MAX),
    "data": json_bytes(notification.DATA_BYTES_MAX),
    "NotificationService/SendMessageNotification.metadata": json_bytes(notification.DATA_BYTES_MAX),
    "description": text(room_rules.DESCRIPTION_CHARS_MAX),
    "device": text(account.DEVICE_CHARS_MAX),
    "display_name": text(account.DISPLAY_NAME_CHARS_MAX),
    "email": Rule(account.EMAIL_CHARS_MAX, lambda size: "x@" + "y" * (size - 6) + ".org"),
    "event_types": words(room_messages.EVENT_TYPES_MAX, "new_message"),
    "filename": text(media_types.FILENAME_CHARS_MAX),
    "group_name": text(conversation.NAME_CHARS_MAX),
    "locale": Rule(profile.LOCALE_CHARS_MAX, lambda size: ("en" + "-abcd" * size)[: size - 1] + "x"),
    "member_ids": ids(Limits().group_members - 1),
    "ChatService/CreateRoom.member_ids": ids(room_rules.INVITED_AT_ONCE_MAX),
    "metadata": pairs(conversation.METADATA_KEYS_MAX),
    "name": text(conversation.NAME_CHARS_MAX),
    "StreamService/CreateStream.title": text(stream.TITLE_CHARS_MAX),
    "StreamService/UpdateStream.title": text(stream.TITLE_CHARS_MAX),
    "StreamService/StartRecording.config.title": text(stream.TITLE_CHARS_MAX),
    "StreamService/CreateStream.description": text(stream.DESCRIPTION_CHARS_MAX),
    "StreamService/UpdateStream.description": text(stream.DESCRIPTION_CHARS_MAX),
    "StreamService/StopStream.reason": text(on_streams.REASON_CHARS_MAX),
    "current_track": text(stream.METADATA_CHARS_MAX),
    "artist": text(stream.METADATA_CHARS_MAX),
    "album": text(stream.METADATA_CHARS_MAX),
    "genre": text(stream.METADATA_CHARS_MAX),
    "custom_fields": pairs(stream.CUSTOM_FIELDS_MAX),
    "StreamService/SubscribeToStreamEvents.event_types": words(
        on_listening.EVENT_TYPES_MAX, "LISTENER_JOINED"
    ),
    "NotificationService/RegisterDevice.name": text(notification.NAME_CHARS_MAX),
    "new_password": text(account.PASSWORD_BYTES_MAX),
    "notification_ids": ids(notification_calls.IDS_MAX),
    "participant_ids": ids(user_calls.TARGETS_MAX),
    "password": text(account.PASSWORD_BYTES_MAX),
    "permissions": words(administration.PERMISSIONS_MAX, "chat:read"),
    "preview_text": text(notification.BODY_CHARS_MAX),
    "query": text(search.QUERY_CHARS_MAX),
    "ChatService/ListRooms.query": text(room_lists.QUERY_CHARS_MAX),
    "UserService/SearchUsers.query": text(user_calls.QUERY_CHARS_MAX),
    "reason": text(room_rules.REASON_CHARS_MAX),
    "AuthService/DeactivateUser.reason": text(account.REASON_CHARS_MAX),
    "AuthService/RevokeToken.reason": text(account.REASON_CHARS_MAX),
    "recipient_ids": ids(notifier.RECIPIENTS_MAX),
    "sender_public_key": blob(conversation.PUBLIC_KEY_BYTES_MAX),
    "settings": pairs(conversation.SETTINGS_KEYS_MAX),
    "signature": blob(conversation.SIGNATURE_BYTES_MAX),
    "status_text": text(profile.STATUS_TEXT_CHARS_MAX),
    "target_user_ids": ids(user_calls.TARGETS_MAX),
    "title": text(notification.TITLE_CHARS_MAX),
    "user_ids": ids(user_calls.TARGETS_MAX),
    "MessagingService/AddMember.user_ids": ids(Limits().group_members - 3),  # beside who is in the group
    "NotificationService/RegisterDevice.token": Rule(
        requests.TOKEN_CHARS_MAX, lambda size: "https://hooks.example/".ljust(size, "x")
    ),
}  # fmt: skip


def _is_sized(field: FieldDescriptor) -> bool:
    return field.is_repeated or field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES)


def fields(message: Descriptor, before: str = "") -> Iterator[str]:
    """Yield the dotted paths of the texts, lists and maps in a message of ours."""
    for field in message.fields:
        path = before + field.name
        if _is_sized(field):
            yield path
        inner = field.message_type
        ours = (
            inner is not None and inner.full_name.startswith("whispr.") and not inner.GetOptions().map_entry
        )
        if inner is not None and ours and inner is not message:
            yield from fields(inner, f"{path}.")


def rule_of(method: str, path: str) -> Rule | Anything | None:
    """Find the rule of a field."""
    return RULES.get(f"{method}.{path}", RULES.get(path.rpartition(".")[2]))


EVERY_FIELD = [(method, path) for method in sorted(METHODS) for path in fields(METHODS[method].input_type)]
