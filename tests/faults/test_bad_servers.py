"""Ports that speak something else, and servers that answer nonsense: typed errors, in time, in bounded memory."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from aiolibkv import (
    AccessDeniedError,
    AsyncStore,
    Config,
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    KVPair,
    LockLostError,
    NotReachableError,
    RequestTimeoutError,
    Snapshot,
    StoreError,
    Watch,
    new_store,
)
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import Certificates, ConsulServer, EtcdServer, ZooKeeperServer
from aiolibkv.testing.servers.base import Server
from faults.impostors import (
    BAD_ANSWERS,
    BAD_BODIES,
    BAD_INDEXES,
    BAD_REPLIES,
    FLOODS,
    NONSENSE,
    OTHER_SERVICES,
    Flood,
    Front,
    Handler,
    passing_on,
    server_context,
)

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]

SERVERS: dict[str, Callable[[], Server]] = {"consul": ConsulServer, "etcd": EtcdServer, "zookeeper": ZooKeeperServer}
_log = logging.getLogger("aiolibkv.tests")
_TIMEOUT = 0.5
"""Seconds for entering what is no server, and for each call."""
_CONNECTING = 10.0
"""Seconds for entering what greets as a server."""
_GRACE = 5.0
"""Seconds on top of that for many that fail at once."""
_LONG = 60.0
"""Seconds for more than is to be kept to arrive."""
_MUCH = {"consul": 256 * 2**20, "etcd": 32 * 2**20, "zookeeper": 256 * 2**20}
"""Bytes that may be taken of one answer. etcd's begins with its length, of which too much is refused at once."""

backends = pytest.mark.parametrize("backend", sorted(SERVERS))


def _store(backend: str, *endpoints: str, **settings: Any) -> AsyncStore:
    timeouts = {"connection_timeout": scaled(_CONNECTING), "request_timeout": _TIMEOUT}
    return new_store(backend, endpoints, Config(**{**timeouts, **settings}))


async def _each(handlers: Mapping[str, Handler], check: Callable[[str, Front], Awaitable[None]]) -> None:
    """Carry out a check at each of many servers at once."""

    async def run(name: str, handler: Handler) -> str | None:
        async with Front(handler) as front:
            try:
                async with asyncio.timeout(scaled(_CONNECTING + _TIMEOUT + _GRACE)):
                    await check(name, front)
            except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 -- told with all others
                return f"{name}: {error!r}"
        return None

    wrong = await asyncio.gather(*(run(name, handler) for name, handler in handlers.items()))
    assert [each for each in wrong if each is not None] == []


# -- entering ----------------------------------------------------------------------------------------------------------


async def _is_no_server(backend: str, endpoint: str, **settings: Any) -> str:
    async with asyncio.timeout(scaled(_TIMEOUT + _GRACE)):
        with pytest.raises(StoreError) as caught:
            async with _store(backend, endpoint, connection_timeout=_TIMEOUT, **settings):
                pytest.fail("it was taken for a server")
    assert endpoint in str(caught.value)
    return str(caught.value)


@backends
async def test_entering(backend: str) -> None:
    async def enter(_: str, front: Front) -> None:
        await _is_no_server(backend, front.endpoint)

    await _each({**OTHER_SERVICES, **NONSENSE[backend]}, enter)


@backends
async def test_entering_without_tls_where_tls_is_spoken(backend: str, tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    async with Front(OTHER_SERVICES["a banner"], tls=server_context(certificates)) as front:
        said = await _is_no_server(backend, front.endpoint)
    # Consul itself answers in plain words what it wants.
    assert "tls=True" in said or backend == "consul"


# -- a server that is right when a store is entered, and wrong afterwards ----------------------------------------------

Calls = dict[str, Callable[[AsyncStore], Awaitable[object]]]
_PREVIOUS = KVPair("dir/key", b"1", 5)
READS: Calls = {
    "get": lambda store: store.get("dir/key"),
    "list": lambda store: store.list("dir"),
}
CALLS: Calls = {
    "list": lambda store: store.list("dir"),
    "exists": lambda store: store.exists("dir/key"),
    "put": lambda store: store.put("dir/key", b"2"),
    "put with ttl": lambda store: store.put("dir/key", b"2", ttl=30),
    "put and keep alive": lambda store: store.put("dir/key", b"2", keep_alive=True),
    "create": lambda store: store.atomic_put("dir/new", b"2", None),
    "swap": lambda store: store.atomic_put("dir/key", b"2", _PREVIOUS),
    "delete": lambda store: store.delete("dir/key"),
    "remove": lambda store: store.atomic_delete("dir/key", _PREVIOUS),
    "delete_tree": lambda store: store.delete_tree("dir"),
    "lock": lambda store: store.new_lock("dir/lock").try_acquire(),
}
_ANSWERS = (KeyNotFoundError, KeyExistsError, KeyModifiedError, LockLostError, AccessDeniedError)
"""What only a server can know."""
PARTIAL = {
    # What is missing there is nothing that the others need.
    "results that are none": ("list", "put", "put with ttl", "create", "swap"),
    "a transaction without its parts": ("create", "swap", "remove", "delete_tree", "put with ttl"),
}


async def _fail(store: AsyncStore, calls: Calls) -> None:
    """See that calls fail with typed errors, in time."""
    async with asyncio.timeout(scaled(_TIMEOUT + _GRACE)):
        results = await asyncio.gather(*(call(store) for call in calls.values()), return_exceptions=True)
    for name, result in zip(calls, results, strict=True):
        assert isinstance(result, StoreError), (name, result)
        assert not isinstance(result, _ANSWERS), (name, result)
        assert result.endpoint, name


@pytest.mark.parametrize(
    ("backend", "handlers", "calls"),
    [
        pytest.param("consul", BAD_INDEXES, READS, id="consul-indexes"),
        pytest.param("consul", BAD_BODIES, CALLS, id="consul-bodies"),
        pytest.param("etcd", BAD_ANSWERS, CALLS | READS, id="etcd"),
        pytest.param("zookeeper", BAD_REPLIES, CALLS | READS, id="zookeeper"),
    ],
)
async def test_calls(backend: str, handlers: Mapping[str, Handler], calls: Calls) -> None:
    async def call(name: str, front: Front) -> None:
        async with _store(backend, front.endpoint) as store:
            await _fail(store, {each: calls[each] for each in PARTIAL.get(name, calls)})

    await _each(handlers, call)


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=sorted(SERVERS))
async def right(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, Server]]:
    """Name a backend, and start a server of it."""
    async with SERVERS[request.param]() as server:
        yield request.param, server


