"""Everything at once, for minutes, while servers and networks fail at random; what is promised is checked all along.

The load runs in rounds. At a quiet point the faults have ended and no round is under way: there everything that is
promised to come to pass has to come to pass, and what the process occupies is compared.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from aiolibkv import (
    AsyncStore,
    Candidate,
    Discovery,
    Follower,
    HeldLock,
    KeyNotFoundError,
    KVPair,
    LockLostError,
    Registration,
    Snapshot,
    update,
)
from aiolibkv.testing.scale import eventually
from faults.failing import OUTAGE, REQUEST_TIMEOUT, Faults, Record

_LIST_LEVELS = 4
"""Each page or level of a list has the whole request_timeout."""
_PATIENCE = 60.0
"""Seconds for what has to come to pass at a quiet point, before scaling."""
_LONGEST_TURN = 20.0
_LONGEST_TTL = 3.0
_KEPT_NUMBERS = 1000
_MORE_FILES = 12
_MORE_TASKS = 12
_MORE_MEMORY = 24 * 2**20
_MORE_MEMORY_RELATIVE = 0.1


class Ledger:
    """A counter of which no update may be lost: no number is acknowledged twice."""

    def __init__(self, name: str, record: Record) -> None:
        self.acknowledged = 0
        self.in_doubt = 0
        self._name = name
        self._record = record
        self._numbers: set[int] = set()
        self._greatest = 0

    def acknowledge(self, number: int) -> None:
        if number in self._numbers or number < self._greatest - _KEPT_NUMBERS:
            self._record.violated(f"{self._name}: {number} was written twice, an update was lost")
        self.acknowledged += 1
        self._numbers.add(number)
        self._greatest = max(self._greatest, number)
        if len(self._numbers) > 2 * _KEPT_NUMBERS:
            self._numbers = {each for each in self._numbers if each > self._greatest - _KEPT_NUMBERS}

    def compare(self, number: int) -> None:
        """Compare with what the counter says when nobody writes."""
        if not max(self.acknowledged, self._greatest) <= number <= self.acknowledged + self.in_doubt:
            self._record.violated(
                f"{self._name} is {number} after {self.acknowledged} updates up to {self._greatest} "
                f"and {self.in_doubt} in doubt"
            )


@dataclass(frozen=True)
class Occupied:
    """What the process occupies.

    Attributes:
        memory: bytes in RAM.
        files: open descriptors.
        tasks: of the event loop.
    """

    memory: int
    files: int
    tasks: int

    @classmethod
    def now(cls) -> Occupied:
        gc.collect()
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return cls(pages * resource.getpagesize(), len(os.listdir("/proc/self/fd")), len(asyncio.all_tasks()))  # noqa: PTH208 -- names are enough

    def exceeds(self, before: Occupied) -> bool:
        return (
            self.memory > before.memory * (1 + _MORE_MEMORY_RELATIVE) + _MORE_MEMORY
            or self.files > before.files + _MORE_FILES
            or self.tasks > before.tasks + _MORE_TASKS
        )

    def __str__(self) -> str:
        return f"{self.memory / 2**20:.0f} MiB, {self.files} files, {self.tasks} tasks"


@dataclass
class Owner:
    """Somebody who alone writes the keys below a directory, and so knows what they are.

    Attributes:
        store: through which.
        directory: below which.
        pairs: each key and what it is; one in doubt is given up for a new one.
    """

    store: AsyncStore
    directory: str
    pairs: dict[str, KVPair | None] = field(default_factory=dict)
    _names: count[int] = field(default_factory=count)

    def new_key(self) -> None:
        self.pairs[f"{self.directory}/{next(self._names)}"] = None


class Load:
    """The rounds of all kinds of work on two stores.

    Args:
        record: where to write down what happens.
        stores: two stores of one place.
        ttl: seconds; of locks and of what is kept alive.
    """

    def __init__(self, record: Record, stores: Sequence[AsyncStore], ttl: float) -> None:
        self._record = record
        self._stores = list(stores)
        self._ttl = ttl
        self._random = Random(f"{record.seed} load")
        self._numbers = count(1)
        self._tasks: list[asyncio.Task[None]] = []
        self._may_run = asyncio.Event()
        self._running = 0
        self._stack = AsyncExitStack()
        self._owners = [Owner(store, f"keys/{number}") for number, store in enumerate(self._stores * 2)]
        self._updated = Ledger("the updated counter", record)
        self._locked = Ledger("the locked counter", record)
        self._holders: set[HeldLock] = set()
        self._token = 0
        self._unsure_alive: set[tuple[AsyncStore, str]] = set()
        self._views: list[_View] = []
        self._candidates: list[Candidate] = []
        self._follower = Follower(stores[-1], "leader")
        self._registrations: list[Registration] = []

    async def start(self) -> None:
        for number, store in enumerate(self._stores):
            for name in range(2):
                self._unsure_alive.add((store, f"alive/{number}/{name}"))
        self._alive = sorted(self._unsure_alive, key=lambda each: each[1])
        for owner in self._owners:
            for _ in range(4):
                owner.new_key()
            self._repeat("owner", partial(self._own, owner))
        for store in self._stores * 2:
            self._repeat("update", partial(self._update, store))
            self._repeat("lock", partial(self._lock, store))
        for store in self._stores:
            self._repeat("ttl", partial(self._expire, store))
            self._repeat("discovery", partial(self._discover, store))
            self._views += [_View(self._record, store, directory) for directory in ("", "keys")]
            registration = Discovery(store, "services").register("web", "127.0.0.1:80", ttl=self._ttl)
            self._registrations.append(await self._stack.enter_async_context(registration))
        self._repeat("keep_alive", self._keep_alive)
        for number, store in enumerate([*self._stores, self._stores[0]]):
            candidate = Candidate(store, "leader", f"node-{number}", ttl=self._ttl)
            self._candidates.append(candidate)
            self._start(self._campaign(candidate))
        self._start(self._follow())
        self._start(self._look_at_leaders())
        self._repeat("resign", self._resign)
        self._repeat("unregister", self._unregister)
        self._may_run.set()

    async def be_quiet(self) -> None:
        """Let no round run, and check what then has to be."""
        self._may_run.clear()
        await eventually(lambda: not self._running, within=_PATIENCE, message="the rounds end")
        for owner in self._owners:
            await self._check_owner(owner)
        await self._check_counters()
        await self._check_lifetimes()
        await self._check_coordination()
        for view in self._views:
            await self._comes_to_pass("a watch shows what a list does", view.is_current)
        self._record.check()

    def go_on(self) -> None:
        self._may_run.set()

    async def stop(self) -> None:
        """End everything, at a quiet point, and remove the keys."""
        await self.abandon()
        await eventually(self._can_be_emptied, within=_PATIENCE, message="nothing comes back")

    async def abandon(self) -> None:
        """End everything, whatever state it is in."""
        for task in self._tasks:
            task.cancel()
        for view in self._views:
            await view.close()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for candidate in self._candidates:
            await candidate.stop()
        await self._stack.aclose()

    async def _can_be_emptied(self) -> bool:
        await self._stores[0].delete_tree("")
        return not await self._stores[-1].list("")

    # -- rounds ------------------------------------------------------------------------------------------------------

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.get_running_loop().create_task(self._report(work)))

    async def _report(self, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception:  # noqa: BLE001 -- it is a violation, whatever it is
            self._record.violated(traceback.format_exc())

    def _repeat(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        self._start(self._rounds(name, work))

    async def _rounds(self, name: str, work: Callable[[], Awaitable[None]]) -> None:
        while not self._record.violations:
            await self._may_run.wait()
            self._running += 1
            try:
                await work()
            except (*OUTAGE, LockLostError):
                self._record.calls[f"a round of {name} cut short"] += 1
            finally:
                self._running -= 1
            await asyncio.sleep(self._random.uniform(0.0, 0.1))

    async def _own(self, owner: Owner) -> None:
        """Do something with one's own keys; the outcome is known exactly, unless an answer is in doubt."""
        key = self._random.choice(sorted(owner.pairs))
        action = self._random.choice((self._write, self._write, self._read, self._delete, self._list, self._look))
        try:
            await action(owner, key)
        except OUTAGE as error:
            if error.maybe_applied:
                del owner.pairs[key]
                owner.new_key()
            raise

    async def _write(self, owner: Owner, key: str) -> None:
        value, before = b"%d" % next(self._numbers), owner.pairs[key]
        if self._random.random() < 0.5:
            pair = await self._record.call("put", owner.store.put(key, value))
        else:
            pair = await self._record.call("atomic_put", owner.store.atomic_put(key, value, before))
        if before is not None and pair.last_index <= before.last_index:
            self._record.violated(f"the index of {key} went from {before.last_index} to {pair.last_index}")
        owner.pairs[key] = pair

    async def _read(self, owner: Owner, key: str) -> None:
        self._compare("get", owner, key, await self._found(owner, key))

    async def _found(self, owner: Owner, key: str) -> KVPair | None:
        try:
            return await self._record.call("get", owner.store.get(key), expected=(KeyNotFoundError,))
        except KeyNotFoundError:
            return None

    async def _delete(self, owner: Owner, key: str) -> None:
        pair = owner.pairs[key]
        if pair is not None and self._random.random() < 0.5:
            await self._record.call("atomic_delete", owner.store.atomic_delete(key, pair))
        else:
            expected = (KeyNotFoundError,) if pair is None else ()
            try:
                await self._record.call("delete", owner.store.delete(key), expected=expected)
            except KeyNotFoundError:
                return
        owner.pairs[key] = None

    async def _list(self, owner: Owner, _: str) -> None:
        for key, pair in (await self._listed(owner)).items():
            self._compare("list", owner, key, pair)

    async def _listed(self, owner: Owner) -> dict[str, KVPair | None]:
        call = owner.store.list(owner.directory)
        limit = REQUEST_TIMEOUT * _LIST_LEVELS
        try:
            pairs = await self._record.call("list", call, expected=(KeyNotFoundError,), limit=limit)
        except KeyNotFoundError:
            pairs = []
        found = {pair.key: pair for pair in pairs}
        return {key: found.get(key) for key in owner.pairs}

    async def _look(self, owner: Owner, key: str) -> None:
        """Begin to watch, wait for as long as it takes, or give up soon."""
        try:
            async with owner.store.watch(key) as watch, asyncio.timeout(self._random.uniform(0.0, 4.0)):
                self._compare("watch", owner, key, await anext(watch))
        except TimeoutError:
            return

    def _compare(self, what: str, owner: Owner, key: str, found: KVPair | None) -> None:
        if found != owner.pairs[key]:
            self._record.violated(f"{what} shows {found!r} ({found and found.value!r}), not {owner.pairs[key]!r}")

    async def _update(self, store: AsyncStore) -> None:
        try:
            updating = update(store, "updated", lambda value: b"%d" % (int(value or b"0") + 1))
            pair = await self._record.call("update", updating, limit=None)
        except OUTAGE as error:
            self._updated.in_doubt += error.maybe_applied
            raise
        self._updated.acknowledge(int(pair.value))

    async def _lock(self, store: AsyncStore) -> None:
        lock = store.new_lock("lock", ttl=self._ttl)
        began = self._token
        try:
            async with asyncio.timeout(self._random.uniform(0.0, 10.0)):
                held = await self._record.call("acquire", lock.acquire(), limit=None)
        except TimeoutError:
            return
        if held.fencing_token <= began:
            self._record.violated(f"the fencing token went from {began} to {held.fencing_token}")
        self._token = max(self._token, held.fencing_token)
        if any(other.is_held for other in self._holders) and held.is_held:
            self._record.violated("the lock has two holders")
        self._holders.add(held)
        try:
            await self._count(store, held)
        finally:
            self._holders.discard(held)
            await self._record.call("release", lock.release())

    async def _count(self, store: AsyncStore, held: HeldLock) -> None:
        try:
            pair = await self._record.call("get", store.get("locked"), expected=(KeyNotFoundError,))
            number = int(pair.value) + 1
        except KeyNotFoundError:
            number = 1
        await asyncio.sleep(self._random.uniform(0.0, 0.02))
        writing = store.put("locked", b"%d" % number, guard=held)
        try:
            await self._record.call("guarded put", writing, expected=(LockLostError,))
        except (*OUTAGE, LockLostError) as error:
            self._locked.in_doubt += error.maybe_applied
            raise
        self._locked.acknowledge(number)

    async def _expire(self, store: AsyncStore) -> None:
        key, ttl = f"expiring/{next(self._numbers)}", self._random.uniform(0.3, _LONGEST_TTL)
        until = time.monotonic() + ttl
        pair = await self._record.call("put with ttl", store.put(key, b"", ttl=ttl))
        await asyncio.sleep(self._random.uniform(0.0, ttl / 2))
        try:
            found = await self._record.call("get", store.get(key), expected=(KeyNotFoundError,))
        except KeyNotFoundError:
            if time.monotonic() < until and store.capabilities.ttl_survives_client:
                self._record.violated(f"{key} was gone before its ttl of {ttl:.2f} s")
        else:
            if found != pair:
                self._record.violated(f"{key} is {found!r}, not {pair!r}")

    async def _keep_alive(self) -> None:
        store, key = self._random.choice(self._alive)
        self._unsure_alive.add((store, key))
        await self._record.call("put with keep_alive", store.put(key, b"1", ttl=self._ttl, keep_alive=True))
        self._unsure_alive.discard((store, key))
        await asyncio.sleep(self._random.uniform(0.0, 2.0))

    async def _discover(self, store: AsyncStore) -> None:
        discovery = Discovery(store, "services")
        async with discovery.register("web", "127.0.0.1:81", ttl=self._ttl) as registration:
            await asyncio.sleep(self._random.uniform(0.0, 3.0))
            limit = REQUEST_TIMEOUT * _LIST_LEVELS
            found = await self._record.call("instances", discovery.instances("web"), limit=limit)
            self._record.calls["an instance that is not there yet"] += registration.instance not in found

    async def _unregister(self) -> None:
        """Delete what somebody else has registered, who will register it again."""
        await asyncio.sleep(self._random.uniform(0.0, 3.0))
        registration = self._random.choice(self._registrations)
        store = self._random.choice(self._stores)
        try:
            await self._record.call("delete", store.delete(registration.key), expected=(KeyNotFoundError,))
        except KeyNotFoundError:
            return

    async def _resign(self) -> None:
        await asyncio.sleep(self._random.uniform(0.0, 5.0))
        await self._random.choice(self._candidates).resign()

    async def _campaign(self, candidate: Candidate) -> None:
        async for _ in candidate.run_for_election():
            self._record.calls["elected or not any more"] += 1

    async def _follow(self) -> None:
        async with self._follower.follow_election() as leaders:
            async for _ in leaders:
                self._record.calls["leaders seen"] += 1

    async def _look_at_leaders(self) -> None:
        while True:
            leaders = [candidate.node for candidate in self._candidates if candidate.is_leader]
            if len(leaders) > 1:
                self._record.violated(f"there are two leaders, {leaders}")
                return
            await asyncio.sleep(0.02)

    # -- quiet points ------------------------------------------------------------------------------------------------

    async def _check_owner(self, owner: Owner) -> None:
        for key, pair in (await self._listed(owner)).items():
            self._compare("list", owner, key, pair)
        try:
            # Those in doubt among them: begin again with new ones.
            await self._record.call(
                "delete_tree", owner.store.delete_tree(owner.directory), expected=(KeyNotFoundError,)
            )
        except KeyNotFoundError:
            pass
        owner.pairs.clear()
        for _ in range(4):
            owner.new_key()

    async def _check_counters(self) -> None:
        for ledger, key in ((self._updated, "updated"), (self._locked, "locked")):
            for store in self._stores:
                try:
                    number = int((await self._record.call("get", store.get(key), expected=(KeyNotFoundError,))).value)
                except KeyNotFoundError:
                    number = 0
                ledger.compare(number)

    async def _check_lifetimes(self) -> None:
        for store, key in tuple(self._unsure_alive):
            await self._record.call("put with keep_alive", store.put(key, b"1", ttl=self._ttl, keep_alive=True))
        self._unsure_alive.clear()
        for store, key in self._alive:
            await self._comes_to_pass(f"{key} is alive", partial(store.exists, key))
        await self._comes_to_pass("keys with a ttl are gone", partial(self._has_none, "expiring"))

    async def _has_none(self, directory: str) -> bool:
        try:
            return not await self._stores[0].list(directory)
        except KeyNotFoundError:
            return True

    async def _check_coordination(self) -> None:
        await self._comes_to_pass("one candidate leads, and the follower knows it", self._is_led)
        for store in self._stores:
            await self._comes_to_pass("those are registered who have not left", partial(self._are_registered, store))

    async def _comes_to_pass(self, promise: str, condition: Callable[[], object | Awaitable[object]]) -> None:
        try:
            await eventually(condition, within=_PATIENCE, message=promise)
        except AssertionError:
            for pair in await self._stores[0].list(""):
                self._record.say(repr(pair))
            self._record.violated(f"not at a quiet point: {promise}")

    def _is_led(self) -> bool:
        return [each.node for each in self._candidates if each.is_leader] == [self._follower.leader]

    async def _are_registered(self, store: AsyncStore) -> bool:
        found = {each.id for each in await Discovery(store, "services").instances("web")}
        return found == {each.instance.id for each in self._registrations}


