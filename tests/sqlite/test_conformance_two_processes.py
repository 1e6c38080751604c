"""Those parts of the conformance suite in which stores meet, every other store in another process."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import pytest

from aiolibkv import AsyncStore
from aiolibkv.testing.conformance import StoreFactory
from aiolibkv.testing.conformance.calls import Calls, CompareAndSwap
from aiolibkv.testing.conformance.directories import DeletingTrees, Directories
from aiolibkv.testing.conformance.lifetimes import KeepingAlive, Lifetimes
from aiolibkv.testing.conformance.watching import Watching
from aiolibkv.testing.conformance.watching_trees import WatchingTrees
from sqlite.remote import Remote, RemoteStore
from sqlite.workers import open_sqlite


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Remote]]:
    database = tmp_path_factory.mktemp("sqlite") / "store.db"
    other = Remote(database)
    try:
        yield database, other
    finally:
        other.end()


class TestSqliteInTwoProcesses(
    KeepingAlive, Lifetimes, WatchingTrees, Watching, DeletingTrees, Directories, CompareAndSwap, Calls
):
    """The first store of a test is here, the second there, and so on."""

    @pytest.fixture
    def store_factory(self, remote: tuple[Path, Remote]) -> StoreFactory:
        database, other = remote
        is_here = cycle((True, False))

        def make(*, prefix: str | None = None, **overrides: Any) -> AsyncStore:
            settings = {**overrides, "prefix": prefix or ""}
            here = next(is_here)
            return open_sqlite(database, **settings) if here else cast(AsyncStore, RemoteStore(other, settings))

        return make
