"""The command line on real servers."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

import pytest

from aiolibkv import AsyncStore, Put, StoreError, open_store
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import ConsulServer, EtcdServer, ZooKeeperServer
from aiolibkv.testing.servers.base import Server
from cli.tool import Tool, is_alive, until

KINDS: dict[str, type[Server]] = {"consul": ConsulServer, "etcd": EtcdServer, "zookeeper": ZooKeeperServer}
LIMITS = {
    "consul": "200 connections from one address (limits.http_max_conns_per_client)",
    "etcd": "0 of 2048 MiB are used (--quota-backend-bytes)",
    "zookeeper": "any number of connections from one address (maxClientCnxns); each ttl takes one",
}
ALL_BYTES = bytes(range(256))
SLEEP = "echo $$; exec sleep 60"
MANY = 10_000


class Servers:
    """Servers that are started when a test needs them, and shared by all."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack
        self._running: dict[str, Server] = {}

    def __getitem__(self, backend: str) -> Server:
        if backend not in self._running:
            server = KINDS[backend]()
            asyncio.run(server.start())
            self._stack.callback(lambda: asyncio.run(server.close()))
            self._running[backend] = server
        return self._running[backend]

    def tool(self, backend: str) -> Tool:
        """Return the command line on a directory of the test's own."""
        return Tool(f"{backend}://{self[backend].endpoint}/{uuid4().hex}")


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack)


@pytest.mark.parametrize("backend", KINDS)
def test_commands(servers: Servers, backend: str, tmp_path: Path) -> None:
    tool = servers.tool(backend)
    tool("put", "dir/all", stdin=ALL_BYTES)
    tool.put("dir/all/empty")
    assert tool("get", "dir/all").out == ALL_BYTES
    assert tool("ls", "dir").lines == ["all", "all/"]
    file = tmp_path / "export"
    tool("export", "--output", str(file))
    other = servers.tool(backend)
    assert other("import", str(file)).lines == ["create\tdir/all", "create\tdir/all/empty"]
    assert other.values() == {"dir/all": ALL_BYTES, "dir/all/empty": b""}
    with tool.start("watch", "key") as watch:
        assert watch.line() == "key\t-"
        index = tool.put("key", b"value")
        assert watch.line() == f"key\t{index}\tvalue"
    doctor = {item["check"]: item for item in tool("doctor", "--json").items}
    assert doctor["reachable"]["detail"] == servers[backend].endpoint
    assert doctor["version"]["detail"][0].isdecimal()
    assert doctor["limit"]["detail"] == LIMITS[backend]


async def _is_refused(store: AsyncStore) -> bool:
    """Fill a server in steps that are small beside what it takes, so that it is nearly full when it refuses one."""
    try:
        await store.put("large", bytes(100_000))
    except StoreError:
        return True
    return False


def test_doctor_tells_what_is_full() -> None:
    async def examine() -> None:
        async with EtcdServer(extra_args=["--quota-backend-bytes=2000000"]) as server:
            tool = Tool(f"etcd://{server.endpoint}/")
            async with open_store(tool.url) as store:
                await eventually(lambda: _is_refused(store), within=10, message="the server is full")
            ended = await asyncio.to_thread(tool.run, "doctor")
            assert ended.code == 8
            limit, usable = (line.split("\t")[1:] for line in ended.lines if line.startswith("WRONG"))
            assert limit[0] == "limit"
            assert limit[1].endswith(" of 2 MiB are used (--quota-backend-bytes)")
            assert limit[2].startswith("compact and defragment")
            assert "the server's space quota is used up" in usable[1]

    asyncio.run(examine())


@pytest.mark.parametrize("backend", KINDS)
def test_a_lock_that_is_deleted_ends_the_command(servers: Servers, backend: str) -> None:
    tool = servers.tool(backend)
    with tool.start("lock", "key", "--", "sh", "-c", SLEEP) as lock:
        child = int(lock.line())
        tool.delete("key")
        until(lambda: not is_alive(child), within=2)
        ended = lock.ended()
        assert (ended.code, len(ended.err.splitlines())) == (7, 1)
        assert f"{backend} at {servers[backend].endpoint}" in ended.err


