"""commit, get_many, keys, children and scan, broken."""

# ruff: noqa: ARG001, ARG005 - what is patched keeps its signature

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from aiolibkv import KeyModifiedError, KVPair, LockLostError, StoreError
from aiolibkv.backends.memory import MemoryDriver
from aiolibkv.backends.memory.space import Space
from aiolibkv.store import Condition, Names, Page, Removal, Step, Store, Write
from aiolibkv.store.scan import StoreScan
from aiolibkv.testing.conformance.committing import Committing
from aiolibkv.testing.conformance.listing import Listing
from mutants.broken.registry import mutant


def _patch_steps(patch: pytest.MonkeyPatch, change: Callable[[Sequence[Step]], Sequence[Step]]) -> None:
    commit = Space.commit

    def changed(self: Space, steps: Sequence[Step], lease: Any, guard: Any) -> list[int]:
        indexes = iter(commit(self, kept := change(steps), lease, guard))
        written = {step.path: next(indexes) for step in kept}
        return [written.get(step.path, self.index if isinstance(step, Write) else 0) for step in steps]

    patch.setattr(Space, "commit", changed)


@mutant(Committing)
def commit_is_applied_half(patch: pytest.MonkeyPatch) -> None:
    """What stands before the operation that is refused is written."""

    def one_by_one(self: Space, steps: Sequence[Step], lease: Any, guard: Any) -> list[int]:
        self._check(guard)
        indexes = []
        for step in steps:
            self._require(step)
            index = 0
            if isinstance(step, Write):
                index = self.put(step.path, step.value, None, lease, None)
            elif isinstance(step, Removal):
                self._remove([step.path])
            indexes.append(index)
        return indexes

    patch.setattr(Space, "commit", one_by_one)


@mutant(Committing)
def commit_is_several_transactions(patch: pytest.MonkeyPatch) -> None:
    """Others come between the operations, after all conditions were found to hold."""
    reach = MemoryDriver._reach

    async def slowly(
        self: MemoryDriver, call: Any, steps: Sequence[Step], *, lease: Any = None, guard: Any = None
    ) -> Sequence[int]:
        space = await reach(self)
        space._check(guard)
        for step in steps:
            space._require(step)
        indexes = []
        for step in steps:
            if isinstance(step, Write):
                indexes.append(space.put(step.path, step.value, None, lease, None))
            else:
                if isinstance(step, Removal):
                    space._remove([step.path])
                indexes.append(0)
            await asyncio.sleep(0)
        return indexes

    patch.setattr(MemoryDriver, "commit", slowly)


@mutant(Committing)
def commit_ignores_conditions(patch: pytest.MonkeyPatch) -> None:
    """A Check is not looked at."""
    _patch_steps(patch, lambda steps: [step for step in steps if not isinstance(step, Condition)])


@mutant(Committing)
def commit_overwrites(patch: pytest.MonkeyPatch) -> None:
    """The previous of a Put is not looked at."""
    _patch_steps(
        patch, lambda steps: [step._replace(expected=None) if isinstance(step, Write) else step for step in steps]
    )


@mutant(Committing)
def commit_deletes_what_was_modified(patch: pytest.MonkeyPatch) -> None:
    """The previous of a Delete is not looked at."""
    _patch_steps(
        patch, lambda steps: [step._replace(expected=None) if isinstance(step, Removal) else step for step in steps]
    )


@mutant(Committing)
def commit_needs_no_guard(patch: pytest.MonkeyPatch) -> None:
    """The server does not check the guard of a commit."""
    commit = Space.commit
    patch.setattr(Space, "commit", lambda self, steps, lease, guard: commit(self, steps, lease, None))


@mutant(Committing)
def commit_checks_the_guard_last(patch: pytest.MonkeyPatch) -> None:
    """Of a guard that does not hold and a missing key, the key is told."""
    commit = Space.commit

    def late(self: Space, steps: Sequence[Step], lease: Any, guard: Any) -> list[int]:
        for step in steps:
            self._require(step)
        return commit(self, steps, lease, guard)

    patch.setattr(Space, "commit", late)


@mutant(Committing)
def refusals_do_not_say_which_key(patch: pytest.MonkeyPatch) -> None:
    """The error of an operation has no key."""
    require = Space._require

    def silent(self: Space, step: Step) -> None:
        try:
            require(self, step)
        except StoreError as error:
            raise type(error) from None

    patch.setattr(Space, "_require", silent)


@mutant(Committing)
def refusals_are_all_modifications(patch: pytest.MonkeyPatch) -> None:
    """Whatever does not hold, the key was modified."""
    require = Space._require

    def same(self: Space, step: Step) -> None:
        try:
            require(self, step)
        except StoreError:
            raise KeyModifiedError(key=step.path) from None

    patch.setattr(Space, "_require", same)


@mutant(Committing)
def commit_is_told_change_by_change(patch: pytest.MonkeyPatch) -> None:
    """A watch sees the keys of a commit one after the other."""
    tell = Space._tell

    def apart(self: Space, paths: Sequence[str]) -> None:
        for path in paths:
            tell(self, [path])

    patch.setattr(Space, "_tell", apart)


