"""What is ZooKeeper's own of commits: trees that change, races, lost answers, round trips."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Awaitable, Callable

import pytest

from aiolibkv import (
    ANY,
    AsyncStore,
    CallNotSupportedError,
    Check,
    Delete,
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    KVPair,
    NotReachableError,
    Put,
    StoreError,
)
from aiolibkv.backends.zookeeper.committing import Committer
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.servers import ZooKeeperServer
from aiolibkv.types import Operation
from zookeeper.conftest import MakeStore, make_store
from zookeeper.test_implicit_parents import nodes_below

_KEYS = ["a", "a/b", "a/b/c", "a/b/d", "a/e", "f/g/h", "f", "g"]
_TRANSACTION = struct.pack("!i", 14)


def _operation(chance: random.Random, key: str, known: KVPair | None) -> Operation:
    match chance.choice(["put", "create", "swap", "delete", "remove", "there", "missing", "same"]):
        case "put":
            return Put(key, chance.randbytes(2))
        case "create":
            return Put(key, b"created", previous=None)
        case "swap" if known is not None:
            return Put(key, b"swapped", previous=known)
        case "delete":
            return Delete(key)
        case "remove" if known is not None:
            return Delete(key, previous=known)
        case "there":
            return Check(key)
        case "same" if known is not None:
            return Check(key, previous=known)
        case _:
            return Check(key, previous=None)


def _is_possible(operation: Operation, there: KVPair | None) -> bool:
    if operation.previous is None:
        return there is None
    if isinstance(operation.previous, KVPair):
        return there == operation.previous
    return there is not None or isinstance(operation, Put)


@pytest.mark.asyncio
@pytest.mark.parametrize("seed", range(3))
async def test_random_commits(make: MakeStore, prefix: str, seed: int) -> None:
    """They do what a dictionary would, and leave no directory."""
    chance = random.Random(seed)
    async with make() as store:
        model: dict[str, KVPair] = {}
        stale: dict[str, KVPair] = {}
        for _ in range(150):
            keys = chance.sample(_KEYS, chance.randint(1, 4))
            operations = [_operation(chance, key, chance.choice([model, stale]).get(key)) for key in keys]
            possible = all(_is_possible(each, model.get(each.key)) for each in operations)
            try:
                pairs = await store.commit(*operations)
            except (KeyExistsError, KeyModifiedError, KeyNotFoundError) as error:
                assert not possible
                refused = next(each for each in operations if each.key == error.key)
                assert not _is_possible(refused, model.get(refused.key))
            else:
                assert possible
                stale |= model
                for each, pair in zip(operations, pairs, strict=True):
                    if pair is not None:
                        model[each.key] = pair
                    elif isinstance(each, Delete):
                        del model[each.key]
            assert {pair.key: pair for pair in await store.list("")} == model
        if model:
            await store.commit(*(Delete(key) for key in model))
        assert not await nodes_below(store, prefix)


@pytest.mark.asyncio
async def test_commits_at_once_lose_nothing(make: MakeStore, prefix: str) -> None:
    """Each moves a unit between keys that come and go with their directories."""
    names = [f"dir/{letter}/{number}" for letter in "abc" for number in "12"]
    async with make() as store, make() as other:
        await store.put(names[0], b"6")

        async def move(which: AsyncStore, seed: int) -> None:
            chance = random.Random(seed)
            done = 0
            while done < 6:
                source, target = chance.sample(names, 2)
                found = await which.get_many([source, target])
                if source not in found:
                    continue
                left, there = int(found[source].value) - 1, found.get(target)
                take = Put(source, b"%d" % left, previous=found[source]) if left else Delete(source, found[source])
                give = Put(target, b"%d" % (int(there.value) + 1 if there else 1), previous=there)
                try:
                    await which.commit(take, give)
                    done += 1
                except (KeyModifiedError, KeyExistsError, KeyNotFoundError):
                    continue

        await asyncio.gather(*(move((store, other)[seed % 2], seed) for seed in range(6)))
        listed = await store.list("dir")
        assert sum(int(pair.value) for pair in listed) == 6
        assert await store.delete_tree("dir") == len(listed)
        assert not await nodes_below(store, prefix)


Write = Callable[[AsyncStore], Awaitable[object]]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("operation", "write", "error"),
    [
        (Check("dir/none/key", previous=None), lambda other: other.put("dir/none/key", b""), KeyExistsError),
        (Check("none", previous=None), lambda other: other.put("none", b""), KeyExistsError),
        (Check("dir", previous=None), lambda other: other.put("dir", b""), KeyExistsError),
        (Check("dir/key"), lambda other: other.delete("dir/key"), KeyNotFoundError),
        (Put("new/key", b"", previous=None), lambda other: other.put("new/key", b""), KeyExistsError),
        (Delete("dir/key"), lambda other: other.delete("dir/key"), KeyNotFoundError),
    ],
    ids=["below nothing", "nothing", "a directory", "a key", "a new key", "a deletion"],
)
async def test_a_condition_that_ends_after_it_was_read(
    make: MakeStore, monkeypatch: pytest.MonkeyPatch, operation: Operation, write: Write, error: type[StoreError]
) -> None:
    require = Committer._require
    async with make() as store, make() as other:
        await store.put("dir/key", b"")
        await store.put("dir/other", b"")
        writes = [write]

        async def interfere(self: Committer, *args: object) -> None:
            await require(self, *args)  # type: ignore[arg-type]
            while writes:
                await writes.pop()(other)

        monkeypatch.setattr(Committer, "_require", interfere)
        with pytest.raises(error) as caught:
            await store.commit(operation, Put("written", b""))
        assert caught.value.key == operation.key
        assert not caught.value.maybe_applied
        assert not await other.exists("written")


@pytest.mark.asyncio
async def test_a_lost_answer_of_a_commit(server: ZooKeeperServer, make: MakeStore, prefix: str) -> None:
    async with (
        FaultProxy(server.host, server.port, protocol="zookeeper") as proxy,
        make_store([proxy.endpoint], prefix=prefix) as store,
        make() as other,
    ):
        proxy.cut_answers(matching=lambda request: request[4:8] == _TRANSACTION)
        with pytest.raises(NotReachableError) as caught:
            await store.commit(Put("a", b"1"), Put("b", b"1"))
        assert caught.value.maybe_applied
        assert [pair.value for pair in await other.list("")] == [b"1", b"1"]


@pytest.mark.asyncio
async def test_what_commits_and_reads_of_several_keys_cost(server: ZooKeeperServer, prefix: str) -> None:
    async with (
        FaultProxy(server.host, server.port, protocol="zookeeper") as proxy,
        make_store([proxy.endpoint], prefix=prefix) as store,
    ):
        pairs = await store.commit(*(Put(f"dir/{number:03}", b"") for number in range(100)))
        one = pairs[0]
        assert one is not None
        calls: list[tuple[int, Callable[[], Awaitable[object]]]] = [
            (2, lambda: store.commit(Put("dir/000", b"1", previous=one), Delete("dir/001"), Check("dir/002"))),
            (2, lambda: store.commit(Put("other/key", b"1"), Check("none/key", previous=None))),
            (1, lambda: store.get_many([f"dir/{number:03}" for number in range(100)])),
            (2, lambda: store.children("dir")),
            (2, lambda: store.keys("dir")),
        ]
        for expected, call in calls:
            with proxy.counting() as counts:
                await call()
            assert counts.round_trips == expected
        async with store.new_lock("dir/lock"):
            pass
        lock = store.new_lock("dir/lock")
        for step in (lock.acquire, lock.release):
            with proxy.counting() as counts:
                await step()
            assert counts.round_trips == 1


@pytest.mark.asyncio
async def test_directories_that_a_request_has_no_room_for(make: MakeStore) -> None:
    async with make() as store:
        puts = [Put(f"{number}/" + "/".join("d" * 200), b"") for number in range(6)]
        await store.commit(*puts)
        assert sorted(await store.keys("")) == sorted(put.key for put in puts)
        await store.commit(*(Delete(put.key) for put in puts))
        assert await store.keys("") == []


@pytest.mark.asyncio
async def test_nothing_is_put_below_what_lives_with_a_session(make: MakeStore) -> None:
    async with make() as store, make() as other:
        await other.put("alive", b"", keep_alive=True)
        with pytest.raises(CallNotSupportedError):
            await store.commit(Put("alive/key", b""), Put("key", b""))
        assert await store.keys("") == ["alive"]
        assert await store.commit(Check("alive/key", previous=None), Check("alive", previous=ANY)) == [None, None]
        # Written by a commit, it stays.
        await store.commit(Put("alive", b"1"), Put("alive/key", b""))
        await other.close()
        assert await store.keys("") == ["alive", "alive/key"]
