"""Stores in another process, used like those of this one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from functools import partial
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiolibkv import CannotLockError, HeldLock, KVPair, Lock, LockLostError, Snapshot, Watch
from aiolibkv.backends.sqlite import SqliteDriver
from aiolibkv.keys import normalize_directory, normalize_key
from sqlite.workers import Worker, open_sqlite
from stores import SqliteStore


class Remote:
    """The other process, as this one sees it; for one event loop at a time."""

    def __init__(self, database: Path) -> None:
        self._worker = Worker(serve, database)
        self._numbers = count()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._users = 0

    def attach(self) -> None:
        """Take answers in this event loop, as long as a store is open or a call runs."""
        if not self._users:
            asyncio.get_running_loop().add_reader(self._worker.fileno(), self._read)
        self._users += 1

    async def detach(self) -> None:
        self._users -= 1
        if not self._users:
            # All that was asked of closed stores ends.
            if self._answers:
                await asyncio.wait(self._answers.values())
            asyncio.get_running_loop().remove_reader(self._worker.fileno())

    def number(self) -> int:
        """Return a number for what this process makes over there."""
        return next(self._numbers)

    def request(self, *call: object) -> tuple[int, asyncio.Future[Any]]:
        number = next(self._numbers)
        answer = asyncio.get_running_loop().create_future()
        self._worker.send((number, *call))
        self._answers[number] = answer
        return number, answer

    async def ask(self, *call: object) -> Any:
        self.attach()
        number, answer = self.request(*call)
        try:
            return await asyncio.shield(answer)
        except asyncio.CancelledError:
            self._worker.send((number, "cancel"))
            await asyncio.wait({answer})
            raise
        finally:
            await self.detach()

    def end(self) -> None:
        self._worker.end()

    def _read(self) -> None:
        while self._worker.has_sent():
            number, result, error = self._worker.take()
            answer = self._answers.pop(number)
            if answer.done():
                continue
            if error is None:
                answer.set_result(result)
            else:
                answer.set_exception(error)
                answer.exception()  # nobody may ask for the end of a watch that was released, or of a cancelled call


class RemoteStore:
    """A store in the other process."""

    capabilities = SqliteDriver.capabilities

    def __init__(self, remote: Remote, settings: dict[str, Any]) -> None:
        self._remote = remote
        self._settings = settings
        self._number = remote.number()
        self._is_open = self._is_known = False

    async def open(self) -> Self:
        if self._is_known:
            # It is open, or was: the one over there says what that means.
            await self._remote.ask("call", self._number, "open", (), {})
        self._remote.attach()
        self._is_open = self._is_known = True
        try:
            await self._remote.ask("open", self._number, self._settings)
        except BaseException:
            await self.close()
            raise
        return self

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        if self._is_open:
            self._is_open = False
            closed = self._remote.request("close", self._number)[1]
            try:
                await asyncio.shield(closed)
            finally:
                # Also when this is cancelled, the store is closed.
                await asyncio.wait({closed})
                await self._remote.detach()

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        """Give a method that is called over there."""

        async def call(*arguments: object, **how: Any) -> Any:
            if isinstance(guard := how.get("guard"), RemoteHeldLock):
                how["guard"] = guard.number
            return await self._remote.ask("call", self._number, name, arguments, how)

        return call

    def new_lock(self, key: str, **how: Any) -> Lock:
        return RemoteLock(self._remote, self._number, key, how)

    def scan(self, directory: str, *, page: int = 1000) -> RemoteWatch:
        if page < 1:
            raise ValueError("a page has at least one pair")
        return RemoteWatch(self._remote, self._number, "scan", normalize_directory(directory), page=page)

    def watch(self, key: str) -> Watch[KVPair | None]:
        return RemoteWatch(self._remote, self._number, "watch", normalize_key(key))

    def watch_tree(self, directory: str) -> Watch[Snapshot]:
        return RemoteWatch(self._remote, self._number, "watch_tree", normalize_directory(directory))


class RemoteWatch:
    """A watch or a scan in the other process."""

    is_stale = False

    def __init__(self, remote: Remote, store: int, name: str, key: str, **how: int) -> None:
        self._remote = remote
        self._of = (store, name, key, how)
        self._number: int | None = None
        self._answer: asyncio.Future[Any] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        if self._number is None:
            self._number = await self._remote.ask("watch", *self._of)
        # A cancelled wait goes on over there, and its item is the next one's.
        if self._answer is None:
            self._answer = self._remote.request("next", self._number)[1]
        answer = self._answer
        item = await asyncio.shield(answer)
        self._answer = None
        return item

    async def __aenter__(self) -> Self:
        self._number = await self._remote.ask("watch", *self._of)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        if self._number is not None:
            number, self._number = self._number, None
            await self._remote.ask("release", number)


class RemoteHeldLock:
    """An acquisition of the other process."""

    def __init__(self, remote: Remote, number: int, facts: dict[str, Any]) -> None:
        self.number = number
        self.key: str = facts["key"]
        self.value: bytes = facts["value"]
        self.fencing_token: int = facts["fencing_token"]
        self.ttl: float = facts["ttl"]
        self.freed_within: float = facts["freed_within"]
        self.lost = remote.request("call", number, "wait_lost", (), {})[1]

    @property
    def is_held(self) -> bool:
        return not self.lost.done()

    async def wait_lost(self) -> None:
        await asyncio.shield(self.lost)


class RemoteLock:
    """A lock in the other process; a body that holds it is here, and is cancelled when it is lost over there."""

    def __init__(self, remote: Remote, store: int, key: str, how: dict[str, Any]) -> None:
        self._remote = remote
        self._of = (store, remote.number(), key, how)
        self._held: RemoteHeldLock | None = None
        self._body: tuple[asyncio.Task[object], int] | None = None
        self._is_body_cancelled = False

    async def acquire(self) -> HeldLock:
        held = await self._contend("acquire")
        assert held is not None
        return held

    async def try_acquire(self) -> HeldLock | None:
        return await self._contend("try_acquire")

    async def release(self) -> None:
        if self._body is not None and self._body[0] is not asyncio.current_task():
            self._cancel_body()
        await self._remote.ask("lock", "release", *self._of)

    async def __aenter__(self) -> HeldLock:
        held = await self.acquire()
        assert self._held is not None
        task = asyncio.current_task()
        assert task is not None
        self._body = (task, task.cancelling())
        self._is_body_cancelled = False
        self._held.lost.add_done_callback(lambda _: self._cancel_body())
        return held

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._body is not None
        assert self._held is not None
        (task, cancelling), self._body = self._body, None
        lost = self._is_body_cancelled or not self._held.is_held
        ours = self._is_body_cancelled and task.uncancel() <= cancelling and kind is asyncio.CancelledError
        if not lost:
            await self.release()
        if ours or (lost and kind is None):
            raise LockLostError from error

    def _cancel_body(self) -> None:
        if self._body is not None and not self._is_body_cancelled:
            self._is_body_cancelled = True
            self._body[0].cancel()

    async def _contend(self, name: str) -> RemoteHeldLock | None:
        try:
            found = await self._remote.ask("lock", name, *self._of)
        except asyncio.CancelledError:
            # It may have been acquired over there before that was heard of.
            with suppress(CannotLockError):
                await self.release()
            raise
        self._held = None if found is None else RemoteHeldLock(self._remote, *found)
        return self._held


class _Server:
    """The stores, watches and locks of this process that the other one uses."""

    def __init__(self, pipe: Connection, path: Path) -> None:
        self._pipe = pipe
        self._path = path
        self._numbers = count(-1, -1)  # those that the other one gives are not negative
        self._things: dict[int, Any] = {}
        self._running: dict[int, asyncio.Task[object]] = {}
        self.is_alone = asyncio.Event()

    def read(self) -> None:
        while self._pipe.poll():
            try:
                request, kind, *details = self._pipe.recv()
            except EOFError:
                asyncio.get_running_loop().remove_reader(self._pipe.fileno())
                self.is_alone.set()
                return
            if kind == "cancel":
                if request in self._running:
                    # Not before the call has begun: a call that is awaited has, when it is cancelled.
                    asyncio.get_running_loop().call_soon(self._running[request].cancel)
            else:
                task = asyncio.get_running_loop().create_task(getattr(self, kind)(*details))
                self._running[request] = task
                task.add_done_callback(partial(self._answer, request))

    def _answer(self, request: int, task: asyncio.Task[object]) -> None:
        del self._running[request]
        error = None if task.cancelled() else task.exception()
        result = None if task.cancelled() or error else task.result()
        try:
            self._pipe.send((request, result, error))
        except Exception as problem:  # noqa: BLE001 - the other process waits for an answer, whatever cannot be sent
            self._pipe.send((request, None, RuntimeError(f"what came of it cannot be sent: {problem}")))

    async def open(self, store: int, settings: dict[str, Any]) -> None:
        self._things[store] = open_sqlite(self._path, **settings)
        await self._things[store].__aenter__()

    async def watch(self, store: int, name: str, key: str, how: dict[str, int]) -> int:
        return self._keep(await getattr(self._things[store], name)(key, **how).__aenter__())

    async def call(self, store: int, name: str, arguments: Sequence[Any], how: dict[str, Any]) -> object:
        if how.get("guard") is not None:
            how["guard"] = self._things[how["guard"]]
        return await getattr(self._things[store], name)(*arguments, **how)

    async def lock(self, name: str, store: int, lock: int, key: str, how: dict[str, Any]) -> object:
        if lock not in self._things:
            self._things[lock] = self._things[store].new_lock(key, **how)
        held: HeldLock | None = await getattr(self._things[lock], name)()
        if held is None:
            return None
        facts = ("key", "value", "fencing_token", "ttl", "freed_within")
        return self._keep(held), {fact: getattr(held, fact) for fact in facts}

    async def next(self, watch: int) -> object:
        return await anext(self._things[watch])

    async def close(self, store: int) -> None:
        await self._things[store].close()

    async def release(self, watch: int) -> None:
        await self._things.pop(watch).aclose()

    def _keep(self, thing: object) -> int:
        number = next(self._numbers)
        self._things[number] = thing
        return number


async def serve(pipe: Connection, store: SqliteStore) -> None:
    """Do what is asked, until killed, or left alone by a process that was."""
    server = _Server(pipe, Path(store.driver.endpoints[0]))
    asyncio.get_running_loop().add_reader(pipe.fileno(), server.read)
    await server.is_alone.wait()
