"""Guards that the server refuses, though the holder believes that it holds the lock."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from unittest.mock import patch
from uuid import uuid4

import pytest
import pytest_asyncio

from aiolibkv import AsyncStore, LockLostError, open_store
from aiolibkv.store import Guard, Store
from aiolibkv.store.locks import StoreHeldLock
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually, scaled
from locks.services import SERVICES, Service, memory

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(600)]

_TTL = 60.0
"""Seconds: what somebody else acquires does not go while the guards are tried."""


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["memory", *SERVICES])
async def service(request: pytest.FixtureRequest) -> AsyncIterator[Service]:
    make = memory if request.param == "memory" else SERVICES[request.param]
    async with make() as running:
        yield running


async def put(store: AsyncStore, _: AsyncStore) -> None:
    await store.put("dir/lock", b"foreign")


async def put_with_a_ttl(store: AsyncStore, _: AsyncStore) -> None:
    await store.put("dir/lock", b"foreign", ttl=1000)


async def delete(store: AsyncStore, _: AsyncStore) -> None:
    await store.delete("dir/lock")


async def delete_tree(store: AsyncStore, _: AsyncStore) -> None:
    await store.delete_tree("dir")


async def replace(store: AsyncStore, _: AsyncStore) -> None:
    await store.delete("dir/lock")
    await store.put("dir/lock", b"holder")


async def nobody_acquires(_: AsyncStore, __: AsyncStore) -> None:
    """Leave it as it is."""


async def another_acquires(store: AsyncStore, _: AsyncStore) -> None:
    await store.new_lock("dir/lock", value=b"holder", ttl=_TTL).acquire()


async def acquires_again(_: AsyncStore, own: AsyncStore) -> None:
    await own.new_lock("dir/lock", value=b"holder", ttl=_TTL).acquire()


async def delete_and_another(store: AsyncStore, own: AsyncStore) -> None:
    await store.delete("dir/lock")
    await another_acquires(store, own)


async def delete_and_again(store: AsyncStore, own: AsyncStore) -> None:
    await store.delete("dir/lock")
    await acquires_again(store, own)


async def _is_free(store: AsyncStore) -> bool:
    return not await store.exists("dir/lock")


Loss = Callable[[AsyncStore, AsyncStore], Awaitable[None]]

WRITES: list[Loss] = [put, put_with_a_ttl, delete, delete_tree, replace, delete_and_another, delete_and_again]
AFTERWARDS: list[Loss] = [nobody_acquires, another_acquires, acquires_again]


@pytest.mark.parametrize("lose", WRITES)
async def test_guards_after_a_foreign_write(service: Service, lose: Loss) -> None:
    await refused_after(service, lose, ttl=_TTL)


async def test_guards_after_an_expiry(service: Service) -> None:
    await asyncio.gather(*(refused_after(service, each, ttl=service.ttl, expire=True) for each in AFTERWARDS))


@contextmanager
def cut_off(proxy: FaultProxy | None, held: StoreHeldLock) -> Iterator[None]:
    """Keep the server from hearing of a holder, where nothing stands between by way of its lease."""
    if proxy is not None:
        proxy.blackhole()
        yield
        proxy.heal()
        return
    held._session._tasks.cancel()
    with patch.object(held._locks.sessions, "end"):
        yield


async def refused_after(service: Service, lose: Loss, *, ttl: float, expire: bool = False) -> None:
    """Lose a lock, and check that each kind of guarded write is refused by the server and changes nothing."""
    name = uuid4().hex
    async with AsyncExitStack() as stack:
        endpoint, proxy = service.endpoint, None
        if service.server is not None:
            proxy = await stack.enter_async_context(service.proxy())
            endpoint = proxy.endpoint
        store = await stack.enter_async_context(open_store(service.url(endpoint, name)))
        other = await stack.enter_async_context(open_store(service.url(service.endpoint, name)))
        assert isinstance(store, Store)
        held = await store.new_lock("dir/lock", value=b"holder", ttl=ttl).acquire()
        assert isinstance(held, StoreHeldLock)
        pair, below = await store.put("key", b"old", guard=held), await store.put("tree/key", b"old", guard=held)
        if expire:
            with cut_off(proxy, held):
                await eventually(lambda: _is_free(other), within=60, message="it expires")
        await asyncio.wait_for(lose(other, store), scaled(30))
        # What the holder itself knows is not asked.
        guard = Guard(held.path, held.fencing_token)
        setattr(store, "_guard", lambda _: guard)  # noqa: B010 - a method cannot be assigned to
        for call in (
            lambda: store.put("key", b"new", guard=held),
            lambda: store.put("new", b"new", guard=held),
            lambda: store.put("key", b"new", ttl=60, guard=held),
            lambda: store.put("new", b"new", ttl=60, keep_alive=True, guard=held),
            lambda: store.atomic_put("key", b"new", pair, guard=held),
            lambda: store.atomic_put("new", b"new", None, guard=held),
            lambda: store.delete("key", guard=held),
            lambda: store.atomic_delete("key", pair, guard=held),
            lambda: store.delete_tree("tree", guard=held),
        ):
            with pytest.raises(LockLostError) as caught:
                await call()
            assert not caught.value.maybe_applied
        assert [found for found in await other.list("") if found.key != "dir/lock"] == [pair, below]
        await asyncio.wait_for(held.wait_lost(), scaled(5))