class _View:
    """What a watch of a tree shows, and a check of each snapshot."""

    def __init__(self, record: Record, store: AsyncStore, directory: str) -> None:
        self._record = record
        self._store = store
        self._directory = directory
        self._watch = store.watch_tree(directory)
        self._latest = Snapshot()
        self._task = asyncio.get_running_loop().create_task(self._follow())

    async def close(self) -> None:
        await self._watch.aclose()
        await asyncio.wait({self._task})

    async def _follow(self) -> None:
        pairs: dict[str, KVPair] = {}
        index = 0
        async for snapshot in self._watch:
            self._record.calls["snapshots"] += 1
            for change in snapshot.changes:
                if change.previous != pairs.pop(change.key, None) or change.previous == change.pair:
                    self._record.violated(f"a watch shows a change that is none, {change!r}")
                if change.pair is not None:
                    pairs[change.key] = change.pair
            if list(snapshot) != [pairs[key] for key in sorted(pairs)]:
                self._record.violated("the changes of a watch do not make its snapshot")
            if snapshot.last_index < index:
                self._record.violated(f"the index of a watch went from {index} to {snapshot.last_index}")
            index = snapshot.last_index
            self._latest = snapshot

    async def is_current(self) -> bool:
        if self._task.done():
            self._task.result()
            raise AssertionError("a watch ended")
        try:
            return self._latest == list(await self._store.list(self._directory))
        except KeyNotFoundError:
            return not self._latest


