"""Outages that cost nothing: shorter than half the ttl, whenever they begin."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio

from aiolibkv import open_store
from aiolibkv.store.locks import StoreHeldLock
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually, scaled
from locks.services import SERVICES, Service

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

OUTAGE = 0.45
"""Parts of the ttl."""
BEGINNINGS = (0.02, 0.35, 0.7, 0.98)
"""Parts of the time from one renewal to the next; the last one, right before a renewal, is the worst."""


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=SERVICES)
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    make = SERVICES[request.param]
    async with make() as running:
        yield running


def swallow(proxy: FaultProxy) -> None:
    proxy.blackhole()


def swallow_answers(proxy: FaultProxy) -> None:
    proxy.blackhole(to_server=False)


def refuse(proxy: FaultProxy) -> None:
    proxy.refuse()
    proxy.reset()


@pytest.mark.parametrize("cut", [swallow, swallow_answers, refuse])
async def test_an_outage_shorter_than_half_the_ttl_costs_nothing(
    service: Service, cut: Callable[[FaultProxy], None]
) -> None:
    """Neither a lock nor a key kept alive; each outage is that of a store of its own, all of them at once."""
    clock = asyncio.get_running_loop().time
    ttl = scaled(max(6, 1.5 * service.ttl))

    async def once(beginning: float) -> None:
        name = f"{cut.__name__}-{beginning}"
        async with (
            service.proxy() as proxy,
            open_store(service.url(proxy.endpoint, name)) as store,
            open_store(service.url(service.endpoint, name)) as observer,
        ):
            kept = await store.put("kept", b"", ttl=ttl, keep_alive=True)
            held = await store.new_lock("lock", ttl=ttl).acquire()
            assert isinstance(held, StoreHeldLock)
            session = held._session
            await asyncio.sleep(session.renewed + beginning * session.interval - clock())
            cut(proxy)
            await asyncio.sleep(OUTAGE * held.ttl)
            proxy.heal()
            healed = clock()
            await eventually(lambda: session.renewed > healed or not held.is_held, within=ttl, message="it is renewed")
            assert held.is_held, name
            await store.put("guarded", b"", guard=held)
            assert await observer.get("kept") == kept

    service.needs_server()
    await asyncio.gather(*(once(beginning) for beginning in BEGINNINGS))
