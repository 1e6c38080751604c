"""The dashboard as a process."""

from __future__ import annotations

import asyncio
import signal
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers.process import Port, http

DASHBOARD = Path(__file__).parents[2] / "examples" / "dashboard.py"


@asynccontextmanager
async def dashboard(url: str) -> AsyncIterator[int]:
    """Run it on a free port, and end it as a service manager does; it has to end without a traceback."""
    with Port() as port:

        async def is_up() -> bool:
            try:
                return (await http(port, "GET", "/"))[0] == 200
            except (OSError, EOFError):
                return False

        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(DASHBOARD), url, str(port)), stdout=PIPE, stderr=PIPE
        )
        try:
            await eventually(is_up, within=20, message="the dashboard answers")
            yield port
            process.send_signal(signal.SIGTERM)
            _, errors = await asyncio.wait_for(process.communicate(), scaled(10))
            assert "Traceback" not in errors.decode()
        finally:
            if process.returncode is None:
                process.kill()
                await process.communicate()
