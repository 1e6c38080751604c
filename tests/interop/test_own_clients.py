"""What is written here is read by each server's own command, and the other way round."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from aiolibkv import AsyncStore, Config, open_store
from aiolibkv.testing.servers import ConsulServer, EtcdServer, ZooKeeperServer
from aiolibkv.testing.servers.process import run_program

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]

_PREFIX = "app"
_KEY = "conf/limit %"
_PATH = f"{_PREFIX}/{_KEY}"


async def _run(*command: str) -> str:
    return await run_program(command, dict(os.environ))


def _store(backend: str, endpoint: str) -> AsyncStore:
    return open_store(f"{backend}://{endpoint}", Config(prefix=_PREFIX))


async def test_etcdctl() -> None:
    async with EtcdServer() as server, _store("etcd", server.endpoint) as store:
        await store.put(_KEY, b"0 0")
        pair = await store.put(_KEY, b"1 0")
        assert await server.ctl("get", "", "--prefix") == f"{_PATH}\n1 0\n"
        (stored,) = json.loads(await server.ctl("get", _PATH, "--write-out=json"))["kvs"]
        assert stored["mod_revision"] == pair.last_index
        await server.ctl("put", _PATH, "2 0")
        assert (await store.get(_KEY)).value == b"2 0"


async def test_consul_kv() -> None:
    async with ConsulServer() as server, _store("consul", server.endpoint) as store:
        address = f"-http-addr=http://{server.endpoint}"
        await store.put(_KEY, b"1 0")
        assert await _run("consul", "kv", "get", address, "-recurse", "") == f"{_PATH}:1 0\n"
        await _run("consul", "kv", "put", address, _PATH, "2 0")
        assert (await store.get(_KEY)).value == b"2 0"


async def test_zkcli() -> None:
    command = str(Path(os.environ.get("ZOOKEEPER_HOME", "/usr/share/zookeeper")) / "bin/zkCli.sh")
    async with ZooKeeperServer() as server, _store("zookeeper", server.endpoint) as store:
        await store.put(_KEY, b"0 0")
        pair = await store.put(_KEY, b"1 0")
        shown = (await _run(command, "-server", server.endpoint, "get", "-s", f"/{_PATH}")).splitlines()
        assert {"1 0", f"mZxid = {pair.last_index:#x}"} <= set(shown)
        await _run(command, "-server", server.endpoint, "set", f"/{_PATH}", "2 0")
        assert (await store.get(_KEY)).value == b"2 0"
