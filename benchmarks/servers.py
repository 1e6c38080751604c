"""The servers that are measured on: one of each, with an empty data directory, on this machine."""

from __future__ import annotations

import json
import re
import sqlite3
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiolibkv.testing.servers import ConsulServer, EtcdServer, PostgresServer, ZooKeeperServer
from aiolibkv.testing.servers.process import http


@asynccontextmanager
async def running(backend: str) -> AsyncIterator[tuple[str, str]]:
    """Run a server; give the URL of a store on it, and what it is.

    Raises:
        RuntimeError: it is not installed, or did not start.
    """
    if backend == "memory":
        yield "memory://benchmark", "in the process"
    elif backend == "sqlite":
        with tempfile.TemporaryDirectory(prefix="aiolibkv-benchmark-") as directory:
            yield f"sqlite:///{directory}/pairs.db?durability=full", f"SQLite {sqlite3.sqlite_version}"
    elif backend == "postgresql":
        async with PostgresServer() as postgres:
            name, password = postgres.user
            version = (await postgres.sql("SHOW server_version")).split()[0]
            yield f"postgresql://{name}:{password}@{postgres.endpoint}/{postgres.database}", f"PostgreSQL {version}"
    elif backend == "etcd":
        async with EtcdServer() as etcd:
            _, text = await http(etcd.port, "GET", "/version")
            yield f"etcd://{etcd.endpoint}", f"etcd {json.loads(text)['etcdserver']}"
    elif backend == "consul":
        # Each client alone stays below the 200 connections of one address that are the default; all together do not.
        async with ConsulServer(max_connections=1_000) as consul:
            version = json.loads(await consul.api("GET", "/v1/agent/self"))["Config"]["Version"]
            yield f"consul://{consul.endpoint}", f"Consul {version}"
    else:
        async with ZooKeeperServer() as zookeeper:
            found = re.search(r"version: ([\d.]+)", await zookeeper.four_letter_word("srvr"))
            yield f"zookeeper://{zookeeper.endpoint}", f"ZooKeeper {found[1] if found else ''}"
