"""Registrations that outlive outages longer than their ttl, and mirrors that tell of outages."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from functools import partial

import pytest
import pytest_asyncio

from aiolibkv import AsyncStore, Config, Discovery, Instance, Mirror, NotReachableError, RequestTimeoutError, open_store
from aiolibkv.testing.scale import eventually, scaled
from locks.services import SERVICES, Service

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=SERVICES)
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    make = SERVICES[request.param]
    async with make() as running:
        yield running


async def test_what_is_kept_alive_comes_back_after_it_expired(service: Service) -> None:
    """A registration, and within a renewal interval a key; but not one that only has a ttl."""
    service.needs_server()
    async with (
        service.proxy() as proxy,
        open_store(service.url(proxy.endpoint, "discovery")) as store,
        open_store(service.url(service.endpoint, "discovery")) as observer,
        Discovery(observer, "services").watch("web") as seen,
        asyncio.timeout(scaled(90)),
    ):
        assert await anext(seen) == []
        await store.put("kept", b"v", ttl=service.ttl, keep_alive=True)
        await store.put("plain", b"v", ttl=service.ttl)
        async with (
            observer.watch("kept") as kept,
            Discovery(store, "services").register("web", "h:1", ttl=service.ttl) as registration,
        ):
            assert await anext(seen) == [registration.instance]
            proxy.blackhole()
            assert await anext(seen) == []
            while await anext(kept) is not None:
                pass
            proxy.heal()
            healed = time.monotonic()
            assert await anext(kept) is not None
            assert time.monotonic() - healed <= scaled(service.ttl / 3)
            assert await anext(seen) == [registration.instance]
            await eventually(partial(_is_gone, observer, "plain"), within=15, message="it has a ttl")
        assert await anext(seen) == []
        assert await observer.exists("kept")


async def test_what_an_earlier_registration_left_goes_though_a_later_one_failed(service: Service) -> None:
    """Both of the same id; no server could be reached when the one was left and the other was begun."""
    service.needs_server()
    async with (
        service.proxy() as proxy,
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


@pytest.mark.parametrize("is_empty", [False, True])
async def test_a_registration_comes_back_after_its_server(service: Service, *, is_empty: bool) -> None:
    """Which was down for longer than the ttl, and comes back with its data or without; it stays, too."""
    server = service.needs_server()
    async with (
        open_store(service.url(service.endpoint, "restarted")) as store,
        open_store(service.url(service.endpoint, "restarted")) as observer,
        asyncio.timeout(scaled(90)),
    ):
        async with Discovery(store, "services").register("web", "h:1", ttl=service.ttl) as registration:
            seen = Discovery(observer, "services")
            assert await seen.instances("web") == [registration.instance]
            await server.kill()
            await asyncio.sleep(1.2 * service.ttl)
            await (server.wipe() if is_empty else server.start())
            async with seen.watch("web") as watch:
                while await anext(watch) != [registration.instance]:
                    pass
                # What the server kept may go once more, with a lease that it did not keep.
                await asyncio.sleep(1.2 * service.ttl)
            await eventually(partial(_are, seen, [registration.instance]), within=30, message="it stays")
        assert await seen.instances("web") == []


async def test_a_mirror_tells_that_it_is_cut_off(service: Service) -> None:
    service.needs_server()
    async with (
        service.proxy() as proxy,
        open_store(service.url(proxy.endpoint, "mirror")) as store,
        open_store(service.url(service.endpoint, "mirror")) as other,
        asyncio.timeout(scaled(60)),
    ):
        before = await other.put("config/a", b"1")
        async with Mirror(store, "config") as mirror:
            proxy.refuse()
            proxy.reset()
            await eventually(lambda: mirror.stale_for > 0.5, within=30, message="it is stale")
            assert mirror.is_stale
            after = await other.put("config/a", b"2")
            waiting = asyncio.ensure_future(mirror.wait_for(after.last_index))
            assert mirror.get("config/a") == before
            proxy.accept()
            await waiting
            assert mirror.get("config/a") == after
            await eventually(lambda: mirror.stale_for == 0, within=10, message="it is up to date")


async def test_a_mirror_reflects_own_writes_to_a_server_without_its_data(service: Service) -> None:
    """Whose indexes are lower than those that the mirror knows."""
    server = service.needs_server()
    async with (
        open_store(service.url(service.endpoint, "wiped"), Config(request_timeout=scaled(10))) as store,
        Mirror(store, "config") as mirror,
        asyncio.timeout(scaled(90)),
    ):
        for number in range(30):
            await mirror.wait_for((await store.put(f"config/{number}", b"old")).last_index)
        await server.kill()
        await eventually(lambda: mirror.is_stale, within=30, message="it is stale")
        await server.wipe()
        for number in range(10):
            pair = await store.put("config/0", b"%d" % number)
            await mirror.wait_for(pair.last_index)
            assert mirror.get("config/0") == pair
        assert mirror.snapshot == [pair]


async def _is_gone(store: AsyncStore, key: str) -> bool:
    return not await store.exists(key)


async def _are(discovery: Discovery, expected: list[Instance]) -> bool:
    return await discovery.instances("web") == expected
