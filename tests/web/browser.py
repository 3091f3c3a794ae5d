"""Headless Chromium, driven over the DevTools protocol, for tests of the pages.

https://chromedevtools.github.io/devtools-protocol: JSON over one WebSocket, each page a session of its own. Each
person has a browser context of their own, as if they sat at another machine.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio
from trio_websocket import WebSocketConnection, open_websocket_url

PATIENCE_S = 60.0
"""How long a page may take for anything; generous, for a busy machine."""
MESSAGE_BYTES_MAX = 64 * 1024 * 1024
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
    "--hide-scrollbars", "--disable-background-networking", "--disable-component-update", "--lang=en-GB",
    "--disable-renderer-backgrounding", "--disable-background-timer-throttling", "--remote-debugging-port=0",
)  # fmt: skip
_KEYS: Mapping[str, Mapping[str, Any]] = {
    "Enter": {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"},
    "Tab": {"key": "Tab", "code": "Tab", "windowsVirtualKeyCode": 9},
    "Escape": {"key": "Escape", "code": "Escape", "windowsVirtualKeyCode": 27},
    "ArrowUp": {"key": "ArrowUp", "code": "ArrowUp", "windowsVirtualKeyCode": 38},
    "ArrowDown": {"key": "ArrowDown", "code": "ArrowDown", "windowsVirtualKeyCode": 40},
    "ArrowRight": {"key": "ArrowRight", "code": "ArrowRight", "windowsVirtualKeyCode": 39},
}


class PageError(Exception):
    """A script in the page threw, or the protocol refused."""


class Browser:
    """One Chromium."""

    def __init__(self, socket: WebSocketConnection, nursery: trio.Nursery) -> None:
        self._socket = socket
        self._waiting: dict[int, trio.MemorySendChannel[dict[str, Any]]] = {}
        self._number = 0
        self.pages: dict[str, Page] = {}
        self._nursery = nursery
        nursery.start_soon(self._read)

    async def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """Make one call. Raises PageError."""
        self._number += 1
        number = self._number
        send, receive = trio.open_memory_channel[dict[str, Any]](1)
        self._waiting[number] = send
        asked: dict[str, Any] = {"id": number, "method": method, "params": parameters}
        await self._socket.send_message(json.dumps(asked | ({"sessionId": session} if session else {})))
        answer = await receive.receive()
        if "error" in answer:
            raise PageError(f"{method}: {answer['error']['message']}")
        return dict(answer["result"])

    async def _read(self) -> None:
        while True:
            said = json.loads(await self._socket.get_message())
            if "id" in said:
                self._waiting.pop(said["id"]).send_nowait(said)
            elif said.get("sessionId") in self.pages:
                self.pages[said["sessionId"]].heard(said["method"], said["params"])
                if said["method"] == "Page.javascriptDialogOpening":
                    self._nursery.start_soon(self._agree, said["sessionId"])

    async def _agree(self, session: str) -> None:
        await self.call("Page.handleJavaScriptDialog", session, accept=True)

    async def page(self, url: str, *, width: int = 1280, height: int = 800, dark: bool = False) -> Page:
        """Open a page for somebody new."""
        context = (await self.call("Target.createBrowserContext"))["browserContextId"]
        made = await self.call("Target.createTarget", url="about:blank", browserContextId=context)
        attached = await self.call("Target.attachToTarget", targetId=made["targetId"], flatten=True)
        page = Page(self, attached["sessionId"])
        self.pages[page.session] = page
        for domain in ("Page", "Runtime", "Network", "Log"):
            await page.call(f"{domain}.enable")
        await page.call("Emulation.setFocusEmulationEnabled", enabled=True)
        await page.look(width=width, height=height, dark=dark)
        await page.goto(url)
        return page


class Page:
    """One page of one person."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser = browser
        self.session = session
        self.problems: list[str] = []
        """What the console and the security policy complained about."""
        self.hosts: set[str] = set()
        """Whom it asked for anything."""
        self.dialogs: list[str] = []
        """The browser's own dialogs, such as `beforeunload`, each of which is agreed to."""
        self._loaded = trio.Event()

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Make one call about this page."""
        return await self._browser.call(method, self.session, **parameters)

    def heard(self, method: str, parameters: Mapping[str, Any]) -> None:
        """Take note of an event."""
        match method:
            case "Page.loadEventFired":
                self._loaded.set()
            case "Runtime.exceptionThrown":
                details = parameters["exceptionDetails"]
                self.problems.append(details.get("exception", {}).get("description", details["text"]))
            case "Runtime.consoleAPICalled" if parameters["type"] in ("error", "warning", "assert"):
                self.problems.append(" ".join(str(each.get("value")) for each in parameters["args"]))
            case "Log.entryAdded" if parameters["entry"]["source"] in ("security", "violation", "javascript"):
                self.problems.append(parameters["entry"]["text"])
            case "Page.javascriptDialogOpening":
                self.dialogs.append(parameters["type"])
            case "Network.requestWillBeSent":
                self.hosts.add(urlsplit(parameters["request"]["url"].removeprefix("blob:")).netloc)

    async def look(self, *, width: int = 1280, height: int = 800, dark: bool = False) -> None:
        """Be of a size, and in a system that is light or dark."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def goto(self, url: str) -> None:
        """Go somewhere, and wait until it is loaded."""
        self._loaded = trio.Event()
        await self.call("Page.navigate", url=url)
        with trio.fail_after(PATIENCE_S):
            await self._loaded.wait()

    async def reload(self) -> None:
        """Load it again."""
        self._loaded = trio.Event()
        await self.call("Page.reload")
        with trio.fail_after(PATIENCE_S):
            await self._loaded.wait()

    async def evaluate(self, script: str) -> Any:
        """Evaluate an expression in the page, or a promise of one. Raises PageError."""
        with trio.fail_after(PATIENCE_S):
            answer = await self.call(
                "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
            )
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise PageError(details.get("exception", {}).get("description", details["text"]))
        return answer["result"].get("value")

    async def until(self, condition: str) -> Any:
        """Wait until an expression is truthy, and return it."""
        script = (
            "new Promise((done) => { const look = () => { let found; try { found = (() => ("
            + condition
            + "))(); } catch { found = null; }"
            " found ? done(found === true ? true : String(found)) : setTimeout(look, 50); }; look(); })"
        )
        try:
            return await self.evaluate(script)
        except trio.TooSlowError:
            shown = await self.evaluate("document.body.innerText.slice(0, 1500)")
            raise AssertionError(f"never: {condition}; problems: {self.problems}; shown:\n{shown}") from None

    async def shows(self, text: str) -> None:
        """Wait until the page shows a text."""
        await self.until(f"document.body.innerText.includes({json.dumps(text)})")

    async def click(self, selector: str, text: str = "") -> None:
        """Click the first such element that is there, in view and, if a text is given, has it."""
        wanted = (
            f"[...document.querySelectorAll({json.dumps(selector)})].find((each) => each.checkVisibility()"
            f" && (each.innerText + ' ' + (each.getAttribute('aria-label') || '')).includes({json.dumps(text)}))"
        )
        await self.until(f"Boolean({wanted})")
        await self.evaluate(f"(() => {{ const e = {wanted}; e.focus(); e.click(); }})()")

    async def type(self, selector: str, text: str) -> None:
        """Put the focus somewhere and type there."""
        await self.until(f"document.querySelector({json.dumps(selector)})?.checkVisibility()")
        await self.evaluate(f"document.querySelector({json.dumps(selector)}).focus()")
        await self.call("Input.insertText", text=text)

    async def press(self, key: str, *, shift: bool = False) -> None:
        """Press and release a key."""
        modifiers = 8 if shift else 0
        await self.call("Input.dispatchKeyEvent", type="keyDown", modifiers=modifiers, **_KEYS[key])
        up = {name: value for name, value in _KEYS[key].items() if name != "text"}
        await self.call("Input.dispatchKeyEvent", type="keyUp", modifiers=modifiers, **up)

    async def screenshot(self, path: Path) -> None:
        """Keep what it looks like."""
        shot = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))


def installed_chromium() -> str:
    """Return Chromium; skip without."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if (found := shutil.which(name)) is not None:
            return found
    pytest.skip("Chromium is not installed: the pages cannot be driven")


@asynccontextmanager
async def chromium(profile: Path, flags: Sequence[str] = ()) -> AsyncIterator[Browser]:
    """Run a browser with an empty profile in `profile`."""
    command = [installed_chromium(), *_FLAGS, *flags, f"--user-data-dir={profile}", "about:blank"]
    log = profile.with_suffix(".log")
    with log.open("wb") as output:
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=dict(os.environ)
        )
    try:
        where = profile / "DevToolsActivePort"
        with trio.fail_after(PATIENCE_S):
            while not (where.exists() and len(where.read_text().splitlines()) == 2):
                assert process.poll() is None, log.read_text()
                await trio.sleep(0.05)
        port, path = where.read_text().splitlines()
        address = f"ws://127.0.0.1:{port}{path}"
        async with (
            open_websocket_url(address, max_message_size=MESSAGE_BYTES_MAX) as socket,
            trio.open_nursery() as nursery,
        ):
            yield Browser(socket, nursery)
            nursery.cancel_scope.cancel()
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
