"""Headless Firefox with sound, driven over Marionette: JSON over TCP, each message after its length and a colon.

https://firefox-source-docs.mozilla.org/testing/marionette/Protocol.html. Where there is no sound card its audio clock
never starts, so that it plays to PulseAudio with a sink that is none.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

PREFERENCES: dict[str, object] = {
    "marionette.port": 0,
    "media.autoplay.default": 0,
    "media.autoplay.blocking_policy": 0,
    "media.navigator.permission.disabled": True,
    # The server is at a loopback address here, which Firefox leaves out otherwise.
    "media.peerconnection.ice.loopback": True,
    "media.peerconnection.ice.obfuscate_host_addresses": False,
    "app.update.enabled": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "ui.prefersReducedMotion": 1,
}
START_S = 90
SCRIPT_S = 60
MICROPHONE = (
    "navigator.mediaDevices.getUserMedia({audio: true}).then((stream) => { window.microphone = stream; })"
)
"""A page that holds one uses every address; any other that of the default route alone (RFC 8828, section 5.2)."""
COMPLAINTS = """Services.console.getMessageArray()
    .filter((each) => each instanceof Ci.nsIScriptError && each.category !== "chrome javascript")
    .map((each) => [each.sourceName, each.category, each.errorMessage])"""


class Firefox:
    """A browser with one page."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._buffer = b""
        self._count = 0

    async def _message(self) -> Any:
        while b":" not in self._buffer:
            self._buffer += await self._more()
        length, _, rest = self._buffer.partition(b":")
        while len(rest) < int(length):
            rest += await self._more()
        self._buffer = rest[int(length) :]
        return json.loads(rest[: int(length)])

    async def _more(self) -> bytes:
        data = await self._stream.receive_some()
        assert data, "Firefox hung up"
        return bytes(data)

    async def hello(self) -> None:
        """Take its greeting, and begin a session."""
        await self._message()
        await self.call("WebDriver:NewSession", {})
        await self.call("WebDriver:SetTimeouts", {"script": SCRIPT_S * 1000})
        await self.call("WebDriver:SetWindowRect", {"width": 1280, "height": 1000})

    async def call(self, name: str, arguments: dict[str, Any]) -> Any:
        """Have it do something; its answer, or an AssertionError that says what it said."""
        self._count += 1
        said = json.dumps([0, self._count, name, arguments]).encode()
        await self._stream.send_all(b"%d:%b" % (len(said), said))
        with trio.fail_after(START_S):
            _, number, error, result = await self._message()
        assert number == self._count
        assert error is None, (name, error["error"], error["message"])
        return result

    async def open(self, url: str) -> None:
        """Go to a page, and wait until it has been loaded."""
        await self.call("WebDriver:Navigate", {"url": url})

    async def evaluate(self, expression: str) -> Any:
        """The value of an expression, once it is there if it is a promise. AssertionError if it throws."""
        script = (
            "const done = arguments[arguments.length - 1];"
            f"(async () => ({expression}))()"
            ".then((value) => done({value}), (error) => done({error: `${error}`}));"
        )
        arguments: dict[str, Any] = {"script": script, "args": [], "sandbox": None, "newSandbox": False}
        answer = (await self.call("WebDriver:ExecuteAsyncScript", arguments))["value"]
        assert "error" not in answer, answer["error"]
        return answer.get("value")

    async def _element(self, selector: str) -> str:
        await self.until(f"document.querySelector({json.dumps(selector)}).checkVisibility()")
        found = await self.call("WebDriver:FindElement", {"using": "css selector", "value": selector})
        (name,) = found["value"].values()
        return str(name)

    async def click(self, selector: str) -> None:
        """Click the first such element, once it is to be seen."""
        await self.call("WebDriver:ElementClick", {"id": await self._element(selector)})

    async def type(self, selector: str, text: str) -> None:
        """Type into the first such element, once it is to be seen."""
        await self.call("WebDriver:ElementSendKeys", {"id": await self._element(selector), "text": text})

    async def _of_the_browser(self, expression: str) -> Any:
        """The value of an expression of the browser's own, not of the page's."""
        await self.call("Marionette:SetContext", {"value": "chrome"})
        value = await self.evaluate(expression)
        await self.call("Marionette:SetContext", {"value": "content"})
        return value

    async def until(self, condition: str, seconds: float = 30) -> None:
        """Wait until an expression is truthy; AssertionError with what the page shows if it does not come to it."""
        script = (
            "new Promise((done) => { const began = performance.now(); const look = () => { let found = false;"
            f" try {{ found = Boolean({condition}); }} catch {{ }}"
            f" found || performance.now() - began > {seconds * 1000} ? done(found) : setTimeout(look, 50); }};"
            " look(); })"
        )
        if not await self.evaluate(script):
            shown = await self.evaluate("document.body.innerText.slice(0, 1500)")
            raise AssertionError(f"never: {condition}; {await self.complaints()}; shown:\n{shown}")

    async def complaints(self) -> list[list[str]]:
        """Errors of scripts and of the security policy: of which file, of what kind, and the words."""
        found: list[list[str]] = await self._of_the_browser(COMPLAINTS)
        return found

    async def screenshot(self, path: Path) -> None:
        """Keep what it looks like."""
        shot = await self.call("WebDriver:TakeScreenshot", {"full": False})
        path.write_bytes(base64.b64decode(shot["value"]))


