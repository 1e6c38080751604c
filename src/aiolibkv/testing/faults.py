"""Outages on demand, for tests of one's own application, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Self, TypeVar

from aiolibkv.config import Config
from aiolibkv.errors import NotReachableError, StoreError
from aiolibkv.registry import open_store
from aiolibkv.store import Call, Driver, Feed, Store, WrappedDriver

T = TypeVar("T")

_WRITES = frozenset({"commit", "put", "delete", "delete_tree", "acquire", "release"})


class FaultyDriver(WrappedDriver):
    """A driver around another one, that delays, fails and loses answers when told so.

    ::

        driver = FaultyDriver.around("memory://")
        async with Store(driver) as store:
            driver.is_down = True  # every request fails, watches are stale, leases are not renewed
            driver.is_down = False  # and all is well again
            driver.delay = 0.2  # seconds before each request
            driver.fail("put", AccessDeniedError())  # the next one
            driver.lose_answer("commit")  # carried out, but nobody hears of it

    Names of requests are those of the driver's methods; ``put`` and ``delete`` are requests of their own.

    Attributes:
        inner: the driver that is wrapped.
        is_down: whether the server cannot be reached.
        delay: seconds that each request takes before it is carried out.
        requests: the names of the requests made so far.
    """

    def __init__(self, inner: Driver[Any]) -> None:
        """Wrap a driver that is not connected."""
        super().__init__(inner)
        self.delay: float = 0.0
        self.requests: list[str] = []
        self._failures: list[tuple[str, StoreError]] = []
        self._lost: list[str] = []
        self._is_down = False
        self._changed = asyncio.Event()

    @classmethod
    def around(cls, url: str, config: Config | None = None) -> Self:
        """Wrap the driver of what ``open_store`` would give.

        Raises:
            TypeError: that is no store on a driver.
        """
        store = open_store(url, config)
        if not isinstance(store, Store):
            raise TypeError(f"{type(store).__name__} is no store on a driver")
        return cls(store.driver)

    @property
    def is_down(self) -> bool:
        """Tell whether the server cannot be reached."""
        return self._is_down

    @is_down.setter
    def is_down(self, is_down: bool) -> None:
        self._is_down = is_down
        self._changed.set()
        self._changed = asyncio.Event()

    def fail(self, request: str, error: StoreError) -> None:
        """Have the next request of a name fail, before anything is sent."""
        self._failures.append((request, error))

    def lose_answer(self, request: str) -> None:
        """Have the next request of a name carried out, and its answer lost."""
        self._lost.append(request)

    async def request(self, name: str, call: Call, work: Callable[[], Awaitable[T]]) -> T:
        """Carry out a request, unless it is to fail."""
        self.requests.append(name)
        if self.delay:
            await asyncio.sleep(self.delay)
        self._check_up()
        for failure in self._failures:
            if failure[0] == name:
                self._failures.remove(failure)
                raise failure[1]
        result = await work()
        if name in self._lost:
            self._lost.remove(name)
            if name in _WRITES:
                call.writing()
            raise NotReachableError("the connection broke before the answer")
        return result

    async def following(self, feed: Feed, follow: Callable[[], Awaitable[None]]) -> None:
        """Follow until the server cannot be reached any more."""
        self._check_up()
        following = asyncio.ensure_future(follow())
        going_down = asyncio.ensure_future(self._wait_down())
        try:
            await asyncio.wait({following, going_down}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (following, going_down):
                task.cancel()
            await asyncio.wait({following, going_down})
        if not following.cancelled():
            following.result()
        self._check_up()

    def _check_up(self) -> None:
        if self._is_down:
            raise NotReachableError("connection refused")

    async def _wait_down(self) -> None:
        while not self._is_down:
            await self._changed.wait()
