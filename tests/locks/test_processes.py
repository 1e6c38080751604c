"""Locks between processes that are stopped, killed and cut off, on every backend that processes can share."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from aiolibkv import AsyncStore, HeldLock, open_store
from aiolibkv.testing.scale import scaled
from locks.services import SERVICES, Service

pytestmark = pytest.mark.asyncio(loop_scope="module")

HOLDER = Path(__file__).parent / "holder.py"


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=SERVICES)
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    make = SERVICES[request.param]
    async with make() as running:
        yield running


class Holder:
    """A process that holds the lock."""

    def __init__(self, process: Process) -> None:
        self.process = process

    async def said(self) -> tuple[list[str], float]:
        """Return what it says next, and when."""
        assert self.process.stdout is not None
        line = await asyncio.wait_for(self.process.stdout.readline(), scaled(60))
        *words, moment = line.decode().split()
        return words, float(moment)

    async def release(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(b"release\n")
        await self.process.stdin.drain()


@asynccontextmanager
async def holder(url: str, ttl: float) -> AsyncIterator[Holder]:
    process = await asyncio.create_subprocess_exec(sys.executable, str(HOLDER), url, str(ttl), stdin=PIPE, stdout=PIPE)
    try:
        yield Holder(process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@asynccontextmanager
async def own_directory(service: Service, name: str) -> AsyncIterator[tuple[str, AsyncStore]]:
    url = service.url(service.endpoint, name)
    async with open_store(url) as store:
        yield url, store


async def test_release_hands_over(service: Service) -> None:
    async with own_directory(service, "release") as (url, store), holder(url, 15) as first:
        (words, _) = await first.said()
        assert words[0] == "held"
        lock = store.new_lock("lock")
        waiting = asyncio.create_task(lock.acquire())
        await first.release()
        assert (await first.said())[0] == ["released"]
        held = await asyncio.wait_for(waiting, scaled(10))
        assert held.fencing_token > int(words[1])
        assert (await first.said())[0] == ["refused"]
        await lock.release()


async def test_a_killed_holder_is_succeeded_within_freed_within(service: Service) -> None:
    async with own_directory(service, "kill") as (url, store), holder(url, service.ttl) as first:
        (words, _) = await first.said()
        token, freed_within = int(words[1]), float(words[3])
        lock = store.new_lock("lock", ttl=service.ttl)
        waiting = asyncio.create_task(lock.acquire())
        async with store.watch("kept") as watch:
            assert await anext(watch) is not None
            killed = time.monotonic()
            first.process.kill()
            held = await asyncio.wait_for(waiting, scaled(freed_within + 10))
            assert time.monotonic() - killed <= scaled(freed_within)
            assert held.fencing_token > token
            # What it kept alive goes as well, whenever it was renewed last.
            latest = service.ttl + store.capabilities.ttl_overshoot(service.ttl)
            assert await asyncio.wait_for(anext(watch), scaled(latest)) is None
            assert time.monotonic() - killed <= scaled(latest)
        await lock.release()


async def test_a_stopped_holder_loses_it_and_its_guarded_write(service: Service) -> None:
    async with own_directory(service, "stop") as (url, store), holder(url, service.ttl) as first:
        (words, _) = await first.said()
        lock = store.new_lock("lock", ttl=service.ttl)
        first.process.send_signal(signal.SIGSTOP)
        held = await asyncio.wait_for(lock.acquire(), scaled(float(words[3]) + 10))
        assert held.fencing_token > int(words[1])
        first.process.send_signal(signal.SIGCONT)
        assert (await first.said())[0] == ["lost"]
        assert (await first.said())[0] == ["refused"]
        assert held.is_held
        assert not await store.exists("guarded")
        await lock.release()


async def test_a_holder_that_is_cut_off_stops_before_another_begins(service: Service) -> None:
    """On the clock that both share; several holders at once, each with a lock and a connection of its own."""

    async def once(number: int) -> None:
        async with (
            service.proxy() as proxy,
            own_directory(service, f"cut-{number}") as (_, store),
            holder(service.url(proxy.endpoint, f"cut-{number}"), service.ttl) as first,
        ):
            (words, _) = await first.said()
            lock = store.new_lock("lock", ttl=service.ttl)

            async def acquire() -> tuple[HeldLock, float]:
                return await lock.acquire(), time.monotonic()

            waiting = asyncio.create_task(acquire())
            proxy.blackhole()
            (lost, when_lost) = await first.said()
            assert lost == ["lost"]
            held, when_held = await asyncio.wait_for(waiting, scaled(float(words[3]) + 10))
            assert when_lost < when_held
            assert held.fencing_token > int(words[1])
            await lock.release()

    service.needs_server()
    await asyncio.gather(*(once(number) for number in range(10)))
