"""The suite in an event loop whose tasks run, up to their first wait, before whoever creates them goes on."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
import pytest_asyncio

from aiolibkv.testing.conformance import ConformanceSuite, StoreFactory, factory_of


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
class Eager(ConformanceSuite):
    """Every test of the suite."""

    @pytest_asyncio.fixture(autouse=True, loop_scope="function")
    async def eager_tasks(self) -> None:
        if sys.version_info >= (3, 12):
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)


class TestMemory(Eager):
    @pytest.fixture
    def store_factory(self) -> StoreFactory:
        return factory_of("memory", ["eager"])


class TestSqlite(Eager):
    @pytest.fixture
    def store_factory(self, tmp_path: Path) -> StoreFactory:
        return factory_of("sqlite", [str(tmp_path / "store.db")])
