"""etcd3aio."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Any
from urllib.parse import urlsplit

from subjects.base import Subject, Tell


class Etcd3aio(Subject):
    """The client etcd3aio."""

    name = "etcd3aio"
    package = "etcd3aio"
    note = "Its compare-and-swap compares versions. A stream for each watch. Its lock is not renewed."

    async def connect(self) -> None:
        from etcd3aio import Etcd3Client

        self._client = await self.stack.enter_async_context(Etcd3Client([urlsplit(self.url).netloc]))
        self._kv = self._client.kv

    async def put(self, key: str, value: bytes) -> None:
        await self._kv.put(key, value)

    async def get(self, key: str) -> None:
        assert (await self._kv.get(key)).kvs[0].value

    async def exists(self, key: str) -> None:
        await self._kv.get(key, count_only=True)

    async def atomic_put(self, key: str, value: bytes, previous: Any) -> Any:
        version = previous or 0
        kv = self._kv
        answer = await kv.txn([kv.txn_compare_version(key, version)], [kv.txn_op_put(key, value)])
        assert answer.succeeded
        return version + 1

    async def delete(self, key: str) -> None:
        await self._kv.delete(key)

    async def list(self, directory: str) -> int:
        answer = await self._kv.get(f"{directory}/", range_end=f"{directory}0")
        return len([(pair.key.decode(), pair.value) for pair in answer.kvs])

    def lock(self, key: str) -> AbstractAsyncContextManager[object]:
        lock: AbstractAsyncContextManager[object] = self._client.lock(key, ttl=60)
        return lock

    async def watch(self, key: str, tell: Tell) -> None:
        async for answer in self._client.watch.watch(key):
            for value in [event.kv.value for event in answer.events] or [b""]:
                tell(value)
