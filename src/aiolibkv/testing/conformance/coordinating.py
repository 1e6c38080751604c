"""Service discovery and update, which see a store only as its users do."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import asdict, replace

import pytest

from aiolibkv import AsyncStore, Discovery, Instance, InvalidKeyError, KeyNotFoundError, LockLostError, update
from aiolibkv.testing.conformance.suite import Stores, Suite
from aiolibkv.testing.scale import eventually, scaled

_TTL = 15.0


class Coordinating(Suite):
    """What processes agree on."""

    async def test_update_is_a_counter_that_loses_nothing(self, store: AsyncStore, other: AsyncStore) -> None:
        def add(value: bytes | None) -> bytes:
            return b"%d" % (int(value or b"0") + 1)

        await asyncio.gather(*(update(each, "counter", add) for each in (store, other) for _ in range(20)))
        assert (await store.get("counter")).value == b"40"

    async def test_update_gives_a_lifetime_and_takes_a_guard(self, store: AsyncStore, other: AsyncStore) -> None:
        async with asyncio.timeout(scaled(20)), store.new_lock("lock", ttl=_TTL) as held:
            await update(store, "guarded", lambda _: b"1", guard=held)
            await other.put("permanent", b"1")
            await update(store, "permanent", lambda value: (value or b"") + b"2", ttl=0.5)
            async with other.watch("permanent") as watch:
                while await anext(watch) is not None:
                    pass
        with pytest.raises(LockLostError):
            await update(store, "guarded", lambda _: b"2", guard=held)
        assert (await other.get("guarded")).value == b"1"

    async def test_instances_come_and_go(self, store: AsyncStore, other: AsyncStore) -> None:
        here, there = Discovery(store, "services"), Discovery(other, "/services/")
        assert await there.instances("web") == []
        assert await there.services() == []
        await other.put("services/stray", b"no service")
        assert await there.services() == []
        async with asyncio.timeout(scaled(20)), there.watch("web") as watch:
            assert await anext(watch) == []
            async with here.register("web", "10.0.0.1:80", id="a", metadata={"zone": "x"}, ttl=_TTL) as registration:
                expected = Instance("web", "a", "10.0.0.1:80", {"zone": "x"})
                assert registration.instance == expected
                assert await anext(watch) == [expected]
                stored = json.loads((await other.get("services/web/a")).value)
                assert stored == {"service": "web", "id": "a", "address": "10.0.0.1:80", "metadata": {"zone": "x"}}
                async with here.register("db", "10.0.0.2:5432", ttl=_TTL), here.register("db-2", "h:1", ttl=_TTL):
                    assert await there.services() == ["db", "db-2", "web"]
                    async with there:
                        assert await there.services() == ["db", "db-2", "web"]
                assert await there.instances("web") == [expected]
            assert await anext(watch) == []
        assert await there.services() == []

    async def test_a_deleted_registration_comes_back(self, store: AsyncStore, other: AsyncStore) -> None:
        registration = Discovery(store, "services").register("web", "h:1", id="a", ttl=_TTL)
        async with asyncio.timeout(scaled(20)), registration, other.watch("services/web/a") as watch:
            first = await anext(watch)
            assert first is not None
            await other.delete("services/web/a")
            # Not every backend shows that it was gone meanwhile.
            while (pair := await anext(watch)) is None:
                pass
            assert pair.last_index > first.last_index
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

    async def test_a_registration_may_outlive_its_store(self, stores: Stores, other: AsyncStore) -> None:
        store = await stores.open()
        registration = Discovery(store, "services").register("web", "h:1", id="a", ttl=_TTL)
        await registration.__aenter__()
        await store.close()
        await registration.__aexit__(None, None, None)
        assert not await other.exists("services/web/a")

    async def test_what_a_watch_of_instances_gives_is_its_users(self, store: AsyncStore) -> None:
        discovery = Discovery(store, "services")
        async with asyncio.timeout(scaled(20)), discovery.watch("web") as watch:
            assert await anext(watch) == []
            async with discovery.register("web", "h:1", ttl=_TTL):
                instances = await anext(watch)
                assert isinstance(instances, list)
                instances.clear()
            assert await anext(watch) == []

    async def test_what_a_user_changes_in_an_instance_hides_nothing(self, store: AsyncStore) -> None:
        discovery = Discovery(store, "services")
        first, other = Instance("web", "a", "h:1", {"zone": "x"}), Instance("web", "b", "h:2")
        changed = replace(first, metadata={"zone": "changed"})
        await store.put("services/web/a", json.dumps(asdict(first)).encode())
        async with asyncio.timeout(scaled(20)), discovery.watch("web") as watch:
            _change((await anext(watch))[0])
            await store.put("services/web/b", json.dumps(asdict(other)).encode())
            instances = await anext(watch)
            assert instances == [first, other]
            _change(instances[0])
            await store.put("services/web/a", json.dumps(asdict(changed)).encode())
            assert await anext(watch) == [changed, other]

    async def test_an_unreadable_registration_is_told_once(
        self, store: AsyncStore, caplog: pytest.LogCaptureFixture
    ) -> None:
        discovery = Discovery(store, "services")
        await store.put("services/web/bad", b"no JSON")
        async with asyncio.timeout(scaled(20)), discovery.watch("web") as watch:
            assert await anext(watch) == []
            for number in range(3):
                await store.put(f"services/web/{number}", b'{"service": "web", "id": "%d", "address": "h"}' % number)
                assert len(await anext(watch)) == number + 1
                assert len(await discovery.instances("web")) == number + 1
        told = [record for record in caplog.records if record.levelno >= logging.WARNING and "bad" in record.message]
        assert len(told) == 1

    async def test_a_registration_is_entered_once_at_a_time(self, store: AsyncStore) -> None:
        discovery = Discovery(store, "services")
        registration = discovery.register("web", "h:1", id="a", ttl=_TTL)
        async with asyncio.timeout(scaled(20)):
            async with registration:
                with pytest.raises(RuntimeError):
                    await registration.__aenter__()
                assert await discovery.instances("web") == [registration.instance]
            assert await discovery.instances("web") == []
            async with registration:
                assert await discovery.instances("web") == [registration.instance]
            assert await discovery.instances("web") == []

    async def test_instances_are_hashable_and_of_texts(self, store: AsyncStore) -> None:
        assert len({Instance("web", "a", "h:1", {"zone": "x"}), Instance("web", "a", "h:1", {"zone": "x"})}) == 1
        discovery = Discovery(store, "services")
        with pytest.raises(TypeError):
            discovery.register("web", 8080)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            discovery.register("web", "h:1", id=1)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            discovery.register("web", "h:1", metadata={"weight": 1})  # type: ignore[dict-item]

    async def test_an_entered_discovery_reads_a_mirror(self, store: AsyncStore, other: AsyncStore) -> None:
        here, there = Discovery(store, "services"), Discovery(other, "services")
        async with asyncio.timeout(scaled(20)), here:
            assert here.mirror is not None
            assert await here.instances("web") == []
            assert await here.services() == []
            async with there.register("web", "h:1", ttl=_TTL) as web, there.register("db", "h:2", ttl=_TTL) as db:
                await here.mirror.wait_for((await other.get(db.key)).last_index)
                assert await here.instances("web") == [web.instance]
                assert await here.instances("db") == [db.instance]
                assert await here.services() == ["db", "web"]
                instances = await here.instances("web")
                assert isinstance(instances, list)
                _change(instances[0])
                instances.clear()
                assert await here.instances("web") == [web.instance]
            await eventually(lambda: not here.mirror or not len(here.mirror.snapshot), within=10, message="they go")
            assert await here.instances("web") == []
        assert not here.mirror
        assert await here.instances("web") == []


def _change(instance: Instance) -> None:
    assert isinstance(instance.metadata, dict)
    instance.metadata["zone"] = "changed"
