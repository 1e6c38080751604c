"""What other processes do in the tests of the SQLite backend."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import queue  # noqa: F401 - loaded by asyncio when it is needed, which is too late for a process without rights
import resource
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest.mock import patch

from aiolibkv import AsyncStore, Config, KeyExistsError, KeyModifiedError, KeyNotFoundError, StoreError
from aiolibkv.backends.sqlite.files import Files
from aiolibkv.backends.sqlite.transaction import Transaction
from aiolibkv.testing.scale import scaled
from stores import SqliteStore

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["aiolibkv.backends.sqlite", "multiprocessing.connection"])


def open_sqlite(path: Path, **settings: Any) -> SqliteStore:
    return SqliteStore([str(path)], Config(**settings))


class Worker:
    """Another process."""

    def __init__(self, work: Callable[..., Coroutine[Any, Any, None]], path: Path, *arguments: object) -> None:
        """Start it; ``work`` gets a pipe, an open store, and the arguments."""
        self._pipe, theirs = _context.Pipe()
        self._process = _context.Process(target=_run, args=(work, theirs, path, arguments), daemon=True)
        self._process.start()
        theirs.close()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    async def receive(self, within: float = 20) -> Any:
        """Return what the worker sends next; EOFError when it died."""
        async with asyncio.timeout(scaled(within)):
            return await asyncio.to_thread(self._pipe.recv)

    def received(self) -> Iterator[Any]:
        """Give what is there, of a worker that has ended."""
        try:
            while self._pipe.poll():
                yield self._pipe.recv()
        except EOFError:
            return

    def fileno(self) -> int:
        return self._pipe.fileno()

    def has_sent(self) -> bool:
        return self._pipe.poll()

    def take(self) -> Any:
        return self._pipe.recv()

    def send(self, message: object) -> None:
        self._pipe.send(message)

    def kill(self) -> None:
        """Kill it with signal 9."""
        self._process.kill()

    def end(self) -> None:
        """Kill it if it still runs, and wait until it has ended."""
        self._process.kill()
        self._process.join()
        self._process.close()
        self._pipe.close()

    async def join(self, within: float = 20) -> None:
        await asyncio.to_thread(self._process.join, scaled(within))
        assert self._process.exitcode is not None, "the worker did not end"


@contextmanager
def worker(work: Callable[..., Coroutine[Any, Any, None]], path: Path, *arguments: object) -> Iterator[Worker]:
    process = Worker(work, path, *arguments)
    try:
        yield process
    finally:
        process.end()


def _run(
    work: Callable[..., Coroutine[Any, Any, None]], pipe: Connection, path: Path, arguments: tuple[object]
) -> None:
    async def run() -> None:
        async with open_sqlite(path) as store:
            await work(pipe, store, *arguments)

    asyncio.run(run())


async def write_until_killed(pipe: Connection, store: AsyncStore, name: str) -> None:
    """Write one key after the other, from several tasks, and report each that was acknowledged."""

    async def write(task: int) -> None:
        for number in range(10**9):
            pair = await store.put(f"{name}/{task}/{number % 50}", str(number).encode())
            pipe.send((pair.key, pair.value, pair.last_index))

    await asyncio.gather(*(write(task) for task in range(5)))


async def write_for_a_while(pipe: Connection, store: AsyncStore, name: str, tasks: int, seconds: float) -> None:
    """Write from many tasks and report the seconds that each write took."""
    pipe.send("ready")
    await asyncio.to_thread(pipe.recv)
    taken: list[float] = []
    end = time.monotonic() + seconds

    async def write(task: int) -> None:
        number = 0
        while time.monotonic() < end:
            began = time.monotonic()
            await store.put(f"{name}/{task}/{number % 100}", b"value")
            taken.append(time.monotonic() - began)
            number += 1

    await asyncio.gather(*(write(task) for task in range(tasks)))
    pipe.send(taken)


async def keep_alive(pipe: Connection, store: AsyncStore, keys: list[str], ttl: float) -> None:
    """Keep keys alive for ever."""
    for key in keys:
        await store.put(key, b"alive", ttl=ttl, keep_alive=True)
    pipe.send(os.getpid())
    await asyncio.Event().wait()


async def keep_alive_and_fork(pipe: Connection, store: AsyncStore, key: str) -> None:
    """Keep a key alive, and have a child that lives on."""
    await store.put(key, b"alive", keep_alive=True)
    child = os.fork()
    if not child:
        signal.pause()
    pipe.send(child)
    await asyncio.Event().wait()


async def hold(pipe: Connection, store: AsyncStore, key: str) -> None:
    """Hold a lock for ever."""
    held = await store.new_lock(key, ttl=15).acquire()
    pipe.send(held.fencing_token)
    await asyncio.Event().wait()


async def put_once(pipe: Connection, store: AsyncStore, key: str, value: bytes) -> None:
    """Put a key, report it, and end in good order."""
    pipe.send(await store.put(key, value))


async def put_and_die(pipe: Connection, store: AsyncStore, key: str, moment: str) -> None:
    """Once told, put a key, and die by signal 9 just before or just after its commit."""
    pipe.send("ready")
    await asyncio.to_thread(pipe.recv)

    def die(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with patch.object(Transaction, "commit", die) if moment == "before" else patch.object(Files, "note", die):
        await store.put(key, b"")


async def acquire_and_put(pipe: Connection, store: AsyncStore, lock: str, key: str) -> None:
    """Report when a lock was acquired, what is in the store then, and what was put under its guard."""
    held = await store.new_lock(lock).acquire()
    acquired = time.monotonic()
    pairs = list(await store.list(""))
    pipe.send((acquired, pairs, await store.put(key, b"by the other", guard=held)))
    await asyncio.to_thread(pipe.recv)


async def put_on_demand(pipe: Connection, store: AsyncStore, key: str) -> None:
    """Put the time at which it is put, whenever asked."""
    pipe.send("ready")
    while await asyncio.to_thread(pipe.recv):
        await store.put(key, repr(time.monotonic()).encode())


async def enter_as_nobody(pipe: Connection, _: AsyncStore, path: str) -> None:
    """Report how entering a store fails without rights."""
    os.setgid(65534)
    os.setuid(65534)
    pipe.send(await _failure(Path(path)))


async def enter_without_descriptors(pipe: Connection, _: AsyncStore, path: str) -> None:
    """Report how entering another store fails while descriptors are scarce, and whether it leaves any open."""
    async with open_sqlite(Path(path)):
        pass
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    before = _descriptors()
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + 50, hard))
    taken = []
    with suppress(OSError):
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    failures: list[object] = []
    while len(failures) < 20:
        os.close(taken.pop())
        failures.append(await _failure(Path(path)))
    for descriptor in taken:
        os.close(descriptor)
    pipe.send((failures, before, _descriptors(), await _failure(Path(path))))


def _descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def fork_and_use(pipe: Connection, store: SqliteStore) -> None:
    """Report how it fails in a child to use the store, to open its database again, and to open another one."""
    await store.put("key", b"")
    child = os.fork()
    if not child:
        try:
            database = Path(store.driver.endpoints[0])
            pipe.send(asyncio.run(_failure_of_get(store)))
            pipe.send(asyncio.run(_failure(database)))
            pipe.send(asyncio.run(_failure(database.with_name("another.db"))))
        finally:
            os._exit(0)
    await asyncio.to_thread(os.waitpid, child, 0)
    pipe.send(await store.put("key", b"by the parent"))
    await asyncio.to_thread(pipe.recv)


async def _failure_of_get(store: SqliteStore) -> tuple[type[StoreError] | None, str]:
    try:
        await store.get("key")
    except StoreError as error:
        return type(error), str(error)
    return None, "it was read"


async def write_beyond_a_limit(pipe: Connection, store: AsyncStore) -> None:
    """Report how a write fails whose commit the system refuses, and how one does when there is room again."""
    await store.put("key", b"before")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, hard))
    try:
        await store.put("key", bytes(1_000_000))
    except StoreError as error:
        pipe.send((type(error), str(error), error.maybe_applied))
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    pipe.send(await store.put("key", b"after"))


async def _failure(path: Path) -> tuple[type[StoreError] | None, str]:
    try:
        async with open_sqlite(path):
            pass
    except StoreError as error:
        return type(error), str(error)
    return None, "it was entered"


async def count_up(pipe: Connection, store: AsyncStore, times: int) -> None:
    """Increment a counter, also against others who do."""
    done = 0
    while done < times:
        try:
            pair = await store.get("counter")
            await store.atomic_put("counter", b"%d" % (int(pair.value) + 1), pair)
        except KeyNotFoundError:
            try:
                await store.atomic_put("counter", b"1", None)
            except KeyExistsError:
                continue
        except KeyModifiedError:
            continue
        done += 1
    pipe.send("done")


@asynccontextmanager
async def many(
    work: Callable[..., Coroutine[Any, Any, None]], path: Path, arguments: list[tuple[object, ...]]
) -> AsyncIterator[list[Worker]]:
    """Have a worker for each tuple of arguments."""
    workers = [Worker(work, path, *one) for one in arguments]
    try:
        yield workers
    finally:
        for one in workers:
            one.end()
