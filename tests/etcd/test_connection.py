"""Entering, failing over, and closing, against real servers."""

import asyncio
import contextlib
import gc
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import pytest_asyncio

from aiolibkv import (
    Config,
    NotReachableError,
    Put,
    RequestTimeoutError,
    StoreClosedError,
    StoreError,
)
from aiolibkv.backends.etcd.http2 import Connection, connect
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import EtcdCluster, EtcdServer
from etcd.fronts import front, status, throttled, web_status
from faults.impostors import Front
from stores import EtcdStore

pytestmark = [pytest.mark.asyncio(loop_scope="function"), pytest.mark.leaves_nothing_behind]

_UNIMPLEMENTED = 12
MUTE_SECONDS = 2.5
"""What the liveness check takes at most: a second's patience and 1.5 s for the answer."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[EtcdServer]:
    async with EtcdServer() as running:
        yield running


@pytest_asyncio.fixture
async def proxy(server: EtcdServer) -> AsyncIterator[FaultProxy]:
    async with FaultProxy(server.host, server.port) as running:
        yield running


@pytest.fixture
def mute() -> Iterator[str]:
    """The address of somebody who accepts connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.fixture
def refused() -> Iterator[str]:
    """An address where nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{bound.getsockname()[1]}"


# -- entering ------------------------------------------------------------------------------------------------------


async def test_entering_at_a_refused_port(refused: str) -> None:
    began = time.monotonic()
    with pytest.raises(NotReachableError, match="refused") as caught:
        async with EtcdStore([refused], Config(connection_timeout=scaled(2))):
            pass
    assert time.monotonic() - began < scaled(3)
    assert refused in str(caught.value)


async def test_entering_at_a_mute_server(mute: str) -> None:
    began = time.monotonic()
    with pytest.raises(NotReachableError):
        async with EtcdStore([mute], Config(connection_timeout=1)):
            pass
    assert 1 <= time.monotonic() - began < 1 + scaled(1)


async def test_entering_where_no_name_is_looked_up_tells_so(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_kwargs: over.wait(60) and [])
    told = ""
    try:
        # All time may pass in between when this process stands still.
        for _ in range(10):
            with pytest.raises(NotReachableError) as caught:
                await EtcdStore(["stalled.test"], Config(connection_timeout=0.3)).open()
            told = str(caught.value)
            if "stalled.test could not be looked up: no answer within" in told:
                return
    finally:
        over.set()
    raise AssertionError(told)


@pytest.mark.parametrize("before", [["mute"], ["refused"], ["refused", "mute"]])
async def test_entering_finds_the_server_that_answers(
    before: list[str], server: EtcdServer, mute: str, refused: str
) -> None:
    addresses = {"mute": mute, "refused": refused}
    async with EtcdStore(
        [*(addresses[name] for name in before), server.endpoint], Config(connection_timeout=scaled(3))
    ) as store:
        await store.put("entered", b"")


async def test_entering_again_after_a_failure(proxy: FaultProxy) -> None:
    store = EtcdStore([proxy.endpoint], Config(connection_timeout=scaled(1)))
    proxy.refuse()
    with pytest.raises(NotReachableError):
        async with store:
            pass
    proxy.accept()
    async with store:
        await store.put("key", b"")


async def test_a_server_that_is_no_etcd() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()

    async with Front(answer) as web:
        with pytest.raises(NotReachableError):
            async with EtcdStore([web.endpoint], Config(connection_timeout=scaled(0.5))):
                pass


def web_server(code: int) -> contextlib.AbstractAsyncContextManager[str]:
    """Run a server that answers any request over HTTP/2 with a status."""
    return front(lambda _: web_status(code))


OTHERS: dict[str, Callable[[], contextlib.AbstractAsyncContextManager[str]]] = {
    "gRPC": partial(front, lambda _: status(_UNIMPLEMENTED, "unknown service etcdserverpb.KV")),
    **{f"HTTP {code}": partial(web_server, code) for code in (200, 302, 401, 403, 404, 500, 503)},
}


@pytest.mark.parametrize("name", OTHERS)
async def test_other_services_over_http2_are_no_servers(server: EtcdServer, name: str) -> None:
    async with OTHERS[name]() as other:
        for user in (None, "root"):
            settings = Config(connection_timeout=scaled(3), username=user, password=user)
            with pytest.raises(NotReachableError):
                await EtcdStore([other], replace(settings, connection_timeout=0.3)).open()
            async with EtcdStore([other, server.endpoint], settings) as store:
                await store.put("key", b"")


@pytest.mark.parametrize(
    ("endpoints", "config", "says"),
    [
        ([], Config(), "endpoint"),
        (["host:0"], Config(), "port"),
        (["host"], Config(token="x"), "token"),
        (["host"], Config(username="x"), "password"),
    ],
)
async def test_settings_that_cannot_be(endpoints: list[str], config: Config, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        EtcdStore(endpoints, config)


async def test_a_user_where_none_is_needed(server: EtcdServer) -> None:
    async with EtcdStore([server.endpoint], Config(username="root", password="secret")) as store:
        await store.put("key", b"")


# -- failing over --------------------------------------------------------------------------------------------------


async def test_a_read_moves_on_from_a_mute_server(server: EtcdServer, proxy: FaultProxy) -> None:
    async with EtcdStore([proxy.endpoint, server.endpoint], Config(request_timeout=scaled(8))) as store:
        pair = await store.put("key", b"value")
        proxy.blackhole()
        began = time.monotonic()
        assert await store.get("key") == pair
        assert time.monotonic() - began < scaled(MUTE_SECONDS + 1)
        assert proxy.connections_total == 1


async def test_a_write_to_a_mute_server_fails_in_doubt_before_its_time_is_over(
    server: EtcdServer, proxy: FaultProxy
) -> None:
    async with EtcdStore([proxy.endpoint, server.endpoint], Config(request_timeout=scaled(8))) as store:
        await store.put("key", b"value")
        proxy.blackhole()
        began = time.monotonic()
        with pytest.raises(NotReachableError) as caught:
            await store.put("key", b"new")
        assert caught.value.maybe_applied is True
        assert time.monotonic() - began < scaled(MUTE_SECONDS + 1)
        await store.put("key", b"new")


@pytest.mark.parametrize("reason", ["etcdserver: no leader", "failed to connect to all addresses"])
async def test_a_write_is_in_doubt_when_its_link_ends_because_of_another_calls_refusal(
    server: EtcdServer, proxy: FaultProxy, reason: str
) -> None:
    async with EtcdStore([proxy.endpoint]) as store, EtcdStore([server.endpoint]) as direct:
        await store.put("key", b"1")
        proxy.blackhole(to_server=False)
        async with direct.watch("key") as watch, asyncio.TaskGroup() as group:
            await anext(watch)
            writing = group.create_task(_failure_of_put(store))
            await anext(watch)
            connection = store.driver._connection
            connection.lost(await connection.link(), reason)
            proxy.heal()
        assert writing.result().maybe_applied
        assert (await direct.get("key")).value == b"2"


async def _failure_of_put(store: EtcdStore) -> NotReachableError:
    with pytest.raises(NotReachableError) as caught:
        await store.put("key", b"2")
    return caught.value


async def test_a_slow_answer_is_waited_for_while_the_server_lives(proxy: FaultProxy) -> None:
    async with EtcdStore([proxy.endpoint], Config(request_timeout=scaled(8))) as store:
        await store.put("key", b"value")
        # Each question and each answer takes 1.2 s: more than the patience, less than is allowed for a sign of life.
        proxy.delay(0.6)
        await store.put("key", b"new")
        assert proxy.connections_total == 1


async def test_a_link_may_be_as_slow_as_connection_timeout_allows(proxy: FaultProxy) -> None:
    async with EtcdStore([proxy.endpoint], Config(connection_timeout=60, request_timeout=60)) as store:
        await store.put("key", b"value")
        # 3 s there and back; it counts as mute only after 18 s.
        proxy.delay(1.5)
        await store.put("key", b"new")
        assert proxy.connections_total == 1


async def test_data_on_a_slow_link_is_a_sign_of_life(server: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 s for the value there, and again back, longer than a silent server is waited for."""
    monkeypatch.setattr("aiolibkv.backends.etcd.link._PATIENCE", 0.1)
    monkeypatch.setattr("aiolibkv.backends.etcd.link._ANSWERING_STEP", 0.3)
    monkeypatch.setattr("aiolibkv.backends.etcd.connection._ANSWERING_TIME", 0.9)
    config = Config(connection_timeout=2, request_timeout=scaled(15))
    async with throttled(server, 500_000) as address, EtcdStore([address], config) as store:
        lost: list[str] = []
        monkeypatch.setattr(store.driver, "disconnected", lambda _, reason: lost.append(reason))
        pair = await store.put("key", bytes(1_000_000))
        assert await store.get("key") == pair
        assert not lost


