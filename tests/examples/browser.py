"""A headless Chromium that is told what to do over its debugging protocol."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import signal
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, ClientWebSocketResponse

from aiolibkv.testing.scale import eventually, scaled

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
OPTIONS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *(
        "--disable-background-networking",
        "--disable-extensions",
        "--remote-debugging-port=0",
        "--hide-scrollbars",
        "--force-color-profile=srgb",
    ),
)

_KEYS = {"Tab": (9, ""), "Enter": (13, "\r"), "Space": (32, " ")}


class Page:
    """The one page of a browser.

    Attributes:
        errors: what the page has thrown or logged as an error, and what it failed to load.
    """

    def __init__(self, socket: ClientWebSocketResponse) -> None:
        self.errors: list[str] = []
        self._socket = socket
        self._numbers = count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def read(self) -> None:
        """Take what the browser says until the connection ends."""
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
            elif said["method"] == "Runtime.exceptionThrown":
                self.errors.append(str(said["params"]["exceptionDetails"]))
            elif said["method"] == "Log.entryAdded" and said["params"]["entry"]["level"] == "error":
                self.errors.append(said["params"]["entry"]["text"])
            elif said["method"] == "Runtime.consoleAPICalled" and said["params"]["type"] == "error":
                self.errors.append(str(said["params"]["args"]))

    async def command(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_json({"id": number, "method": method, "params": params})
        said = await asyncio.wait_for(answer, scaled(20))
        assert "error" not in said, said
        result = said["result"]
        assert isinstance(result, dict)
        return result

    async def open(self, url: str) -> None:
        for domain in ("Runtime", "Log", "Page"):
            await self.command(f"{domain}.enable")
        await self.command("Page.navigate", url=url)

    async def evaluate(self, expression: str) -> Any:
        """Return what an expression of JavaScript gives, as JSON has it."""
        said = await self.command("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in said, said
        return said["result"].get("value")

    async def shows(self, expression: str, expected: Any) -> None:
        """Wait until an expression gives what is expected."""
        seen = None

        async def is_there() -> bool:
            nonlocal seen
            seen = await self.evaluate(expression)
            return bool(seen == expected)

        try:
            await eventually(is_there, within=10, message=expression)
        except AssertionError:
            assert seen == expected
            raise

    async def press(self, key: str) -> None:
        """Press a key that has a name, and let it go."""
        code, text = _KEYS[key]
        event = {"key": text if key == "Space" else key, "code": key, "windowsVirtualKeyCode": code, "text": text}
        await self.command("Input.dispatchKeyEvent", type="keyDown", **event)
        await self.command("Input.dispatchKeyEvent", type="keyUp", **event)

    async def type(self, text: str) -> None:
        await self.command("Input.insertText", text=text)

    async def resize(self, width: int, height: int) -> None:
        await self.command(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def screenshot(self) -> bytes:
        return base64.b64decode((await self.command("Page.captureScreenshot", format="png"))["data"])


@asynccontextmanager
async def browser(profile: Path) -> AsyncIterator[Page]:
    """Run Chromium with a profile of its own; it is killed in the end."""
    assert CHROMIUM is not None, "who calls this has looked"
    process = await asyncio.create_subprocess_exec(
        *(CHROMIUM, *OPTIONS, f"--user-data-dir={profile}", "about:blank"),
        stdin=DEVNULL,
        stdout=DEVNULL,
        stderr=DEVNULL,
        start_new_session=True,
    )
    try:
        async with ClientSession() as session, session.ws_connect(await _page(session, profile)) as socket:
            page = Page(socket)
            reading = asyncio.create_task(page.read())
            try:
                yield page
            finally:
                await socket.close()
                await asyncio.wait({reading})
    finally:
        await _end(process)


async def _page(session: ClientSession, profile: Path) -> str:
    """Wait for the browser, and return the address of its page."""
    told = profile / "DevToolsActivePort"

    async def is_up() -> bool:
        return told.exists() and len(told.read_text().splitlines()) == 2

    await eventually(is_up, within=30, message="the browser runs")
    port = int(told.read_text().splitlines()[0])
    async with session.get(f"http://127.0.0.1:{port}/json/list") as answer:
        (page,) = [target for target in await answer.json() if target["type"] == "page"]
    return str(page["webSocketDebuggerUrl"])


async def _end(process: Process) -> None:
    """Kill the browser with all of its processes."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    await process.wait()
