"""A client that is there for good: it reconnects wherever it is sent away from and resumes from what it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import trio

from tests.integration.load import RETRY_S
from whispr.errors import WhisprError
from whispr.realtime.client import Disconnected, open_phoenix


@dataclass
class Follower:
    """A member who reads a conversation, from the first message on."""

    token: str
    conversation_id: str
    url: Callable[[], str]
    """Where to connect now."""
    seqs: list[int] = field(default_factory=list)
    """Of every message told, in the order in which it was, whether replayed or live."""
    client_ids: list[str] = field(default_factory=list)
    joins: int = 0
    codes: list[int | None] = field(default_factory=list)
    """With which its connections were closed."""

    async def run(self) -> None:
        """Follow until cancelled."""
        while True:
            try:
                async with open_phoenix(self.url(), self.token) as phoenix:
                    last = self.seqs[-1] if self.seqs else 0
                    channel = await phoenix.join(f"conversation:{self.conversation_id}", {"since_seq": last})
                    self.joins += 1
                    joined: Any = channel.response
                    assert not joined["resync"], "a test sends less than that"
                    for message in joined["messages"]:
                        self._told(message)
                    async for event, payload in channel:
                        if event == "new_message":
                            self._told(payload)
            except* Disconnected as group:
                self.codes += [each.close_code for each in group.exceptions if isinstance(each, Disconnected)]
            except* WhisprError:
                pass  # away for a moment, as while it restarts
            await trio.sleep(RETRY_S)

    def _told(self, message: Any) -> None:
        self.seqs.append(message["seq"])
        self.client_ids.append(message["client_id"])

    def check(self) -> None:
        """Every message once, in order, without a gap."""
        assert self.seqs == list(range(1, len(self.seqs) + 1))

    async def until(self, seq: int) -> None:
        """Wait until it has a message."""
        while not self.seqs or self.seqs[-1] < seq:  # noqa: ASYNC110  # the product's clock is the real one
            await trio.sleep(0.02)
