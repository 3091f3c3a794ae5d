"""The chat page in Chromium: people sign up and talk, and nothing that happens meanwhile loses a word."""

from __future__ import annotations

from pathlib import Path
from urllib.request import urlopen
from uuid import uuid4

import pytest
import trio

from tests.product import UNLIMITED, Product, spawn, start, wait_ready
from tests.web.browser import PATIENCE_S, Browser, Page
from tests.web.pages import act, assert_accessible, say, sign_up, write_to

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

NASTY = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script> javascript:alert(1)"
KEPT = "Object.entries(sessionStorage).filter(([name]) => name.startsWith('whispr.outbox')).join()"


async def two(browser: Browser, product: Product) -> tuple[Page, Page, str]:
    """Two people, the first of whom has opened a conversation; and the second's user name."""
    tail = uuid4().hex[:8]
    ada = await sign_up(browser, product, f"ada-{tail}", "Ada Lovelace")
    grace = await sign_up(browser, product, f"grace-{tail}", "Grace Hopper")
    await write_to(ada, f"grace-{tail}")
    return ada, grace, tail


def assert_well_behaved(product: Product, *pages: Page) -> None:
    """No script failed, no policy was broken, and nobody but the product was asked for anything."""
    for page in pages:
        assert page.problems == []
        assert page.hosts <= {f"127.0.0.1:{product.ports[name]}" for name in ("gateway", "websocket")}


async def test_two_people_talk(product: Product, browser: Browser, shots: Path) -> None:
    """Both ways, live: typing, receipts, presence, reactions, replies, edits, deletions; and after a reload."""
    ada, grace, _ = await two(browser, product)
    await say(ada, "Hello Grace! How is the compiler?")
    await ada.shows("Sent")
    await grace.until("document.querySelector('.talk .badge')?.innerText.includes('1')")
    await grace.until("document.title.startsWith('(1)')")
    await grace.click(".talk", "Ada Lovelace")
    await grace.shows("How is the compiler")
    await ada.shows("Read")
    await ada.until("document.querySelector('.talk-head').innerText.includes('Online')")
    await grace.type(".composer textarea", NASTY)
    await ada.shows("Grace Hopper is typing")
    await ada.screenshot(shots / "typing.png")
    await grace.press("Enter")
    await ada.shows(NASTY)
    assert await ada.evaluate("document.querySelectorAll('.messages img, .messages script').length") == 0
    assert "owned" not in await ada.evaluate("document.title")
    await act(ada, NASTY, "React")
    await ada.click(".emoji-picker button", "🎉")
    await grace.until("document.querySelector('.reactions button')?.innerText.includes('🎉 1')")
    await act(grace, "How is the compiler", "Reply")
    await say(grace, "It compiles, see https://example.org/a?b=c.")
    await ada.until("document.querySelector('.bubble blockquote')?.innerText.includes('How is the compiler')")
    link = "document.querySelector('.text a')"
    assert await ada.evaluate(f"{link}.href") == "https://example.org/a?b=c"
    assert await ada.evaluate(f"{link}.rel") == "noopener noreferrer"
    await act(grace, "It compiles", "Edit")
    await grace.evaluate("document.querySelector('dialog textarea').select()")
    await grace.type("dialog textarea", "It compiles at last.")
    await grace.click("dialog button[type=submit]")
    await ada.shows("It compiles at last.")
    await act(grace, NASTY, "Delete")
    await grace.click("dialog button.danger", "Delete")
    await ada.shows("This message was deleted.")
    await ada.screenshot(shots / "talk.png")
    await grace.look(dark=True)
    await grace.screenshot(shots / "talk-dark.png")
    await ada.reload()
    await ada.shows("It compiles at last.")
    await ada.until("document.querySelector('.message-actions')")
    assert_well_behaved(product, ada, grace)


