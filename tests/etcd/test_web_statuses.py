"""What a reverse proxy answers by itself is the answer to one request."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from aiolibkv import AccessDeniedError, Config, NotReachableError, StoreError
from aiolibkv.backends.etcd.failures import RefusedError
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import scaled
from aiolibkv.testing.servers import EtcdServer
from aiolibkv.testing.servers.reverse_proxies import Nginx
from etcd.fronts import UNAVAILABLE, Answer, front, refusing, resetting
from stores import EtcdStore

pytestmark = [pytest.mark.asyncio(loop_scope="function"), pytest.mark.leaves_nothing_behind]

STATUSES = (403, 413, 429, 500, 502, 503, 504)
PUT, RANGE, KEEP_ALIVE, WATCH = "KV/Put", "KV/Range", "Lease/LeaseKeepAlive", "Watch/Watch"


class Moody(Nginx):
    """nginx that answers some calls by itself.

    Args:
        server: what it stands before.
        directory: where it looks up what to answer.
    """

    def __init__(self, server: EtcdServer, directory: Path) -> None:
        self._moods = directory
        directives = [f'if (-f "{directory}/{status}$uri") {{ return {status}; }}' for status in STATUSES]
        super().__init__([server.endpoint], grpc=True, directives=directives)

    @contextmanager
    def answering(self, status: int, *methods: str) -> Iterator[None]:
        """Answer calls of some methods with a status for a while."""
        files = [self._moods / str(status) / f"etcdserverpb.{method}" for method in methods]
        for file in files:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
        try:
            yield
        finally:
            for file in files:
                file.unlink()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[EtcdServer]:
    async with EtcdServer() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def nginx(server: EtcdServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Moody]:
    async with Moody(server, tmp_path_factory.mktemp("moods")) as running:
        yield running


@pytest.mark.parametrize(
    ("status", "error", "maybe_applied"),
    [
        (403, AccessDeniedError, False),
        (413, RefusedError, False),
        (429, NotReachableError, False),
        (500, NotReachableError, True),
        (502, NotReachableError, True),
        (503, NotReachableError, True),
        (504, NotReachableError, True),
    ],
)
async def test_a_write_is_answered_and_all_else_goes_on(
    nginx: Moody, status: int, error: type[StoreError], *, maybe_applied: bool
) -> None:
    key = f"status/{status}"
    async with EtcdStore([nginx.endpoint], Config(request_timeout=scaled(0.5))) as store, store.watch(key) as watch:
        assert await anext(watch) is None
        link = await store.driver._connection.link()
        with nginx.answering(status, PUT):
            # Many at once: that is one failure of the proxy.
            failures = await asyncio.gather(*(store.put(key, b"1") for _ in range(20)), return_exceptions=True)
            assert {type(failure) for failure in failures} == {error}
            assert {getattr(failure, "maybe_applied", None) for failure in failures} == {maybe_applied}
            assert str(status) in str(failures[0])
            pair = await store.atomic_put(key, b"2", None)
            assert await anext(watch) == pair
        assert (await store.put(key, b"3")).last_index > pair.last_index
        assert await store.driver._connection.link() is link


@pytest.mark.parametrize("status", [429, 502])
async def test_reads_are_repeated_and_leases_and_watches_outlast_it(nginx: Moody, status: int) -> None:
    key = f"outlasting/{status}"
    async with (
        EtcdStore([nginx.endpoint], Config(request_timeout=scaled(5))) as store,
        store.watch(key) as old,
        store.watch("outlasting/other") as new,
    ):
        assert await anext(old) is None
        held = await store.new_lock("outlasting/lock", ttl=4).acquire()
        with nginx.answering(status, RANGE, KEEP_ALIVE, WATCH):
            reading = asyncio.ensure_future(store.get("outlasting/lock"))
            beginning = asyncio.ensure_future(anext(new))
            pair = await store.put(key, b"")
            assert await anext(old) == pair
            await asyncio.sleep(1.4)
        assert await reading == (await store.get("outlasting/lock"))
        assert await beginning is None
        # Longer than without the renewals after it.
        await asyncio.sleep(2.5)
        assert held.is_held


async def test_an_endpoint_behind_which_there_is_nobody_is_left(server: EtcdServer) -> None:
    async with (
        FaultProxy(server.host, server.port, protocol="http2") as path,
        Nginx([path.endpoint], grpc=True) as nginx,
        EtcdStore([nginx.endpoint, server.endpoint], Config(request_timeout=scaled(5))) as store,
        store.watch("left") as watch,
    ):
        assert await anext(watch) is None
        path.reset()
        path.refuse()
        assert not await store.exists("left")
        pair = await store.put("left", b"")
        async with asyncio.timeout(scaled(5)):
            assert await anext(watch) == pair


@pytest.mark.parametrize(
    "answer", [refusing(UNAVAILABLE, "no healthy upstream"), resetting()], ids=["unavailable", "reset"]
)
async def test_an_endpoint_that_answers_nothing_but_questions_is_left(server: EtcdServer, answer: Answer) -> None:
    async with (
        front(answer) as proxy,
        EtcdStore([proxy, server.endpoint], Config(request_timeout=scaled(5))) as store,
    ):
        assert not await store.exists("left/too")
        assert store.driver._connection.server == server.endpoint
