"""What people do on the pages, and what axe-core says of them."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.product import Product
from tests.web.browser import Browser, Page

PASSWORD = "correct horse"
_JS = Path(__file__).parent / "js"
_RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]


async def sign_up(browser: Browser, product: Product, username: str, name: str, path: str = "/") -> Page:
    """Open the chat page as somebody new, who signs up."""
    page = await browser.page(product.url(path))
    await page.click(".signin button.link", "Create an account")
    await page.type("input[name=username]", username)
    await page.type("input[name=display]", name)
    await page.type("input[name=password]", PASSWORD)
    await page.press("Enter")
    await page.until("document.querySelector('.sidebar')")
    return page


async def sign_in(page: Page, username: str) -> None:
    """Sign in, on whichever page."""
    await page.type("input[name=username]", username)
    await page.type("input[name=password]", PASSWORD)
    await page.press("Enter")


async def write_to(page: Page, username: str) -> None:
    """Begin a conversation with somebody, found by their user name."""
    await page.click("button", "New conversation")
    await page.type("dialog input", username)
    await page.click("dialog .person", f"@{username}")
    await page.until("document.querySelector('.composer textarea')")


async def say(page: Page, text: str) -> None:
    """Write a message and send it."""
    await page.type(".composer textarea", text)
    await page.press("Enter")


async def act(page: Page, text: str, action: str) -> None:
    """Use an action of the message with this text, by the keyboard: the focus on it shows them."""
    row = f"[...document.querySelectorAll('.message')].find((each) => each.innerText.includes({json.dumps(text)}))"
    await page.until(f"Boolean({row})")
    await page.evaluate(f"{row}.focus()")
    await page.click(".message:focus-within button, .message:focus button", action)


def axe() -> str:
    """Return axe-core as published on npm, installed once from the lock file; skip without."""
    source = _JS / "node_modules" / "axe-core" / "axe.min.js"
    if not source.exists():
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip("npm is not installed: axe-core cannot be had")
        command = [npm, "ci", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=_JS, capture_output=True, text=True, timeout=50, check=False)
        if done.returncode:
            pytest.skip(f"npm ci failed, so axe-core cannot be run: {done.stderr.strip()[-300:]}")
    return source.read_text()


async def violations(page: Page) -> list[str]:
    """What axe-core has against a page as it is now."""
    await page.evaluate(axe() + "\n;0")
    options = json.dumps({"runOnly": {"type": "tag", "values": _RULES}})
    found: list[dict[str, Any]] = json.loads(
        await page.evaluate(f"axe.run(document, {options}).then((found) => JSON.stringify(found.violations))")
    )
    return [
        f"{each['id']}: {each['help']}: {node['html'][:200]} ({node['failureSummary'][:200]})"
        for each in found
        for node in each["nodes"]
    ]


async def assert_accessible(page: Page, **size: int) -> None:
    """Neither light nor dark has axe-core anything against a page."""
    for dark in (False, True):
        await page.look(dark=dark, **size)
        found = await violations(page)
        assert not found, f"{'dark' if dark else 'light'}:\n" + "\n".join(found)
