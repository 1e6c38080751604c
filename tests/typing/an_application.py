"""An application around a store, as users write one; mypy and pyright check it, nothing runs it."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from functools import partial
from typing import Generic, Protocol, Self, TypeVar, assert_type

from aiolibkv import (
    AsyncStore,
    Candidate,
    Capabilities,
    Config,
    Delete,
    Discovery,
    Election,
    HeldLock,
    KeyModifiedError,
    KVPair,
    Lock,
    LockLostError,
    Mirror,
    NotReachableError,
    PeriodicJob,
    Put,
    Registration,
    RequestTimeoutError,
    Scan,
    Semaphore,
    Snapshot,
    StoreError,
    Watch,
    open_store,
    register_backend,
)
from aiolibkv.events import CallEnded, Disconnected, Event, LeaseLost, LockAcquired, LockLost, WatchStale

T = TypeVar("T")


@asynccontextmanager
async def lifespan(_: object) -> AsyncGenerator[dict[str, AsyncStore], None]:
    """What web frameworks enter when they start, and leave when they end."""
    async with open_store("memory://") as store:
        yield {"store": store}


class App(Generic[T]):
    """A web framework, as far as types matter."""

    def __init__(self, lifespan: Callable[[App[T]], AbstractAsyncContextManager[Mapping[str, T]]]) -> None:
        self.lifespan = lifespan


assert_type(App(lifespan), App[AsyncStore])


@dataclasses.dataclass(slots=True)
class Service:
    """What an application keeps, opened and closed as a whole."""

    store: AsyncStore
    settings: Mirror
    config: Config = dataclasses.field(default_factory=Config)
    registration: Registration | None = None
    tasks: set[asyncio.Task[None]] = dataclasses.field(default_factory=set[asyncio.Task[None]])
    _stack: AsyncExitStack = dataclasses.field(default_factory=AsyncExitStack)

    async def __aenter__(self) -> Self:
        assert_type(await self._stack.enter_async_context(self.settings), Mirror)
        register = Discovery(self.store, "services").register("web", "10.0.0.1:80")
        self.registration = await self._stack.enter_async_context(register)
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._stack.aclose()

    def limit(self, default: int = 5) -> int:
        pair = self.settings.get("config/limit")
        return default if pair is None else int(pair.value)


class Codec(Protocol[T]):
    """What turns values into bytes, and back."""

    def encode(self, value: T, /) -> bytes: ...
    def decode(self, data: bytes, /) -> T: ...


class Cell(Generic[T]):
    """A value of some type at a key, changed by compare-and-swap."""

    def __init__(self, store: AsyncStore, key: str, codec: Codec[T]) -> None:
        self._store = store
        self._key = key
        self._codec = codec

    async def read(self) -> tuple[T, KVPair]:
        pair = await self._store.get(self._key)
        return self._codec.decode(pair.value), pair

    async def change(self, fn: Callable[[T], T]) -> T:
        while True:
            value, previous = await self.read()
            try:
                pair = await self._store.atomic_put(self._key, self._codec.encode(fn(value)), previous)
            except KeyModifiedError:
                continue
            return self._codec.decode(pair.value)

    async def follow(self) -> AsyncIterator[T | None]:
        async with self._store.watch(self._key) as watch:
            async for pair in watch:
                yield None if pair is None else self._codec.decode(pair.value)


class Numbers:
    """A codec of whole numbers."""

    def encode(self, value: int, /) -> bytes:
        return b"%d" % value

    def decode(self, data: bytes, /) -> int:
        return int(data)


async def cells(store: AsyncStore) -> None:
    visits = Cell(store, "visits", Numbers())
    assert_type(await visits.change(lambda number: number + 1), int)
    async for number in visits.follow():
        assert_type(number, int | None)


def under_lock(
    store: AsyncStore, key: str
) -> Callable[[Callable[[HeldLock], Awaitable[T]]], Callable[[], Awaitable[T]]]:
    """Make a decorator: what it decorates runs while a lock is held."""

    def decorate(work: Callable[[HeldLock], Awaitable[T]]) -> Callable[[], Awaitable[T]]:
        async def run() -> T:
            async with store.new_lock(key) as held:
                return await work(held)

        return run

    return decorate


async def guarded(store: AsyncStore, lock: Lock) -> str | None:
    @under_lock(store, "locks/report")
    async def report(held: HeldLock) -> int:
        return held.fencing_token

    assert_type(await report(), int)
    try:
        async with asyncio.timeout(10), lock as held:
            assert_type(held.freed_within, float)
            await asyncio.to_thread(crunch, held)
    except LockLostError as error:
        return error.key
    except TimeoutError:
        return None
    else:
        return "done"


def crunch(held: HeldLock) -> bool:
    return held.is_held


class Counting(Candidate):
    """A candidate of one's own."""

    terms = 0

    async def work(self, held: HeldLock, *, store: AsyncStore) -> str:
        self.terms += 1
        await store.put("leader/terms", str(self.terms).encode(), guard=held)
        return "done"


