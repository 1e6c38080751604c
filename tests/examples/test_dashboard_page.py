"""The dashboard in a browser: live, by keyboard alone, on a narrow screen, and without a word in the console."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from aiolibkv import AsyncStore, open_store
from aiolibkv.testing.scale import scaled
from examples.browser import CHROMIUM, Page, browser
from examples.dashboards import dashboard

pytestmark = [
    pytest.mark.asyncio,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium; Debian's package is called chromium"),
]

HOSTILE = "<img src=x onerror=alert(1)>"
KEYS = "[...document.querySelectorAll('main label')].map(label => label.textContent)"
VALUES = "[...document.querySelectorAll('main input')].map(input => input.value)"
LEADER = "document.getElementById('leader').textContent"
TOLD = "document.getElementById('told').textContent"
FOCUS = """(() => {
  const at = document.activeElement, style = getComputedStyle(at)
  return [at.ariaLabel ?? at.labels?.[0]?.textContent ?? at.textContent, style.outlineStyle !== "none"]
})()"""


@pytest_asyncio.fixture
async def store(tmp_path: Path) -> AsyncIterator[AsyncStore]:
    async with open_store(f"sqlite:///{tmp_path}/store.db") as opened:
        yield opened


@pytest_asyncio.fixture
async def page(store: AsyncStore, tmp_path: Path) -> AsyncIterator[Page]:
    """Show what is in the store."""
    await store.put("config/limit", b"10")
    await store.put(f"config/{HOSTILE}", HOSTILE.encode())
    async with dashboard(f"sqlite:///{tmp_path}/store.db") as port, browser(tmp_path / "profile") as shown:
        await shown.open(f"http://127.0.0.1:{port}/")
        await shown.shows(KEYS, [f"config/{HOSTILE}", "config/limit"])
        yield shown


async def test_the_page(store: AsyncStore, page: Page) -> None:
    """One test, since a browser takes seconds to start."""
    await _is_live(store, page)
    await _is_used_by_keyboard(store, page)
    assert page.errors == []
    await _tells_a_conflict(store, page)
    await page.resize(320, 600)
    assert await page.evaluate("document.documentElement.scrollWidth") <= 320


async def _is_live(store: AsyncStore, page: Page) -> None:
    await store.put("config/limit", b"11")
    await page.shows(VALUES, [HOSTILE, "11"])
    await store.delete(f"config/{HOSTILE}")
    await page.shows(KEYS, ["config/limit"])
    async with store.new_lock("leader", value=b"node-1", ttl=scaled(30)):
        await page.shows(LEADER, "node-1")
    await page.shows(LEADER, "none")
    await store.put("config/name", b"eu")
    await page.shows(VALUES, ["11", "eu"])


async def _is_used_by_keyboard(store: AsyncStore, page: Page) -> None:
    """Each control is reached in the order of the page, has a name of its own, and is seen to have the focus."""
    reached = []
    for _ in range(11):
        await page.press("Tab")
        name, is_seen = await page.evaluate(FOCUS)
        assert is_seen, name
        reached.append(name)
    of = {key: [key, f"Save {key}", f"Reload {key}", f"Delete {key}"] for key in ("config/limit", "config/name")}
    assert reached == [*of["config/limit"], *of["config/name"], "Key", "Value", "Create"]

    await page.evaluate("document.getElementById('pair config/limit').select()")
    await page.type("12")
    await page.press("Enter")
    async with store.watch("config/limit") as watch, asyncio.timeout(scaled(10)):
        while (pair := await anext(watch)) is None or pair.value != b"12":
            pass
    await page.evaluate("document.getElementById('key').focus()")
    await page.type("config/new")
    await page.press("Tab")
    await page.type("made")
    await page.press("Enter")
    await page.shows(KEYS, ["config/limit", "config/name", "config/new"])
    assert (await store.get("config/new")).value == b"made"
    await page.evaluate("document.querySelector('[aria-label=\"Delete config/new\"]').focus()")
    await page.press("Space")
    await page.shows(KEYS, ["config/limit", "config/name"])


async def _tells_a_conflict(store: AsyncStore, page: Page) -> None:
    """What somebody else wrote meanwhile is not overwritten, and what is being edited stays."""
    await page.evaluate("document.getElementById('pair config/name').select()")
    await page.type("us")
    theirs = await store.put("config/name", b"asia")
    await store.put("config/limit", b"13")
    await page.shows(VALUES, ["13", "us"])
    await page.press("Enter")
    await page.shows(f"{TOLD}.startsWith('not written, somebody was faster')", expected=True)
    assert await store.get("config/name") == theirs
    assert await page.evaluate(VALUES) == ["13", "us"]
    await page.evaluate("document.querySelector('[aria-label=\"Reload config/name\"]').click()")
    await page.shows(VALUES, ["13", "asia"])
