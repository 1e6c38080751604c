"""Clients to be compared: each is one way to do the same few operations.

A method that a client does not define is not measured on it. Each class imports its library when it is entered, since
two of them cannot be in one process.
"""

from __future__ import annotations

import asyncio
import json
from binascii import a2b_base64
from contextlib import AsyncExitStack
from typing import Any, Self
from urllib.parse import urlsplit


class Client:
    """One way to reach a server.

    Attributes:
        package: what to install for it; its version is reported.
        note: what a reader should know about the comparison.
    """

    package = ""
    note = ""

    def __init__(self, url: str) -> None:
        """Make a client that is not connected.

        Args:
            url: where the server is, as aiolibkv writes it.
        """
        self.url = url
        self.stack = AsyncExitStack()

    async def __aenter__(self) -> Self:
        """Connect."""
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close what connecting has opened."""
        await self.stack.aclose()

    async def connect(self) -> None:
        """Connect."""
        raise NotImplementedError

    async def put(self, key: str, value: bytes) -> None:
        """Write a value, whatever was there."""
        raise NotImplementedError


class Aiolibkv(Client):
    """This library."""

    package = "aiolibkv"

    async def connect(self) -> None:
        """Open the store."""
        from aiolibkv import open_store

        self.store = await self.stack.enter_async_context(open_store(self.url))

    async def put(self, key: str, value: bytes) -> None:
        """Write a value."""
        await self.store.put(key, value)

    async def get(self, key: str) -> None:
        """Read a value."""
        await self.store.get(key)

    async def exists(self, key: str) -> None:
        """Ask for a key."""
        await self.store.exists(key)

    async def atomic_put(self, key: str, value: bytes, previous: Any) -> Any:
        """Compare and swap."""
        return await self.store.atomic_put(key, value, previous)

    async def delete(self, key: str) -> None:
        """Delete a key."""
        await self.store.delete(key)

    async def list(self, directory: str) -> int:
        """Read a directory."""
        return len(await self.store.list(directory))

    async def lock(self, key: str) -> None:
        """Acquire and release a lock."""
        async with self.store.new_lock(key):
            pass


class GrpcAio(Client):
    """The generated stubs on grpc.aio, nothing around them."""

    package = "grpcio"
    note = "Stubs of aetcd; no deadline, no repetition, no check of what comes back."

    async def connect(self) -> None:
        """Open a channel."""
        import grpc
        from aetcd import rpc

        self.rpc = rpc
        channel = await self.stack.enter_async_context(grpc.aio.insecure_channel(urlsplit(self.url).netloc))
        self.stub = rpc.KVStub(channel)

    async def put(self, key: str, value: bytes) -> None:
        """Write a value."""
        await self.stub.Put(self.rpc.PutRequest(key=key.encode(), value=value))

    async def get(self, key: str) -> None:
        """Read a value."""
        await self.stub.Range(self.rpc.RangeRequest(key=key.encode()))

    async def exists(self, key: str) -> None:
        """Ask for a key."""
        await self.stub.Range(self.rpc.RangeRequest(key=key.encode(), count_only=True))

    async def atomic_put(self, key: str, value: bytes, previous: Any) -> Any:
        """Compare and swap by modification."""
        rpc, name = self.rpc, key.encode()
        compare = rpc.Compare(result=rpc.Compare.EQUAL, target=rpc.Compare.MOD, key=name, mod_revision=previous or 0)
        put = rpc.RequestOp(request_put=rpc.PutRequest(key=name, value=value))
        answer = await self.stub.Txn(rpc.TxnRequest(compare=[compare], success=[put]))
        assert answer.succeeded
        return answer.header.revision

    async def delete(self, key: str) -> None:
        """Delete a key."""
        await self.stub.DeleteRange(self.rpc.DeleteRangeRequest(key=key.encode()))

    async def list(self, directory: str) -> int:
        """Read a directory."""
        request = self.rpc.RangeRequest(key=f"{directory}/".encode(), range_end=f"{directory}0".encode())
        return len([(pair.key, pair.value) for pair in (await self.stub.Range(request)).kvs])


class Aetcd(Client):
    """aetcd."""

    package = "aetcd"
    note = "Its compare-and-swap compares values, not modifications."

    async def connect(self) -> None:
        """Connect."""
        import aetcd

        server = urlsplit(self.url)
        self.client = await self.stack.enter_async_context(aetcd.Client(server.hostname, server.port))

    async def put(self, key: str, value: bytes) -> None:
        """Write a value."""
        await self.client.put(key.encode(), value)

    async def get(self, key: str) -> None:
        """Read a value."""
        await self.client.get(key.encode())

    async def atomic_put(self, key: str, value: bytes, previous: Any) -> Any:
        """Compare and swap by value."""
        if previous is None:
            await self.put(key, value)
        else:
            assert await self.client.replace(key.encode(), previous, value)
        return value

    async def delete(self, key: str) -> None:
        """Delete a key."""
        await self.client.delete(key.encode())

    async def list(self, directory: str) -> int:
        """Read a directory."""
        return len([(pair.key, pair.value) for pair in await self.client.get_prefix(f"{directory}/".encode())])

    async def lock(self, key: str) -> None:
        """Acquire and release a lock."""
        async with self.client.lock(key.encode(), ttl=15):
            pass


class Etcd3aio(Client):
    """etcd3aio."""

    package = "etcd3aio"

    async def connect(self) -> None:
        """Connect."""
        import etcd3aio

        self.client = await self.stack.enter_async_context(etcd3aio.Etcd3Client([urlsplit(self.url).netloc]))
        self.kv = self.client.kv

    async def put(self, key: str, value: bytes) -> None:
        """Write a value."""
        await self.kv.put(key, value)

    async def get(self, key: str) -> None:
        """Read a value."""
        await self.kv.get(key)

    async def exists(self, key: str) -> None:
        """Ask for a key."""
        await self.kv.get(key, count_only=True)

    async def atomic_put(self, key: str, value: bytes, previous: Any) -> Any:
        """Compare and swap by version."""
        version = previous or 0
        kv = self.kv
        answer = await kv.txn([kv.txn_compare_version(key, version)], [kv.txn_op_put(key, value)])
        assert answer.succeeded
        return version + 1

    async def delete(self, key: str) -> None:
        """Delete a key."""
        await self.kv.delete(key)

    async def list(self, directory: str) -> int:
        """Read a directory."""
        answer = await self.kv.get(f"{directory}/", range_end=f"{directory}0")
        return len([(pair.key, pair.value) for pair in answer.kvs])

    async def lock(self, key: str) -> None:
        """Acquire and release a lock."""
        async with self.client.lock(key, ttl=15):
            pass


class Aiohttp(Client):
    """Consul's HTTP interface on aiohttp, as lean as it gets."""

    package = "aiohttp"
    note = "No deadline, no repetition; values are decoded by json and binascii."

    async def connect(self) -> None:
        """Make a session that keeps its connections."""
        import aiohttp
        from yarl import URL

        server = urlsplit(self.url).netloc
        # Consul refuses more than 200 connections of one address.
        connector = aiohttp.TCPConnector(limit=150)
        self.session = await self.stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        self.link = lambda path: URL(f"http://{server}/v1/kv/{path}", encoded=True)

    async def put(self, key: str, value: bytes) -> None:
        """Write a value."""
        async with self.session.put(self.link(key), data=value) as answer:
            assert await answer.json() is True

    async def get(self, key: str) -> None:
        """Read a value."""
        async with self.session.get(self.link(f"{key}?consistent=")) as answer:
            a2b_base64(json.loads(await answer.read())[0]["Value"])

    async def exists(self, key: str) -> None:
        """Ask for a key."""
        async with self.session.get(self.link(f"{key}?consistent=&keys=")) as answer:
            await answer.read()

    async def atomic_put(self, key: str, value: bytes, previous: Any) -> Any:
        """Compare and swap; the answer does not tell the new index, so it is read."""
        async with self.session.put(self.link(f"{key}?cas={previous or 0}"), data=value) as answer:
            assert await answer.json() is True
        async with self.session.get(self.link(f"{key}?consistent=")) as answer:
            return json.loads(await answer.read())[0]["ModifyIndex"]

    async def delete(self, key: str) -> None:
        """Delete a key."""
        async with self.session.delete(self.link(key)) as answer:
            assert await answer.json() is True

    async def list(self, directory: str) -> int:
        """Read a directory."""
        async with self.session.get(self.link(f"{directory}/?recurse=&consistent=")) as answer:
            pairs = json.loads(await answer.read())
        return len([(pair["Key"], a2b_base64(pair["Value"])) for pair in pairs])


