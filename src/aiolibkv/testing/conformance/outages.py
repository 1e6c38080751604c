"""Stores that are cut off from their server for a while."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import datetime

import pytest

from aiolibkv import (
    AsyncStore,
    Candidate,
    Discovery,
    HeldLock,
    NotReachableError,
    PeriodicJob,
    RequestTimeoutError,
    Semaphore,
    StoreClosedError,
)
from aiolibkv.events import Connected, Disconnected, Event, WatchResumed, WatchStale
from aiolibkv.testing.conformance.closing import CALLS
from aiolibkv.testing.conformance.suite import CutOff, Stores, Suite, follow, next_of
from aiolibkv.testing.scale import eventually, scaled

_Steps = AsyncIterator[None]
_Waits = Callable[[AsyncStore], _Steps]
"""Three steps: what is done while all is well, what waits when the store is cut off, and how that ends well."""

_TOLD_AFTER = 1.5
"""Seconds in place of five, and longer than what begins again and again waits each time."""

_READS = ("get", "get inconsistently", "exists", "list", "get_many", "keys", "children", "scan", "entering")

_waiting: ContextVar[str] = ContextVar("waiting", default="")
"""What waits in this context, by name."""


async def _a_watch(store: AsyncStore) -> _Steps:
    async with store.watch("after") as watch:
        assert await next_of(watch) is None
        yield
        yield
        await follow(watch, lambda pair: pair is not None, within=30)


async def _a_watch_that_begins(store: AsyncStore) -> _Steps:
    yield
    async with store.watch_tree("") as watch:
        first = asyncio.ensure_future(anext(watch))
        yield
        await asyncio.wait_for(first, scaled(30))


async def _a_lock(store: AsyncStore) -> _Steps:
    yield
    acquiring = asyncio.ensure_future(store.new_lock("lock/free").acquire())
    yield
    assert (await asyncio.wait_for(acquiring, scaled(30))).is_held


async def _a_lock_behind_another(store: AsyncStore) -> _Steps:
    acquiring = asyncio.ensure_future(store.new_lock("lock/taken").acquire())
    await asyncio.wait({acquiring}, timeout=scaled(0.5))
    yield
    assert not acquiring.done()
    yield
    assert (await asyncio.wait_for(acquiring, scaled(60))).is_held


async def _a_key_kept_alive(store: AsyncStore) -> _Steps:
    await store.put("alive", b"", ttl=store.capabilities.min_ttl or 1, keep_alive=True)
    yield
    yield
    await eventually(lambda: store.exists("alive"), within=30, message="the key is created again")


async def _a_registration(store: AsyncStore) -> _Steps:
    async with Discovery(store, "services").register("web", "here", id="one"):
        yield
        yield
        await eventually(lambda: store.exists("services/web/one"), within=30, message="it is registered again")


async def _a_candidate(store: AsyncStore) -> _Steps:
    yield
    async with Candidate(store, "leader", "me").run_for_election() as election:
        assert not await anext(election)
        leading = asyncio.ensure_future(anext(election))
        yield
        assert await asyncio.wait_for(leading, scaled(30))


async def _a_semaphore(store: AsyncStore) -> _Steps:
    semaphore = Semaphore(store, "pool", permits=1)
    yield
    acquiring = asyncio.ensure_future(semaphore.acquire())
    yield
    assert (await asyncio.wait_for(acquiring, scaled(30))).is_held


async def _a_job(store: AsyncStore) -> _Steps:
    works = asyncio.Event()

    async def work(_: datetime, held: HeldLock) -> None:
        works.set()
        await held.wait_lost()

    yield
    running = asyncio.ensure_future(PeriodicJob(store, "job", every=0.1).run(work))
    yield
    await asyncio.wait_for(works.wait(), scaled(30))
    running.cancel()
    await asyncio.wait({running})


_WAITING: list[_Waits] = [
    *(_a_watch, _a_watch_that_begins, _a_lock, _a_lock_behind_another, _a_key_kept_alive, _a_registration),
    *(_a_candidate, _a_semaphore, _a_job),
]


class _Told(logging.Handler):
    """What the log is told, by what waits."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: dict[str, list[str]] = defaultdict(list)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what is about an outage."""
        text = record.getMessage()
        if "has waited" in text or "goes on" in text:
            self.lines[_waiting.get()].append(f"{record.levelname} {text}")


@contextmanager
def _listening() -> Iterator[_Told]:
    log, told = logging.getLogger("aiolibkv"), _Told()
    level = log.level
    log.addHandler(told)
    log.setLevel(logging.INFO)
    try:
        yield told
    finally:
        log.setLevel(level)
        log.removeHandler(told)