async def test_a_link_that_takes_long_is_replaced_when_there_is_time_to_connect(proxy: FaultProxy) -> None:
    async with EtcdStore([proxy.endpoint], Config(connection_timeout=scaled(6), request_timeout=scaled(8))) as store:
        pair = await store.put("key", b"value")
        # 0.6 s until the server says what it allows, and 1.2 s to see that it is etcd.
        proxy.delay(0.6)
        proxy.reset()
        assert await store.get("key") == pair


async def test_several_servers_behind_a_slow_link(proxy: FaultProxy) -> None:
    servers = [proxy.endpoint, f"localhost:{proxy.port}"]
    settings = Config(connection_timeout=scaled(1), request_timeout=scaled(10))
    async with EtcdStore(servers, settings) as store:
        pair = await store.put("key", b"value")
        # 0.6 s until a connection is usable, longer than half of the time to connect.
        proxy.delay(scaled(0.2))
        proxy.reset()
        assert await store.get("key") == pair


async def test_one_connection_for_many_calls_and_watches(proxy: FaultProxy) -> None:
    async with EtcdStore([proxy.endpoint]) as store:
        watches = [store.watch(f"key/{number}") for number in range(20)]
        await asyncio.gather(*(anext(watch) for watch in watches))
        await asyncio.gather(*(store.put(f"key/{number}", b"") for number in range(20)))
        assert proxy.connections_total == 1


