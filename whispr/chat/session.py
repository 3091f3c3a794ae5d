"""The live half of the terminal client: one conversation on screen, kept up over reconnects.

Tasks: the keyboard, the connection, and, inside the connection, the channel's events and the sender. What a
person sends while disconnected waits and goes out, in order, after the next join; when too much waits, the
keyboard does. Every message carries a client_id, so that sending again after a lost reply is safe, and each
join says the last seq seen, so that nothing is missed or shown twice.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

import trio

from whispr import ports
from whispr.chat.account import Account, Person, sign_in
from whispr.chat.lineedit import Edited, EndOfInput, Line
from whispr.chat.screen import Screen, printable
from whispr.config import Settings
from whispr.errors import Code, WhisprError, conflict, invalid
from whispr.realtime.client import ClientChannel, Disconnected, Refused, open_phoenix
from whispr.resilience.retry import Backoff

HISTORY_LEN = 20
UNSENT_LEN_MAX = 100
"""Lines that may wait to be sent; then no more input is read until one has gone."""
BACKOFF = Backoff(0.1, 5.0, low=0.5)
TYPING_EVERY_S = 5.0
"""How often "is typing" is repeated while somebody types; the server lets it lapse after 10 s."""
PEER_POLL_S = 1.0

HELP = "/with NAME talk to somebody · /list your conversations · /quit"


def addresses(settings: Settings, url: str, websocket: str) -> tuple[str, str]:
    """Return the gateway's and the WebSocket's URL: as given, else those of the product in its data folder.

    Raises FAILED_PRECONDITION when neither is known.
    """
    if not url:
        published = ports.read(settings.data_dir)
        if not published.keys() >= {"gateway", "websocket"}:
            message = f"no chat runs in {settings.data_dir}: start it with `whispr serve`, or give --url"
            raise conflict(message, "not_running")
        url = f"{settings.gateway.scheme}://{settings.reach_host('gateway')}:{published['gateway']}"
        websocket = websocket or f"ws://{settings.reach_host('websocket')}:{published['websocket']}"
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise invalid({"url": f"not an HTTP address: {url}"})
    secure = "s" if parts.scheme == "https" else ""
    return url.rstrip("/"), websocket or f"ws{secure}://{parts.hostname}:4000"


async def run(gateway: str, websocket: str, username: str, password: str, peer: str) -> None:
    """Sign up or in and talk until the person leaves. Raises WhisprError when that cannot start."""
    screen = Screen()
    account, new = await sign_in(gateway, username, password, "whispr chat")
    screen.say(f"signed {'up' if new else 'in'} as {account.me.username} · {HELP}", dim=True)
    with screen.keys():
        await Talk(screen, account, websocket).run(peer)


class Talk:
    """One person at a terminal."""

    def __init__(self, screen: Screen, account: Account, websocket: str) -> None:
        self._screen = screen
        self._account = account
        self._websocket = websocket
        self._peer: Person | None = None
        self._changed = trio.Event()
        self._conversation: Conversation | None = None
        self._connecting = trio.CancelScope()

    async def run(self, peer: str) -> None:
        """Talk to `peer`, or to whom the person names, until they leave."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._keep_connected)
            if peer and self._screen.interactive:
                nursery.start_soon(self._choose, peer)
            elif peer:
                await self._choose(peer)  # piped lines wait until there is somebody to read them
            else:
                self._screen.prompt("> ")
            async for event in self._screen.events():
                if isinstance(event, Line):
                    await self._line(event.text.strip(), nursery)
                elif isinstance(event, Edited) and self._conversation:
                    self._conversation.typed()
                elif isinstance(event, EndOfInput):
                    break
            if self._conversation and not self._screen.interactive:
                await self._conversation.finish()
            nursery.cancel_scope.cancel(reason="the person left")

    async def _line(self, text: str, nursery: trio.Nursery) -> None:
        command, _, argument = text.partition(" ")
        if command == "/with" and argument:
            await self._choose(argument.strip())
        elif command == "/list":
            await self._list()
        elif command == "/quit":
            nursery.cancel_scope.cancel(reason="the person left")
        elif text.startswith("/"):
            self._screen.say(HELP, dim=True)
        elif text and self._conversation:
            await self._conversation.send(text)
        elif text:
            self._screen.say("nobody to talk to yet: /with NAME", dim=True)

    async def _list(self) -> None:
        try:
            found = await self._account.conversations()
        except WhisprError as error:
            self._screen.say(error.message, dim=True)
            return
        for item in found:
            name = item["name"] or item.get("peer", {}).get("username", "")
            self._screen.say(f"  {printable(name)} · {item['unread_count']} unread", dim=True)

    async def _choose(self, username: str) -> None:
        """Find a person, waiting for them to sign up, and open the conversation with them."""
        waiting = False
        while True:
            try:
                person = await self._account.find(username)
                if person is not None:
                    conversation_id = await self._account.direct(person.id)
                    break
            except WhisprError as error:
                if error.code is not Code.UNAVAILABLE:
                    self._screen.say(f"cannot talk to {username}: {error.message}")
                    return
            if not waiting:
                self._screen.say(f"waiting for {username} to sign up…", dim=True)
                waiting = True
            await trio.sleep(PEER_POLL_S)
        self._conversation = Conversation(self._screen, self._account.me, person, conversation_id)
        self._changed.set()
        self._connecting.cancel(reason="another conversation was chosen")

    async def _keep_connected(self) -> None:
        """Connect, and connect again with growing pauses whenever the connection is lost."""
        await self._changed.wait()
        failures = 0
        while True:
            conversation = self._conversation
            assert conversation is not None, "set before it is announced"
            with trio.CancelScope() as self._connecting:
                try:
                    async with open_phoenix(self._websocket, self._account.access_token) as phoenix:
                        topic = f"conversation:{conversation.id}"
                        channel = await phoenix.join(topic, conversation.join_payload())
                        failures = 0
                        await conversation.follow(channel, self._account.new_token)
                except* WhisprError as group:
                    await self._lost(group, failures)
                    failures += 1
                conversation.offline()

    async def _lost(self, group: BaseExceptionGroup[WhisprError], failures: int) -> None:
        """Say why the connection ended, mend the token if that was it, and pause."""
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        assert isinstance(error, WhisprError)
        if failures == 0:
            self._screen.say(f"disconnected ({error.message}); reconnecting…", dim=True)
        if not isinstance(error, Disconnected) or error.code is Code.UNAUTHENTICATED:
            try:
                await self._account.refresh()
            except WhisprError as refused:
                if refused.code is Code.UNAUTHENTICATED:
                    raise
        await trio.sleep(BACKOFF.pause_s(failures + 1))