async def soak(record: Record, faults: Faults, stores: Sequence[AsyncStore], *, seconds: float, ttl: float) -> None:
    """Keep two stores busy while things fail, with quiet points in between.

    Args:
        record: of what happens; what breaks a promise is raised from it.
        faults: what fails.
        stores: two stores of one place, not entered.
        seconds: how long; the last quiet point comes on top.
        ttl: seconds; of locks and of what is kept alive.
    """
    before = Occupied.now()
    async with AsyncExitStack() as stack:
        for store in stores:
            await stack.enter_async_context(store)
        load = Load(record, stores, ttl)
        stack.push_async_callback(load.abandon)
        await load.start()
        await _take_turns(record, faults, load, seconds)
        await load.stop()
    record.check()
    await eventually(partial(_nothing_is_left, faults), within=_PATIENCE, message="the servers have nothing left")
    await eventually(partial(_is_flat, before), within=_PATIENCE, message=f"no more is occupied than {before}")


async def _take_turns(record: Record, faults: Faults, load: Load, seconds: float) -> None:
    began = time.monotonic()
    warm: Occupied | None = None
    while True:
        quiet = min(time.monotonic() + min(_LONGEST_TURN, seconds / 4), began + seconds)
        while time.monotonic() < quiet and not record.violations:
            await faults.happen()
        await faults.heal()
        record.check()
        await load.be_quiet()
        occupied = Occupied.now()
        record.say(f"quiet after {faults.number} faults and {record.calls.total()} calls: {occupied}")
        if warm is None and time.monotonic() - began > seconds / 4:
            warm = occupied
        if time.monotonic() - began >= seconds:
            break
        load.go_on()
    assert warm is not None, "it took some time"
    await eventually(
        partial(_is_flat, warm), within=_PATIENCE, message=f"no more is occupied than {warm} after a while"
    )


async def _nothing_is_left(faults: Faults) -> bool:
    return not await faults.leftovers()


def _is_flat(before: Occupied) -> bool:
    return not Occupied.now().exceeds(before)
