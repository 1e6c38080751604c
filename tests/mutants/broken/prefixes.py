"""Rooting at a prefix, broken."""

from __future__ import annotations

from typing import Any

import pytest

from aiolibkv import (
    KVPair,
)
from aiolibkv.backends.memory import MemoryDriver
from aiolibkv.store import Feed, Listing
from aiolibkv.store.calls import Calls
from aiolibkv.store.watches import Watches
from aiolibkv.testing.conformance.rooting import Rooting
from mutants.broken.registry import mutant, space_of


@mutant(Rooting)
def prefix_has_no_slash(patch: pytest.MonkeyPatch) -> None:
    """The store app sees what is in app2."""
    list_ = MemoryDriver.list

    async def neighbours(self: MemoryDriver, call: Any, directory: str, *, consistent: bool) -> Listing:
        listing = await list_(self, call, directory, consistent=consistent)
        if directory != self.config.prefix:
            return listing
        root = f"{self.config.prefix}/"
        others = [
            KVPair(f"{root}{path}", pair.value, pair.last_index)
            for path, pair in space_of(self)._pairs.items()
            if path.startswith(directory) and not path.startswith(root) and len(path) > len(root)
        ]
        return Listing(sorted([*listing.pairs, *others], key=lambda pair: pair.key), listing.exists)

    patch.setattr(MemoryDriver, "list", neighbours)


@mutant(Rooting)
def prefix_shows_in_watches(patch: pytest.MonkeyPatch) -> None:
    """The keys of a watch carry the prefix."""
    start = Watches._start

    def rooted(self: Watches, feed: Feed) -> Any:
        feed._name = lambda path: path
        return start(self, feed)

    patch.setattr(Watches, "_start", rooted)


@mutant(Rooting)
def prefix_shows_in_errors(patch: pytest.MonkeyPatch) -> None:
    """The key of an error carries the prefix."""
    located = Calls.located

    def rooted(self: Calls, error: Any, path: str | None = None) -> Any:
        located(self, error, path)
        error.key = path or error.key
        return error

    patch.setattr(Calls, "located", rooted)