class Conversation:
    """The conversation on screen: what was seen of it, and what is still to be sent."""

    def __init__(self, screen: Screen, me: Person, peer: Person, conversation_id: str) -> None:
        self.id = conversation_id
        self._screen = screen
        self._me = me
        self._peer = peer
        self._seq: int | None = None
        self._lines, self._unsent = trio.open_memory_channel[dict[str, str]](UNSENT_LEN_MAX)
        self._sending: dict[str, str] | None = None
        self._all_sent = trio.Event()
        self._channel: ClientChannel | None = None
        self._peer_sockets: set[str] = set()
        self._peer_typing = False
        self._typing_until = 0.0
        self._show()

    def join_payload(self) -> dict[str, int]:
        """What to join with: the last seq seen, once there is one."""
        return {} if self._seq is None else {"since_seq": self._seq}

    async def follow(self, channel: ClientChannel, new_token: Callable[[], Awaitable[str]]) -> None:
        """Show what happens in the channel until it ends; first what was missed, and send what waited.

        `new_token` makes an access token for a connection whose own expires.
        """
        response: Any = channel.response
        if self._seq is None:
            await self._history(channel, int(response["seq"]))
        await self._catch_up(channel, response)
        self._channel = channel
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._send_lines, channel)
            async for event, payload in channel:
                if event == "token_expiring":
                    nursery.start_soon(self._renew, channel, new_token)
                else:
                    self._event(event, payload)
            nursery.cancel_scope.cancel(reason="the channel ended")
        raise conflict("the conversation was closed by the server", "closed")

    async def _renew(self, channel: ClientChannel, new_token: Callable[[], Awaitable[str]]) -> None:
        """Go on with a new token. When there is none, the server ends the connection, and we begin another."""
        try:
            await channel.push("refresh_token", {"token": await new_token()})
        except WhisprError as error:
            self._screen.say(f"the session could not be renewed: {error.message}", dim=True)

    def offline(self) -> None:
        """The connection is gone: nobody is seen until it is back."""
        self._channel = None
        self._peer_sockets.clear()
        self._peer_typing = False
        self._show()

    async def send(self, text: str) -> None:
        """Send a line, now or once connected; waits when too many wait already."""
        self._typing_until = 0.0
        message = {"text": text, "message_type": "text", "client_id": secrets.token_hex(8)}
        await self._lines.send(message)

    def typed(self) -> None:
        """Tell the others that the person types, now and then."""
        if self._channel is not None and trio.current_time() > self._typing_until:
            self._typing_until = trio.current_time() + TYPING_EVERY_S
            self._channel.push_nowait("typing_start", {})

    async def finish(self) -> None:
        """Wait until every line is acknowledged or refused; none may follow."""
        self._lines.close()
        await self._all_sent.wait()

    async def _history(self, channel: ClientChannel, seq: int) -> None:
        self._seq = 0
        if seq:
            page: Any = await channel.push("get_history", {"before_seq": seq + 1, "limit": HISTORY_LEN})
            self._see(page["messages"])

    async def _catch_up(self, channel: ClientChannel, response: Any) -> None:
        """Show what was missed: what the join brought, and page by page what it was too much to bring."""
        self._see(response["messages"])
        while (self._seq or 0) < response["seq"]:
            page: Any = await channel.push("get_history", {"after_seq": self._seq, "limit": 100})
            if not page["messages"]:
                break
            self._see(page["messages"])
        if self._seq:
            channel.push_nowait("mark_read", {"seq": self._seq})

    async def _send_lines(self, channel: ClientChannel) -> None:
        """Send line by line. One whose reply was lost with the connection goes again: its client_id is known."""
        while True:
            if self._sending is None:
                try:
                    self._sending = await self._unsent.receive()
                except trio.EndOfChannel:
                    self._all_sent.set()
                    return
            try:
                await channel.push("send_message", self._sending)
            except Refused as refused:
                if wait_ms := refused.response.get("retry_after_ms"):
                    assert isinstance(wait_ms, int)
                    await trio.sleep(wait_ms / 1000)
                    continue
                self._screen.say(f"not sent ({refused.reason}): {self._sending['text']}", dim=True)
            self._sending = None

    def _event(self, event: str, payload: Any) -> None:
        if event == "new_message":
            self._see([payload])
            if payload["sender_id"] != self._me.id and self._channel is not None:
                self._channel.push_nowait("mark_read", {"seq": payload["seq"]})
        elif event == "typing_indicator" and payload["user_id"] == self._peer.id:
            self._peer_typing = payload["action"] == "start"
        elif event == "read_receipt" and payload["user_id"] == self._peer.id:
            self._screen.say(f"   ✓ read by {self._peer.username}", dim=True)
        elif event == "presence_state":
            self._peer_sockets = _refs(payload.get(self._peer.id))
        elif event == "presence_diff":
            self._peer_sockets |= _refs(payload["joins"].get(self._peer.id))
            self._peer_sockets -= _refs(payload["leaves"].get(self._peer.id))
        self._show()

    def _see(self, messages: list[dict[str, Any]]) -> None:
        """Show the messages not shown yet."""
        for message in messages:
            if message["seq"] <= (self._seq or 0):
                continue
            self._seq = message["seq"]
            mine = message["sender_id"] == self._me.id
            self._peer_typing = self._peer_typing and mine
            name = self._me.username if mine else self._peer.username
            at = datetime.fromisoformat(message["sent_at"]).astimezone()
            text = message.get("text", "(not text)")
            self._screen.say(f"{at:%H:%M} {name}: {printable(text)}")

    def _show(self) -> None:
        """Draw the prompt: whom one talks to, whether they are there, whether they type."""
        seen = "online" if self._peer_sockets else "offline" if self._channel else "connecting"
        state = "typing…" if self._peer_typing else seen
        self._screen.prompt(f"{self._peer.username} ({state}) > ")


def _refs(presence: Any) -> set[str]:
    return {meta["phx_ref"] for meta in presence["metas"]} if presence else set()
