"""A dict, which no client can be faster than."""

from __future__ import annotations

from subjects.base import Subject


class Dict(Subject):
    """A dict behind ``async def``."""

    name = "dict"
    note = "Behind `async def`: what calling a coroutine costs. No versions, no watches, no waiting."
    is_shared = False

    async def connect(self) -> None:
        self._pairs: dict[str, bytes] = {}

    async def put(self, key: str, value: bytes) -> None:
        self._pairs[key] = value

    async def get(self, key: str) -> None:
        self._pairs[key]

    async def exists(self, key: str) -> None:
        key in self._pairs  # noqa: B015 -- to be measured

    async def delete(self, key: str) -> None:
        del self._pairs[key]
