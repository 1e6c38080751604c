"""list and delete_tree, broken."""

# ruff: noqa: ARG001, ARG005 - what is patched keeps its signature

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from typing import Any

import pytest

from aiolibkv import (
    KeyNotFoundError,
    KVPair,
)
from aiolibkv.backends.memory import MemoryDriver
from aiolibkv.backends.memory.space import Space
from aiolibkv.store import Listing, Removed, Store
from aiolibkv.store.paths import Paths
from aiolibkv.testing.conformance.directories import DeletingTrees, Directories
from aiolibkv.testing.conformance.keys import Keys
from mutants.broken.registry import mutant


def _patch_below(patch: pytest.MonkeyPatch, change: Callable[[list[KVPair], str], Iterable[KVPair]]) -> None:
    below = Space.below
    patch.setattr(
        Space, "below", lambda self, directory, after="": iter(change(list(below(self, directory, after)), directory))
    )


@mutant(Directories)
def list_is_not_sorted(patch: pytest.MonkeyPatch) -> None:
    """A list comes in the order of the writes."""
    _patch_below(patch, lambda pairs, _: sorted(pairs, key=lambda pair: pair.last_index))


@mutant(Directories)
def list_is_sorted_by_segment(patch: pytest.MonkeyPatch) -> None:
    """A list comes in the order of the segments, as from a tree."""
    _patch_below(patch, lambda pairs, _: sorted(pairs, key=lambda pair: pair.key.split("/")))


@mutant(Directories)
def list_is_not_recursive(patch: pytest.MonkeyPatch) -> None:
    """A list has the direct children only."""
    _patch_below(patch, lambda pairs, path: [pair for pair in pairs if "/" not in pair.key[len(path) + 1 :]])


@mutant(Directories)
def list_is_cut_off(patch: pytest.MonkeyPatch) -> None:
    """A list ends with its first page."""
    _patch_below(patch, lambda pairs, _: pairs[:250])


@mutant(Directories)
def list_includes_the_directory(patch: pytest.MonkeyPatch) -> None:
    """A directory that is a key is listed too."""
    below = Space.below

    def inclusive(self: Space, directory: str, after: str = "") -> Iterator[KVPair]:
        own = self.get(directory)
        return chain([] if own is None else [own], below(self, directory, after))

    patch.setattr(Space, "below", inclusive)


@mutant(Directories)
def list_takes_longer_names(patch: pytest.MonkeyPatch) -> None:
    """A directory's name is a mere prefix: foo is foobar too."""

    def below(self: Space, directory: str, after: str = "") -> Iterator[KVPair]:
        self._expire()
        return (pair for path, pair in self._pairs.items() if path.startswith(directory) and path != directory)

    patch.setattr(Space, "below", below)


@mutant(Directories)
def list_of_a_missing_directory_is_empty(patch: pytest.MonkeyPatch) -> None:
    """A list of nothing is no error."""
    list_ = MemoryDriver.list

    async def lenient(self: MemoryDriver, *args: Any, **settings: Any) -> Listing:
        return (await list_(self, *args, **settings))._replace(exists=True)

    patch.setattr(MemoryDriver, "list", lenient)


@mutant(Directories)
def list_below_a_key_is_an_error(patch: pytest.MonkeyPatch) -> None:
    """A key with nothing below is taken for missing."""
    list_ = MemoryDriver.list

    async def strict(self: MemoryDriver, *args: Any, **settings: Any) -> Listing:
        return (await list_(self, *args, **settings))._replace(exists=False)

    patch.setattr(MemoryDriver, "list", strict)


@mutant(Directories)
def list_of_the_empty_root_is_an_error(patch: pytest.MonkeyPatch) -> None:
    """An empty store has no root."""
    list_ = Store.list

    async def strict(self: Store[Any], directory: str, **settings: Any) -> Any:
        pairs = await list_(self, directory, **settings)
        if not pairs and not directory.strip("/"):
            raise KeyNotFoundError
        return pairs

    patch.setattr(Store, "list", strict)