async def leading(store: AsyncStore) -> None:
    candidate = Counting(store, "leader", "node-1", ttl=10)
    assert_type(await candidate.run(partial(candidate.work, store=store)), str)
    async with candidate.lead() as held:
        assert_type(held, HeldLock)
    async with candidate.run_for_election() as election:
        assert_type(election, Election)
        assert_type(await anext(election), bool)


def next_slot(after: datetime) -> datetime:
    return after + timedelta(days=1)


async def jobs(store: AsyncStore) -> None:
    async def job(slot: datetime, held: HeldLock) -> None:
        await store.put(f"reports/{slot:%F}", b"", guard=held)

    async with asyncio.TaskGroup() as group:
        group.create_task(PeriodicJob(store, "jobs/nightly", every=next_slot).run(job))
        for _ in range(3):
            group.create_task(pooled(Semaphore(store, "pool", permits=2)))


async def pooled(semaphore: Semaphore) -> None:
    held = await semaphore.try_acquire()
    assert_type(held, HeldLock | None)
    if held is not None:
        await semaphore.release()


@dataclasses.dataclass
class Metrics:
    """A listener that is an object."""

    seconds: dict[str, float] = dataclasses.field(default_factory=dict[str, float])

    def __call__(self, event: Event) -> None:
        match event:
            case CallEnded(call=call, seconds=seconds):
                self.seconds[call] = seconds
            case LockLost(key=key, reason=reason) | WatchStale(key=key, reason=reason):
                assert_type(key, str)
                assert_type(reason, str)
            case LockAcquired(fencing_token=token):
                assert_type(token, int)
            case LeaseLost() | Disconnected():
                assert_type(event.backend, str)
            case _:
                pass


async def observed(metrics: Metrics) -> None:
    async with open_store("memory://", Config(listener=metrics)) as store:
        assert_type(store.capabilities, Capabilities)
        assert_type(store.capabilities.ttl_overshoot(15), float)


async def difference(store: AsyncStore) -> Mapping[str, bytes | None]:
    snapshots: Watch[Snapshot] = store.watch_tree("config")
    async with snapshots:
        snapshot = await asyncio.wait_for(anext(snapshots), 5)
    assert_type(snapshot[0], KVPair)
    assert_type(snapshot[:2], Sequence[KVPair])
    return {change.key: change.pair.value if change.pair else None for change in snapshot.changes}


async def move(store: AsyncStore, source: str, target: str) -> bool:
    pair = await store.get(source)
    operations: list[Put | Delete] = [Put(target, pair.value, previous=None), Delete(source, previous=pair)]
    try:
        written = await store.commit(*operations)
    except (NotReachableError, RequestTimeoutError) as error:
        return not error.maybe_applied
    except StoreError as error:
        assert_type(error.backend, str | None)
        return False
    return written[0] is not None


async def total(scan: Scan) -> int:
    async with scan:
        return sum([len(pair.value) async for pair in scan])


def shared_memory(endpoints: Sequence[str], config: Config) -> AsyncStore:
    return open_store(f"memory://{''.join(endpoints)}", config)


register_backend("shared", shared_memory)
