"""Election, discovery and update, which see a store only as its users do."""

from __future__ import annotations

import asyncio
import json

import pytest

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
    update,
)
from aiolibkv.testing.conformance.suite import Stores, Suite
from aiolibkv.testing.scale import scaled

_TTL = 15.0


class Coordinating(Suite):
    """What processes agree on."""

    async def test_update_is_a_counter_that_loses_nothing(self, store: AsyncStore, other: AsyncStore) -> None:
        def add(value: bytes | None) -> bytes:
            return b"%d" % (int(value or b"0") + 1)

        await asyncio.gather(*(update(each, "counter", add) for each in (store, other) for _ in range(20)))
        assert (await store.get("counter")).value == b"40"

    async def test_candidates_lead_one_after_the_other(self, store: AsyncStore, other: AsyncStore) -> None:
        one, two = Candidate(store, "leader", "one", ttl=_TTL), Candidate(other, "leader", "two", ttl=_TTL)
        follower = Follower(other, "leader")
        async with asyncio.timeout(scaled(20)), follower.follow_election() as leaders:
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
        assert await store.list("") == []

    async def test_a_leader_that_is_deposed_is_told(self, store: AsyncStore, other: AsyncStore) -> None:
        candidate = Candidate(store, "leader", "one", ttl=_TTL)
        async with asyncio.timeout(scaled(20)):
            election = candidate.run_for_election()
            assert [await anext(election), await anext(election)] == [False, True]
            await other.delete("leader")
            assert await anext(election) is False
            assert await anext(election) is True
        await candidate.stop()
        with pytest.raises(LockLostError):
            async with Candidate(store, "leader", "one", ttl=_TTL).lead() as held:
                assert (await other.get("leader")).value == b"one"
                await other.put("leader", b"usurper")
                await asyncio.get_running_loop().create_future()
        assert not held.is_held

    @pytest.mark.parametrize("how", ["resign", "stop"])
    async def test_who_gives_up_the_leadership_leads_no_more(
        self, store: AsyncStore, other: AsyncStore, how: str
    ) -> None:
        """What the leader does ends before another one begins."""
        one, two = Candidate(store, "leader", "one", ttl=_TTL), Candidate(other, "leader", "two", ttl=_TTL)
        leading: list[str] = []

        async def lead(candidate: Candidate) -> None:
            async with candidate.lead():
                leading.append(candidate.node)
                try:
                    await asyncio.get_running_loop().create_future()
                finally:
                    leading.remove(candidate.node)

        async def give_up(candidate: Candidate) -> None:
            await (candidate.resign() if how == "resign" else candidate.stop())

        tasks = []
        try:
            async with asyncio.timeout(scaled(20)):
                for candidate in (one, two):
                    tasks.append(asyncio.ensure_future(lead(candidate)))
                    while leading != [candidate.node]:
                        await asyncio.sleep(0.01)
                    await give_up(candidate)
                    assert not candidate.is_leader
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        for task in tasks:
            with pytest.raises(LockLostError):
                task.result()

    async def test_instances_come_and_go(self, store: AsyncStore, other: AsyncStore) -> None:
        here, there = Discovery(store, "services"), Discovery(other, "/services/")
        assert await there.instances("web") == []
        assert await there.services() == []
        async with asyncio.timeout(scaled(20)), there.watch("web") as watch:
            assert await anext(watch) == []
            async with here.register("web", "10.0.0.1:80", id="a", metadata={"zone": "x"}, ttl=_TTL) as registration:
                expected = Instance("web", "a", "10.0.0.1:80", {"zone": "x"})
                assert registration.instance == expected
                assert await anext(watch) == [expected]
                stored = json.loads((await other.get("services/web/a")).value)
                assert stored == {"service": "web", "id": "a", "address": "10.0.0.1:80", "metadata": {"zone": "x"}}
                async with here.register("db", "10.0.0.2:5432", ttl=_TTL):
                    assert await there.services() == ["db", "web"]
                assert await there.instances("web") == [expected]
            assert await anext(watch) == []
        assert await there.services() == []

    async def test_a_deleted_registration_comes_back(self, store: AsyncStore, other: AsyncStore) -> None:
        registration = Discovery(store, "services").register("web", "h:1", id="a", ttl=_TTL)
        async with asyncio.timeout(scaled(20)), registration, other.watch("services/web/a") as watch:
            assert await anext(watch) is not None
            await other.delete("services/web/a")
            assert await anext(watch) is None
            assert await anext(watch) is not None
        with pytest.raises(KeyNotFoundError):
            await other.get("services/web/a")

    @pytest.mark.parametrize(
        "value",
        [
            b"",
            b"\xff",
            b"[]",
            b"{}",
            b'{"service": 1, "id": "x", "address": "y"}',
            b'{"service": "web", "id": "x", "address": "y", "metadata": []}',
            b"null",
            pytest.param(b"[" * 100_000, id="nested too deep"),
            pytest.param(b"1" * 10_000, id="a number too long"),
        ],
    )
    async def test_unreadable_registrations_are_skipped(
        self, store: AsyncStore, other: AsyncStore, value: bytes
    ) -> None:
        discovery = Discovery(store, "services")
        registration = discovery.register("web", "h:1", id="good", ttl=_TTL)
        async with asyncio.timeout(scaled(20)), registration, discovery.watch("web") as watch:
            assert await anext(watch) == [registration.instance]
            await other.put("services/web/bad", value)
            if other.capabilities.lifetime_with_children:
                await other.put("services/web/good/deeper", b"not an instance")
            assert await discovery.instances("web") == [registration.instance]
            await other.put("services/web/other", b'{"service": "web", "id": "other", "address": "h:2"}')
            assert [instance.id for instance in await anext(watch)] == ["good", "other"]

    @pytest.mark.parametrize("name", ["a/b", "", ".."])
    async def test_names_are_one_segment(self, store: AsyncStore, other: AsyncStore, name: str) -> None:
        discovery = Discovery(store, "services")
        with pytest.raises(InvalidKeyError):
            discovery.register(name, "h:1")
        with pytest.raises(InvalidKeyError):
            discovery.register("web", "h:1", id=name)

    async def test_an_election_ends_with_its_store(self, stores: Stores) -> None:
        store = await stores.open()
        candidate = Candidate(store, "leader", "one", ttl=_TTL)
        election = candidate.run_for_election()
        async with asyncio.timeout(scaled(20)):
            assert await anext(election) is False
            assert await anext(election) is True
            await store.close()
            assert await anext(election) is False
            with pytest.raises(StoreClosedError):
                await anext(election)
            await candidate.stop()

    async def test_a_registration_may_outlive_its_store(self, stores: Stores, other: AsyncStore) -> None:
        store = await stores.open()
        registration = Discovery(store, "services").register("web", "h:1", id="a", ttl=_TTL)
        await registration.__aenter__()
        await store.close()
        await registration.__aexit__(None, None, None)
        assert not await other.exists("services/web/a")

    async def test_many_followers_see_each_leader(self, store: AsyncStore, other: AsyncStore) -> None:
        """Three candidates, each stopped while it leads: always one leader, and a new one each time."""
        candidates = [
            Candidate(each, "leader", node, ttl=_TTL) for each, node in ((store, "a"), (other, "b"), (store, "c"))
        ]
        elections = [candidate.run_for_election() for candidate in candidates]
        seen: list[str | None] = []

        async def campaign(number: int) -> None:
            async for elected in elections[number]:
                if elected:
                    assert [candidate.is_leader for candidate in candidates].count(True) == 1
                    while seen[-1:] != [candidates[number].node]:
                        await asyncio.sleep(0.01)
                    await candidates[number].stop()

        async def follow() -> None:
            async for leader in Follower(other, "leader").follow_election():
                seen.append(leader)
                if leader is None and len({name for name in seen if name}) == len(candidates):
                    return

        async with asyncio.timeout(scaled(30)):
            await asyncio.gather(follow(), *(campaign(number) for number in range(len(candidates))))
        assert sorted(name for name in seen if name) == ["a", "b", "c"]
