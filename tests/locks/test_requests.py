"""Locks on real servers: what they cost, and what lost answers leave behind."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, nullcontext
from functools import partial
from statistics import median

import pytest
import pytest_asyncio

from aiolibkv import AsyncStore, Config, KeyNotFoundError, Lock, ReadWriteLock, Semaphore, open_store
from aiolibkv.testing.conformance.locking import is_waiting
from aiolibkv.testing.proxy import Counts, FaultProxy
from aiolibkv.testing.scale import eventually, scaled
from locks.services import SERVICES, Service

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

_HOLDING = 0.02
"""Seconds, so that what it costs to hold a lock is counted."""
_LOOK = 0.5
_NOT_RENEWED = 3600
"""Seconds: no lock is held for so long that it would be renewed."""


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=SERVICES)
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    make = SERVICES[request.param]
    async with make() as running:
        yield running


async def is_clean(store: AsyncStore, directory: str) -> bool:
    """Tell whether nothing but the epochs of locks is below a directory, the library's own keys included."""
    try:
        return all("/.aiolibkv/epochs/" in pair.key for pair in await store.list(directory))
    except KeyNotFoundError:
        return True


@pytest.mark.parametrize("waiters", [20, 200])
async def test_what_a_lock_with_many_waiters_costs(service: Service, waiters: int) -> None:
    """Tokens strictly increase, and everyone gets it."""
    name = f"queue-{waiters}"
    async with open_store(service.url(service.endpoint, "")) as observer:
        sent, heartbeats, tokens = await _hand_overs(
            service, name, waiters, 10, _new_lock, lambda: is_waiting(observer, name, 10)
        )
    assert tokens == sorted(set(tokens))
    assert sent <= 10 * waiters + heartbeats


def _new_lock(store: AsyncStore) -> Lock:
    return store.new_lock("lock", ttl=_NOT_RENEWED)


def _new_permit(store: AsyncStore) -> Lock:
    return Semaphore(store, "lock", permits=1, ttl=_NOT_RENEWED)


def _new_writer(store: AsyncStore) -> Lock:
    return ReadWriteLock(store, "lock", ttl=_NOT_RENEWED).writing()


@pytest.mark.parametrize("make", [_new_permit, _new_writer])
async def test_what_a_line_costs(service: Service, make: Callable[[AsyncStore], Lock]) -> None:
    waiters = 12
    name = make.__name__.strip("_")
    async with open_store(service.url(service.endpoint, name)) as observer:

        async def all_wait() -> bool:
            return len(await observer.list("lock/line")) == waiters + 1

        sent, heartbeats, tokens = await _hand_overs(
            service, name, waiters, 3, make, lambda: eventually(all_wait, within=30, message="all wait")
        )
    assert tokens == sorted(set(tokens))
    assert sent <= 10 * waiters + heartbeats


async def _hand_overs(
    service: Service,
    name: str,
    waiters: int,
    stores: int,
    make: Callable[[AsyncStore], Lock],
    all_wait: Callable[[], Awaitable[None]],
) -> tuple[int, float, list[int]]:
    """Count all that stores send from one release to the next, while so many wait for a lock.

    ZooKeeper's handshakes, which the proxy does not take for requests, count as connections. Opening the stores, what
    they make ready once, and standing in line for the first time, does not belong to any release. Where there is no
    server, nothing is counted.

    Returns:
        What was sent, how much of it are heartbeats, and the fencing tokens in the order of the hand-overs.
    """
    tokens: list[int] = []

    async def work(store: AsyncStore) -> None:
        async with make(store) as held:
            tokens.append(held.fencing_token)
            await asyncio.sleep(_HOLDING)

    async with AsyncExitStack() as stack:
        proxy = await stack.enter_async_context(service.proxy()) if service.server is not None else None
        url = service.url(service.endpoint if proxy is None else proxy.endpoint, name)
        opened = [await stack.enter_async_context(open_store(url)) for _ in range(stores)]
        direct = await stack.enter_async_context(open_store(service.url(service.endpoint, name)))
        for store in opened:
            # What a store makes ready once: connections, statements.
            async with store.new_lock("warm", ttl=_NOT_RENEWED), store.new_lock("also warm", ttl=_NOT_RENEWED):
                await asyncio.gather(store.put("x", b""), store.list(""))
        first = make(direct)
        await first.acquire()
        working = [asyncio.create_task(work(store)) for store in opened for _ in range(waiters // stores)]
        await all_wait()
        if proxy is not None:
            # Who is in line may still be reading who is ahead.
            await eventually(partial(_is_quiet, proxy, service.heartbeats * stores), within=30, message="all is quiet")
        with nullcontext(Counts()) if proxy is None else proxy.counting() as counts:
            began = time.monotonic()
            await first.release()
            await asyncio.gather(*working)
        sent = counts.requests + counts.connections
        heartbeats = service.heartbeats * stores * (time.monotonic() - began)
    print(f"{name}: {sent / waiters:g} requests for each hand-over, {heartbeats / waiters:g} of them heartbeats")
    assert len(tokens) == waiters
    return sent, heartbeats, tokens


async def _is_quiet(proxy: FaultProxy, heartbeats: int) -> bool:
    """Tell whether nothing but so many heartbeats a second are sent."""
    before = proxy.requests
    await asyncio.sleep(_LOOK)
    return proxy.requests - before <= heartbeats * _LOOK


@pytest.mark.parametrize(("make", "more"), [(_new_lock, 0), (_new_permit, 3), (_new_writer, 2)])
async def test_acquiring_again_costs_what_the_first_time_did_or_less(
    service: Service, make: Callable[[AsyncStore], Lock], more: int
) -> None:
    """Round trips; what it costs to hold the lock is part of it each time, with a place in a line once more.

    Such a place costs a list more, and a permit one more to read their number where lists are of no single moment. Now
    and then PostgreSQL has a statement prepared on another connection, once.
    """
    service.needs_server()
    async with service.proxy() as proxy, open_store(service.url(proxy.endpoint, f"again{make.__name__}")) as store:
        await store.put("warm", b"")
        lock = make(store)
        trips = []
        for _ in range(6):
            with proxy.counting() as counts:
                held = await lock.acquire()
                assert held.is_held
                trips.append(counts.round_trips)
            await lock.release()
    print(f"trips to acquire: {trips}")
    assert median(trips[1:]) <= max(trips[0], 2 + more)


async def test_an_answer_lost_to_each_request_of_an_acquisition(service: Service) -> None:
    """Acquired once, and nothing else is left."""
    service.needs_server()
    async with (
        service.proxy() as proxy,
        open_store(service.url(service.endpoint, "")) as observer,
    ):
        for number in range(8):
            url = service.url(proxy.endpoint, f"lost-{number}")
            async with open_store(url, Config(request_timeout=scaled(3))) as store:
                await store.put("warm", b"")
                seen = 0

                def is_the_one(_: bytes, number: int = number) -> bool:
                    nonlocal seen
                    seen += 1
                    return seen == number + 1

                proxy.cut_answers(matching=is_the_one)
                async with asyncio.timeout(scaled(60)), store.new_lock("lock", value=b"v", ttl=30) as held:
                    assert (await observer.get(f"lost-{number}/lock")).value == b"v"
                    assert held.is_held
                proxy.heal()
                await store.delete("warm")
            clean = partial(is_clean, observer, f"lost-{number}")
            await eventually(clean, within=15, message=f"what number {number} left is gone")
