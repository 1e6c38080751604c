"""Election, discovery and update on memory stores that share their data."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from aiolibkv import (
    AsyncStore,
    Candidate,
    Discovery,
    Follower,
    Instance,
    InvalidKeyError,
    KeyNotFoundError,
    LockLostError,
    StoreClosedError,
    open_store,
    update,
)
from aiolibkv.testing.scale import scaled

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]


@pytest_asyncio.fixture
async def stores() -> AsyncIterator[tuple[AsyncStore, AsyncStore]]:
    async with open_store("memory://election") as one, open_store("memory://election") as two:
        yield one, two


async def test_update_is_a_counter_that_loses_nothing(stores: tuple[AsyncStore, AsyncStore]) -> None:
    def add(value: bytes | None) -> bytes:
        return b"%d" % (int(value or b"0") + 1)

    await asyncio.gather(*(update(store, "counter", add) for store in stores for _ in range(20)))
    assert (await stores[0].get("counter")).value == b"40"


async def test_candidates_lead_one_after_the_other(stores: tuple[AsyncStore, AsyncStore]) -> None:
    one, two = Candidate(stores[0], "leader", "one", ttl=5), Candidate(stores[1], "leader", "two", ttl=5)
    follower = Follower(stores[1], "leader")
    async with asyncio.timeout(scaled(5)), follower.follow_election() as leaders:
        assert await anext(leaders) is None
        first, second = one.run_for_election(), two.run_for_election()
        assert await anext(first) is False
        assert await anext(first) is True
        assert await anext(second) is False
        assert (one.is_leader, two.is_leader) == (True, False)
        assert await anext(leaders) == "one"
        await one.resign()
        assert await anext(first) is False
        assert await anext(second) is True
        while await anext(leaders) != "two":
            pass
        assert follower.leader == "two"
        await two.stop()
        with pytest.raises(StopAsyncIteration):
            await anext(second)
        assert await anext(first) is True
        await one.stop()
        while await anext(leaders) is not None:
            pass
    assert await stores[0].list("") == []


async def test_a_leader_that_is_deposed_is_told(stores: tuple[AsyncStore, AsyncStore]) -> None:
    candidate = Candidate(stores[0], "leader", "one", ttl=5)
    async with asyncio.timeout(scaled(5)):
        election = candidate.run_for_election()
        assert [await anext(election), await anext(election)] == [False, True]
        await stores[1].delete("leader")
        assert await anext(election) is False
        assert await anext(election) is True
    await candidate.stop()
    with pytest.raises(LockLostError):
        async with Candidate(stores[0], "leader", "one", ttl=5).lead() as held:
            assert (await stores[1].get("leader")).value == b"one"
            await stores[1].put("leader", b"usurper")
            await asyncio.get_running_loop().create_future()
    assert not held.is_held


async def test_an_election_ends_with_its_store() -> None:
    async with open_store("memory://") as store:
        candidate = Candidate(store, "leader", "one", ttl=5)
        election = candidate.run_for_election()
        assert await anext(election) is False
        assert await anext(election) is True
    assert await anext(election) is False
    with pytest.raises(StoreClosedError):
        await anext(election)
    await candidate.stop()


async def test_instances_come_and_go(stores: tuple[AsyncStore, AsyncStore]) -> None:
    here, there = Discovery(stores[0], "services"), Discovery(stores[1], "/services/")
    assert await there.instances("web") == []
    assert await there.services() == []
    async with asyncio.timeout(scaled(5)), there.watch("web") as watch:
        assert await anext(watch) == []
        async with here.register("web", "10.0.0.1:80", id="a", metadata={"zone": "x"}, ttl=5) as registration:
            expected = Instance("web", "a", "10.0.0.1:80", {"zone": "x"})
            assert registration.instance == expected
            assert await anext(watch) == [expected]
            stored = json.loads((await stores[1].get("services/web/a")).value)
            assert stored == {"service": "web", "id": "a", "address": "10.0.0.1:80", "metadata": {"zone": "x"}}
            async with here.register("db", "10.0.0.2:5432", ttl=5):
                assert await there.services() == ["db", "web"]
            assert await there.instances("web") == [expected]
        assert await anext(watch) == []
    assert await there.services() == []


async def test_a_deleted_registration_comes_back(stores: tuple[AsyncStore, AsyncStore]) -> None:
    registration = Discovery(stores[0], "services").register("web", "h:1", id="a", ttl=5)
    async with asyncio.timeout(scaled(5)), registration, stores[1].watch("services/web/a") as watch:
        assert await anext(watch) is not None
        await stores[1].delete("services/web/a")
        assert await anext(watch) is None
        assert await anext(watch) is not None
    with pytest.raises(KeyNotFoundError):
        await stores[1].get("services/web/a")


async def test_a_registration_outlives_its_store_without_complaint() -> None:
    async with open_store("memory://") as store:
        registration = Discovery(store, "services").register("web", "h:1", ttl=5)
        await registration.__aenter__()
    await registration.__aexit__(None, None, None)


@pytest.mark.parametrize("value", [b"", b"\xff", b"[]", b"{}", b'{"service": 1, "id": "x", "address": "y"}', b"null"])
async def test_unreadable_registrations_are_skipped(stores: tuple[AsyncStore, AsyncStore], value: bytes) -> None:
    discovery = Discovery(stores[0], "services")
    registration = discovery.register("web", "h:1", id="good", ttl=5)
    async with asyncio.timeout(scaled(5)), registration, discovery.watch("web") as watch:
        assert await anext(watch) == [registration.instance]
        await stores[1].put("services/web/bad", value)
        await stores[1].put("services/web/good/deeper", b"not an instance")
        assert await discovery.instances("web") == [registration.instance]
        await stores[1].put("services/web/other", b'{"service": "web", "id": "other", "address": "h:2"}')
        assert [instance.id for instance in await anext(watch)] == ["good", "other"]


@pytest.mark.parametrize("name", ["a/b", "", ".."])
async def test_names_are_one_segment(stores: tuple[AsyncStore, AsyncStore], name: str) -> None:
    discovery = Discovery(stores[0], "services")
    with pytest.raises(InvalidKeyError):
        discovery.register(name, "h:1")
    with pytest.raises(InvalidKeyError):
        discovery.register("web", "h:1", id=name)
