"""Messaging through a whole product: what is derived by events, and what must survive a kill."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.product import UNLIMITED, Product, start


def call(product: Product, method: str, path: str, body: object, token: str) -> Any:
    status, reply = product.call(method, path, body, token)
    assert status == 200, (path, reply)
    return reply


def until(what: Callable[[], bool], within_s: float = 15) -> None:
    """Ask again and again over the product's own interface, which has no event for this."""
    deadline = time.monotonic() + within_s
    while not what():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_a_message_through_its_life_by_rest(product: Product) -> None:
    """Sent, found, edited, found anew, reacted to, pinned, deleted, found no more; the stats follow."""
    (_, ann), (bob_id, bob) = product.sign_up("life-ann"), product.sign_up("life-bob")
    group = product.conversation(ann, "group", bob_id)
    here = f"/v1/conversations/{group}"
    sent = call(product, "POST", f"{here}/messages", {"text": "a quetzal"}, ann)["message"]
    this = f"{here}/messages/{sent['id']}"

    def finds(word: str) -> bool:
        found = call(product, "GET", f"/v1/messages/search?query={word}", None, bob)
        return [each["message"]["id"] for each in found.get("results", ())] == [sent["id"]]

    until(lambda: finds("quetzal"))
    edited = call(product, "PATCH", this, {"text": "an axolotl"}, ann)["message"]
    assert (edited["text"], edited["seq"]) == ("an axolotl", 1)
    until(lambda: finds("axolotl"))
    assert not finds("quetzal")
    call(product, "PUT", f"{this}/reactions/{quote('👍🏽')}", None, bob)
    call(product, "PUT", f"{here}/pins/{sent['id']}", None, ann)
    (pin,) = call(product, "GET", f"{here}/pins", None, bob)["pins"]
    assert pin["message"]["reactions"] == [{"emoji": "👍🏽", "user_ids": [bob_id], "count": 1}]
    call(product, "DELETE", f"{this}?for_everyone=true", None, ann)
    until(lambda: not finds("axolotl"))
    assert "deleted_at" in call(product, "GET", this, None, bob)["message"]
    stats = call(product, "GET", f"{here}/stats", None, bob)["stats"]
    assert (int(stats["message_count"]), int(stats["unread_count"])) == (0, 0)
    synced = call(product, "GET", "/v1/sync", None, bob)
    assert [each["conversation"]["id"] for each in synced["conversations"]] == [group]


@pytest.mark.slow
def test_scheduled_messages_survive_a_kill_and_are_sent_once(tmp_path: Path) -> None:
    """Killed before they are due and again while they are sent, the product sends each exactly once."""
    product = start(tmp_path / "data", UNLIMITED)
    try:
        (_, ann), (bob_id, _) = product.sign_up("ann"), product.sign_up("bob")
        group = product.conversation(ann, "group", bob_id)
        due = (datetime.now(UTC) + timedelta(seconds=4)).isoformat()
        for n in range(40):
            body = {"text": f"later {n}", "send_at": due}
            call(product, "POST", f"/v1/conversations/{group}/scheduled", body, ann)

        def texts() -> list[str]:
            page = call(product, "GET", f"/v1/conversations/{group}/messages?page_size=100", None, ann)
            return [message["text"] for message in page.get("messages", ())]

        product.kill()
        product = start(tmp_path / "data", UNLIMITED)
        until(lambda: bool(texts()), 30)
        product.kill()
        product = start(tmp_path / "data", UNLIMITED)

        def all_sent() -> bool:
            return not call(product, "GET", "/v1/scheduled", None, ann).get("scheduled")

        until(all_sent, 60)
        assert sorted(texts()) == sorted(f"later {n}" for n in range(40))
    finally:
        product.stop()
