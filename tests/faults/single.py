"""One server of each backend, and what can be seen on it of what clients have left behind."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from aiolibkv import AsyncStore, Config, KeyNotFoundError, new_store
from aiolibkv.backends.memory.space import open_space
from aiolibkv.backends.zookeeper import ZooKeeperDriver
from aiolibkv.store import Store
from aiolibkv.testing.framing import Framing
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually
from aiolibkv.testing.servers import ConsulServer, EtcdServer, PostgresServer, ServerCommandError, ZooKeeperServer

State = dict[str, object]
"""What is on a server, in words of its own."""

_LEAVING_TIME = 12.0
"""Seconds in which what a call has left must be gone: less than any lifetime that the tests ask for."""


@dataclass(frozen=True)
class Ground:
    """A running server, or what stands in for one.

    Attributes:
        backend: the name of the backend.
        endpoints: where stores find it.
        look: tells what clients have on it besides keys.
        host: where it listens; "" when it is no server.
        port: likewise.
        framing: by which a proxy finds requests.
        settings: fields of Config for all stores.
    """

    backend: str
    endpoints: Sequence[str]
    look: Callable[[], Awaitable[State]]
    host: str = ""
    port: int = 0
    framing: Framing = "raw"
    settings: Mapping[str, str] = field(default_factory=dict)

    def store(self, prefix: str, *endpoints: str, **settings: Any) -> AsyncStore:
        """Make a store, at other endpoints when some are given."""
        return new_store(
            self.backend, endpoints or self.endpoints, Config(**{"prefix": prefix, **self.settings, **settings})
        )

    def proxy(self) -> FaultProxy:
        """Make a proxy before the server."""
        return FaultProxy(self.host, self.port, protocol=self.framing)


@dataclass
class Scene:
    """The stores of one test, below a directory of its own.

    Attributes:
        ground: the server.
        prefix: the directory.
        store: whose calls are tried.
        other: another client of the same keys.
        observer: sees all keys of the server, the library's own included.
    """

    ground: Ground
    prefix: str
    store: AsyncStore
    other: AsyncStore
    observer: AsyncStore
    _before: State = field(default_factory=dict)

    async def begin(self) -> None:
        """Take what is on the server from now on for what has to be there in the end."""
        await eventually(
            lambda: end_idle_leases(self.store, self.other), within=_LEAVING_TIME, message="idle leases end"
        )
        self._before = await self.state()

    async def state(self) -> State:
        """Return what is on the server."""
        return {"keys": await self._keys(), **await self.ground.look()}

    async def leave(self, *, delete: bool) -> None:
        """Wait until nothing is left of what was done since ``begin``.

        Args:
            delete: whether plain keys are deleted before; a write that was cancelled may be carried out late.
        """
        await eventually_equal(lambda: self._left(delete=delete), self._before)

    async def is_free(self, key: str) -> bool:
        """Tell whether a key is absent and nothing of the library's own is there, but epochs of locks."""
        found = await self._keys()
        return not any(name.startswith((f"{self.prefix}/.aiolibkv/", f"{self.prefix}/{key}")) for name in found)

    async def usable(self) -> None:
        """Check that the store works as before."""
        pair = await self.store.put("usable", b"")
        assert await self.other.get("usable") == pair
        await self.store.delete("usable")

    async def _left(self, *, delete: bool) -> State:
        end_idle_leases(self.store, self.other)
        if delete:
            # Through both: a store keeps its lease for keys that it does not know to be deleted.
            for store in (self.other, self.store):
                try:
                    await store.delete_tree("")
                except KeyNotFoundError:
                    pass
        return await self.state()

    async def _keys(self) -> list[str]:
        try:
            pairs = await self.observer.list(self.prefix)
        except KeyNotFoundError:
            return []
        return [pair.key for pair in pairs if "/.aiolibkv/epochs/" not in pair.key]


def end_idle_leases(*stores: AsyncStore) -> bool:
    """End the leases that stores keep, for a while, for the next lock or key; tell whether that is done."""
    ending: set[object] = set()
    for store in stores:
        assert isinstance(store, Store)
        sessions, lifetimes = store._sessions, store._lifetimes
        for ttl, idle in list(sessions._idle.items()):
            for session in tuple(idle):
                sessions._expire(ttl, session)
        for shared in list(lifetimes._shared.values()):
            if shared.timer is not None:
                shared.timer.cancel()
                lifetimes._end(shared)
        ending |= sessions._revocations._running
        if isinstance(store.driver, ZooKeeperDriver):
            lifespans = store.driver._lifespans
            for kept in tuple(lifespans._sessions):
                if kept.idle is not None and not kept.leases:
                    kept.idle.cancel()
                    lifespans._close(kept)
            ending |= lifespans._removals._running
    return not ending


async def eventually_equal(look: Callable[[], Awaitable[State]], expected: State) -> None:
    """Wait until what is seen is as expected, and tell what is not."""
    seen: State = {}

    async def is_equal() -> bool:
        seen.update(await look())
        return seen == expected

    try:
        await eventually(is_equal, within=_LEAVING_TIME, message="nothing is left")
    except AssertionError as error:
        left = {name: (expected.get(name), found) for name, found in seen.items() if found != expected.get(name)}
        raise AssertionError(f"(before, after) of what is different: {left}") from error