class PyConsul(Client):
    """py-consul."""

    package = "py-consul"

    async def connect(self) -> None:
        """Make a client."""
        from consul.aio import Consul

        server = urlsplit(self.url)
        client = Consul(server.hostname, server.port, verify=False, consistency="consistent")
        self.stack.push_async_callback(client.close)
        self.kv = client.kv

    async def put(self, key: str, value: bytes) -> None:
        """Write a value."""
        assert await self.kv.put(key, value)

    async def get(self, key: str) -> None:
        """Read a value."""
        assert (await self.kv.get(key))[1]

    async def exists(self, key: str) -> None:
        """Ask for a key."""
        await self.kv.get(key, keys=True)

    async def atomic_put(self, key: str, value: bytes, previous: Any) -> Any:
        """Compare and swap; the answer does not tell the new index, so it is read."""
        assert await self.kv.put(key, value, cas=previous or 0)
        return (await self.kv.get(key))[1]["ModifyIndex"]

    async def delete(self, key: str) -> None:
        """Delete a key."""
        await self.kv.delete(key)

    async def list(self, directory: str) -> int:
        """Read a directory."""
        return len((await self.kv.get(f"{directory}/", recurse=True))[1])


class Aiozk(Client):
    """aiozk."""

    package = "aiozk"
    note = "Reads without sync, so they may be old; its lock tells no loss."

    async def connect(self) -> None:
        """Start a session."""
        import aiozk

        self.client = aiozk.ZKClient(urlsplit(self.url).netloc)
        await self.client.start()
        self.stack.push_async_callback(self.client.close)

    async def put(self, key: str, value: bytes) -> None:
        """Write a value; a new key's directories too."""
        from aiozk import exc

        try:
            await self.client.set(f"/{key}", value, -1)
        except exc.NoNode:
            await self.client.ensure_path(f"/{key}")
            await self.client.set(f"/{key}", value, -1)

    async def get(self, key: str) -> None:
        """Read a value."""
        await self.client.get(f"/{key}")

    async def exists(self, key: str) -> None:
        """Ask for a key."""
        await self.client.exists(f"/{key}")

    async def atomic_put(self, key: str, value: bytes, previous: Any) -> Any:
        """Compare and swap by version."""
        if previous is None:
            await self.put(key, value)
            return (await self.client.get(f"/{key}"))[1].version
        return (await self.client.set(f"/{key}", value, previous)).version

    async def delete(self, key: str) -> None:
        """Delete a key."""
        await self.client.delete(f"/{key}", force=True)

    async def list(self, directory: str) -> int:
        """Read a directory: its names, then each of them."""
        names = await self.client.get_children(f"/{directory}")
        return len(await asyncio.gather(*(self.client.get(f"/{directory}/{name}") for name in names)))

    async def lock(self, key: str) -> None:
        """Acquire and release a lock."""
        async with self.client.recipes.Lock(f"/{key}"):
            pass


