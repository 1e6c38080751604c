"""A driver around a driver: what a store asks of it, and what the one inside tells."""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, ClassVar, TypeVar

import pytest

from aiolibkv import (
    AsyncStore,
    Check,
    Config,
    Delete,
    InvalidKeyError,
    KVPair,
    Namespace,
    PreviousNotSpecifiedError,
    Put,
    ValueTooLargeError,
)
from aiolibkv.backends.memory import MemoryDriver
from aiolibkv.events import Connected, Disconnected, Event
from aiolibkv.store import Call, Driver, Store, WrappedDriver

T = TypeVar("T")

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]


class Counted(WrappedDriver):
    """Notes what is asked for."""

    def __init__(self, inner: Driver[Any]) -> None:
        super().__init__(inner)
        self.asked: list[str] = []

    async def request(self, name: str, call: Call, work: Callable[[], Awaitable[T]]) -> T:
        self.asked.append(name)
        return await super().request(name, call, work)


class Announcing(MemoryDriver):
    """Tells of its connections, and learns what it can do when it connects, as the drivers of servers do."""

    option_names: ClassVar[frozenset[str]] = frozenset({"speed"})

    async def connect(self) -> None:
        await super().connect()
        self.capabilities = dataclasses.replace(self.capabilities, survives_failover=True)
        self.connected("there")

    async def disconnect(self) -> None:
        await super().disconnect()
        self.disconnected("there", "closed")


async def test_what_the_inner_driver_tells_and_learns() -> None:
    told: list[Event] = []
    config = Config(options={"speed": "9"}, listener=told.append)
    store = Store(Counted(Counted(Announcing(config=config))))
    async with store:
        assert store.capabilities.survives_failover
    assert told == [Connected("memory", "there"), Disconnected("memory", "there", "closed")]


Use = Callable[[AsyncStore, KVPair], Coroutine[Any, Any, object]]


async def _scan(store: AsyncStore, _: KVPair) -> None:
    async with store.scan("dir") as scan:
        assert [pair.key async for pair in scan] == ["dir/key", "dir/other"]


async def _lock_twice(store: AsyncStore, _: KVPair) -> None:
    lock = store.new_lock("lock")
    for _number in range(2):
        await lock.acquire()
        await lock.release()


async def _keep_two_alive(store: AsyncStore, _: KVPair) -> None:
    await store.put("dir/third", b"", keep_alive=True)
    await store.put("dir/fourth", b"", keep_alive=True)


_USES: dict[str, tuple[Use, list[str]]] = {
    "put": (lambda store, _: store.put("dir/key", b""), ["put"]),
    "put with a ttl": (lambda store, _: store.put("dir/key", b"", ttl=50), ["grant", "put"]),
    "two puts kept alive": (_keep_two_alive, ["grant", "put", "put"]),
    "atomic_put": (lambda store, pair: store.atomic_put("dir/key", b"", pair), ["put"]),
    "atomic_delete": (lambda store, pair: store.atomic_delete("dir/key", pair), ["delete"]),
    "delete": (lambda store, _: store.delete("dir/key"), ["delete"]),
    "delete_tree": (lambda store, _: store.delete_tree("dir"), ["delete_tree"]),
    "commit": (lambda store, _: store.commit(Put("dir/key", b""), Put("dir/new", b"")), ["commit"]),
    "get": (lambda store, _: store.get("dir/key"), ["get"]),
    "get_many": (lambda store, _: store.get_many(["dir/key", "dir/none"]), ["get_many"]),
    "get_many of nothing": (lambda store, _: store.get_many([]), []),
    "exists": (lambda store, _: store.exists("dir/key"), ["exists"]),
    "list": (lambda store, _: store.list("dir"), ["list"]),
    "keys": (lambda store, _: store.keys("dir"), ["keys"]),
    "children": (lambda store, _: store.children("dir"), ["children"]),
    "scan": (_scan, ["page"]),
    "a lock, twice": (_lock_twice, ["grant", "acquire", "release", "acquire", "release"]),
}


@pytest.mark.parametrize("name", _USES)
async def test_what_a_call_asks_of_its_driver(name: str) -> None:
    """One request for a call, one more for a lease."""
    use, expected = _USES[name]
    driver = Counted(MemoryDriver())
    async with Store(driver) as store:
        pair = await store.put("dir/key", b"")
        await store.put("dir/other", b"")
        driver.asked.clear()
        await use(store, pair)
        assert driver.asked == expected


