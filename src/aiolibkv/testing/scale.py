"""Time bounds of tests, stretched on slow machines by the environment variable AIOLIBKV_TIME_SCALE."""

import asyncio
import inspect
import os
import time
from collections.abc import Awaitable, Callable

_POLL_INTERVAL = 0.005


def scaled(seconds: float) -> float:
    """Return a time bound for this machine.

    Args:
        seconds: the bound on an ordinary machine.

    Returns:
        Seconds, multiplied by the environment variable AIOLIBKV_TIME_SCALE (default 1).
    """
    return seconds * float(os.environ.get("AIOLIBKV_TIME_SCALE", "1"))


async def eventually(condition: Callable[[], object | Awaitable[object]], *, within: float, message: str) -> None:
    """Wait until a condition holds.

    Args:
        condition: called again and again, and awaited when it returns an awaitable; true ends the wait.
        within: seconds, before scaling. The bound also ends a condition that hangs.
        message: what the error says when the condition never held.

    Raises:
        AssertionError: the condition did not hold in time.
    """
    limit = scaled(within)
    deadline = time.monotonic() + limit
    try:
        async with asyncio.timeout(limit) as bound:
            while True:
                result = condition()
                if inspect.isawaitable(result):
                    result = await result
                if result:
                    return
                # A condition that never gives way to the loop would outlive the timeout above.
                if time.monotonic() > deadline:
                    break
                await asyncio.sleep(_POLL_INTERVAL)
    except TimeoutError:
        if not bound.expired():
            raise
    error = f"not within {limit:g} s: {message}"
    raise AssertionError(error)