class Kazoo(Client):
    """kazoo, whose results a thread of its own brings into the event loop."""

    package = "kazoo"
    note = "A library of threads, by its *_async calls; its lock by a thread for each."

    async def connect(self) -> None:
        """Start a session."""
        from kazoo.client import KazooClient

        self.client = KazooClient(urlsplit(self.url).netloc)
        await asyncio.to_thread(self.client.start)
        self.stack.push_async_callback(asyncio.to_thread, self.client.stop)

    async def put(self, key: str, value: bytes) -> None:
        """Write a value; a new key's directories too."""
        from kazoo.exceptions import NoNodeError

        try:
            await _of(self.client.set_async(f"/{key}", value))
        except NoNodeError:
            await asyncio.to_thread(self.client.create, f"/{key}", value, makepath=True)

    async def get(self, key: str) -> None:
        """Read a value."""
        await _of(self.client.get_async(f"/{key}"))

    async def exists(self, key: str) -> None:
        """Ask for a key."""
        await _of(self.client.exists_async(f"/{key}"))

    async def atomic_put(self, key: str, value: bytes, previous: Any) -> Any:
        """Compare and swap by version."""
        if previous is None:
            await self.put(key, value)
            return (await _of(self.client.exists_async(f"/{key}"))).version
        return (await _of(self.client.set_async(f"/{key}", value, previous))).version

    async def delete(self, key: str) -> None:
        """Delete a key."""
        await _of(self.client.delete_async(f"/{key}"))

    async def list(self, directory: str) -> int:
        """Read a directory: its names, then each of them."""
        names = await _of(self.client.get_children_async(f"/{directory}"))
        return len(await asyncio.gather(*(_of(self.client.get_async(f"/{directory}/{name}")) for name in names)))

    async def lock(self, key: str) -> None:
        """Acquire and release a lock."""

        def lock() -> None:
            with self.client.Lock(f"/{key}"):
                pass

        await asyncio.to_thread(lock)


