"""Lifetimes on a backend that loses leases, grants and answers."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from aiolibkv import (
    AccessDeniedError,
    Check,
    Delete,
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    NotReachableError,
    Put,
    StoreError,
)
from aiolibkv.backends.memory import MemoryDriver
from aiolibkv.store import Call, Lease, Store
from aiolibkv.testing.scale import eventually
from unit.faulty import FaultyDriver, FaultyStore

pytestmark = pytest.mark.asyncio


def lease_count(store: FaultyStore) -> int:
    return store.space.leases


async def lose(store: FaultyStore, number: int) -> None:
    """Let the server forget a lease, with its keys."""
    store.space.revoke(store.leases[number])


async def test_keep_alive_keys_of_one_ttl_share_a_lease() -> None:
    async with FaultyStore() as store:
        await asyncio.gather(*(store.put(f"k{n}", b"v", ttl=5, keep_alive=True) for n in range(10)))
        await store.put("other", b"v", ttl=6, keep_alive=True)
        assert store.calls.count("grant") == 2


async def test_a_key_kept_alive_without_a_ttl_has_one_of_15_seconds() -> None:
    async with FaultyStore() as store:
        await store.put("k", b"v", keep_alive=True)
        assert [lease.ttl for lease in store.leases] == [15]


async def test_a_cancelled_put_does_not_cancel_the_shared_grant() -> None:
    async with FaultyStore() as store:
        first = asyncio.create_task(store.put("a", b"v", ttl=5, keep_alive=True))
        second = asyncio.create_task(store.put("b", b"v", ttl=5, keep_alive=True))
        while "grant" not in store.calls:
            await asyncio.sleep(0)
        first.cancel()
        await second
        assert store.calls.count("grant") == 1
        assert not await store.exists("a")


async def test_a_refused_put_leaves_no_lease() -> None:
    async with FaultyStore() as store:
        await store.put("k", b"v")
        with pytest.raises(KeyExistsError):
            await store.atomic_put("k", b"w", None, ttl=5)
        await eventually(lambda: lease_count(store) == 0, within=1, message="lease left")


async def test_a_cancelled_put_leaves_no_lease_beyond_its_time() -> None:
    async with FaultyStore() as store:
        outcomes = set()
        for steps in range(8):
            task = asyncio.create_task(store.put(f"k{steps}", b"v", ttl=0.2))
            for _ in range(steps):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
            outcomes.add(task.cancelled())
        assert outcomes == {True, False}
        await eventually(lambda: lease_count(store) == 0, within=1, message="a lease is left")
        assert await store.list("") == []


async def test_a_grant_whose_answer_was_lost_is_revoked() -> None:
    async with FaultyStore() as store:
        store.faults["grant"].append("lost answer")
        await store.put("k", b"v", ttl=5)
        await eventually(lambda: lease_count(store) == 1, within=1, message="the first grant is left")
        assert await store.exists("k")


async def test_the_lease_of_a_put_in_doubt_is_not_revoked() -> None:
    async with FaultyStore() as store:
        store.faults["put"].append("lost answer")
        with pytest.raises(NotReachableError):
            await store.put("k", b"v", ttl=5)
        for _ in range(20):
            await asyncio.sleep(0)
        assert "revoke" not in store.calls
        assert await store.exists("k")


async def test_a_key_of_a_put_in_doubt_goes_on_time() -> None:
    async with FaultyStore() as store:
        store.driver.lease_excess = 100
        store.faults["put"].append("lost answer")
        with pytest.raises(NotReachableError):
            await store.put("k", b"v", ttl=0.2)
        assert await store.exists("k")
        await eventually(lambda: _is_gone(store, "k"), within=5, message="the key outlives its ttl")


async def test_a_put_in_doubt_ends_no_others_that_are_kept_alive() -> None:
    async with FaultyStore() as store:
        store.driver.new_lease = lambda lifetime: Lease(lifetime.ttl + 100)  # type: ignore[method-assign]
        await store.put("kept", b"v", ttl=0.2, keep_alive=True)
        store.faults["put"].append("lost answer")
        with pytest.raises(NotReachableError):
            await store.put("doubtful", b"v", ttl=0.2, keep_alive=True)
        await store.put("brief", b"v", ttl=0.3)
        await eventually(lambda: _is_gone(store, "brief"), within=5, message="the key outlives its ttl")
        assert await store.exists("kept")


async def _is_gone(store: FaultyStore, key: str) -> bool:
    return not await store.exists(key)


async def test_putting_again_leaves_one_lease() -> None:
    async with FaultyStore() as store:
        for _ in range(5):
            await store.put("k", b"v", ttl=5)
        await eventually(lambda: lease_count(store) == 1, within=1, message="old leases are left")
        await store.put("k", b"v")
        await eventually(lambda: lease_count(store) == 0, within=1, message="the last lease is left")
        assert await store.exists("k")


async def test_concurrent_puts_keep_the_key_that_won() -> None:
    async with FaultyStore() as store:
        await asyncio.gather(*(store.put("k", b"%d" % n, ttl=5) for n in range(20)))
        await eventually(lambda: lease_count(store) == 1, within=1, message="leases are left")
        assert await store.exists("k")


async def test_a_lease_longer_than_the_ttl_is_revoked_on_time() -> None:
    async with FaultyStore() as store:
        store.driver.lease_excess = 100
        loop = asyncio.get_running_loop()
        await store.put("k", b"v", ttl=0.2)
        written = loop.time()
        async with store.watch("k") as watch:
            async for pair in watch:
                if pair is None:
                    break
        assert loop.time() >= written + 0.2
        assert lease_count(store) == 0


async def test_a_lost_lease_is_replaced_and_its_keys_come_back() -> None:
    async with FaultyStore() as store:
        for key in ("a", "b", "taken", "deleted", "permanent"):
            await store.put(key, key.encode(), ttl=0.3, keep_alive=True)
        await store.delete("deleted")
        await store.put("permanent", b"mine")
        await lose(store, 0)
        await store.put("taken", b"by another")
        await eventually(lambda: store.exists("b"), within=2, message="the keys do not come back")
        assert [pair.value for pair in await store.list("")] == [b"a", b"b", b"mine", b"by another"]


async def test_a_key_deleted_after_its_lease_was_lost_does_not_come_back() -> None:
    async with FaultyStore() as store:
        for key in ("below/a", "below/b", "deleted", "marker"):
            await store.put(key, b"", ttl=0.3, keep_alive=True)
        await lose(store, 0)
        with pytest.raises(KeyNotFoundError):
            await store.delete("deleted")
        with pytest.raises(KeyNotFoundError):
            await store.delete_tree("below")
        await eventually(lambda: store.exists("marker"), within=2, message="the keys do not come back")
        assert [pair.key for pair in await store.list("")] == ["marker"]


async def test_another_stores_value_is_never_replaced() -> None:
    async with FaultyStore(["shared"]) as store, FaultyStore(["shared"]) as other:
        await store.put("k", b"mine", ttl=0.3, keep_alive=True)
        await store.put("marker", b"", ttl=0.3, keep_alive=True)
        await lose(store, 0)
        await other.put("k", b"theirs")
        await eventually(lambda: store.exists("marker"), within=2, message="the keys do not come back")
        assert (await other.get("k")).value == b"theirs"
    async with FaultyStore(["shared"]) as store, FaultyStore(["shared"]) as other:
        await store.put("k", b"mine", ttl=0.3, keep_alive=True)
        await other.put("k", b"theirs")
        await store.close()
        assert (await other.get("k")).value == b"theirs"


@pytest.mark.parametrize("fault", ["unsent", "lost request", "lost answer"])
async def test_creating_again_survives_faults(fault: str) -> None:
    async with FaultyStore() as store:
        await store.put("k", b"v", ttl=0.3, keep_alive=True)
        store.faults["put"].append(fault)
        store.faults["grant"].append("unsent")
        await lose(store, 0)
        await eventually(lambda: store.calls.count("put") == 3, within=2, message="it is not tried again")
        await eventually(lambda: store.exists("k"), within=2, message="the key does not come back")
        await lose(store, -1)
        await eventually(lambda: store.exists("k"), within=2, message="the key does not come back again")


@pytest.mark.parametrize("call", ["grant", "put"])
@pytest.mark.parametrize("error", [AccessDeniedError, StoreError])
async def test_creating_again_outlasts_what_a_server_refuses_for_a_time(call: str, error: type[StoreError]) -> None:
    async with FaultyStore() as store:
        for key in ("a", "b"):
            await store.put(key, b"v", ttl=0.3, keep_alive=True)
        store.faults[call].extend([error(), error()])
        await lose(store, 0)
        await eventually(lambda: store.exists("a"), within=3, message="the first key does not come back")
        await eventually(lambda: store.exists("b"), within=3, message="the second key does not come back")


async def test_a_key_that_cannot_be_created_again_keeps_no_other_away() -> None:
    async with FaultyStore() as store:
        for key in ("a", "b"):
            await store.put(key, b"v", ttl=0.3, keep_alive=True)
        store.faults["put"].append(StoreError("refused"))
        store.faults["put"].extend(["", *(StoreError("refused") for _ in range(50))])
        await lose(store, 0)
        await eventually(lambda: store.exists("b"), within=2, message="the second key does not come back")
        # It is tried again once in a while.
        await asyncio.sleep(0.3)
        assert len(store.faults["put"]) > 40


async def test_a_key_whose_lease_was_lost_before_its_put_was_answered_comes_back() -> None:
    async with FaultyStore() as store:
        put = store.driver.put

        async def put_late(*args: Any, **kwargs: Any) -> int:
            index = await put(*args, **kwargs)
            store.driver.put = put  # type: ignore[method-assign]
            await lose(store, 0)
            await eventually(lambda: lease_count(store) == 1, within=2, message="the lease is not replaced")
            for _ in range(20):  # what was under the old one is under the new one by then
                await asyncio.sleep(0)
            return index

        store.driver.put = put_late  # type: ignore[method-assign]
        await store.put("k", b"v", ttl=0.3, keep_alive=True)
        await eventually(lambda: store.exists("k"), within=2, message="the key does not come back")


async def test_what_came_back_though_it_was_deleted_is_taken_back() -> None:
    async with FaultyStore() as store:
        put = store.driver.put

        async def put_late(*args: Any, **kwargs: Any) -> int:
            store.driver.put = put  # type: ignore[method-assign]
            with pytest.raises(KeyNotFoundError):
                await store.delete("k")
            store.faults["delete"].append("lost request")
            return await put(*args, **kwargs)

        await store.put("k", b"v", ttl=0.3, keep_alive=True)
        store.driver.put = put_late  # type: ignore[method-assign]
        await lose(store, 0)
        await eventually(lambda: store.calls.count("delete") == 3, within=2, message="it is not taken back")
        assert not await store.exists("k")


async def test_a_put_under_a_lost_lease_gets_a_new_one() -> None:
    async with FaultyStore() as store:
        await store.put("a", b"v", ttl=30, keep_alive=True)
        await lose(store, 0)
        await store.put("b", b"v", ttl=30, keep_alive=True)
        assert await store.exists("b")
        await eventually(lambda: store.exists("a"), within=1, message="the first key does not come back")
        assert store.calls.count("grant") == 2


@pytest.mark.parametrize("keep_alive", [False, True])
async def test_a_lease_that_is_lost_before_it_is_granted(*, keep_alive: bool) -> None:
    async with FaultyStore() as store:
        store.faults["grant"].extend(["lease lost"] * 2)
        await store.put("k", b"v", ttl=30, keep_alive=keep_alive)
        assert store.calls.count("grant") == 3
        assert lease_count(store) == 1


async def test_renewal_goes_on_after_an_outage() -> None:
    async with FaultyStore() as store:
        await store.put("k", b"v", ttl=0.6, keep_alive=True)
        store.faults["renew"].extend(["unsent"] * 4)
        await eventually(lambda: store.calls.count("renew") >= 6, within=3, message="renewal stopped")
        assert store.calls.count("grant") == 1
        assert await store.exists("k")


async def test_close_removes_what_was_kept_alive() -> None:
    async with FaultyStore(["shared"]) as other:
        async with FaultyStore(["shared"]) as store:
            await store.put("kept", b"v", keep_alive=True)
            await store.put("plain", b"v", ttl=60)
        assert [pair.key for pair in await other.list("")] == ["plain"]


async def test_answers_that_come_in_another_order_leave_the_key_that_was_written_last() -> None:
    class Late(FaultyDriver):
        answered = asyncio.Event()

        async def put(self, call: Call, path: str, value: bytes, **conditions: Any) -> int:
            index = await super().put(call, path, value, **conditions)
            if value == b"first":
                await self.answered.wait()
            return index

    async with FaultyStore(driver=Late) as store:
        first = asyncio.create_task(store.put("k", b"first", ttl=60))
        await eventually(lambda: store.exists("k"), within=2, message="it is written")
        await store.put("k", b"second", ttl=60)
        Late.answered.set()
        await first
        await eventually(lambda: lease_count(store) == 1, within=2, message="a lease is left")
        assert (await store.get("k")).value == b"second"


async def test_a_key_deleted_without_an_answer_does_not_come_back() -> None:
    async with FaultyStore() as store:
        for key in ("k", "marker"):
            await store.put(key, b"", ttl=0.3, keep_alive=True)
        store.faults["delete"].append("lost answer")
        with pytest.raises(NotReachableError):
            await store.delete("k")
        await lose(store, 0)
        await eventually(lambda: store.exists("marker"), within=2, message="the keys do not come back")
        assert not await store.exists("k")


async def test_a_refused_write_leaves_a_key_kept_alive() -> None:
    async with FaultyStore() as store:
        pair = await store.put("k", b"v", ttl=0.3, keep_alive=True)
        for write in (
            store.atomic_put("k", b"w", None),
            store.atomic_delete("k", replace(pair, last_index=pair.last_index + 1)),
            store.commit(Put("k", b"w"), Check("missing")),
        ):
            with pytest.raises((KeyExistsError, KeyModifiedError, KeyNotFoundError)):
                await write
        await lose(store, 0)
        await eventually(lambda: store.exists("k"), within=2, message="the key does not come back")


async def test_what_a_commit_only_checks_is_kept_alive() -> None:
    async with FaultyStore() as store:
        await store.put("k", b"v", ttl=0.3, keep_alive=True)
        await store.commit(Check("k"), Put("other", b""))
        await lose(store, 0)
        await eventually(lambda: store.exists("k"), within=2, message="the key does not come back")


async def test_a_deleted_tree_ends_no_lifetime_beside_it() -> None:
    async with FaultyStore() as store:
        keys = ["dir", "dir-x", "dir/a", "dir/b/c", "dir0", "dirs/a"]
        for key in keys:
            await store.put(key, b"", ttl=0.3, keep_alive=True)
        assert await store.delete_tree("dir") == 2
        await lose(store, 0)
        await eventually(lambda: store.exists("dirs/a"), within=2, message="the keys do not come back")
        await eventually(lambda: store.exists("dir"), within=2, message="the keys do not come back")
        assert await store.keys("") == ["dir", "dir-x", "dir0", "dirs/a"]


@pytest.mark.parametrize("value", [b"mine", b"theirs"])
async def test_a_value_of_others_is_theirs_though_it_is_found_in_place_of_ones_own(value: bytes) -> None:
    """One that is equal, and one that came though one's own may have been written."""
    async with FaultyStore(["shared"]) as store, FaultyStore(["shared"]) as other:
        for key in ("k", "marker"):
            await store.put(key, b"mine", ttl=0.3, keep_alive=True)
        if value == b"theirs":
            store.faults["put"].append("lost request")
        await lose(store, 0)
        await other.put("k", value)

        def is_settled() -> bool:
            return list(store._lifetimes._records) == ["marker"] and lease_count(store) == 1

        await eventually(is_settled, within=3, message="they do not come back")
        await eventually(lambda: store.exists("marker"), within=3, message="they do not come back")
        await other.delete("k")
        await lose(store, -1)
        await eventually(lambda: store.exists("marker"), within=3, message="they do not come back again")
        assert not await store.exists("k")