@asynccontextmanager
async def on_scene(ground: Ground, *, delete: bool, endpoint: str | None = None) -> AsyncIterator[Scene]:
    """Open the stores of a test, and see afterwards that nothing is left: first by its calls, then by its stores.

    Args:
        ground: where.
        delete: as for ``Scene.leave``.
        endpoint: where the store finds the server whose calls are tried.
    """
    prefix = f"t-{uuid4().hex[:12]}"
    async with ground.store("") as observer:
        await _warm(observer)
        before = await _surroundings(ground)
        async with AsyncExitStack() as stack:
            tried = ground.store(prefix) if endpoint is None else ground.store(prefix, endpoint)
            store, other = [await stack.enter_async_context(each) for each in (tried, ground.store(prefix))]
            scene = Scene(ground, prefix, store, other, observer)
            for each in (store, other):
                await _warm(each)
            await scene.begin()
            yield scene
            await scene.leave(delete=delete)
        await eventually_equal(lambda: _surroundings(ground), before)
        assert await scene.is_free("")


async def _warm(store: AsyncStore) -> None:
    await store.exists("warm")


async def _surroundings(ground: Ground) -> State:
    # Those of the loop itself, which resolve names, stay as long as the loop.
    threads = [thread for thread in threading.enumerate() if not thread.name.startswith("asyncio_")]
    return {"threads": len(threads), "sockets": _sockets(), **await ground.look()}


def _sockets() -> int:
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            count += str(link.readlink()).startswith("socket:")
        except FileNotFoundError:
            continue
    return count


# -- the backends ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def memory() -> AsyncIterator[Ground]:
    name = uuid4().hex

    async def look() -> State:
        space = open_space(name)
        space.stores -= 1
        return {"leases": space.leases, "watches": space.feeds}

    yield Ground("memory", [name], look)


@asynccontextmanager
async def sqlite() -> AsyncIterator[Ground]:
    with TemporaryDirectory() as directory:
        path = Path(directory) / "store.db"

        async def look() -> State:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=1)) as database:
                found = database.execute("SELECT name FROM sqlite_schema WHERE name LIKE '%.sessions'").fetchall()
                counts = [database.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for (name,) in found]
            return {"sessions": sum(counts), "files": sorted(file.name for file in path.parent.iterdir())}

        yield Ground("sqlite", [str(path)], look)


@asynccontextmanager
async def etcd() -> AsyncIterator[Ground]:
    async with EtcdServer() as server:

        async def look() -> State:
            leases = (await server.ctl("lease", "list")).split()
            watches = (await server.metrics())["etcd_debugging_mvcc_watcher_total"]
            return {
                "leases": sorted(word for word in leases if re.fullmatch("[0-9a-f]{14,16}", word)),
                "watches": watches,
            }

        yield Ground("etcd", [server.endpoint], look, server.host, server.port, "http2")


@asynccontextmanager
async def consul() -> AsyncIterator[Ground]:
    async with ConsulServer() as server:

        async def look() -> State:
            sessions = json.loads(await server.api("GET", "/v1/session/list"))
            return {"sessions": sorted(session["ID"] for session in sessions)}

        yield Ground("consul", [server.endpoint], look, server.host, server.port, "http1")


@asynccontextmanager
async def zookeeper() -> AsyncIterator[Ground]:
    # As long as the ttl that the tests ask for: a session that is left must not go by itself while they look.
    async with ZooKeeperServer(max_session_timeout=60.0) as server:

        async def look() -> State:
            dump, watches = await asyncio.gather(server.four_letter_word("dump"), server.four_letter_word("wchs"))
            ephemerals = dump.partition("ephemerals")[2]
            return {
                "sessions": sorted(set(re.findall(r"^\t(0x[0-9a-f]+)$", dump, re.MULTILINE))),
                "ephemerals": sorted(re.findall(r"^\t(/.*)$", ephemerals, re.MULTILINE)),
                "watches": watches.splitlines()[-1],
            }

        yield Ground("zookeeper", [server.endpoint], look, server.host, server.port, "zookeeper")


@asynccontextmanager
async def postgresql() -> AsyncIterator[Ground]:
    async with PostgresServer() as server:

        async def look() -> State:
            try:
                return {"leases": (await server.sql("SELECT id FROM aiolibkv_leases ORDER BY id")).split()}
            except ServerCommandError:
                return {"leases": []}  # There are no tables yet.

        username, password = server.user
        settings = {"username": username, "password": password}
        yield Ground("postgresql", [server.endpoint], look, server.host, server.port, settings=settings)


GROUNDS: dict[str, Callable[[], AbstractAsyncContextManager[Ground]]] = {
    "memory": memory,
    "sqlite": sqlite,
    "etcd": etcd,
    "consul": consul,
    "zookeeper": zookeeper,
    "postgresql": postgresql,
}
NETWORKED = ("etcd", "consul", "zookeeper", "postgresql")