def _of(result: Any) -> asyncio.Future[Any]:
    """Return the future of a result of kazoo's."""
    loop = asyncio.get_running_loop()
    future = loop.create_future()

    def tell() -> None:
        if result.successful():
            future.set_result(result.value)
        else:
            future.set_exception(result.exception)

    result.rawlink(lambda _: loop.call_soon_threadsafe(tell))
    return future


class Aiosqlite(Client):
    """aiosqlite."""

    package = "aiosqlite"
    note = "A transaction for each put, with the same durability; no log for watches, no lifetimes."

    async def connect(self) -> None:
        """Open a database beside the other one."""
        import aiosqlite

        path = urlsplit(self.url).path.removeprefix("/") + ".aiosqlite"
        self.database = await self.stack.enter_async_context(aiosqlite.connect(path, isolation_level=None))
        for statement in (
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            "CREATE TABLE pairs (key TEXT PRIMARY KEY, value BLOB, version INTEGER) WITHOUT ROWID",
        ):
            await self.database.execute(statement)

    async def put(self, key: str, value: bytes) -> None:
        """Write a value."""
        statement = "INSERT INTO pairs VALUES (?1, ?2, 1) ON CONFLICT DO UPDATE SET value = ?2, version = version + 1"
        await self.database.execute(statement, (key, value))

    async def get(self, key: str) -> None:
        """Read a value."""
        assert await self.database.execute_fetchall("SELECT value, version FROM pairs WHERE key = ?", (key,))

    async def exists(self, key: str) -> None:
        """Ask for a key."""
        await self.database.execute_fetchall("SELECT 1 FROM pairs WHERE key = ?", (key,))

    async def atomic_put(self, key: str, value: bytes, previous: Any) -> Any:
        """Compare and swap by version."""
        if previous is None:
            await self.put(key, value)
            rows = await self.database.execute_fetchall("SELECT version FROM pairs WHERE key = ?", (key,))
            return next(iter(rows))[0]
        statement = "UPDATE pairs SET value = ?, version = version + 1 WHERE key = ? AND version = ?"
        cursor = await self.database.execute(statement, (value, key, previous))
        assert cursor.rowcount == 1
        return previous + 1

    async def delete(self, key: str) -> None:
        """Delete a key."""
        await self.database.execute("DELETE FROM pairs WHERE key = ?", (key,))

    async def list(self, directory: str) -> int:
        """Read a directory."""
        bounds = (f"{directory}/", f"{directory}0")
        statement = "SELECT key, value, version FROM pairs WHERE key > ? AND key < ? ORDER BY key"
        return len(list(await self.database.execute_fetchall(statement, bounds)))


class Dict(Client):
    """A dict behind ``async def``: what no client can be faster than."""

    note = "No copies, no versions, no watches, no waiting."

    async def connect(self) -> None:
        """Make it."""
        self.pairs: dict[str, bytes] = {}

    async def put(self, key: str, value: bytes) -> None:
        """Write a value."""
        self.pairs[key] = value

    async def get(self, key: str) -> None:
        """Read a value."""
        self.pairs[key]

    async def exists(self, key: str) -> None:
        """Ask for a key."""
        key in self.pairs  # noqa: B015 -- to be measured

    async def delete(self, key: str) -> None:
        """Delete a key."""
        del self.pairs[key]


class PyKeyValue(Client):
    """The memory store of py-key-value-aio."""

    package = "py-key-value-aio"
    note = "Its values are dicts, and end as JSON; the bytes are written in hexadecimal."

    async def connect(self) -> None:
        """Make it."""
        from key_value.aio.stores.memory import MemoryStore

        self.store = MemoryStore()

    async def put(self, key: str, value: bytes) -> None:
        """Write a value."""
        await self.store.put(key, {"value": value.hex()})

    async def get(self, key: str) -> None:
        """Read a value."""
        pair = await self.store.get(key)
        assert pair is not None
        bytes.fromhex(pair["value"])

    async def delete(self, key: str) -> None:
        """Delete a key."""
        await self.store.delete(key)


CLIENTS: dict[str, list[type[Client]]] = {
    "etcd": [Aiolibkv, GrpcAio, Aetcd, Etcd3aio],
    "consul": [Aiolibkv, Aiohttp, PyConsul],
    "zookeeper": [Aiolibkv, Aiozk, Kazoo],
    "sqlite": [Aiolibkv, Aiosqlite],
    "memory": [Aiolibkv, Dict, PyKeyValue],
}
