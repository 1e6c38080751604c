"""What is measured on each subject; each has a module of its own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, ClassVar, Self

Tell = Callable[[bytes], None]


class Subject:
    """One way to reach a server: a library, and how it is used.

    What a subject does not define is not measured on it. Its library is imported when it connects, so that start-up
    can be measured and no two libraries are in one process.

    Attributes:
        name: what it is called in the results.
        package: what to install for it; its version is told. Empty for what is in Python itself.
        note: what a reader should know about the comparison.
        is_shared: whether what one of them writes is there for another process.
        most_watches: with more than that at once it is not measured.
    """

    name: ClassVar[str]
    package: ClassVar[str] = ""
    note: ClassVar[str] = ""
    is_shared: ClassVar[bool] = True
    most_watches: ClassVar[int] = 1_000_000

    def __init__(self, url: str) -> None:
        """Make one that is not connected.

        Args:
            url: where the server is, as aiolibkv writes it.
        """
        self.url = url
        self.stack = AsyncExitStack()

    @classmethod
    def can(cls, method: str) -> bool:
        """Return whether a method is defined, and so can be measured."""
        return getattr(cls, method) is not getattr(Subject, method)

    async def __aenter__(self) -> Self:
        """Connect."""
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close what connecting has opened."""
        await self.stack.aclose()

    async def connect(self) -> None:
        """Import the library and connect; what is to be closed goes to the stack."""
        raise NotImplementedError

    @property
    def store(self) -> Any:
        """The AsyncStore; only this library has one."""
        raise NotImplementedError

    async def put(self, key: str, value: bytes) -> None:
        """Write a value, whatever was there."""
        raise NotImplementedError

    async def get(self, key: str) -> None:
        """Read a value, until it is bytes."""
        raise NotImplementedError

    async def exists(self, key: str) -> None:
        """Ask whether a key is there."""
        raise NotImplementedError

    async def atomic_put(self, key: str, value: bytes, previous: Any) -> Any:
        """Compare and swap.

        Args:
            key: what to write.
            value: what to write there.
            previous: what the call before returned, None at first.
        """
        raise NotImplementedError

    async def delete(self, key: str) -> None:
        """Delete a key that is there."""
        raise NotImplementedError

    async def list(self, directory: str) -> int:
        """Read all pairs below a directory, until key and value of each are objects; return how many."""
        raise NotImplementedError

    def lock(self, key: str) -> AbstractAsyncContextManager[object]:
        """Hold a lock in an ``async with``, waiting for it as long as it takes."""
        raise NotImplementedError

    async def watch(self, key: str, tell: Tell) -> None:
        """Tell each value of a key from now on, until cancelled; told first when the watch is set up."""
        raise NotImplementedError

    async def change(self, key: str, value: bytes) -> None:
        """Write a value so that watches see it."""
        await self.put(key, value)
