"""A soak, on demand: pytest tests/faults/test_soak.py --soak MINUTES -s; AIOLIBKV_SOAK_SEED repeats its faults.

One backend after the other, so that a fault is one backend's own: each of those with servers has three tenths of the
minutes, SQLite and memory the rest. Starting the servers and the quiet points come on top.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import SystemRandom
from uuid import uuid4

import pytest

from aiolibkv import Config, new_store
from faults.clusters import CLUSTERS, behind_proxies
from faults.failing import REQUEST_TIMEOUT, ClusterFaults, ForeignTransactions, NoFaults, Record
from faults.soak import soak

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind, pytest.mark.timeout(0)]

_SHARE = 0.3
_EMBEDDED_SHARE = 0.05
_TTLS = {"consul": 10.0, "etcd": 4.0, "zookeeper": 4.0}
_EMBEDDED_TTL = 3.0


@pytest.fixture
def seconds(request: pytest.FixtureRequest) -> float:
    minutes = float(request.config.getoption("--soak"))
    if not minutes:
        pytest.skip("needs --soak MINUTES")
    return 60 * minutes


@pytest.fixture
def record(seconds: float, record_property: Callable[[str, object], None]) -> Record:
    seed = int(os.environ.get("AIOLIBKV_SOAK_SEED", "0")) or SystemRandom().randrange(1, 10**6)
    record_property("seed", seed)
    print(f"\nAIOLIBKV_SOAK_SEED={seed}, {seconds:g} s for all")
    return Record(seed)


@pytest.mark.parametrize("name", sorted(CLUSTERS))
async def test_three_nodes(name: str, seconds: float, record: Record) -> None:
    async with CLUSTERS[name]() as cluster, behind_proxies(name, cluster) as nodes:
        settings = {"request_timeout": REQUEST_TIMEOUT}
        stores = [nodes.store(0, 1, 2, **settings), nodes.store(2, 1, 0, **settings)]
        await soak(record, ClusterFaults(record, nodes), stores, seconds=_SHARE * seconds, ttl=_TTLS[name])
        assert not any(proxy.connections_open for proxy in nodes.proxies)
    record.report()


async def test_sqlite(tmp_path: Path, seconds: float, record: Record) -> None:
    file = tmp_path / "soak.db"
    stores = [new_store("sqlite", [str(file)], Config(request_timeout=REQUEST_TIMEOUT)) for _ in range(2)]
    faults = ForeignTransactions(record, file)
    await soak(record, faults, stores, seconds=_EMBEDDED_SHARE * seconds, ttl=_EMBEDDED_TTL)
    record.report()


async def test_memory(seconds: float, record: Record) -> None:
    name = uuid4().hex
    stores = [new_store("memory", [name], Config(request_timeout=REQUEST_TIMEOUT)) for _ in range(2)]
    await soak(record, NoFaults(record), stores, seconds=_EMBEDDED_SHARE * seconds, ttl=_EMBEDDED_TTL)
    record.report()
