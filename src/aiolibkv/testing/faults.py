"""Outages on demand, for tests of one's own application, without a server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Self, TypeVar

from aiolibkv.config import Config
from aiolibkv.errors import NotReachableError, StoreError
from aiolibkv.registry import open_store
from aiolibkv.store import (
    UNSEEN,
    Acquired,
    Call,
    Driver,
    Feed,
    Guard,
    Lease,
    Lifetime,
    Listing,
    Names,
    OwnCall,
    Page,
    Removed,
    Step,
    Store,
    Unseen,
)
from aiolibkv.types import Capabilities, KVPair

T = TypeVar("T")


class FaultyDriver(Driver[Any]):
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
        super().__init__(inner.endpoints, inner.config)
        self.inner = inner
        self.name: str = inner.name  # type: ignore[misc] # of this driver alone
        self.capabilities: Capabilities = inner.capabilities
        self.longest_ttl: float = inner.longest_ttl  # type: ignore[misc] # likewise
        self.keeps_line: bool = inner.keeps_line  # type: ignore[misc] # likewise
        self.option_names: frozenset[str] = inner.option_names  # type: ignore[misc] # likewise
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

    async def _request(self, name: str, call: Call, work: Callable[[], Awaitable[T]], *, writes: bool = False) -> T:
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
            if writes:
                call.writing()
            raise NotReachableError("the connection broke before the answer")
        return result

    def _check_up(self) -> None:
        if self._is_down:
            raise NotReachableError("connection refused")

    async def connect(self) -> None:
        """See Driver."""
        await self._request("connect", OwnCall(), self.inner.connect)

    async def disconnect(self) -> None:
        """See Driver."""
        await self.inner.disconnect()

    async def get(self, call: Call, path: str, *, consistent: bool) -> KVPair | None:
        """See Driver."""
        return await self._request("get", call, lambda: self.inner.get(call, path, consistent=consistent))

    async def exists(self, call: Call, path: str, *, consistent: bool) -> bool:
        """See Driver."""
        return await self._request("exists", call, lambda: self.inner.exists(call, path, consistent=consistent))

    async def get_many(self, call: Call, paths: Sequence[str], *, consistent: bool) -> Sequence[KVPair | None]:
        """See Driver."""
        return await self._request("get_many", call, lambda: self.inner.get_many(call, paths, consistent=consistent))

    async def list(self, call: Call, directory: str, *, consistent: bool) -> Listing:
        """See Driver."""
        return await self._request("list", call, lambda: self.inner.list(call, directory, consistent=consistent))

    async def keys(self, call: Call, directory: str, *, consistent: bool) -> Names:
        """See Driver."""
        return await self._request("keys", call, lambda: self.inner.keys(call, directory, consistent=consistent))

    async def children(self, call: Call, directory: str, *, consistent: bool) -> Names:
        """See Driver."""
        work = lambda: self.inner.children(call, directory, consistent=consistent)  # noqa: E731 - shorter than a def
        return await self._request("children", call, work)

    async def page(self, call: Call, directory: str, after: str, limit: int) -> Page:
        """See Driver."""
        return await self._request("page", call, lambda: self.inner.page(call, directory, after, limit))

    def read_at_once(self, path: str) -> KVPair | Unseen | None:
        """See Driver; everything is to be asked for."""
        return UNSEEN

    async def commit(
        self, call: Call, steps: Sequence[Step], *, lease: Any = None, guard: Guard | None = None
    ) -> Sequence[int]:
        """See Driver."""
        work = lambda: self.inner.commit(call, steps, lease=lease, guard=guard)  # noqa: E731 - shorter than a def
        return await self._request("commit", call, work, writes=True)

    async def put(
        self, call: Call, path: str, value: bytes, *, expected: int | None, lease: Any, guard: Guard | None
    ) -> int:
        """See Driver."""

        async def put() -> int:
            return await self.inner.put(call, path, value, expected=expected, lease=lease, guard=guard)

        return await self._request("put", call, put, writes=True)

    async def delete(self, call: Call, path: str, *, expected: int | None, guard: Guard | None) -> None:
        """See Driver."""
        work = lambda: self.inner.delete(call, path, expected=expected, guard=guard)  # noqa: E731 - shorter than a def
        await self._request("delete", call, work, writes=True)

    async def delete_tree(self, call: Call, directory: str, *, guard: Guard | None) -> Removed:
        """See Driver."""
        work = lambda: self.inner.delete_tree(call, directory, guard=guard)  # noqa: E731 - shorter than a def
        return await self._request("delete_tree", call, work, writes=True)

    async def acquire(self, call: Call, path: str, value: bytes, lease: Any, *, line: str | None) -> Acquired:
        """See Driver."""
        work = lambda: self.inner.acquire(call, path, value, lease, line=line)  # noqa: E731 - shorter than a def
        return await self._request("acquire", call, work, writes=True)

    async def release(self, call: Call, path: str, index: int, place: str | None, lease: Any) -> None:
        """See Driver."""
        work = lambda: self.inner.release(call, path, index, place, lease)  # noqa: E731 - shorter than a def
        await self._request("release", call, work, writes=True)

    async def place_ahead(self, call: Call, line: str, place: str) -> str | None:
        """See Driver."""
        return await self._request("place_ahead", call, lambda: self.inner.place_ahead(call, line, place))

    async def is_anybody_in(self, call: Call, line: str) -> bool:
        """See Driver."""
        return await self._request("is_anybody_in", call, lambda: self.inner.is_anybody_in(call, line))

    async def follow(self, feed: Feed) -> None:
        """See Driver."""
        await self._following(lambda: self.inner.follow(feed))

    async def follow_under(self, lease: Any, feed: Feed) -> None:
        """See Driver."""
        await self._following(lambda: self.inner.follow_under(lease, feed))

    async def _following(self, follow: Callable[[], Coroutine[Any, Any, None]]) -> None:
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

    async def _wait_down(self) -> None:
        while not self._is_down:
            await self._changed.wait()

    def new_lease(self, lifetime: Lifetime) -> Lease:
        """See Driver."""
        lease: Lease = self.inner.new_lease(lifetime)
        return lease

    async def grant(self, call: Call, lease: Any) -> None:
        """See Driver."""
        await self._request("grant", call, lambda: self.inner.grant(call, lease))

    async def renew(self, call: Call, lease: Any) -> bool:
        """See Driver."""
        return await self._request("renew", call, lambda: self.inner.renew(call, lease))

    async def revoke(self, call: Call, lease: Any) -> None:
        """See Driver."""
        await self._request("revoke", call, lambda: self.inner.revoke(call, lease))

    def hosts(self) -> str:
        """See Driver."""
        return self.inner.hosts()

    def check_path(self, path: str) -> None:
        """See Driver."""
        self.inner.check_path(path)