async def test_groups_rooms_links_and_files(product: Product, browser: Browser, shots: Path) -> None:
    """A group of three; a room that is found, joined and linked to; a picture that the others see."""
    ada, grace, tail = await two(browser, product)
    mary = await sign_up(browser, product, f"mary-{tail}", "Mary Somerville")
    await ada.click("button", "New conversation")
    await ada.click("dialog [role=tab]", "A group")
    await ada.type("dialog form input", "Engines")
    for name in (f"grace-{tail}", f"mary-{tail}"):
        await ada.evaluate("document.querySelector('dialog form input[type=search]').value = ''")
        await ada.type("dialog form input[type=search]", name)
        await ada.click("dialog form .person", f"@{name}")
    await ada.click("dialog button", "Create group")
    await ada.until("document.querySelector('.talk-head h1')?.innerText === 'Engines'")
    await say(ada, "Welcome, both of you")
    for other in (grace, mary):
        await other.click(".talk", "Engines")
        await other.shows("Welcome, both of you")
    await ada.click("button", "Browse rooms")
    await ada.click("dialog [role=tab]", "New room")
    await ada.type("dialog form input", f"Compilers {tail}")
    await ada.type("dialog form textarea", "Everything that turns text into something else")
    await ada.click("dialog button", "Open room")
    await ada.until("document.querySelector('.talk-head p')?.innerText.includes('Room')")
    address = await ada.evaluate("location.hash")
    await grace.click("button", "Browse rooms")
    await grace.type("dialog input[type=search]", f"Compilers {tail}")
    await grace.click("dialog .rooms button", f"Join Compilers {tail}")
    await grace.until("document.querySelector('.composer textarea')?.disabled === false")
    await mary.evaluate(f"location.hash = {address!r}")
    await mary.click("main button", "Join this room")
    await mary.until("document.querySelector('.composer textarea')")
    await say(mary, "Good morning")
    await ada.shows("Good morning")
    await ada.evaluate(
        "(async () => { const canvas = new OffscreenCanvas(320, 200); const pen = canvas.getContext('2d');"
        " pen.fillStyle = '#4f46e5'; pen.fillRect(0, 0, 320, 200);"
        " const file = new File([await canvas.convertToBlob()], 'plan.png', {type: 'image/png'});"
        " const data = new DataTransfer(); data.items.add(file);"
        " const input = document.querySelector('.composer input[type=file]'); input.files = data.files;"
        " input.dispatchEvent(new Event('change')); })()"
    )
    await grace.until("document.querySelector('img.picture')?.naturalWidth > 0")
    await grace.screenshot(shots / "room.png")
    await mary.look(width=390, height=844)
    await mary.screenshot(shots / "room-phone.png")
    await mary.evaluate("history.back()")
    await mary.until("document.querySelector('.talk-head h1')?.innerText === 'Engines'")
    await ada.click("button", "Details")
    await ada.shows("Mary Somerville")
    await ada.screenshot(shots / "details.png")
    assert_well_behaved(product, ada, grace, mary)


async def test_a_killed_server_loses_nothing(browser: Browser, tmp_path: Path, shots: Path) -> None:
    """What is written while it is gone is sent when it is back, once, in order; and what was missed is there."""
    product = start(tmp_path / "data", UNLIMITED)
    try:
        ada, grace, _ = await two(browser, product)
        await say(ada, "before")
        await grace.click(".talk", "Ada Lovelace")
        await grace.shows("before")
        product.kill()
        await ada.until("document.querySelector('.connection')?.checkVisibility()")
        for text in ("first while away", "second while away"):
            await say(ada, text)
        await ada.shows("Sending…")
        await ada.screenshot(shots / "offline.png")
        assert "second while away" in await ada.evaluate(KEPT), "where a reload finds it"
        ports = {f"WHISPR_{name.upper()}_PORT": str(port) for name, port in product.ports.items()}
        product = wait_ready(spawn(product.data_dir, UNLIMITED | ports))
        await grace.shows("second while away")
        await ada.until("!document.querySelector('.connection').checkVisibility()")
        await ada.until("!document.querySelector('.pending')")
        said = "[...document.querySelectorAll('.message .text')].map((each) => each.innerText).join('|')"
        for page in (ada, grace):
            assert await page.evaluate(said) == "before|first while away|second while away"
        await say(grace, "after")
        await ada.shows("after")
    finally:
        await trio.to_thread.run_sync(product.stop)


async def test_earlier_messages_come_while_one_scrolls_up(product: Product, browser: Browser) -> None:
    """A page at a time, and what one reads stays where it is; what comes meanwhile is announced, not scrolled to."""
    tail = uuid4().hex[:8]
    ada = await sign_up(browser, product, f"ada-{tail}", "Ada Lovelace")
    _, token = product.sign_up(f"grace-{tail}")
    [found] = product.call("GET", f"/v1/users?query=ada-{tail}", token=token)[1]["users"]
    talk = product.conversation(token, "direct", found["id"])
    for number in range(120):
        body = {"text": f"message {number:03}"}
        assert product.call("POST", f"/v1/conversations/{talk}/messages", body, token)[0] == 200
    await ada.click(".talk", f"grace-{tail}")
    await ada.until("document.querySelector('.messages')?.innerText.includes('message 119')")
    assert "message 060" not in await ada.evaluate("document.querySelector('.messages').innerText")
    scroll = "document.querySelector('.log-scroll')"
    for first in ("message 020", "message 000"):
        await ada.evaluate(f"{scroll}.scrollTop = 0")
        await ada.shows(first)
    assert await ada.evaluate(f"{scroll}.scrollTop") > 100, "what was read is where it was"
    await ada.evaluate(f"{scroll}.scrollTop = 200")
    assert product.call("POST", f"/v1/conversations/{talk}/messages", {"text": "news"}, token)[0] == 200
    await ada.until("document.querySelector('.to-end').checkVisibility()")
    await ada.click(".to-end")
    await ada.until(f"{scroll}.scrollHeight - {scroll}.scrollTop - {scroll}.clientHeight < 5")
    assert await ada.evaluate("document.querySelectorAll('article.message').length") == 121


