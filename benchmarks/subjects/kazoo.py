"""kazoo, whose results its thread brings into the event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from subjects.base import Subject, Tell


class Kazoo(Subject):
    """The client kazoo, by its calls that do not block; its locks by a thread for each."""

    name = "kazoo"
    package = "kazoo"
    note = "A library of threads, by its *_async calls; a thread for each lock. Reads without sync, so they may be old."

    async def connect(self) -> None:
        from kazoo.client import KazooClient
        from kazoo.exceptions import NoNodeError

        self._no_node = NoNodeError
        self._client = KazooClient(urlsplit(self.url).netloc)
        self._threads = self.stack.enter_context(ThreadPoolExecutor(256))
        await self._in_thread(self._client.start)
        self.stack.push_async_callback(self._in_thread, self._client.stop)

    async def put(self, key: str, value: bytes) -> None:
        try:
            await _of(self._client.set_async(f"/{key}", value))
        except self._no_node:
            await _of(self._client.create_async(f"/{key}", value, makepath=True))

    async def get(self, key: str) -> None:
        assert (await _of(self._client.get_async(f"/{key}")))[0]

    async def exists(self, key: str) -> None:
        await _of(self._client.exists_async(f"/{key}"))

    async def atomic_put(self, key: str, value: bytes, previous: Any) -> Any:
        if previous is None:
            await self.put(key, value)
            return (await _of(self._client.exists_async(f"/{key}"))).version
        return (await _of(self._client.set_async(f"/{key}", value, previous))).version

    async def delete(self, key: str) -> None:
        await _of(self._client.delete_async(f"/{key}"))

    async def list(self, directory: str) -> int:
        names = await _of(self._client.get_children_async(f"/{directory}"))
        return len(await asyncio.gather(*(_of(self._client.get_async(f"/{directory}/{name}")) for name in names)))

    @asynccontextmanager
    async def lock(self, key: str) -> AsyncIterator[object]:
        lock = self._client.Lock(f"/{key}")
        await self._in_thread(lock.acquire)
        yield lock
        await self._in_thread(lock.release)

    async def watch(self, key: str, tell: Tell) -> None:
        loop = asyncio.get_running_loop()
        is_over = False

        def changed(value: bytes, _: object) -> bool:
            if not is_over:
                loop.call_soon_threadsafe(tell, value)
            return not is_over

        await self._in_thread(self._client.DataWatch, f"/{key}", changed)
        try:
            await asyncio.Event().wait()
        finally:
            is_over = True

    async def _in_thread(self, call: Any, *arguments: object) -> None:
        await asyncio.get_running_loop().run_in_executor(self._threads, call, *arguments)


def _of(result: Any) -> asyncio.Future[Any]:
    """Return the future of a result of kazoo's."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def tell() -> None:
        if result.successful():
            future.set_result(result.value)
        else:
            future.set_exception(result.exception)

    result.rawlink(lambda _: loop.call_soon_threadsafe(tell))
    return future
