"""Stores in another process, used like those of this one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from aiolibkv import KVPair, Snapshot, Watch
from aiolibkv.backends.sqlite import SqliteStore
from aiolibkv.keys import normalize_directory, normalize_key
from sqlite.workers import Worker, open_sqlite


class Remote:
    """The other process, as this one sees it; for one event loop at a time."""

    def __init__(self, database: Path) -> None:
        self._worker = Worker(serve, database)
        self._numbers = count()
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._stores = 0

    def attach(self) -> None:
        """Take answers in this event loop, as long as one of its stores is open."""
        if not self._stores:
            asyncio.get_running_loop().add_reader(self._worker.fileno(), self._read)
        self._stores += 1

    def detach(self) -> None:
        self._stores -= 1
        if not self._stores:
            asyncio.get_running_loop().remove_reader(self._worker.fileno())

    def request(self, *call: object) -> tuple[int, asyncio.Future[Any]]:
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        self._worker.send((number, *call))
        return number, self._answers[number]

    async def ask(self, *call: object) -> Any:
        number, answer = self.request(*call)
        try:
            return await answer
        except asyncio.CancelledError:
            self._worker.send((number, "cancel"))
            raise

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
                answer.exception()  # nobody may ask for the end of a watch that was released


class RemoteStore:
    """A store in the other process."""

    capabilities = SqliteStore.capabilities

    def __init__(self, remote: Remote, settings: dict[str, Any]) -> None:
        self._remote = remote
        self._settings = settings
        self._number = -1

    async def __aenter__(self) -> Self:
        self._remote.attach()
        self._number = await self._remote.ask("open", self._settings)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        if self._number >= 0:
            number, self._number = self._number, -1
            await self._remote.ask("close", number)
            self._remote.detach()

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        """Give a method that is called over there."""

        async def call(*arguments: object, **how: Any) -> Any:
            return await self._remote.ask("call", self._number, name, arguments, how)

        return call

    def watch(self, key: str) -> Watch[KVPair | None]:
        return RemoteWatch(self._remote, self._number, "watch", normalize_key(key))

    def watch_tree(self, directory: str) -> Watch[Snapshot]:
        return RemoteWatch(self._remote, self._number, "watch_tree", normalize_directory(directory))


class RemoteWatch:
    """A watch in the other process."""

    is_stale = False

    def __init__(self, remote: Remote, store: int, name: str, key: str) -> None:
        self._remote = remote
        self._of = (store, name, key)
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


class _Server:
    """The stores and watches of this process that the other one uses."""

    def __init__(self, pipe: Connection, path: Path) -> None:
        self._pipe = pipe
        self._path = path
        self._numbers = count()
        self._things: dict[int, Any] = {}
        self._running: dict[int, asyncio.Task[None]] = {}

    def read(self) -> None:
        while self._pipe.poll():
            request, *call = self._pipe.recv()
            if call == ["cancel"]:
                if request in self._running:
                    self._running[request].cancel()
            else:
                self._running[request] = asyncio.get_running_loop().create_task(self._answer(request, *call))

    async def _answer(self, request: int, kind: str, *details: Any) -> None:
        try:
            self._pipe.send((request, await getattr(self, kind)(*details), None))
        except asyncio.CancelledError:
            self._pipe.send((request, None, None))
        except Exception as error:  # noqa: BLE001 - it is raised over there
            self._pipe.send((request, None, error))
        finally:
            del self._running[request]

    async def open(self, settings: dict[str, Any]) -> int:
        return self._keep(await open_sqlite(self._path, **settings).__aenter__())

    async def watch(self, store: int, name: str, key: str) -> int:
        return self._keep(await getattr(self._things[store], name)(key).__aenter__())

    async def call(self, store: int, name: str, arguments: Sequence[Any], how: dict[str, Any]) -> object:
        return await getattr(self._things[store], name)(*arguments, **how)

    async def next(self, watch: int) -> object:
        return await anext(self._things[watch])

    async def close(self, store: int) -> None:
        await self._things.pop(store).close()

    async def release(self, watch: int) -> None:
        await self._things.pop(watch).aclose()

    def _keep(self, thing: object) -> int:
        number = next(self._numbers)
        self._things[number] = thing
        return number


async def serve(pipe: Connection, store: SqliteStore) -> None:
    """Do what is asked, until killed."""
    server = _Server(pipe, Path(store.endpoints[0]))
    asyncio.get_running_loop().add_reader(pipe.fileno(), server.read)
    await asyncio.Event().wait()
