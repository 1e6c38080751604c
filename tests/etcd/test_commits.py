"""Transactions of several steps, as etcd carries them out."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from aiolibkv import KeyExistsError, KeyModifiedError, KeyNotFoundError, LockLostError, StoreError
from aiolibkv.backends.etcd import EtcdDriver
from aiolibkv.backends.etcd.driver import EtcdLease
from aiolibkv.store import Condition, Guard, LeaseLostError, Lifetime, OwnCall, Removal, Step, Write
from aiolibkv.testing.servers import EtcdServer

pytestmark = [pytest.mark.asyncio(loop_scope="function"), pytest.mark.leaves_nothing_behind]

LONGEST_KEY = "k" * 508


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[EtcdServer]:
    async with EtcdServer() as running:
        yield running


@pytest_asyncio.fixture
async def driver(server: EtcdServer) -> AsyncIterator[EtcdDriver]:
    made = EtcdDriver([server.endpoint])
    await made.connect()
    try:
        yield made
        await made.delete_tree(OwnCall(), "", guard=None)
    finally:
        await made.disconnect()


async def put(driver: EtcdDriver, path: str) -> int:
    return await driver.put(OwnCall(), path, b"", expected=None, lease=None, guard=None)


async def test_all_steps_are_carried_out_at_one_index(driver: EtcdDriver) -> None:
    old, gone, checked = await put(driver, "old"), await put(driver, "gone"), await put(driver, "checked")
    steps: list[Step] = [
        Write("new", b"1", 0),
        Condition("checked", checked),
        Removal("gone", gone),
        Write("old", b"2", old),
    ]
    first, *others = await driver.commit(OwnCall(), steps)
    assert first > checked
    assert others == [0, 0, first]
    pairs = (await driver.list(OwnCall(), "", consistent=True)).pairs
    assert [(pair.key, pair.value) for pair in pairs] == [("checked", b""), ("new", b"1"), ("old", b"2")]


@pytest.mark.parametrize(
    ("step", "error"),
    [
        (Write("key", b"", 0), KeyExistsError),
        (Write("key", b"", 1), KeyModifiedError),
        (Write("none", b"", 1), KeyModifiedError),
        (Removal("none"), KeyNotFoundError),
        (Removal("none", 1), KeyNotFoundError),
        (Removal("key", 1), KeyModifiedError),
        (Condition("none"), KeyNotFoundError),
        (Condition("none", 1), KeyModifiedError),
        (Condition("key", 0), KeyExistsError),
        (Condition("key", 1), KeyModifiedError),
    ],
)
async def test_one_condition_that_does_not_hold(driver: EtcdDriver, step: Step, error: type[StoreError]) -> None:
    await put(driver, "key")
    call = OwnCall()
    with pytest.raises(error) as caught:
        await driver.commit(call, [Write("other", b""), step, Condition("key")])
    assert caught.value.key == step.path  # type: ignore[attr-defined,unused-ignore]
    assert not call.maybe_applied
    assert await driver.get(OwnCall(), "other", consistent=True) is None


async def test_a_guard_comes_before_other_conditions(driver: EtcdDriver) -> None:
    token = await put(driver, "lock")
    with pytest.raises(LockLostError):
        await driver.commit(OwnCall(), [Removal("none")], guard=Guard("lock", token + 1))
    with pytest.raises(KeyNotFoundError):
        await driver.commit(OwnCall(), [Removal("none")], guard=Guard("lock", token))
    assert await driver.commit(OwnCall(), [Write("lock", b"", token)], guard=Guard("lock", token))


async def test_as_much_as_may_be_in_one(driver: EtcdDriver) -> None:
    """The most steps, and the longest keys, each with a condition, with a guard, and as many bytes as are promised."""
    token = await put(driver, "lock")
    number = driver.capabilities.max_operations
    size = driver.capabilities.max_commit_bytes // number - len(LONGEST_KEY) - 4
    steps = [Write(f"{LONGEST_KEY}{step:04}", bytes(size), 0) for step in range(number)]
    indexes = await driver.commit(OwnCall(), steps, guard=Guard("lock", token))
    assert len(set(indexes)) == 1
    assert len((await driver.list(OwnCall(), "", consistent=True)).pairs) == number + 1
    await driver.commit(OwnCall(), [Write("large", bytes(driver.capabilities.max_value_bytes), 0)])


async def granted(driver: EtcdDriver) -> EtcdLease:
    lease = driver.new_lease(Lifetime(10, keep_alive=True))
    await driver.grant(OwnCall(), lease)
    return lease


async def test_a_lock_is_not_taken_past_the_line_of_others(driver: EtcdDriver) -> None:
    lease = await granted(driver)
    await put(driver, "line/place")
    call = OwnCall()
    with pytest.raises(KeyExistsError) as caught:
        await driver.acquire(call, "lock", b"", lease, line="line")
    assert caught.value.key == "line"
    assert not call.maybe_applied
    assert (await driver.acquire(OwnCall(), "lock", b"", lease, line="lin")).token > 0
    with pytest.raises(KeyExistsError) as caught:
        await driver.acquire(OwnCall(), "lock", b"", lease, line="line")
    assert caught.value.key == "lock"
    await driver.revoke(OwnCall(), lease)
    assert (await driver.acquire(OwnCall(), "lock", b"", await granted(driver), line=None)).last_index > 0
    with pytest.raises(LeaseLostError):
        await driver.acquire(OwnCall(), "another", b"", lease, line="line/place")


async def test_what_others_call_like_the_reserved_subtree_is_spared(driver: EtcdDriver) -> None:
    for path in (".aiolibkv", ".aiolibkv/waiters", ".aiolibkv-not", ".aiolibkv!", "a", "b"):
        await put(driver, path)
    assert (await driver.delete_tree(OwnCall(), "", guard=None)).number == 4
    pairs = (await driver.list(OwnCall(), "", consistent=True)).pairs
    assert [pair.key for pair in pairs] == [".aiolibkv", ".aiolibkv/waiters"]
