"""Processes that are killed while they run a periodic job, or hold a permit; all servers at once, as it is waiting."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from aiolibkv import ReadWriteLock, Semaphore, open_store
from aiolibkv.testing.scale import eventually, scaled
from locks.services import SERVICES, Service

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(300)]

_LEAD = 10.0


@asynccontextmanager
async def _script(name: str, *arguments: object) -> AsyncIterator[Process]:
    path = Path(__file__).parent / f"{name}.py"
    process = await asyncio.create_subprocess_exec(sys.executable, str(path), *map(str, arguments), stdout=PIPE)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _on_all(test: str) -> None:
    tests = {"slots": _no_slot_twice, "places": _a_dead_holder_blocks_nobody}
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        for make in SERVICES.values():
            service = await stack.enter_async_context(make())
            group.create_task(tests[test](service))


async def test_no_slot_begins_twice() -> None:
    """Of four processes, one has a clock ahead; it is killed, and the others go on when theirs have come as far."""
    await _on_all("slots")


async def test_a_dead_holder_blocks_nobody() -> None:
    await _on_all("places")


async def _no_slot_twice(service: Service) -> None:
    url = service.url(service.endpoint, "slots")
    slots: list[list[float]] = []
    reading: list[asyncio.Task[None]] = []

    async def read(process: Process, own: list[float]) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            own.append(float(line))

    async with AsyncExitStack() as stack:

        async def start(lead: float) -> Process:
            process = await stack.enter_async_context(_script("repeater", url, lead, service.ttl))
            slots.append([])
            reading.append(asyncio.create_task(read(process, slots[-1])))
            return process

        ahead = await start(_LEAD)
        await eventually(lambda: len(slots[0]) > 3, within=60, message="the job runs ahead")
        for _ in range(3):
            await start(0)
        ahead.kill()
        await eventually(lambda: sum(map(bool, slots)) > 1, within=60, message="another one runs it")
        await asyncio.sleep(1)
    await asyncio.gather(*reading)
    begun = [slot for own in slots for slot in own]
    assert len(begun) == len(set(begun))
    assert min(slot for own in slots[1:] for slot in own) > max(slots[0])


async def _a_dead_holder_blocks_nobody(service: Service) -> None:
    await asyncio.gather(*(_is_free_after(service, number) for number in (signal.SIGKILL, signal.SIGSTOP)))


async def _is_free_after(service: Service, number: signal.Signals) -> None:
    """Who is stopped, and goes on when others have what it held, finds it lost, and its guards refused."""
    url = service.url(service.endpoint, f"places-{number.name}")
    async with open_store(url) as store, _script("permitted", url, service.ttl) as process:
        assert process.stdout is not None
        freed_within = float(await asyncio.wait_for(process.stdout.readline(), scaled(60)))
        semaphore = Semaphore(store, "pool", permits=1, ttl=service.ttl)
        reading = ReadWriteLock(store, "table", ttl=service.ttl).reading()
        assert await semaphore.try_acquire() is None
        assert await reading.try_acquire() is None
        waiting = asyncio.gather(semaphore.acquire(), reading.acquire())
        stopped = time.monotonic()
        process.send_signal(number)
        permit, part = await asyncio.wait_for(waiting, scaled(freed_within + 10))
        assert time.monotonic() - stopped <= scaled(freed_within + 1)
        assert permit.is_held
        assert part.is_held
        if number == signal.SIGSTOP:
            process.send_signal(signal.SIGCONT)
            assert await asyncio.wait_for(process.stdout.readline(), scaled(30)) == b"lost 2\n"
        await semaphore.release()
        await reading.release()