def installed(*names: str) -> str:
    """Return where the first of these programs is; skips the test without."""
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip(f"{names[0]} is not installed")
    return found


@asynccontextmanager
async def running(command: list[str], log: Path, **environ: str) -> AsyncIterator[None]:
    """Run a program until the block ends."""
    with log.open("wb") as output:
        process = await trio.lowlevel.open_process(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env={**os.environ, **environ}
        )
    try:
        yield
    finally:
        process.terminate()
        with trio.move_on_after(10, shield=True):
            await process.wait()
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


@asynccontextmanager
async def silent_sound(log: Path) -> AsyncIterator[str]:
    """Run PulseAudio with a sink that is none, whose clock is a timer; gives its address."""
    with tempfile.TemporaryDirectory(prefix="pulse-") as folder:
        socket = f"{folder}/native"
        command = [
            installed("pulseaudio"), "-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no",
            "-L", f"module-native-protocol-unix socket={socket} auth-anonymous=1",
            "-L", "module-null-sink rate=48000",
        ]  # fmt: skip
        async with running(command, log, HOME=folder, XDG_RUNTIME_DIR=folder):
            with trio.fail_after(START_S):
                while not Path(socket).exists():  # noqa: ASYNC110  # another process tells by a file
                    await trio.sleep(0.05)
            yield f"unix:{socket}"


@asynccontextmanager
async def firefox(folder: Path) -> AsyncIterator[Firefox]:
    """Run it without a screen until the block ends; skips the test where it, or PulseAudio, is not installed."""
    program, profile = installed("firefox-esr", "firefox"), folder / "profile"
    profile.mkdir(parents=True)
    lines = [f"user_pref({json.dumps(name)}, {json.dumps(value)});" for name, value in PREFERENCES.items()]
    (profile / "user.js").write_text("\n".join(lines))
    command = [
        program, "--headless", "--no-remote", "--marionette", "--remote-allow-system-access",
        "--profile", str(profile), "about:blank",
    ]  # fmt: skip
    async with (
        silent_sound(folder / "pulseaudio.log") as sound,
        running(command, folder / "firefox.log", PULSE_SERVER=sound),
        await _connected(profile / "MarionetteActivePort") as stream,
    ):
        browser = Firefox(stream)
        with trio.fail_after(START_S):
            await browser.hello()
        yield browser


async def _connected(told: Path) -> trio.SocketStream:
    with trio.fail_after(START_S):
        while not (told.exists() and (port := told.read_text().strip())):  # noqa: ASYNC110  # as above
            await trio.sleep(0.1)
    return await trio.open_tcp_stream("127.0.0.1", int(port))
