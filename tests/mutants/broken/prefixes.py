"""Rooting at a prefix, broken."""

from __future__ import annotations

from typing import Any

import pytest

from aiolibkv import (
    KVPair,
)
from aiolibkv.backends.memory import MemoryStore
from aiolibkv.store import BaseStore, Listing
from aiolibkv.testing.conformance.rooting import Rooting
from mutants.broken.registry import mutant, space_of


@mutant(Rooting)
def prefix_has_no_slash(patch: pytest.MonkeyPatch) -> None:
    """The store app sees what is in app2."""
    list_ = MemoryStore._list

    async def neighbours(self: MemoryStore, call: Any, directory: str, *, consistent: bool) -> Listing:
        listing = await list_(self, call, directory, consistent=consistent)
        if directory != self.config.prefix:
            return listing
        own = len(self._root)
        others = [
            KVPair(f"{self._root}{path}", pair.value, pair.last_index)
            for path, pair in space_of(self)._pairs.items()
            if path.startswith(directory) and not path.startswith(self._root) and len(path) > own
        ]
        return Listing(sorted([*listing.pairs, *others], key=lambda pair: pair.key), listing.exists)

    patch.setattr(MemoryStore, "_list", neighbours)


@mutant(Rooting)
def prefix_shows_in_watches(patch: pytest.MonkeyPatch) -> None:
    """The keys of a watch carry the prefix."""
    patch.setattr(BaseStore, "_visible_name", lambda self, path: None if path.startswith(self._hidden) else path)


@mutant(Rooting)
def prefix_shows_in_errors(patch: pytest.MonkeyPatch) -> None:
    """The key of an error carries the prefix."""
    located = BaseStore._located

    def rooted(self: BaseStore, error: Any, path: str | None = None) -> Any:
        error.key = path if error.key is None else error.key
        return located(self, error, path)

    patch.setattr(BaseStore, "_located", rooted)