@pytest.mark.parametrize(("backend", "ttl"), [("consul", 10), ("etcd", 3), ("zookeeper", 4)])
def test_the_command_is_dead_before_others_have_the_lock(servers: Servers, backend: str, ttl: float) -> None:
    tool, server = servers.tool(backend), servers[backend]

    async def take_over() -> None:
        async with FaultProxy(server.host, server.port) as proxy, open_store(tool.url) as store:
            through = Tool(tool.url.replace(server.endpoint, proxy.endpoint))
            stubborn = "trap '' TERM; echo $$; while :; do sleep 0.1; done"
            with through.start("lock", "key", "--ttl", str(ttl), "--", "sh", "-c", stubborn) as lock:
                child = int(await asyncio.to_thread(lock.line))
                waiting = asyncio.create_task(store.new_lock("key", ttl=ttl).acquire())
                proxy.blackhole()
                await asyncio.wait_for(waiting, scaled(40))
                assert not is_alive(child)
                assert (await asyncio.to_thread(lock.ended)).code == 7

    asyncio.run(take_over())


def test_cp_follows_deletions_in_the_first_copy_and_in_an_outage(servers: Servers, tmp_path: Path) -> None:
    source, destination = Tool(f"sqlite:///{tmp_path / 'test.db'}"), servers.tool("etcd")
    server, number = servers["etcd"], 500  # of several batches

    async def follow() -> None:
        async with (
            FaultProxy(server.host, server.port) as proxy,
            open_store(source.url) as changed,
            open_store(destination.url) as store,
        ):
            await asyncio.gather(*(changed.put(f"{key:03}", b"") for key in range(number)))
            proxy.delay(0.1)
            through = destination.url.replace(server.endpoint, proxy.endpoint)
            with source.start("cp", source.url, through, "--follow", "--timeout", "1") as following:
                error = following.process.stderr
                assert error is not None

                def is_told(words: bytes) -> bool:
                    return any(words in line for line in error)

                await eventually(lambda: store.exists("000"), within=20, message="the copy has begun")
                await changed.delete("000")
                proxy.delay(0)
                assert await asyncio.to_thread(is_told, b"equal keys")
                proxy.blackhole()
                await changed.delete("001")
                assert await asyncio.to_thread(is_told, b"tries again")
                proxy.heal()

                async def are_gone() -> bool:
                    return not await store.get_many(["000", "001"])

                await eventually(are_gone, within=20, message="both deletions are carried out")

    asyncio.run(follow())


def test_what_is_too_large_is_left_out(servers: Servers, tmp_path: Path) -> None:
    source, destination = Tool(f"sqlite:///{tmp_path / 'test.db'}"), servers.tool("consul")
    source.put("large", b"x" * 600_000)
    source.put("small", b"x")
    ended = source.run("cp", source.url, destination.url)
    assert ended.code == 8
    told = ended.err.splitlines()
    assert "a value has at most 524288 bytes" in told[0]
    assert told[1:] == [
        "aiolibkv: equal keys: 1; changes made: 1",
        "aiolibkv: keys that the destination cannot have: 1",
    ]
    assert destination.values() == {"small": b"x"}


def test_many_keys_there_and_back(servers: Servers) -> None:
    first, second, third = servers.tool("zookeeper"), servers.tool("etcd"), servers.tool("zookeeper")

    async def fill() -> None:
        async with open_store(first.url) as store:
            for at in range(0, MANY, 20):
                await store.commit(*(Put(f"dir-{key % 10}/key-{key}", b"%d" % key) for key in range(at, at + 20)))
            await store.put("all", ALL_BYTES)
            await store.put("all/empty", b"")

    asyncio.run(fill())
    with first.start("cp", first.url, second.url) as copy:
        until(second.values, within=30)
        copy.send(signal.SIGKILL)
        copy.process.wait()
    assert 0 < len(second.values()) < MANY
    assert first("cp", first.url, second.url, "--quiet").out == b""
    assert second("cp", second.url, third.url, "--quiet").out == b""
    values = first.values()
    assert len(values) == MANY + 2
    assert second.values() == values
    assert third.values() == values