class Outages(Suite):
    """A server that is not heard for a while."""

    async def test_what_waits_is_told(
        self, stores: Stores, other: AsyncStore, cut_off: CutOff, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each by one warning with the reason, and by one line when it goes on; and it does go on."""
        monkeypatch.setattr("aiolibkv.store.outages.TOLD_AFTER", _TOLD_AFTER)
        through = stores.through(cut_off.factory)
        begun, is_cut, is_healed = asyncio.Semaphore(0), asyncio.Event(), asyncio.Event()
        taken = other.new_lock("lock/taken")
        await taken.acquire()

        async def wait(waits: _Waits) -> None:
            name = waits.__name__
            _waiting.set(name)
            prefix = "" if waits is _a_lock_behind_another else name
            async with through.make(prefix, request_timeout=scaled(1)) as store:
                steps = waits(store)
                await anext(steps)
                begun.release()
                await is_cut.wait()
                await anext(steps)
                await is_healed.wait()
                assert await anext(steps, "its end") == "its end"
                await eventually(lambda: len(told.lines[name]) > 1, within=30, message=f"{name} goes on")

        async def enter() -> None:
            _waiting.set("entering")
            begun.release()
            await is_cut.wait()
            async with through.make(connection_timeout=scaled(60)):
                pass

        names = {*(waits.__name__ for waits in _WAITING), "entering"}
        with _listening() as told:
            async with asyncio.TaskGroup() as tasks:
                for waits in _WAITING:
                    tasks.create_task(wait(waits))
                tasks.create_task(enter())
                for _ in names:
                    await begun.acquire()
                cut_off.cut()
                is_cut.set()
                try:
                    await eventually(lambda: names <= told.lines.keys(), within=30, message="all are told")
                except AssertionError:
                    assert not names - told.lines.keys(), "these waited in silence"
                finally:
                    cut_off.heal()
                once = {name: len(lines) for name, lines in told.lines.items()}
                is_healed.set()
                await taken.release()
                await asyncio.gather(*(other.put(f"{name}/after", b"") for name in names))
        assert once == dict.fromkeys(names, 1)
        for warning, *rest in told.lines.values():
            assert warning.startswith("WARNING")
            assert rest
            assert rest[-1].startswith("INFO")

    async def test_nothing_takes_longer_than_its_timeout(
        self, stores: Stores, other: AsyncStore, cut_off: CutOff
    ) -> None:
        """Calls, entering and close, at a server that is not heard; and a write says whether it may be applied."""
        await other.put("dir/key", b"")
        through = stores.through(cut_off.factory)
        store = await through.open(request_timeout=scaled(0.5))
        entering = through.make(connection_timeout=scaled(0.5))
        async with store.watch("key") as watch:
            assert await next_of(watch) is None
            cut_off.cut()
            async with asyncio.timeout(scaled(3)):
                outcomes = await asyncio.gather(
                    *(call(store) for call in CALLS.values()), entering.open(), return_exceptions=True
                )
            for name, outcome in zip((*CALLS, "entering"), outcomes, strict=True):
                assert isinstance(outcome, NotReachableError | RequestTimeoutError), name
                assert str(outcome).strip(), name
                if name in _READS:
                    assert not outcome.maybe_applied, name
            started = asyncio.get_running_loop().time()
            await store.close()
            assert asyncio.get_running_loop().time() - started < scaled(2)
            with pytest.raises(StoreClosedError):
                await next_of(watch)
        cut_off.heal()
        await other.put("after", b"")

    async def test_a_watch_is_stale_and_catches_up(self, stores: Stores, other: AsyncStore, cut_off: CutOff) -> None:
        """What came and went is one difference; nothing is lost, nothing comes twice, and a listener is told."""
        told: list[Event] = []
        kept = await other.put("dir/kept", b"1")
        gone = await other.put("dir/gone", b"1")
        through = stores.through(cut_off.factory)
        async with through.make(listener=told.append) as store, store.watch_tree("dir") as watch:
            if store.capabilities.distributed:
                assert next(event for event in told if isinstance(event, Connected)).endpoint
            assert list(await next_of(watch)) == [gone, kept]
            waiting = asyncio.ensure_future(anext(watch))
            cut_off.cut()
            await eventually(lambda: watch.is_stale, within=30, message="the watch is stale")
            changed = await other.put("dir/kept", b"2")
            await other.delete("dir/gone")
            await other.put("dir/passing", b"")
            await other.delete("dir/passing")
            new = await other.put("dir/new", b"")
            assert not waiting.done()
            cut_off.heal()
            snapshots = [await asyncio.wait_for(waiting, scaled(30))]
            if list(snapshots[-1]) != [changed, new]:
                snapshots += await follow(watch, lambda snapshot: list(snapshot) == [changed, new], within=30)
            assert not watch.is_stale
            stale, resumed = (event for event in told if isinstance(event, WatchStale | WatchResumed))
            assert isinstance(stale, WatchStale)
            assert isinstance(resumed, WatchResumed)
            assert (stale.key, resumed.key) == ("dir", "dir")
            assert stale.reason
            assert 0 < resumed.seconds < scaled(60)
            assert all(event.reason for event in told if isinstance(event, Disconnected))
            assert await store.put("after", b"") == await other.get("after")
            state = {pair.key: pair for pair in (gone, kept)}
            for snapshot in snapshots:
                assert snapshot.changes
                for change in snapshot.changes:
                    assert change.previous == state.get(change.key)
                    state[change.key] = change.pair  # type: ignore[assignment]
