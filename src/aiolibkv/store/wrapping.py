"""A driver around another one: for whoever counts, traces, delays or refuses what a store asks of its driver."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from aiolibkv.store.driver import (
    UNSEEN,
    Acquired,
    Call,
    Driver,
    Guard,
    Lease,
    Lifetime,
    Listing,
    Names,
    OwnCall,
    Page,
    Removed,
    Step,
    Unseen,
)
from aiolibkv.store.watch import Feed
from aiolibkv.types import Capabilities, KVPair

T = TypeVar("T")


class WrappedDriver(Driver[Any]):
    """A driver that hands on what it is asked for, to be subclassed: override ``request``, ``following`` or both.

    ``Store(MyWrapped(MemoryDriver()))`` is a store on it, and a wrapped driver may be wrapped again.

    Attributes:
        inner: the driver that is wrapped.
    """

    def __init__(self, inner: Driver[Any]) -> None:
        """Wrap a driver that is not connected."""
        for fixed in ("name", "option_names", "longest_ttl", "keeps_line"):
            setattr(self, fixed, getattr(inner, fixed))
        super().__init__(inner.endpoints, inner.config)
        self.inner: Driver[Any] = inner
        self.capabilities: Capabilities = inner.capabilities
        # The inner one tells of its connections; who observes this one hears of them.
        inner.observer = self

    async def request(self, name: str, call: Call, work: Callable[[], Awaitable[T]]) -> T:
        """Carry out a request; each method that asks the server, watches aside, comes through here.

        Args:
            name: the method, such as ``"put"``.
            call: what the method was given; for ``connect`` one of its own.
            work: asks the inner driver.
        """
        return await work()

    async def following(self, feed: Feed, follow: Callable[[], Awaitable[None]]) -> None:
        """Keep a feed up to date; ``follow`` has the inner driver do so."""
        await follow()

    async def connect(self) -> None:
        await self.request("connect", OwnCall(), self.inner.connect)
        self.capabilities = self.inner.capabilities

    async def disconnect(self) -> None:
        await self.inner.disconnect()

    def hosts(self) -> str:
        return self.inner.hosts()

    def check_path(self, path: str) -> None:
        self.inner.check_path(path)

    def read_at_once(self, path: str) -> KVPair | Unseen | None:
        return UNSEEN  # so that every read is a request

    async def get(self, call: Call, path: str, *, consistent: bool) -> KVPair | None:
        return await self.request("get", call, partial(self.inner.get, call, path, consistent=consistent))

    async def exists(self, call: Call, path: str, *, consistent: bool) -> bool:
        return await self.request("exists", call, partial(self.inner.exists, call, path, consistent=consistent))

    async def get_many(self, call: Call, paths: Sequence[str], *, consistent: bool) -> Sequence[KVPair | None]:
        return await self.request("get_many", call, partial(self.inner.get_many, call, paths, consistent=consistent))

    async def list(self, call: Call, directory: str, *, consistent: bool) -> Listing:
        return await self.request("list", call, partial(self.inner.list, call, directory, consistent=consistent))

    async def keys(self, call: Call, directory: str, *, consistent: bool) -> Names:
        return await self.request("keys", call, partial(self.inner.keys, call, directory, consistent=consistent))

    async def children(self, call: Call, directory: str, *, consistent: bool) -> Names:
        ask = partial(self.inner.children, call, directory, consistent=consistent)
        return await self.request("children", call, ask)

    async def page(self, call: Call, directory: str, after: str, limit: int) -> Page:
        return await self.request("page", call, partial(self.inner.page, call, directory, after, limit))

    async def commit(
        self, call: Call, steps: Sequence[Step], *, lease: Any = None, guard: Guard | None = None
    ) -> Sequence[int]:
        return await self.request("commit", call, partial(self.inner.commit, call, steps, lease=lease, guard=guard))

    async def put(
        self, call: Call, path: str, value: bytes, *, expected: int | None, lease: Any, guard: Guard | None
    ) -> int:
        ask = partial(self.inner.put, call, path, value, expected=expected, lease=lease, guard=guard)
        return await self.request("put", call, ask)

    async def delete(self, call: Call, path: str, *, expected: int | None, guard: Guard | None) -> None:
        await self.request("delete", call, partial(self.inner.delete, call, path, expected=expected, guard=guard))

    async def delete_tree(self, call: Call, directory: str, *, guard: Guard | None) -> Removed:
        return await self.request("delete_tree", call, partial(self.inner.delete_tree, call, directory, guard=guard))

    async def acquire(self, call: Call, path: str, value: bytes, lease: Any, *, line: str | None) -> Acquired:
        return await self.request("acquire", call, partial(self.inner.acquire, call, path, value, lease, line=line))

    async def release(self, call: Call, path: str, index: int, place: str | None, lease: Any) -> None:
        await self.request("release", call, partial(self.inner.release, call, path, index, place, lease))

    async def place_ahead(self, call: Call, line: str, place: str) -> str | None:
        return await self.request("place_ahead", call, partial(self.inner.place_ahead, call, line, place))

    async def is_anybody_in(self, call: Call, line: str) -> bool:
        return await self.request("is_anybody_in", call, partial(self.inner.is_anybody_in, call, line))

    async def follow(self, feed: Feed) -> None:
        await self.following(feed, partial(self.inner.follow, feed))

    async def follow_under(self, lease: Any, feed: Feed) -> None:
        await self.following(feed, partial(self.inner.follow_under, lease, feed))

    def new_lease(self, lifetime: Lifetime) -> Lease:
        lease: Lease = self.inner.new_lease(lifetime)
        return lease

    async def grant(self, call: Call, lease: Any) -> None:
        await self.request("grant", call, partial(self.inner.grant, call, lease))

    async def renew(self, call: Call, lease: Any) -> bool:
        return await self.request("renew", call, partial(self.inner.renew, call, lease))

    async def revoke(self, call: Call, lease: Any) -> None:
        await self.request("revoke", call, partial(self.inner.revoke, call, lease))
