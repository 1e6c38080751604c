"""The SQLite backend against the conformance suite, with all stores of a test in one process."""

from pathlib import Path

import pytest

from aiolibkv import AsyncStore, Config
from aiolibkv.testing.conformance import ConformanceSuite, CutOff, StoreFactory, cut_off_by_driver
from stores import SqliteStore


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sqlite") / "store.db"


class TestSqlite(ConformanceSuite):
    """Every test of the suite."""

    @pytest.fixture
    def store_factory(self, database: Path) -> StoreFactory:
        def make(*, prefix: str | None = None, **overrides: object) -> AsyncStore:
            return SqliteStore([str(database)], Config(prefix=prefix or "", **overrides))  # type: ignore[arg-type]

        return make

    @pytest.fixture
    def cut_off(self, store_factory: StoreFactory) -> CutOff:
        return cut_off_by_driver(store_factory)
