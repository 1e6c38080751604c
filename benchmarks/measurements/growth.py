"""What operations cost this library among few and among many of their kind: microseconds of CPU for each."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median
from typing import Any, TypeVar

from measurements.base import Bench, Figures, Measurement, spending

SIZES = (10, 100, 1_000, 10_000)
_REPEATED = 50
_AT_ONCE = 50
_WRITTEN_AT_ONCE = 20
"""Operations of a commit that every backend takes."""
_TTL = 300.0
"""Seconds; long, so that no renewal is counted among other operations where the server allows it."""
_FEW = 100
"""Up to that many are measured several times."""
_PAUSE = 0.2
_PAUSES = 50
"""How often it is looked whether a process is idle, in seconds, and how many times at most."""
T = TypeVar("T")


class _Growth:
    """A store, and what its operations have cost.

    Attributes:
        store: an AsyncStore.
        root: a directory that is nobody else's.
        value: what is written.
        figures: what was measured.
    """

    def __init__(self, store: Any, root: str, value: bytes) -> None:
        self.store = store
        self.root = root
        self.value = value
        self.figures: Figures = {}

    @contextmanager
    def cost(self, name: str, of: int) -> Iterator[None]:
        """Divide what a block costs by the number of its operations."""
        with spending() as spent:
            yield
        self.figures[name] = spent.cpu / of * 1e6

    async def settle(self) -> None:
        """Wait until what was begun is done, as the process being idle tells."""
        for _ in range(_PAUSES):
            with spending() as spent:
                await asyncio.sleep(_PAUSE)
            if spent.cpu < _PAUSE / 10:
                break

    async def elsewhere(self) -> None:
        """Measure puts of a key that has nothing to do with the others."""
        await self.store.put(f"{self.root}-elsewhere/key", self.value)
        with self.cost("put elsewhere", of=_REPEATED):
            for _ in range(_REPEATED):
                await self.store.put(f"{self.root}-elsewhere/key", self.value)

    async def fill(self, count: int) -> list[str]:
        """Write so many keys below the root."""
        from aiolibkv import Put

        keys = [f"{self.root}/{number:05}" for number in range(count)]
        batches = [keys[start : start + _WRITTEN_AT_ONCE] for start in range(0, count, _WRITTEN_AT_ONCE)]
        await _all(batches, lambda batch: self.store.commit(*(Put(key, self.value) for key in batch)))
        return keys


async def _all(things: list[T], work: Callable[[T], Awaitable[object]]) -> None:
    """Do something with all things, some at once."""
    remaining = iter(things)

    async def worker() -> None:
        for thing in remaining:
            await work(thing)

    await asyncio.gather(*(worker() for _ in range(_AT_ONCE)))


async def _keys(growth: _Growth, count: int) -> None:
    store, keys = growth.store, await growth.fill(count)
    some = [keys[number * 37 % count] for number in range(_REPEATED)]
    with growth.cost("get", of=_REPEATED):
        for key in some:
            await store.get(key)
    with growth.cost("put", of=_REPEATED):
        for key in some:
            await store.put(key, growth.value)
    times = max(1, 1_000 // count)
    with growth.cost("list, for each pair", of=times * count):
        for _ in range(times):
            assert len(await store.list(growth.root)) == count
    async with store.watch_tree(growth.root) as watch:
        snapshot = await anext(watch)
        with growth.cost("put, and a watched tree tells it", of=_REPEATED):
            for key in some:
                pair = await store.put(key, growth.value)
                while snapshot[key].last_index < pair.last_index:
                    snapshot = await anext(watch)
    with growth.cost("delete_tree, for each key", of=count):
        await store.delete_tree(growth.root)


async def _watches(growth: _Growth, count: int) -> None:
    watches = [growth.store.watch(f"{growth.root}/{number}") for number in range(count)]
    with growth.cost("open", of=count):
        await _all(watches, anext)
    await growth.elsewhere()
    some = range(min(count, _REPEATED))
    with growth.cost("put, and its watch tells it", of=len(some)):
        for number in some:
            await growth.store.put(f"{growth.root}/{number}", growth.value)
            while await anext(watches[number]) is None:
                pass
    with growth.cost("close", of=count):
        await _all(watches, lambda watch: watch.aclose())


async def _watches_of_one_key(growth: _Growth, count: int) -> None:
    watches = [growth.store.watch(growth.root) for _ in range(count)]
    with growth.cost("open", of=count):
        await _all(watches, anext)
    with growth.cost("a change, for each watch", of=count):
        await growth.store.put(growth.root, growth.value)
        await _all(watches, anext)
    with growth.cost("close", of=count):
        await _all(watches, lambda watch: watch.aclose())


async def _kept_alive(growth: _Growth, count: int) -> None:
    keys = [f"{growth.root}/{number}" for number in range(count)]
    with growth.cost("put", of=count):
        await _all(keys, lambda key: growth.store.put(key, growth.value, ttl=_TTL, keep_alive=True))
    await growth.elsewhere()
    with growth.cost("delete", of=count):
        await _all(keys, growth.store.delete)


async def _registrations(growth: _Growth, count: int) -> None:
    from aiolibkv import Discovery

    discovery = Discovery(growth.store, growth.root)
    registrations = [discovery.register("web", f"10.0.0.1:{number}", ttl=_TTL) for number in range(count)]
    with growth.cost("register", of=count):
        await _all(registrations, lambda registration: registration.__aenter__())
        await growth.settle()
    await growth.elsewhere()
    with growth.cost("instances, for each", of=count):
        assert len(await discovery.instances("web")) == count
    with growth.cost("leave", of=count):
        await _all(registrations, lambda registration: registration.__aexit__(None, None, None))


async def _locks(growth: _Growth, count: int) -> None:
    locks = [growth.store.new_lock(f"{growth.root}/{number}", ttl=_TTL) for number in range(count)]
    with growth.cost("acquire", of=count):
        await _all(locks, lambda lock: lock.acquire())
        await growth.settle()
    await growth.elsewhere()
    with growth.cost("release", of=count):
        await _all(locks, lambda lock: lock.release())


async def _measure(measure: Callable[[_Growth, int], Awaitable[None]], bench: Bench, count: int, _: float) -> Figures:
    """Connect, measure a few first without counting, so that what is made once does not count, and then so many.

    Among few, several times, since one is too short to be exact. Python's garbage collection is off: it looks at all
    objects of a process, so it costs more where there are many, of whatever kind they are.
    """
    gc.disable()
    await bench.subject.connect()
    store, root = bench.subject.store, f"{bench.root}/{measure.__name__[1:]}"
    await measure(_Growth(store, f"{root}-warm-up", bench.value), SIZES[0])
    times = [_Growth(store, f"{root}-{count}-{time}", bench.value) for time in range(1 if count > _FEW else 3)]
    for growth in times:
        await measure(growth, count)
    return {name: median(growth.figures[name] for growth in times) for name in times[0].figures}


GROWTH = [
    Measurement(name, "store", unit, SIZES, partial(_measure, measure), is_fresh=True, most_rounds=1)
    for name, unit, measure in (
        ("keys", "key", _keys),
        ("watches", "watch", _watches),
        ("watches of one key", "watch", _watches_of_one_key),
        ("kept-alive keys", "key", _kept_alive),
        ("registrations", "registration", _registrations),
        ("locks", "lock", _locks),
    )
]