@mutant(Committing)
def commit_keeps_lifetimes(patch: pytest.MonkeyPatch) -> None:
    """A key with a ttl that a commit writes goes at its end."""
    set_ = Space._set

    def keep(self: Space, path: str, value: bytes, lease: Any) -> None:
        old = self._lease_of.get(path)
        set_(self, path, value, old if lease is None and old in self._ends else lease)

    patch.setattr(Space, "_set", keep)


@mutant(Committing)
def commit_counts_values_only(patch: pytest.MonkeyPatch) -> None:
    """The keys of a commit may be of any size."""
    check = Store._check_size

    def values_only(self: Store[Any], steps: Any) -> None:
        known = self.capabilities
        keys = sum(len(step.path.encode()) for step in steps)
        self.capabilities = replace(known, max_commit_bytes=known.max_commit_bytes + keys)
        try:
            check(self, steps)
        finally:
            self.capabilities = known

    patch.setattr(Store, "_check_size", values_only)


@mutant(Committing)
def commit_has_no_limits(patch: pytest.MonkeyPatch) -> None:
    """Any number of operations and bytes is sent."""
    patch.setattr(Store, "_check_size", lambda self, steps: None)


@mutant(Committing)
def a_refused_guard_is_no_loss(patch: pytest.MonkeyPatch) -> None:
    """The holder counts on the lock though the server refused a write that it guards."""
    patch.setattr("aiolibkv.store.store.LockLostError", type("Other", (LockLostError,), {}))


@mutant(Listing)
def scan_skips_the_first_of_a_page(patch: pytest.MonkeyPatch) -> None:
    """A page begins one key too late."""
    page = MemoryDriver.page

    async def late(self: MemoryDriver, call: Any, directory: str, after: str, limit: int) -> Page:
        found = await page(self, call, directory, after, limit)
        return found._replace(pairs=found.pairs[1:]) if after and len(found.pairs) > 1 else found

    patch.setattr(MemoryDriver, "page", late)


@mutant(Listing)
def scan_repeats_the_last_of_a_page(patch: pytest.MonkeyPatch) -> None:
    """A page begins with the key that the one before ended with."""
    below = Space.below

    def again(self: Space, directory: str, after: str = "") -> Any:
        pair = self.get(after) if after else None
        return iter([*([] if pair is None else [pair]), *below(self, directory, after)])

    patch.setattr(Space, "below", again)


@mutant(Listing)
def scan_loses_what_a_cancelled_anext_had_read(patch: pytest.MonkeyPatch) -> None:
    """A pair is taken before the last await of anext."""
    anext_ = StoreScan.__anext__

    async def late(self: StoreScan) -> KVPair:
        pair = await anext_(self)
        await asyncio.sleep(0)
        return pair

    patch.setattr(StoreScan, "__anext__", late)


@mutant(Listing)
def scan_reads_all_at_once(patch: pytest.MonkeyPatch) -> None:
    """A later page is as it was when the first one was read."""
    page = MemoryDriver.page

    async def whole(self: MemoryDriver, call: Any, directory: str, after: str, limit: int) -> Page:
        return await page(self, call, directory, after, 10**6)

    patch.setattr(MemoryDriver, "page", whole)


@mutant(Listing)
def children_miss_directories(patch: pytest.MonkeyPatch) -> None:
    """A child that is a key and a directory is a key only."""
    children = MemoryDriver.children

    async def fewer(self: MemoryDriver, call: Any, directory: str, *, consistent: bool) -> Names:
        names, exists = await children(self, call, directory, consistent=consistent)
        return Names([name for name in names if name.removesuffix("/") == name or name[:-1] not in names], exists)

    patch.setattr(MemoryDriver, "children", fewer)


@mutant(Listing)
def children_are_sorted_as_names(patch: pytest.MonkeyPatch) -> None:
    """A directory comes right behind the key of its name."""
    children = MemoryDriver.children

    async def sorted_(self: MemoryDriver, call: Any, directory: str, *, consistent: bool) -> Names:
        names, exists = await children(self, call, directory, consistent=consistent)
        return Names(sorted(names, key=lambda name: name.split("/")), exists)

    patch.setattr(MemoryDriver, "children", sorted_)


@mutant(Listing)
def keys_are_one_level(patch: pytest.MonkeyPatch) -> None:
    """keys has the direct children only."""
    keys = MemoryDriver.keys

    async def shallow(self: MemoryDriver, call: Any, directory: str, *, consistent: bool) -> Names:
        paths, exists = await keys(self, call, directory, consistent=consistent)
        return Names([path for path in paths if "/" not in path[len(directory) + 1 :]], exists)

    patch.setattr(MemoryDriver, "keys", shallow)


@mutant(Committing)
def get_many_is_many_instants(patch: pytest.MonkeyPatch) -> None:
    """The pairs of get_many are read one after the other."""

    async def apart(
        self: MemoryDriver, call: Any, paths: Sequence[str], *, consistent: bool
    ) -> Sequence[KVPair | None]:
        return [(await self._reach()).get(path) for path in paths]

    patch.setattr(MemoryDriver, "get_many", apart)
