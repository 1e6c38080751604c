"""Everything works through what people place between clients and etcd."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial

import pytest
import pytest_asyncio

from aiolibkv import AccessDeniedError, Config, KeyNotFoundError, KVPair, NotReachableError, Snapshot, Watch
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import EtcdServer
from aiolibkv.testing.servers.reverse_proxies import EtcdGateway, EtcdGrpcProxy, Haproxy, Nginx, ReverseProxy
from stores import EtcdStore

pytestmark = [pytest.mark.asyncio(loop_scope="function"), pytest.mark.leaves_nothing_behind]

ROOT = Config(username="root", password="secret", request_timeout=scaled(5))
LIMITED = Config(username="limited", password="secret")
TOKEN_TTL = 1
WATCHES = 300
PROXIES: dict[str, Callable[[Sequence[str]], ReverseProxy]] = {
    "grpc-proxy": EtcdGrpcProxy,
    "gateway": EtcdGateway,
    "nginx": partial(Nginx, grpc=True),
    "haproxy": Haproxy,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[EtcdServer]:
    async with EtcdServer(auth=("root", "secret"), extra_args=[f"--auth-token-ttl={TOKEN_TTL}"]) as running:
        await running.add_user("limited", "secret", prefix="open/")
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=sorted(PROXIES))
async def proxy(request: pytest.FixtureRequest, server: EtcdServer) -> AsyncIterator[ReverseProxy]:
    async with PROXIES[request.param]([server.endpoint]) as running:
        await eventually(partial(_serves, running.endpoint), within=10, message="the proxy serves")
        yield running


async def _serves(endpoint: str) -> bool:
    with contextlib.suppress(NotReachableError):
        async with EtcdStore([endpoint], ROOT):
            return True
    return False


@pytest_asyncio.fixture
async def store(proxy: ReverseProxy) -> AsyncIterator[EtcdStore]:
    async with EtcdStore([proxy.endpoint], ROOT) as entered:
        yield entered


@pytest_asyncio.fixture
async def direct(server: EtcdServer) -> AsyncIterator[EtcdStore]:
    async with EtcdStore([server.endpoint], ROOT) as entered:
        yield entered
        with contextlib.suppress(KeyNotFoundError):
            await entered.delete_tree("open")


async def test_watches_that_are_begun_together_see_their_own_keys(store: EtcdStore, direct: EtcdStore) -> None:
    keys = [f"open/{number}" for number in range(WATCHES)]
    watches = {key: store.watch(key) for key in keys}
    assert await asyncio.gather(*(anext(watch) for watch in watches.values())) == [None] * WATCHES
    pairs = await asyncio.gather(*(direct.put(key, b"") for key in keys))
    async with asyncio.timeout(scaled(10)):
        assert await asyncio.gather(*(anext(watch) for watch in watches.values())) == pairs
    for watch in watches.values():
        await watch.aclose()


async def test_leases_are_renewed(store: EtcdStore, direct: EtcdStore) -> None:
    held = await store.new_lock("open/lock", ttl=2).acquire()
    pair = await store.put("open/alive", b"", ttl=2, keep_alive=True)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(3):
            await held.wait_lost()
    assert held.is_held
    assert await direct.get("open/alive") == pair
    guarded = await store.put("open/guarded", b"", guard=held)
    assert await direct.get("open/guarded") == guarded


async def test_a_lock_is_handed_over(store: EtcdStore, proxy: ReverseProxy, server: EtcdServer) -> None:
    async with EtcdStore([proxy.endpoint], ROOT) as other:
        async with store.new_lock("open/lock", ttl=5):
            waiting = asyncio.ensure_future(other.new_lock("open/lock", ttl=5).acquire())
            await eventually(lambda: _is_waiting(server), within=5, message="the other waits")
        async with asyncio.timeout(scaled(3)):
            assert (await waiting).is_held


async def _is_waiting(server: EtcdServer) -> bool:
    return bool(await server.ctl("get", "--prefix", "--keys-only", ".aiolibkv/waiters"))


async def test_what_may_not_be_watched(proxy: ReverseProxy) -> None:
    async with EtcdStore([proxy.endpoint], LIMITED) as limited:
        assert await anext(limited.watch("open/key")) is None
        for denied in (limited.get("closed"), limited.put("closed", b""), anext(limited.watch("closed"))):
            with pytest.raises(AccessDeniedError):
                await denied


async def test_watches_outlive_tokens(store: EtcdStore, direct: EtcdStore) -> None:
    first = store.watch("open/first")
    assert await anext(first) is None
    # Longer than etcd looks for expired tokens.
    await asyncio.sleep(TOKEN_TTL + 1.5)
    second = store.watch_tree("open")
    assert len(await anext(second)) == 0
    for value in (b"1", b"2"):
        pair = await direct.put("open/first", value)
        async with asyncio.timeout(scaled(5)):
            assert await anext(first) == pair
            assert list(await anext(second)) == [pair]
    assert (await store.put("open/first", b"3")).last_index > pair.last_index


async def test_changes_of_an_outage_that_are_compacted(
    store: EtcdStore, direct: EtcdStore, proxy: ReverseProxy, server: EtcdServer
) -> None:
    pair = await direct.put("open/key", b"0")
    watches = [store.watch("open/key"), store.watch("open/key")]
    trees = [store.watch_tree("open"), store.watch_tree("open")]
    for watch in (*watches, *trees):
        await anext(watch)
    await proxy.kill()
    for _ in range(3):
        pair = await direct.put("open/key", b"1")
    await server.compact()
    await proxy.start()
    await see(pair, watches, trees)
    # They go on.
    await see(await direct.put("open/key", b"2"), watches, trees)


async def see(pair: KVPair, watches: Sequence[Watch[KVPair | None]], trees: Sequence[Watch[Snapshot]]) -> None:
    async with asyncio.timeout(scaled(10)):
        for watch in watches:
            while await anext(watch) != pair:
                pass
        for tree in trees:
            while list(await anext(tree)) != [pair]:
                pass


@pytest.mark.parametrize(
    "kind", [partial(Nginx, grpc=True, read_timeout=0.5), partial(Haproxy, http2=True, idle_timeout=0.5)]
)
async def test_calls_outlast_watches_that_are_silent_and_connections_that_have_had_their_share(
    server: EtcdServer, kind: Callable[[Sequence[str]], ReverseProxy]
) -> None:
    # Both end a stream on which the server is silent; nginx a connection after 1000 requests.
    async with (
        kind([server.endpoint]) as between,
        EtcdStore([between.endpoint], ROOT) as store,
        store.watch("open/silent") as watch,
    ):
        link = await store.driver._connection.link()
        assert await anext(watch) is None
        end = asyncio.get_running_loop().time() + 1.5

        async def write(task: int) -> int:
            for number in range(sys.maxsize):
                await store.put(f"open/{task}", str(number).encode())
                if number >= 60 and asyncio.get_running_loop().time() > end:
                    return number
            raise AssertionError

        assert sum(await asyncio.gather(*(write(task) for task in range(20)))) > 1000
        assert await store.driver._connection.link() is link
        pair = await store.put("open/silent", b"")
        async with asyncio.timeout(scaled(5)):
            assert await anext(watch) == pair
        await store.delete_tree("open")


async def test_watches_that_a_proxy_drops_without_a_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does when the server restarts, and forgets its tokens."""
    monkeypatch.setattr("aiolibkv.backends.etcd.watching._PROXYS_SILENCE", 0.5)
    async with (
        EtcdServer(auth=("root", "secret")) as own,
        EtcdGrpcProxy([own.endpoint]) as between,
    ):
        await eventually(partial(_serves, between.endpoint), within=10, message="the proxy serves")
        async with (
            EtcdStore([between.endpoint], ROOT) as store,
            EtcdStore([own.endpoint], ROOT) as direct,
            store.watch("open/key") as watch,
            store.watch_tree("open") as tree,
        ):
            await see(await direct.put("open/key", b"0"), [watch], [tree])
            # Not each time.
            for value in (b"1", b"2"):
                await own.kill()
                await own.start()
                await see(await direct.put("open/key", value), [watch], [tree])
            await direct.delete("open/key")
            async with asyncio.timeout(scaled(10)):
                assert await anext(watch) is None
                assert len(await anext(tree)) == 0
