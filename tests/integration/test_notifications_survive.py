"""Kill the product while it tells people: everybody is told of everything, and no phone rings twice for it.

Run by `just test-resilience`.
"""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.product import UNLIMITED, Product, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

ROUNDS = 4
MESSAGES = 40
"""Messages sent in each round, before the product is killed."""
TELL_S = 60
SETTLE_S = 3
SETTINGS = UNLIMITED | {
    "WHISPR_NOTIFICATION_BATCH_S": "0",
    "WHISPR_NOTIFICATION_ALLOW_HTTP": "true",
    "WHISPR_NOTIFICATION_ALLOW_PRIVATE_ADDRESSES": "true",
}


@contextmanager
def webhook() -> Iterator[tuple[str, list[tuple[str, dict[str, object]]]]]:
    """A webhook of its own thread, which outlives the product: its URL, and (delivery, push) of what came."""
    heard: list[tuple[str, dict[str, object]]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            heard.append((self.headers["whispr-delivery"], json.loads(body)))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Be quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/", heard
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def told_of(product: Product, token: str, conversation_id: str) -> int:
    """Count the messages that the inbox tells of."""
    status, reply = product.call("GET", f"/v1/notifications?conversation_id={conversation_id}", token=token)
    assert status == 200, reply
    return sum(int(each["count"]) for each in reply["notifications"] if each["type"] == "message")


def test_kill_9_while_telling_tells_everything_once(tmp_path: Path) -> None:
    """Round after round messages are sent and the product is killed; in the end the inbox counts each once."""
    with webhook() as (url, heard):
        product = start(tmp_path / "data", SETTINGS)
        try:
            _, ann = product.sign_up("ann")
            bob_id, bob = product.sign_up("bob")
            direct = product.conversation(ann, "direct", bob_id)
            status, reply = product.call("POST", "/v1/devices", {"platform": "webhook", "token": url}, bob)
            assert status == 200, reply
            for number in range(ROUNDS):
                for each in range(MESSAGES):
                    body = {"text": f"{number}.{each}", "client_id": f"{number}.{each}"}
                    status, reply = product.call("POST", f"/v1/conversations/{direct}/messages", body, ann)
                    assert status == 200, reply
                product.process.send_signal(signal.SIGKILL)
                product.kill()
                again = start(product.data_dir, SETTINGS)
                product.process, product.ports = again.process, again.ports
            began = time.monotonic()
            while told_of(product, bob, direct) < ROUNDS * MESSAGES and time.monotonic() < began + TELL_S:
                time.sleep(0.1)
            assert told_of(product, bob, direct) == ROUNDS * MESSAGES
            _, listed = product.call("GET", "/v1/notifications?unread_only=true", token=bob)
            last = next(each for each in listed["notifications"] if each["type"] == "message")
            took = time.monotonic() - began
            time.sleep(SETTLE_S)  # for pushes that come twice, if any do
            print(
                f"{ROUNDS} kills, {ROUNDS * MESSAGES} messages, {len(heard)} pushes, the last: {last['body']}"
            )
            print(f"all told {took:.1f} s after the last start")
        finally:
            product.stop()
        deliveries = [delivery for delivery, _ in heard]
        assert len(deliveries) == len(set(deliveries))
        shown = [(push["data"], push["body"]) for _, push in heard]
        assert all(shown.count(each) == 1 for each in shown)
        assert heard
