"""Commits: several writes and conditions in one transaction, made of what was read before.

A transaction can depend on versions, and on the absence of a node only by creating it. What is missing and not to be
written is therefore created and deleted again in front of the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import NamedTuple

from aiolibkv.backends.zookeeper.connection import Connection
from aiolibkv.backends.zookeeper.epochs import Epochs
from aiolibkv.backends.zookeeper.failures import EphemeralParentError, NodeExistsError, TransactionRefusedError
from aiolibkv.backends.zookeeper.operations import Node, check, create, delete, exists, set_data, transaction
from aiolibkv.backends.zookeeper.tree import (
    Ops,
    Place,
    ancestors,
    empty,
    is_idle,
    is_retried,
    looks_idle,
    make_parent,
    read_places,
    tidy_from,
    znode,
)
from aiolibkv.backends.zookeeper.writing import fresh, no_children
from aiolibkv.errors import (
    AccessDeniedError,
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    LockLostError,
    StoreError,
)
from aiolibkv.store import Call, Condition, Guard, Removal, Step, Write

_REQUEST_BYTES = 1_040_000
"""The server takes 1 MiB (jute.maxbuffer) less one."""
_PARENTS_AT_ONCE = 100

_log = logging.getLogger("aiolibkv")


class _Plan(NamedTuple):
    """A transaction that carries out steps.

    Attributes:
        operations: of the transaction, without those of a guard.
        parents: those of them that create directories.
        results: for each step, which operation gives its index; None for none.
        prunings: which operations delete directories.
        looked_at: directories that stay, though something below them goes.
    """

    operations: Ops
    parents: Sequence[Ops]
    results: Sequence[int | None]
    prunings: set[int]
    looked_at: Sequence[str]


class Committer:
    """The commits of one store."""

    def __init__(self, epochs: Epochs, acl: bytes) -> None:
        """Make a committer.

        Args:
            epochs: what guards compare.
            acl: of the nodes that are created.
        """
        self._epochs = epochs
        self._acl = acl

    async def commit(
        self, call: Call, connection: Connection, steps: Sequence[Step], *, owner: int, guard: Guard | None
    ) -> Sequence[int]:
        """Carry out all steps or none; see Driver.commit.

        Args:
            call: told when the transaction is sent and when its answer is known.
            connection: of the owner, if there is one.
            steps: what to do.
            owner: the session that the keys live with; 0 for such as stay.
            guard: as for Driver.commit.
        """
        may_prune = True
        while True:
            places = await read_places(connection, [step.path for step in steps])
            await self._require(connection, steps, places, guard)
            checks = self._epochs.checks(guard)
            plan = self._plan(steps, places, owner, may_prune=may_prune)
            request = transaction([*checks, *plan.operations])
            if len(request.body) > _REQUEST_BYTES and plan.parents:
                await self._make(connection, plan.parents)
                continue
            connection.check_open()
            call.writing()
            looks = [exists(znode(directory)) for directory in plan.looked_at]
            answer, *seen = (await connection.ask_all([request, *looks])).values
            if isinstance(answer, StoreError):
                call.settled()
                position = answer.position - len(checks) if isinstance(answer, TransactionRefusedError) else 0
                reason = answer.reason if isinstance(answer, TransactionRefusedError) else answer
                if position < 0:
                    raise LockLostError if is_retried(reason) else reason
                if isinstance(reason, AccessDeniedError) and position in plan.prunings:
                    may_prune = False
                elif isinstance(reason, EphemeralParentError):
                    raise no_children() from answer
                elif not is_retried(reason) and not isinstance(reason, NodeExistsError):
                    raise reason from answer
                continue
            results = answer[len(checks) :]
            idle = [path for path, stat in zip(plan.looked_at, seen, strict=True) if looks_idle(stat)]
            await self._tidy(connection, idle)
            return [0 if at is None else results[at].index for at in plan.results]

    async def _require(
        self, connection: Connection, steps: Sequence[Step], places: Sequence[Place], guard: Guard | None
    ) -> None:
        for step, place in zip(steps, places, strict=True):
            if (failure := _failure(step, place.key)) is not None:
                await self._epochs.require(connection, guard)
                failure.key = step.path
                raise failure

    async def _make(self, connection: Connection, parents: Sequence[Ops]) -> None:
        """Make directories before the transaction that has no room for them; until then they hold no key."""
        for start in range(0, len(parents), _PARENTS_AT_ONCE):
            part = [step for parent in parents[start : start + _PARENTS_AT_ONCE] for step in parent]
            try:
                await connection.ask(transaction(part))
            except TransactionRefusedError as error:
                if not is_retried(error.reason) and not isinstance(error.reason, NodeExistsError):
                    raise error.reason from error
                return

    async def _tidy(self, connection: Connection, directories: Sequence[str]) -> None:
        for directory in directories:
            try:
                await tidy_from(connection, [(directory, None)])
            except StoreError as error:
                _log.debug("zookeeper: an empty directory was left: %s", error)

    def _plan(self, steps: Sequence[Step], places: Sequence[Place], owner: int, *, may_prune: bool) -> _Plan:
        nodes: dict[str, Node | None] = {}
        for step, place in zip(steps, places, strict=True):
            nodes.update(place.above)
            nodes[step.path] = place.node
        by_path = {step.path: step for step in steps}
        removed, emptied, pruned, made = _changes(nodes, by_path, may_prune=may_prune)

        operations = _conditions(nodes, by_path, made, self._acl)
        looked_at: dict[str, None] = {}
        prunings = set()
        for path in sorted(removed, key=len, reverse=True):
            node = nodes[path]
            assert node is not None, "is removed"
            if path in pruned:
                prunings.add(len(operations))
            operations.append(delete(znode(path), node.stat.version))
            above = ancestors(path)[:1]
            looked_at.update((directory, None) for directory in above if directory not in removed)
        for path in emptied:
            node = nodes[path]
            assert node is not None, "is emptied"
            operations += empty(path, node.stat.version)
        parents = []
        results: dict[str, int] = {}
        written = [path for path, step in by_path.items() if isinstance(step, Write)]
        for path in sorted({*made, *written}, key=len):
            write = by_path.get(path)
            if isinstance(write, Write):
                operations += self._write(write, nodes[path], owner)
                results[path] = len(operations) - 1
            else:
                parents.append(make_parent(path, self._acl))
                operations += parents[-1]
        return _Plan(operations, parents, [results.get(step.path) for step in steps], prunings, list(looked_at))

    def _write(self, step: Write, node: Node | None, owner: int) -> Ops:
        if node is None:
            return fresh(step.path, step.value, self._acl, owner)
        if node.stat.owner == owner:
            return [set_data(znode(step.path), step.value, node.stat.version)]
        if node.stat.children:
            raise no_children()
        replacement = fresh(step.path, step.value, self._acl, owner, other_than=node.stat.version)
        return [delete(znode(step.path), node.stat.version), *replacement]


def _failure(step: Step, key: Node | None) -> StoreError | None:
    """Return what forbids a step where there is this key, or none."""
    if step.expected == 0:
        return None if key is None else KeyExistsError()
    if step.expected is None:
        return KeyNotFoundError() if key is None and not isinstance(step, Write) else None
    if key is None:
        return KeyNotFoundError() if isinstance(step, Removal) else KeyModifiedError()
    return None if key.stat.index == step.expected else KeyModifiedError()


class _Changes(NamedTuple):
    """Which nodes come and go.

    Attributes:
        removed: nodes that are deleted.
        emptied: keys that become directories.
        pruned: those of the removed that are directories.
        made: nodes that are created.
    """

    removed: set[str]
    emptied: set[str]
    pruned: set[str]
    made: set[str]


def _changes(nodes: dict[str, Node | None], by_path: dict[str, Step], *, may_prune: bool) -> _Changes:
    changes = _Changes(set(), set(), set(), set())
    children = {path: 0 if node is None else node.stat.children for path, node in nodes.items()}
    losing = set()
    for path in sorted(nodes, key=len, reverse=True):
        node, step, difference = nodes[path], by_path.get(path), 0
        if isinstance(step, Removal) and children[path]:
            changes.emptied.add(path)
        elif isinstance(step, Removal):
            changes.removed.add(path)
            difference = -1
        elif node is None and (children[path] or isinstance(step, Write)):
            changes.made.add(path)
            difference = 1
        elif may_prune and step is None and path in losing and not children[path] and _is_parent(node):
            changes.removed.add(path)
            changes.pruned.add(path)
            difference = -1
        for above in ancestors(path)[:1]:
            children[above] += difference
            if difference < 0:
                losing.add(above)
    return changes


def _is_parent(node: Node | None) -> bool:
    return node is not None and is_idle(node, node.stat.children)


def _conditions(nodes: dict[str, Node | None], by_path: dict[str, Step], made: set[str], acl: bytes) -> Ops:
    """Return what makes a transaction depend on the keys that are not written; in front of all other operations."""
    operations: dict[str, Ops] = {}
    for path, step in by_path.items():
        if not isinstance(step, Condition):
            continue
        highest, above = path, ancestors(path)
        for directory in above:
            if nodes[directory] is None:
                highest = directory
        node = nodes[highest]
        parent = next(iter(ancestors(highest)), None)
        holder = None if parent is None else nodes[parent]
        if node is not None:
            operations[highest] = [check(znode(highest), node.stat.version)]
        elif holder is not None and parent is not None and holder.stat.owner:
            operations.setdefault(parent, [check(znode(parent), holder.stat.version)])
        elif highest not in made:
            operations[highest] = [create(znode(highest), None, acl), delete(znode(highest))]
    return [step for steps in operations.values() for step in steps]
