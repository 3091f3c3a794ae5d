"""The operator's console in Chromium: what runs is seen there, and what is done there happens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from tests.product import Product
from tests.web.browser import Browser, Page
from tests.web.pages import act, assert_accessible, say, sign_in, sign_up, write_to
from whispr.adapters.postgres import Postgres, open_postgres
from whispr.bridge import open_bridge
from whispr.embed import find_running

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

DIED = """
INSERT INTO events.dead_letters (consumer, event_id, stream_subject, about, payload, error, attempts)
VALUES ('chat-activity', $1, 'messaging.events.made_up', 'x', '{"made": "up"}', 'no such <b>thing</b>', 8)
RETURNING id
"""


@pytest.fixture
async def console(product: Product, browser: Browser) -> AsyncIterator[Page]:
    """The console, signed in to."""
    page = await browser.page(product.url("/console"), width=1360, height=900)
    await sign_in(page, "root")
    await page.shows("Busiest calls")
    yield page
    assert page.problems == []
    assert page.hosts == {f"127.0.0.1:{product.ports['gateway']}"}


@asynccontextmanager
async def database(product: Product) -> AsyncIterator[Postgres]:
    """The product's own."""
    url = (await find_running(product.data_dir, ["postgres"]))["postgres"]
    async with open_bridge() as bridge, open_postgres(bridge, url, pool_size=1) as db:
        yield db


async def go(page: Page, section: str, text: str) -> None:
    """Go to a section, and wait for what it says."""
    await page.click(".sections a", section)
    await page.shows(text)


async def test_only_administrators_come_in(product: Product, browser: Browser) -> None:
    """Anybody else is told that they are none, and is signed out; nothing of the console was shown to them."""
    name = f"eve-{uuid4().hex[:8]}"
    product.sign_up(name)
    page = await browser.page(product.url("/console"))
    await sign_in(page, name)
    await page.shows("no administrator")
    assert await page.evaluate("sessionStorage.length") == 0
    assert not await page.evaluate("Boolean(document.querySelector('.console'))")


async def test_health_figures_topics_and_tasks_of_all_workers(
    product: Product, browser: Browser, console: Page, shots: Path
) -> None:
    """Plots move with the traffic; topics and sockets are those of both workers; each worker's tasks can be seen."""
    await console.until("document.querySelector('.tile dd')?.innerText === 'ok'")
    for name in ("auth", "messaging", "postgres", "nats"):
        await console.until(
            f"[...document.querySelectorAll('tbody th')].some((e) => e.innerText === '{name}')"
        )
    tail = uuid4().hex[:8]
    pages = [await sign_up(browser, product, f"p{n}-{tail}", f"Person {n}") for n in range(4)]
    await write_to(pages[0], f"p1-{tail}")
    await say(pages[0], "Hello")
    await console.until("!/gRPC none/.test(document.querySelector('.plot').getAttribute('aria-label'))")
    await console.until("document.querySelectorAll('.plot .line-0')[0].getAttribute('d').includes('L')")
    await console.shows("MessagingService/")
    await console.until("document.body.innerText.includes('of 2')")
    await console.screenshot(shots / "console.png")
    await go(console, "Real time", "conversation:")
    sockets = "[...document.querySelectorAll('table')[0].querySelectorAll('tbody td:nth-child(2)')]"
    await console.until(
        f"{sockets}.length === 2 && {sockets}.reduce((sum, e) => sum + Number(e.innerText), 0) >= 4"
    )
    await console.screenshot(shots / "console-topics.png")
    await go(console, "Tasks", "tasks in process")
    pids = set()
    for worker in ("1", "2"):
        await console.evaluate(
            f"(() => {{ const e = document.querySelector('#worker'); e.value = '{worker}';"
            " e.dispatchEvent(new Event('change')); })()"
        )
        pid = (product.data_dir / "run" / f"worker-{worker}.pid").read_text().strip()
        await console.shows(f"tasks in process {pid}")
        pids.add(pid)
    assert len(pids) == 2
    await console.screenshot(shots / "console-tasks.png")


