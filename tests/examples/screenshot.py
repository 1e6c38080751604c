"""Make docs/images/dashboard.png anew: python tests/examples/screenshot.py"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from aiolibkv import Discovery, open_store  # noqa: E402 - what is imported next is beside this file
from examples.browser import browser  # noqa: E402
from examples.dashboards import dashboard  # noqa: E402

IMAGE = ROOT / "docs" / "images" / "dashboard.png"
VALUES = {"config/greeting": b"hello", "config/limits/requests": b"250", "jobs/report/slot": b'{"slot": "2026-05-04"}'}


async def main() -> None:
    with TemporaryDirectory() as directory:
        url = f"sqlite:///{directory}/store.db"
        async with (
            open_store(url) as store,
            store.new_lock("leader", value=b"worker-2"),
            Discovery(store, "services").register("web", "10.0.0.1:8080", id="a"),
            dashboard(url) as port,
            browser(Path(directory) / "profile") as page,
        ):
            for key, value in VALUES.items():
                await store.put(key, value)
            await page.resize(860, 510)
            await page.open(f"http://127.0.0.1:{port}/")
            await page.shows("document.getElementById('leader').textContent", "worker-2")
            await page.evaluate("document.getElementById('pair config/greeting').select()")
            await page.type("good morning")
            await store.put("config/greeting", b"bonjour")
            await page.press("Enter")
            await page.shows("document.getElementById('told').textContent !== ''", expected=True)
            IMAGE.write_bytes(await page.screenshot())


if __name__ == "__main__":
    asyncio.run(main())