@mutant(Directories)
def list_reads_key_by_key(patch: pytest.MonkeyPatch) -> None:
    """A list is not of one instant."""

    async def list_(self: MemoryDriver, call: Any, directory: str, *, consistent: bool) -> Listing:
        space = await self._reach()
        pairs = []
        for pair in space.below(directory):
            await asyncio.sleep(0)
            current = space.get(pair.key)
            if current is not None:
                pairs.append(current)
        return Listing(pairs, space.get(directory) is not None)

    patch.setattr(MemoryDriver, "list", list_)


def _patch_deletion(patch: pytest.MonkeyPatch, also: Callable[[Space, str], Iterator[str]]) -> None:
    delete_tree = Space.delete_tree

    def more(self: Space, directory: str, hidden: str, guard: Any) -> int:
        count = delete_tree(self, directory, hidden, guard)
        for path in list(also(self, directory)):
            self.delete(path, None, None)
        return count

    patch.setattr(Space, "delete_tree", more)


@mutant(DeletingTrees)
def delete_tree_deletes_the_key_itself(patch: pytest.MonkeyPatch) -> None:
    """The directory goes with what is below."""
    _patch_deletion(patch, lambda space, directory: (path for path in space._pairs if path == directory))


@mutant(DeletingTrees)
def delete_tree_deletes_longer_names(patch: pytest.MonkeyPatch) -> None:
    """foobar goes with foo."""
    _patch_deletion(
        patch,
        lambda space, directory: (
            path for path in space._pairs if path.startswith(directory) and path[len(directory) :] == "bar"
        ),
    )


@mutant(Keys)
def delete_tree_deletes_what_is_reserved(patch: pytest.MonkeyPatch) -> None:
    """What the library keeps for itself goes too."""
    delete_tree = Space.delete_tree
    patch.setattr(
        Space, "delete_tree", lambda self, directory, hidden, guard: delete_tree(self, directory, "\0", guard)
    )


@mutant(DeletingTrees)
def delete_tree_miscounts(patch: pytest.MonkeyPatch) -> None:
    """delete_tree counts the direct children."""
    delete_tree = Space.delete_tree

    def miscount(self: Space, directory: str, hidden: str, guard: Any) -> int:
        children = {pair.key[len(directory) :].split("/")[1] for pair in self.below(directory)}
        return min(delete_tree(self, directory, hidden, guard), len(children))

    patch.setattr(Space, "delete_tree", miscount)


@mutant(DeletingTrees)
def delete_tree_goes_key_by_key(patch: pytest.MonkeyPatch) -> None:
    """A tree does not go at one instant."""

    async def one_by_one(self: MemoryDriver, call: Any, directory: str, *, guard: Any) -> Removed:
        space = await self._reach()
        pairs = [pair for pair in space.below(directory) if not pair.key.startswith(self.hidden)]
        for pair in pairs:
            await asyncio.sleep(0)
            space.delete(pair.key, None, None)
        return Removed(len(pairs), space.get(directory) is not None)

    patch.setattr(MemoryDriver, "delete_tree", one_by_one)


@mutant(DeletingTrees)
def delete_tree_of_nothing_is_silent(patch: pytest.MonkeyPatch) -> None:
    """delete_tree of a missing directory is no error."""
    delete_tree = MemoryDriver.delete_tree

    async def silent(self: MemoryDriver, *args: Any, **settings: Any) -> Removed:
        return (await delete_tree(self, *args, **settings))._replace(exists=True)

    patch.setattr(MemoryDriver, "delete_tree", silent)


@mutant(Keys)
def reserved_keys_are_seen(patch: pytest.MonkeyPatch) -> None:
    """What the library keeps for itself is listed and watched."""
    patch.setattr(Paths, "visible", lambda self, path: self.name(path))
