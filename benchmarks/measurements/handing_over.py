"""A lock that others wait for."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from statistics import median, quantiles

from measurements.base import Bench, Figures, Measurement, spending

_CLIENTS = 4
_HAND_OVERS = 20


async def _measure(bench: Bench, waiters: int, seconds: float) -> Figures:
    """Look how long after a release the next one has the lock; the waiters are spread over a few clients."""
    key = f"{bench.root}/handed-over/{waiters}"
    clients = await bench.others(min(waiters, _CLIENTS))
    released = 0.0
    late: list[float] = []

    async def wait(number: int) -> None:
        nonlocal released
        async with clients[number % len(clients)].lock(key):
            late.append((time.perf_counter() - released) * 1e3)
            released = time.perf_counter()

    used = 0.0
    while len(late) < _HAND_OVERS:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(bench.subject.lock(key))
            waiting = [asyncio.create_task(wait(number)) for number in range(waiters)]
            # Nothing tells when all of them stand in line.
            await asyncio.sleep(0.05 + waiters / 200)
            with spending() as spent:
                released = time.perf_counter()
                await stack.aclose()
                await asyncio.gather(*waiting)
        used += spent.cpu
    return {"p50, ms": median(late), "p95, ms": quantiles(late, n=20)[-1], "CPU, us": used / len(late) * 1e6}


HANDING_OVER = [Measurement("hand-over", "lock", "waiter", (1, 200), _measure, most_rounds=2)]