class Noting(WrappedDriver):
    """Notes with which arguments it is asked."""

    def __init__(self, inner: Driver[Any]) -> None:
        super().__init__(inner)
        self.asked: list[tuple[Any, ...]] = []

    async def request(self, name: str, call: Call, work: Callable[[], Awaitable[T]]) -> T:
        if isinstance(work, partial) and "consistent" in work.keywords:
            self.asked.append((name, *work.args[1:], work.keywords["consistent"]))
        return await super().request(name, call, work)


@pytest.mark.parametrize("consistent", [True, False])
async def test_the_driver_is_told_whether_a_read_has_to_be_consistent(*, consistent: bool) -> None:
    """Through a namespace as well; and each key is asked for once."""
    driver = Noting(MemoryDriver())
    async with Store(driver) as store:
        await store.put("dir/key", b"")
        for part in (store, Namespace(store, "")):
            driver.asked.clear()
            await part.get("dir/key", consistent=consistent)
            await part.exists("dir/key", consistent=consistent)
            await part.get_many(["dir/key", "/dir/key/"], consistent=consistent)
            await part.list("dir", consistent=consistent)
            await part.keys("dir", consistent=consistent)
            await part.children("dir", consistent=consistent)
            assert driver.asked == [
                ("get", "dir/key", consistent),
                ("exists", "dir/key", consistent),
                ("get_many", ["dir/key"], consistent),
                *((name, "dir", consistent) for name in ("list", "keys", "children")),
            ]


@pytest.mark.parametrize("page", [1, 2, 2**31, 2**63, 10**30])
async def test_a_page_may_be_of_any_size(page: int) -> None:
    async with Store(MemoryDriver()) as store:
        pairs = [await store.put(key, b"") for key in "abc"]
        assert [pair async for pair in store.scan("", page=page)] == pairs


_LARGE = bytes(MemoryDriver.capabilities.max_value_bytes + 1)
_MANY = [Put(f"many/{number}", b"") for number in range(MemoryDriver.capabilities.max_operations + 1)]
_HEAVY = [Put(f"heavy/{number}", _LARGE[1:]) for number in range(17)]

_REFUSED: dict[str, tuple[Use, type[Exception]]] = {
    "a bad key": (lambda store, _: store.put("a//b", b""), InvalidKeyError),
    "a bad key to read": (lambda store, _: store.get(".."), InvalidKeyError),
    "a bad directory": (lambda store, _: store.delete_tree("a//b"), InvalidKeyError),
    "a large value": (lambda store, _: store.put("key", _LARGE), ValueTooLargeError),
    "a large value of a commit": (lambda store, _: store.commit(Put("key", _LARGE)), ValueTooLargeError),
    "many bytes": (lambda store, _: store.commit(*_HEAVY), ValueTooLargeError),
    "many operations": (lambda store, _: store.commit(*_MANY), ValueError),
    "no operations": (lambda store, _: store.commit(), ValueError),
    "a key twice": (lambda store, _: store.commit(Put("key", b""), Check("/key")), ValueError),
    "a str": (lambda store, _: store.put("key", "text"), TypeError),  # type: ignore[arg-type]
    "a bad ttl": (lambda store, _: store.put("key", b"", ttl=0), ValueError),
    "another key's pair": (lambda store, pair: store.atomic_put("key", b"", pair), ValueError),
    "another key's pair in a commit": (lambda store, pair: store.commit(Check("key", previous=pair)), ValueError),
    "no index": (
        lambda store, pair: store.atomic_put("dir/key", b"", dataclasses.replace(pair, last_index=0)),
        ValueError,
    ),
    "a large index": (
        lambda store, pair: store.atomic_delete("dir/key", dataclasses.replace(pair, last_index=2**63)),
        ValueError,
    ),
    "a tuple": (lambda store, _: store.atomic_put("dir/key", b"", ("dir/key", b"", 1)), TypeError),  # type: ignore[arg-type]
    "a str in a commit": (lambda store, _: store.commit(Delete("dir/key", previous="x")), TypeError),  # type: ignore[arg-type]
    "one str": (lambda store, _: store.get_many("ab"), TypeError),
    "no page": (lambda store, _: anext(store.scan("", page=0)), ValueError),
    "half a page": (lambda store, _: anext(store.scan("", page=0.5)), TypeError),  # type: ignore[arg-type]
    "a true page": (lambda store, _: anext(store.scan("", page=True)), TypeError),
    "no pair": (lambda store, _: store.atomic_delete("key", None), PreviousNotSpecifiedError),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", _REFUSED)
async def test_what_is_refused_before_anything_is_asked(name: str) -> None:
    use, error = _REFUSED[name]
    driver = Counted(MemoryDriver())
    async with Store(driver) as store:
        pair = await store.put("dir/key", b"")
        driver.asked.clear()
        with pytest.raises(error):
            await use(store, pair)
        assert driver.asked == []