IMPOSTORS: dict[str, Mapping[str, Handler]] = {
    "consul": {"bad indexes": BAD_INDEXES["a word"], "redirections": BAD_BODIES["a redirection"]},
    "etcd": {"garbage": BAD_ANSWERS["garbage"], "no messages": BAD_ANSWERS["no message"]},
    "zookeeper": {
        "answers to others": BAD_REPLIES["to another request"],
        "refusals": BAD_REPLIES["with an unknown code"],
    },
}


@asynccontextmanager
async def _watched(store: AsyncStore) -> AsyncIterator[tuple[Watch[KVPair | None], Watch[Snapshot]]]:
    async with store, store.watch("dir/key") as key, store.watch_tree("dir") as tree:
        await anext(key)
        await anext(tree)
        yield key, tree


async def test_running_watches_outlast_impostors(right: tuple[str, Server]) -> None:
    """They wait as long as there is no right server on the port, and miss nothing when there is one again."""
    backend, server = right
    impostors = {
        **{name: OTHER_SERVICES[name] for name in ("a web server", "a banner", "garbage at once")},
        **IMPOSTORS[backend],
    }

    async def outlast(name: str, impostor: Handler) -> None:
        prefix = f"outlast/{name}"
        async with (
            Front(passing_on(server.port)) as front,
            _store(backend, server.endpoint, prefix=prefix, request_timeout=5.0) as direct,
        ):
            pair = await direct.put("dir/key", b"before")
            async with _watched(store := _store(backend, front.endpoint, prefix=prefix)) as (key, tree):
                await front.become(impostor)
                await _fail(store, {"put": CALLS["put"], "list": CALLS["list"]})
                await eventually(lambda: key.is_stale and tree.is_stale, within=10, message=f"{name}: it is known")
                pair = await direct.put("dir/key", b"meanwhile")
                await front.become(passing_on(server.port))
                async with asyncio.timeout(scaled(15)):
                    while await anext(key) != pair:
                        pass
                    while await anext(tree) != [pair]:
                        pass
                assert not key.is_stale
                assert not tree.is_stale
                await eventually(partial(_works, store), within=10, message=f"{name}: calls work again")

    await asyncio.gather(*(outlast(name, impostor) for name, impostor in impostors.items()))


async def _works(store: AsyncStore) -> bool:
    try:
        return (await store.get("dir/key")).value == b"meanwhile"
    except (NotReachableError, RequestTimeoutError):
        return False


async def test_entering_with_tls_where_none_is_spoken(right: tuple[str, Server], tmp_path: Path) -> None:
    backend, server = right
    certificates = Certificates(tmp_path)
    await _is_no_server(backend, server.endpoint, tls=True, ca_file=str(certificates.ca))


async def test_an_endless_answer_is_not_kept(right: tuple[str, Server]) -> None:
    backend, server = right
    async with (
        Front(passing_on(server.port)) as front,
        _store(backend, front.endpoint, request_timeout=scaled(_LONG), prefix="endless") as store,
    ):
        await store.put("dir/key", b"")
        before = _resident()
        flood = Flood(_MUCH[backend])
        await front.become(FLOODS[backend](flood))
        failing = asyncio.ensure_future(store.get("dir/key"))
        assert await flood.is_stopped, "it takes whatever it is given"
        _log.info("%s: grown by %d MiB", backend, (_resident() - before) // 2**20)
        failing.cancel()
        await asyncio.wait({failing})


def _resident() -> int:
    """Return how much memory this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