async def test_stores_do_not_share_a_connection(proxy: FaultProxy) -> None:
    async with EtcdStore([proxy.endpoint]), EtcdStore([proxy.endpoint]):
        assert proxy.connections_open == 2


async def test_reads_and_writes_go_on_when_the_leader_dies() -> None:
    async with EtcdCluster() as cluster:
        leader = await cluster.leader()
        endpoints = [leader.endpoint, *(each for each in cluster.endpoints if each != leader.endpoint)]
        async with EtcdStore(endpoints, Config(request_timeout=scaled(10))) as store:
            pair = await store.put("key", b"value")
            await leader.kill()
            assert await store.get("key") == pair

            async def put() -> bool:
                try:
                    await store.put("key", b"new")
                except NotReachableError:
                    return False
                return True

            await eventually(put, within=10, message="a write succeeds again")


async def test_writes_go_on_when_the_leader_hands_over() -> None:
    # As it does whenever it is stopped. Meanwhile it drops what it is told to write.
    async with EtcdCluster() as cluster, contextlib.AsyncExitStack() as stack:
        settings = Config(request_timeout=scaled(10))
        stores = [await stack.enter_async_context(EtcdStore([server.endpoint], settings)) for server in cluster.servers]
        done = asyncio.Event()
        failures: list[NotReachableError] = []

        async def write(store: EtcdStore) -> None:
            while not done.is_set():
                try:
                    await store.put("key", b"")
                except NotReachableError as error:
                    failures.append(error)

        async with asyncio.TaskGroup() as group:
            for store in stores:
                for _ in range(5):
                    group.create_task(write(store))
            for _ in range(10):
                leader = await cluster.leader()
                follower = next(server for server in cluster.servers if server is not leader)
                member = json.loads(await follower.ctl("endpoint", "status", "--write-out=json"))[0]["Status"]
                await leader.ctl("move-leader", f"{member['header']['member_id']:x}")
            done.set()
        # The answer to what was forwarded to the old leader may be lost.
        assert all(error.maybe_applied for error in failures)