async def test_dead_letters_are_looked_at_replayed_and_dropped(
    product: Product, console: Page, shots: Path
) -> None:
    """One by one, with what each was about; what was replayed is its consumer's again."""
    async with database(product) as db:
        first, second = [await db.fetchval(DIED, uuid4().hex) for _ in range(2)]
        await go(console, "Events", "chat-activity")
        await console.click("button", f"Look at {first}")
        await console.shows('"made": "up"')
        await console.screenshot(shots / "console-letter.png")
        await console.press("Escape")
        await console.click("button", f"Drop {first}")
        await console.click("dialog button.danger", "Drop")
        await console.shows("1 dropped.")
        await console.screenshot(shots / "console-events.png")
        await console.click("button", f"Replay {second}")
        await console.shows("1 to be handled again.")
        assert await db.fetchval("SELECT count(*) FROM events.dead_letters WHERE id = $1", first) == 0


async def test_a_session_is_ended_and_a_message_is_moderated(
    product: Product, browser: Browser, console: Page, shots: Path
) -> None:
    """Whose session it was is signed out at once; who reads the room sees that the message is gone."""
    tail = uuid4().hex[:8]
    ada = await sign_up(browser, product, f"ada-{tail}", "Ada Lovelace")
    _, token = product.sign_up(f"grace-{tail}")
    room = product.call("POST", "/v1/rooms", {"name": f"Compilers {tail}"}, token)[1]["room"]["id"]
    await ada.evaluate(f"location.hash = '#/room/{room}'")
    await ada.click("main button", "Join this room")
    spam = {"text": f"BUY CHEAP REGISTERS {tail}"}
    message = product.call("POST", f"/v1/rooms/{room}/messages", spam, token)[1]["message"]["id"]
    await act(ada, spam["text"], "Report")
    await ada.type("dialog textarea", "Nothing but advertising")
    await ada.click("dialog button[type=submit]")
    await go(console, "Moderation", spam["text"])
    await console.shows("Nothing but advertising")
    await console.screenshot(shots / "console-moderation.png")
    card = f"[...document.querySelectorAll('.flag-card')].find((e) => e.innerText.includes('{tail}'))"
    await console.evaluate(
        f"[...{card}.querySelectorAll('button')].find((e) => e.innerText === 'Delete').click()"
    )
    await console.type("dialog textarea", "Advertising")
    await console.click("dialog button[type=submit]")
    await ada.shows("This message was deleted.")
    await console.until(f"!{card}")
    log = product.call("GET", f"/v1/rooms/{room}/audit", token=token)[1]["entries"]
    logged = [(entry["action"], entry["reason"]) for entry in log if entry["message_id"] == message]
    assert logged[0] == ("delete_message", "Advertising")
    await console.click(".sections a", "People")
    await console.type("input[type=search]", f"ada-{tail}")
    await console.click(".person", f"@ada-{tail}")
    await console.shows("Sessions")
    await console.screenshot(shots / "console-people.png")
    await console.click(".account table button", "End")
    await console.click("dialog button.danger", "End")
    await ada.shows("Your session has ended")
    await console.shows("nobody is signed in to it")


async def test_the_console_is_accessible(product: Product, console: Page, shots: Path) -> None:
    """axe-core finds nothing against any section, light or dark, wide or narrow."""
    async with database(product) as db:
        letter = await db.fetchval(DIED, uuid4().hex)
        sections = {
            "Overview": "Busiest calls", "Real time": "Largest topics", "Events": "Replay",
            "People": "Find an account", "Moderation": "review", "Tasks": "tasks in process",
        }  # fmt: skip
        for section, text in sections.items():
            await go(console, section, text)
            await assert_accessible(console, width=1360, height=900)
            if section == "Overview":
                await console.screenshot(shots / "console-dark.png")
            await console.look(width=390, height=844)
            await console.screenshot(shots / f"console-phone-{section.split()[0].lower()}.png")
            await console.look(width=1360, height=900)
        await go(console, "People", "Find an account")
        await console.type("input[type=search]", "root")
        await console.click(".person", "@root")
        await console.shows("Sessions")
        await assert_accessible(console, width=390, height=844)
        await console.look(width=1360, height=900)
        await go(console, "Events", "chat-activity")
        await console.click("button", f"Look at {letter}")
        await assert_accessible(console, width=1360, height=900)
        await db.execute("DELETE FROM events.dead_letters WHERE id = $1", letter)