async def test_a_socket_outlives_its_access_token(browser: Browser, tmp_path: Path) -> None:
    """With tokens of six seconds the page renews them in band: the socket is never opened again."""

    def count(product: Product, sample: str) -> float:
        with urlopen(product.url("/metrics")) as response:  # noqa: S310  # a URL of ours
            lines = response.read().decode().splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.startswith(sample))

    product = start(tmp_path / "data", UNLIMITED | {"WHISPR_AUTH_ACCESS_TOKEN_S": "6"})
    try:
        ada, grace, _ = await two(browser, product)
        with trio.fail_after(PATIENCE_S):
            while await trio.to_thread.run_sync(count, product, "whispr_ws_renewals_total") < 6:
                await ada.evaluate("new Promise((done) => setTimeout(done, 200))")
        assert count(product, 'whispr_ws_upgrades_total{outcome="ok"}') == 2
        await say(ada, "still here")
        await grace.click(".talk", "Ada Lovelace")
        await grace.shows("still here")
        assert_well_behaved(product, ada, grace)
    finally:
        await trio.to_thread.run_sync(product.stop)


async def test_where_no_websocket_gets_through_the_page_polls(browser: Browser, tmp_path: Path) -> None:
    """Messages, typing and receipts come all the same, over the gateway's own port."""
    nowhere = {"WHISPR_WEBSOCKET_PUBLIC_URL": "ws://127.0.0.1:9/socket/websocket"}
    product = start(tmp_path / "data", UNLIMITED | nowhere)
    try:
        ada, grace, _ = await two(browser, product)
        await say(ada, "by long poll")
        await grace.click(".talk", "Ada Lovelace")
        await grace.shows("by long poll")
        await ada.shows("Read")
        await grace.type(".composer textarea", "and back")
        await ada.shows("Grace Hopper is typing")
        await grace.press("Enter")
        await ada.until("document.querySelector('.messages').innerText.includes('and back')")
    finally:
        await trio.to_thread.run_sync(product.stop)


async def test_the_page_is_accessible(product: Product, browser: Browser, shots: Path) -> None:
    """axe-core finds nothing against it, light or dark, wide or narrow; it can be used by the keyboard alone."""
    stranger = await browser.page(product.url("/"))
    await stranger.shows("Welcome to Whispr")
    await assert_accessible(stranger)
    await stranger.look()
    await stranger.screenshot(shots / "sign-in.png")
    docs = await browser.page(product.url("/docs"))
    await docs.shows("Send message")
    await docs.evaluate("document.querySelector('details').open = true")
    await docs.shows("Body")
    await assert_accessible(docs)
    ada, grace, _ = await two(browser, product)
    await assert_accessible(grace)
    await say(ada, "Hello")
    await grace.click(".talk", "Ada Lovelace")
    await say(grace, "Hello yourself")
    await ada.shows("Hello yourself")
    await act(ada, "Hello yourself", "React")
    await assert_accessible(ada)
    await ada.press("Escape")
    assert await ada.evaluate("document.activeElement.getAttribute('aria-label')") == "React"
    await assert_accessible(ada, width=390, height=844)
    await ada.look()
    for name in ("New conversation", "Browse rooms", "Details"):
        await ada.click("button", name)
        await ada.until("document.querySelector('dialog[open]')")
        await assert_accessible(ada)
        assert await ada.evaluate("document.querySelector('dialog').contains(document.activeElement)")
        await ada.press("Escape")
        await ada.until("!document.querySelector('dialog')")
        assert name in await ada.evaluate("document.activeElement.getAttribute('aria-label')")
    await ada.evaluate("document.querySelector('.messages').focus()")
    await ada.press("ArrowUp")
    assert "Hello yourself" in await ada.evaluate("document.activeElement.innerText")
    await ada.press("ArrowUp")
    assert "Hello" in await ada.evaluate("document.activeElement.innerText")
    assert await ada.evaluate("document.querySelector('[role=log]').getAttribute('aria-label')") == "Messages"


async def test_a_session_that_is_ended_elsewhere_signs_the_page_out(
    product: Product, browser: Browser
) -> None:
    """Wrong passwords are said where they were typed; a session that is revoked is over on the page, too."""
    tail = uuid4().hex[:8]
    page = await browser.page(product.url("/"))
    await page.click(".signin button.link", "Create an account")
    await page.type("input[name=username]", "x")
    await page.type("input[name=password]", "short")
    await page.press("Enter")
    await page.shows("at least 8 characters")
    ada = await sign_up(browser, product, f"ada-{tail}", "Ada Lovelace")
    reply = product.call("POST", "/v1/auth/login", {"username": f"ada-{tail}", "password": "correct horse"})[
        1
    ]
    sessions = product.call("GET", "/v1/auth/sessions", token=reply["access_token"])[1]["sessions"]
    page_session = next(each["session_id"] for each in sessions if not each["current"])
    assert product.call("DELETE", f"/v1/auth/sessions/{page_session}", token=reply["access_token"])[0] == 200
    await ada.shows("Your session has ended")