async def test_a_member_without_a_leader_is_left() -> None:
    # Two of three members are frozen: the third serves stale reads only. When they run again, all is well.
    async with EtcdCluster() as cluster:
        first, second, third = cluster.servers
        async with EtcdStore([first.endpoint], Config(request_timeout=scaled(6))) as store:
            pair = await store.put("key", b"value")
            second.pause()
            third.pause()
            with pytest.raises(StoreError):
                await store.get("key")
            assert await store.get("key", consistent=False) == pair
            second.resume()
            third.resume()

            async def read() -> bool:
                try:
                    return await store.get("key") == pair
                except NotReachableError:
                    return False

            await eventually(read, within=30, message="a leader is elected")


async def test_a_server_that_is_down_is_not_flooded(proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> None:
    attempts = 0

    async def count(*arguments: Any) -> Connection:
        nonlocal attempts
        attempts += 1
        return await connect(*arguments)

    async with EtcdStore([proxy.endpoint], Config(request_timeout=1)) as store, store.watch_tree("") as watch:
        await anext(watch)
        monkeypatch.setattr("aiolibkv.backends.etcd.channel.connect", count)
        proxy.refuse()
        proxy.reset()
        calls = (store.put(f"key/{number}", b"", ttl=10) for number in range(100))
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(outcome, NotReachableError | RequestTimeoutError) for outcome in outcomes)
        # All wait together, and the pauses grow from 20 ms to 0.5 s.
        assert 1 < attempts < 20


async def test_every_error_of_an_outage_has_its_endpoint_and_cause(proxy: FaultProxy) -> None:
    async with EtcdStore([proxy.endpoint], Config(request_timeout=scaled(0.3))) as store:
        pair = await store.put("key", b"")
        proxy.refuse()
        proxy.reset()
        for turn in ("refused", "mute"):
            with contextlib.suppress(StoreError):
                await store.get("key")
            errors = await asyncio.gather(
                store.get("key"),
                store.list(""),
                store.put("key", b""),
                store.put("key", b"", ttl=10),
                store.put("key", b"", keep_alive=True),
                store.atomic_put("key", b"", pair),
                store.delete("key"),
                store.commit(Put("key", b"")),
                store.new_lock("lock").try_acquire(),
                anext(store.scan("")),
                return_exceptions=True,
            )
            for error in errors:
                assert isinstance(error, NotReachableError | RequestTimeoutError), turn
                assert error.endpoint == proxy.endpoint
                assert "refused" in str(error)
                assert isinstance(_first_cause(error), ConnectionRefusedError)
            # From now on it is waited for, but the reason is known from before.
            proxy.accept()
            proxy.blackhole()


def _first_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


# -- closing -------------------------------------------------------------------------------------------------------


async def test_close_with_a_paused_server() -> None:
    async with EtcdServer() as own:
        async with EtcdStore([own.endpoint], Config(request_timeout=scaled(20))) as store:
            await store.put("key", b"", ttl=30, keep_alive=True)
            watch = store.watch_tree("")
            await anext(watch)
            own.pause()
            calls = [asyncio.ensure_future(call) for call in (store.get("key"), store.put("key", b""), anext(watch))]
            done, _ = await asyncio.wait(calls, timeout=0.2)
            assert not done
            began = time.monotonic()
            await store.close()
            assert time.monotonic() - began < scaled(2)
            for call in calls:
                with pytest.raises(StoreClosedError):
                    await call
        own.resume()


async def test_nothing_is_left_after_close(proxy: FaultProxy) -> None:
    before = asyncio.all_tasks()
    threads = threading.active_count()
    async with EtcdStore([proxy.endpoint]) as store:
        await store.put("key", b"", keep_alive=True)
        watch = store.watch_tree("")
        await anext(watch)
        proxy.reset()
        await store.get("key")
        # Nor do errors that somebody keeps hold the connection.
        proxy.blackhole()
        with pytest.raises(TimeoutError) as kept:
            async with asyncio.timeout(0.05):
                await store.get("key")
        proxy.heal()
    assert asyncio.all_tasks() == before
    await eventually(lambda: proxy.connections_open == 0, within=5, message="the connection is closed")
    assert kept.value.__traceback__ is not None
    del store, watch

    def alone() -> bool:
        gc.collect()
        return threading.active_count() <= threads

    await eventually(alone, within=5, message="the transport's thread ends")