async def test_a_lease_that_may_not_be_revoked_is_revoked_later() -> None:
    async with FaultyStore() as store:
        await store.put("k", b"v", ttl=60)
        store.faults["revoke"].extend([AccessDeniedError()] * 2)
        await store.put("k", b"v")
        await eventually(lambda: lease_count(store) == 0, within=3, message="it is not tried again")
        assert store.calls.count("revoke") == 3


class Brief(MemoryDriver):
    """Knows no ttl above 10 s."""

    longest_ttl = 10.0


async def test_a_ttl_above_the_servers_maximum_is_refused() -> None:
    async with Store(Brief()) as store:
        for refused in (
            store.put("k", b"", ttl=10.1),
            store.put("k", b"", ttl=10.1, keep_alive=True),
            store.atomic_put("k", b"", None, ttl=11),
        ):
            with pytest.raises(ValueError, match=r"memory: a ttl is at most 10 s, not 1"):
                await refused
        with pytest.raises(ValueError, match=r"memory: a ttl is at most 10 s, not 15"):
            store.new_lock("k", ttl=15)
        # Fifteen seconds, where that can be.
        await store.put("k", b"", keep_alive=True)
        assert store._lifetimes._records["k"].lease.ttl == 10
        await store.put("l", b"", ttl=10)


async def test_what_a_commit_writes_is_not_kept_alive_any_more() -> None:
    async with FaultyStore() as store:
        for key in ("deleted", "marker", "put"):
            await store.put(key, b"1", ttl=0.3, keep_alive=True)
        await store.commit(Put("put", b"2"), Delete("deleted"))
        await lose(store, 0)
        await eventually(lambda: store.exists("marker"), within=3, message="the keys do not come back")
        assert {pair.key: pair.value for pair in await store.list("")} == {"marker": b"1", "put": b"2"}
