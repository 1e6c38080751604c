"""Registrations that outlive outages longer than their ttl."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from aiolibkv import Discovery, open_store
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import scaled
from locks.services import SERVICES, Service

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=SERVICES)
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    make = SERVICES[request.param]
    async with make() as running:
        yield running


async def test_a_registration_comes_back_after_it_expired(service: Service) -> None:
    service.needs_network()
    async with (
        FaultProxy(service.host, service.port) as proxy,
        open_store(service.url(proxy.endpoint, "discovery")) as store,
        open_store(service.url(service.endpoint, "discovery")) as observer,
        Discovery(observer, "services").watch("web") as seen,
        asyncio.timeout(scaled(90)),
    ):
        assert await anext(seen) == []
        async with Discovery(store, "services").register("web", "h:1", ttl=service.ttl) as registration:
            assert await anext(seen) == [registration.instance]
            proxy.blackhole()
            assert await anext(seen) == []
            proxy.heal()
            assert await anext(seen) == [registration.instance]
        assert await anext(seen) == []
