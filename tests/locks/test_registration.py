"""Registrations that outlive outages longer than their ttl."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from aiolibkv import Config, Discovery, NotReachableError, RequestTimeoutError, open_store
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


async def test_what_an_earlier_registration_left_goes_though_a_later_one_failed(service: Service) -> None:
    """Both of the same id; no server could be reached when the one was left and the other was begun."""
    service.needs_network()
    async with (
        FaultProxy(service.host, service.port) as proxy,
        open_store(service.url(proxy.endpoint, "ghosts"), Config(request_timeout=scaled(1))) as store,
        open_store(service.url(service.endpoint, "ghosts")) as observer,
        Discovery(observer, "services").watch("web") as seen,
        asyncio.timeout(scaled(90)),
    ):
        discovery = Discovery(store, "services")
        assert await anext(seen) == []
        async with discovery.register("web", "old:1", id="a", ttl=60) as registration:
            assert await anext(seen) == [registration.instance]
            proxy.refuse()
            proxy.reset()
        with pytest.raises((NotReachableError, RequestTimeoutError)):
            await discovery.register("web", "new:1", id="a", ttl=60).__aenter__()
        proxy.accept()
        assert await anext(seen) == []
