"""Several keys in one transaction, and locks that are released in one."""

import pytest

from aiolibkv import (
    Check,
    Delete,
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    KVPair,
    LockLostError,
    NotReachableError,
    Put,
    StoreError,
)
from aiolibkv.store import LeaseLostError, Lifetime, OwnCall, Removal, Write
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.servers import ConsulServer
from consul.conftest import Make
from stores import ConsulStore

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]


async def test_each_step_and_its_failure(direct: ConsulStore) -> None:
    one, two, three = [await direct.put(key, b"") for key in ("one", "two", "three")]
    stale = await direct.put("stale", b"")
    current = await direct.put("stale", b"")
    failures: dict[str, tuple[Put | Delete | Check, type[StoreError]]] = {
        "one": (Put("one", b"", previous=None), KeyExistsError),
        "stale": (Put("stale", b"", previous=stale), KeyModifiedError),
        "none/put": (Put("none/put", b"", previous=KVPair("none/put", b"", 5)), KeyModifiedError),
        "none/delete": (Delete("none/delete"), KeyNotFoundError),
        "none/swap": (Delete("none/swap", previous=KVPair("none/swap", b"", 5)), KeyNotFoundError),
        "two": (Delete("two", previous=KVPair("two", b"", 5)), KeyModifiedError),
        "three": (Check("three", previous=None), KeyExistsError),
        "none/check": (Check("none/check"), KeyNotFoundError),
        "none/same": (Check("none/same", previous=KVPair("none/same", b"", 5)), KeyModifiedError),
    }
    before = await direct.list("")
    for key, (failing, expected) in failures.items():
        with pytest.raises(expected) as caught:
            await direct.commit(Put("new", b"1"), failing, Put("stays", b"1"))
        assert caught.value.key == key
        assert not caught.value.maybe_applied
        assert await direct.list("") == before
    new, swapped, created, deleted, _, unchecked = await direct.commit(
        Put("new", b"1"),
        Put("one", b"1", previous=one),
        Put("created", b"1", previous=None),
        Delete("two", previous=two),
        Check("three", previous=three),
        Check("none", previous=None),
    )
    assert deleted is None
    assert unchecked is None
    assert await direct.list("") == [created, new, swapped, current, three]
    with pytest.raises(KeyModifiedError):
        await direct.atomic_put("one", b"", one)
    assert await direct.commit(Check("three"), Check("none", previous=None)) == [None, None]
    with pytest.raises(KeyNotFoundError):
        await direct.commit(Check("none"))


async def test_a_commit_under_a_guard(direct: ConsulStore, server: ConsulServer, prefix: str) -> None:
    """It is in one transaction, and the guard comes first."""
    held = await direct.new_lock("lock").acquire()
    (pair,) = await direct.commit(Put("key", b"1"), guard=held)
    await server.api("PUT", f"/v1/kv/{prefix}/lock", "foreign")
    with pytest.raises(LockLostError):
        await direct.commit(Put("key", b"2", previous=None), Delete("missing"), guard=held)
    assert await direct.get("key") == pair


async def test_a_commit_is_one_round_trip(proxied: ConsulStore, proxy: FaultProxy) -> None:
    await proxied.get_many(["warm"])
    with proxy.counting() as counts:
        await proxied.commit(*(Put(f"{number}", b"") for number in range(21)))
    assert (counts.requests, counts.round_trips) == (1, 1)


async def test_the_largest_commits(direct: ConsulStore, make: Make, server: ConsulServer) -> None:
    """As many steps and bytes as the capabilities say, whatever they consist of; with a guard."""
    most, room = direct.capabilities.max_operations, direct.capabilities.max_commit_bytes
    assert most >= 20
    assert room >= 256 * 1024
    long = "/".join(["p" * 100] * 5)
    async with make(server.endpoint, prefix=long) as store, store.new_lock("lock") as held:
        keys = [f"keys/{number:02}".ljust(512, '"') for number in range(most)]
        previous = await store.commit(*(Put(key, b"") for key in keys))
        value = bytes((room - most * (len(long) + 513)) // most)
        for _ in range(2):
            steps = [Put(key, value, previous=pair) for key, pair in zip(keys, previous, strict=True) if pair]
            previous = await store.commit(*steps, guard=held)
        assert await store.get_many(keys) == dict(zip(keys, previous, strict=True))
        await store.delete_tree("keys")
    (pair,) = await direct.commit(Put("k", bytes(room - 100)))
    assert await direct.get("k") == pair


def _changes(sent: bytes) -> bool:
    return b'"Verb":"set"' in sent or b'"Verb":"delete"' in sent


async def test_a_lost_answer(proxied: ConsulStore, proxy: FaultProxy, direct: ConsulStore) -> None:
    """What was written is recognised; what is at its index still is sent again; else it is in doubt."""
    previous = await direct.put("swapped", b"")
    removed = await direct.put("removed", b"")
    assert not await proxied.exists("warm")
    proxy.cut_answers(1, matching=_changes)
    pairs = await proxied.commit(Delete("removed", previous=removed), Put("new", b"1"), Put("swapped", b"1", previous))
    assert pairs == [None, await direct.get("new"), await direct.get("swapped")]
    removed = await direct.put("removed", b"")
    proxy.cut_answers(1, matching=_changes)
    with pytest.raises(NotReachableError) as caught:
        await proxied.commit(Delete("removed", previous=removed), Check("new"))
    assert caught.value.maybe_applied
    assert not await direct.exists("removed")


@pytest.mark.parametrize("lost", [True, False])
async def test_a_lock_and_its_place_are_released_at_once(
    proxied: ConsulStore, proxy: FaultProxy, direct: ConsulStore, prefix: str, *, lost: bool
) -> None:
    driver, call = proxied.driver, OwnCall()
    lease = driver.new_lease(Lifetime(60, keep_alive=True))
    await driver.grant(call, lease)
    lock, place = f"{prefix}/lock", f"{prefix}/place"
    for with_place in (True, False):
        if with_place:
            await driver.put(call, place, b"", expected=0, lease=lease, guard=None)
        held = await driver.acquire(call, lock, b"me", lease, line=None)
        if lost:
            proxy.cut_answers(1, matching=_changes)
        with proxy.counting() as counts:
            await driver.release(OwnCall(), lock, held.last_index, place if with_place else None, lease)
        assert lost or counts.requests == 1
        proxy.cut_answers(0)
        assert await direct.get_many(["lock", "place"]) == {}
    held = await driver.acquire(call, lock, b"me", lease, line=None)
    foreign = await direct.put("lock", b"foreign")
    with pytest.raises(KeyModifiedError):
        await driver.release(OwnCall(), lock, held.last_index, None, lease)
    assert await direct.get("lock") == foreign
    with pytest.raises(KeyNotFoundError):
        await driver.release(OwnCall(), f"{prefix}/none", held.last_index, None, lease)
    await driver.revoke(call, lease)


async def test_keys_under_a_lease_that_is_gone(direct: ConsulStore, prefix: str) -> None:
    driver, call = direct.driver, OwnCall()
    lease = driver.new_lease(Lifetime(60, keep_alive=True))
    await driver.grant(call, lease)
    steps = [Write(f"{prefix}/{number}", b"") for number in range(2)]
    indexes = await driver.commit(call, steps, lease=lease)
    assert [pair.last_index for pair in await direct.list("")] == indexes
    await driver.revoke(call, lease)
    assert list(await direct.list("")) == []
    with pytest.raises(LeaseLostError):
        await driver.commit(call, steps, lease=lease)
    with pytest.raises(KeyNotFoundError):
        await driver.commit(call, [Removal(f"{prefix}/0")])
