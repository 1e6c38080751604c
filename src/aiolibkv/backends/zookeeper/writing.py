"""Writes: what each call asks of the server, and what it makes of the answers.

A write is first tried as it usually succeeds. When the server refuses, the key and its directories are read, and one
transaction is made of what was found; it depends on the versions read, and is made anew when others were faster.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from aiolibkv.backends.zookeeper.connection import Connection
from aiolibkv.backends.zookeeper.epochs import Epochs, guard_failed
from aiolibkv.backends.zookeeper.failures import (
    BadVersionError,
    EphemeralParentError,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    TransactionRefusedError,
)
from aiolibkv.backends.zookeeper.operations import (
    ANY_VERSION,
    Node,
    Operation,
    Stat,
    create,
    delete,
    get,
    set_data,
    transaction,
)
from aiolibkv.backends.zookeeper.tree import (
    Ops,
    Place,
    Pruning,
    Reader,
    Subtree,
    ancestors,
    delete_and_look,
    empty,
    is_idle,
    is_retried,
    make_parents,
    prune,
    read_node,
    read_place,
    seen,
    tidy_from,
    znode,
)
from aiolibkv.errors import (
    AccessDeniedError,
    CallNotSupportedError,
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    NotReachableError,
    StoreError,
)
from aiolibkv.store import Call, Guard, Removed

_REQUEST_BYTES = 950_000
"""Of one transaction; the server takes 1 MB."""
_OPERATION_BYTES = 80
"""Of one operation without its path and data, at most."""
_DELETION_BYTES = 17
"""Of a deletion without its path: some 20 000 of them are to fit into one request."""
_DIRECTORIES_AT_ONCE = 100

_log = logging.getLogger("aiolibkv")


class Writer:
    """The writes of one store."""

    def __init__(self, reader: Reader, epochs: Epochs, acl: bytes) -> None:
        """Make a writer.

        Args:
            reader: of trees.
            epochs: what guards compare.
            acl: of the nodes that are created.
        """
        self._reader = reader
        self._epochs = epochs
        self._acl = acl
        self._making: dict[str, asyncio.Future[None]] = {}

    # -- put ---------------------------------------------------------------------------------------------------------

    async def put(
        self,
        call: Call,
        connection: Connection,
        path: str,
        value: bytes,
        *,
        expected: int | None,
        guard: Guard | None,
        owner: int = 0,
        version: int | None = None,
    ) -> Stat:
        """Write a key; see Driver.put.

        Args:
            call: told when the write is sent and when its answer is known.
            connection: of the owner, if there is one.
            path: the key.
            value: its value.
            expected: as for Driver.put.
            guard: as for Driver.put.
            owner: the session that the key is to live with; 0 for one that stays.
            version: of the key, if it is the owner's already as far as is known.
        """
        guesses: Iterable[Ops] = self._guesses(path, value, expected, owner, version, is_alone=guard is None)
        directory = path.rpartition("/")[0]
        while True:
            is_directory_missing = False
            for operations in guesses:
                try:
                    stat: Stat = (await self._transact(call, connection, operations, guard))[-1]
                except (NoNodeError, NodeExistsError, BadVersionError) as error:
                    is_directory_missing = isinstance(error, NoNodeError) and not expected
                    continue
                except EphemeralParentError as error:
                    raise no_children() from error
                if stat.owner != owner:
                    return await self._change_kind(call, connection, path, value, stat, owner)
                return stat
            if is_directory_missing and directory in self._making:
                await asyncio.wait([self._making[directory]])
                guesses = [self._creation(path, value, owner, is_alone=guard is None)]
                continue
            with self._making_directory(directory if is_directory_missing else None):
                # Its directories matter only when the key is to be created.
                place = await (read_node if expected else read_place)(connection, path)
                if expected is not None and (unexpected := _unexpected(place, expected)) is not None:
                    await self._epochs.require(connection, guard)
                    raise unexpected
                try:
                    return await self._write_at(call, connection, path, value, place, owner, guard)
                except EphemeralParentError as error:
                    raise no_children() from error
                except (NoNodeError, NodeExistsError, BadVersionError, NotEmptyError) as error:
                    _log.debug("zookeeper: a write begins again: %s", error)
            guesses = ()

    @contextmanager
    def _making_directory(self, directory: str | None) -> Iterator[None]:
        """Have others wait who find the same directory missing: of all that make it at once, only one succeeds."""
        if directory is None:
            yield
            return
        made = self._making[directory] = asyncio.get_running_loop().create_future()
        try:
            yield
        finally:
            del self._making[directory]
            made.set_result(None)

    def _guesses(
        self, path: str, value: bytes, expected: int | None, owner: int, version: int | None, *, is_alone: bool
    ) -> Iterator[Ops]:
        """Yield what will usually do, to be tried in turn; the last creates the key, if that may be."""
        if expected is None and owner == 0:
            yield [set_data(znode(path), value)]
        elif expected is None and version is not None:
            yield [set_data(znode(path), value, version)]
        if not expected:
            yield self._creation(path, value, owner, is_alone=is_alone)

    def _creation(self, path: str, value: bytes, owner: int, *, is_alone: bool) -> Ops:
        if is_alone:
            return [create(znode(path), value, self._acl, ephemeral=owner != 0)]
        return fresh(path, value, self._acl, owner)

    async def _write_at(
        self,
        call: Call,
        connection: Connection,
        path: str,
        value: bytes,
        place: Place,
        owner: int,
        guard: Guard | None,
    ) -> Stat:
        """Write a key whose place was read."""
        node = place.node
        if node is None:
            operations = fresh(path, value, self._acl, owner)
            results = await self.create(call, connection, operations, len(value), [place], guard)
        elif node.stat.owner == owner:
            operations = [set_data(znode(path), value, node.stat.version)]
            results = await self._transact(call, connection, operations, guard)
        elif node.stat.children and not await self.sweep(connection, path):
            raise no_children()
        else:
            operations = self._replace(path, value, node.stat.version, owner)
            results = await self._transact(call, connection, operations, guard)
        stat: Stat = results[-1]
        return stat

    def _replace(self, path: str, value: bytes, version: int, owner: int) -> Ops:
        """Make a node of the other kind."""
        return [delete(znode(path), version), *fresh(path, value, self._acl, owner, other_than=version)]

    async def _change_kind(
        self, call: Call, connection: Connection, path: str, value: bytes, stat: Stat, owner: int
    ) -> Stat:
        """Have a key that was written live as long as it should; whoever writes it meanwhile sees to that himself."""
        try:
            replacement = self._replace(path, value, stat.version, owner)
            made: Stat = (await self._transact(call, connection, replacement, None))[-1]
            return made
        except BadVersionError:
            return stat
        except NotEmptyError as error:
            raise no_children() from error
        except NoNodeError as error:
            _log.debug("zookeeper: a key went before it was made permanent: %s", error)
        finally:
            call.writing()
        # Its session ended, most likely: a write that is acknowledged must not go with it.
        while True:
            place = await read_place(connection, path)
            if place.node is not None:
                return stat
            try:
                return await self._write_at(call, connection, path, value, place, owner, None)
            except NodeExistsError:
                return stat
            except NoNodeError:
                continue
            finally:
                call.writing()

    async def create(
        self,
        call: Call,
        connection: Connection,
        operations: Ops,
        size: int,
        places: Sequence[Place],
        guard: Guard | None,
    ) -> Sequence[Any]:
        """Create nodes with those of their directories that are missing.

        Args:
            call: told when the write is sent and when its answer is known.
            connection: to a server.
            operations: that create the nodes.
            size: bytes of their values.
            places: theirs.
            guard: what has to hold.
        """
        missing = {parent[0].path: parent for place in places for parent in make_parents(place, self._acl)}
        parents = sorted(missing.values(), key=lambda parent: len(parent[0].path))
        size += sum(len(parent) * (len(parent[0].path.encode()) + _OPERATION_BYTES) for parent in parents)
        if size > _REQUEST_BYTES:
            for start in range(0, len(parents), _DIRECTORIES_AT_ONCE):
                part = parents[start : start + _DIRECTORIES_AT_ONCE]
                await self._transact(call, connection, [step for parent in part for step in parent], None)
                call.settled()
            parents = []
        above = [step for parent in parents for step in parent]
        return (await self._transact(call, connection, above + operations, guard))[len(above) :]

    # -- delete ------------------------------------------------------------------------------------------------------

    async def delete(
        self, call: Call | None, connection: Connection, path: str, *, expected: int | None, guard: Guard | None
    ) -> None:
        """Delete a key, and the directories that it leaves without keys; see Driver.delete."""
        may_prune = True
        place: Place | None = None
        if call is not None and expected is None and guard is None:
            place = await self._delete_at_once(call, connection, path)
            if place is None:
                return
        while True:
            place = place or await read_place(connection, path)
            key = place.key
            if key is None or (expected is not None and key.stat.index != expected):
                await self._epochs.require(connection, guard)
                raise KeyNotFoundError if key is None else KeyModifiedError
            deletion = _deletion(path, key, place.above if may_prune else (), expected)
            checks = self._epochs.checks(guard)
            try:
                connection.check_open()
                if call is not None:
                    call.writing()
                is_idle_now = await delete_and_look(connection, checks + deletion.operations, deletion.rest)
            except TransactionRefusedError as error:
                if call is not None:
                    call.settled()
                position = error.position - len(checks)
                if position < 0:
                    raise guard_failed(error) from error
                if isinstance(error.reason, AccessDeniedError) and position >= deletion.decisive:
                    may_prune = False
                elif not is_retried(error.reason):
                    raise error.reason from error
                place = None
                continue
            if is_idle_now and deletion.rest is not None:
                await self._tidy_after(connection, [(deletion.rest, None)])
            return

    async def _delete_at_once(self, call: Call, connection: Connection, path: str) -> Place | None:
        """Delete a key without children in one round trip; returns None, or what is there when that was refused.

        It is written before it is deleted, in one transaction, whose answer so tells its version: what was read in
        front of that, and may have been an implicit parent, is known to be what was deleted.
        """
        node, directories = znode(path), ancestors(path)
        connection.check_open()
        call.writing()
        deletion = transaction([set_data(node, None), delete(node)])
        reads = [get(znode(directory)) for directory in directories]
        read, deleted, *found = (await connection.ask_all([get(node), deletion, *reads], consistent=True)).values
        above = [(directory, seen(result)) for directory, result in zip(directories, found, strict=True)]
        if isinstance(deleted, StoreError):
            call.settled()
            if isinstance(read, StoreError) and not isinstance(read, NoNodeError):
                raise read
            return Place(read if isinstance(read, Node) else None, above)
        if above and is_idle(above[0][1], 0):
            await self._tidy_after(connection, above)
        if isinstance(read, Node) and read.data is None and deleted[0].version == read.stat.version + 1:
            call.settled()
            raise KeyNotFoundError
        return None

    async def delete_exactly(self, connection: Connection, path: str, index: int) -> None:
        """Delete a key if it is still at an index; may be repeated."""
        try:
            await self.delete(None, connection, path, expected=index, guard=None)
        except (KeyNotFoundError, KeyModifiedError) as error:
            _log.debug("zookeeper: a key had gone or changed before its end: %s", error)

    async def delete_owned(self, connection: Connection, path: str) -> None:
        """Delete a key if it belongs to the connection's session."""
        place = await read_place(connection, path)
        if place.key is not None and place.key.stat.owner == connection.welcome.session:
            await self.delete_exactly(connection, path, place.key.stat.index)

    async def tidy(self, connection: Connection, directories: Sequence[str]) -> None:
        """Prune directories, and those above, that have no children any more; what cannot be pruned stays.

        Raises:
            NotReachableError: the connection ended.
        """
        for path in await self._reader.find_idle(connection, directories):
            await tidy_from(connection, [(path, None)])

    async def sweep(self, connection: Connection, path: str) -> bool:
        """Prune directories below a path that hold no keys, as the server leaves them when a session ends.

        Returns:
            Whether nothing is below any more.
        """
        pruned = ""
        while True:
            lowest, node, names = await self._look_into(connection, path)
            while names:
                lowest, node, names = await self._look_into(connection, f"{lowest}/{names[0]}")
                if node is not None and node.data is not None:
                    return False
            if lowest == path:
                return True
            if node is not None:
                if lowest == pruned or not is_idle(node, 0):
                    return False
                await tidy_from(connection, [(lowest, None)])
                pruned = lowest

    async def _look_into(self, connection: Connection, path: str) -> tuple[str, Node | None, Sequence[str]]:
        (found,) = [found[:3] async for found in self._reader.read_nodes(connection, [path])]
        return found

    async def _tidy_after(self, connection: Connection, above: Sequence[tuple[str, Node | None]]) -> None:
        try:
            await tidy_from(connection, above)
        except StoreError as error:
            _log.debug("zookeeper: an empty directory was left: %s", error)

    # -- delete_tree -------------------------------------------------------------------------------------------------

    async def delete_tree(self, call: Call, connection: Connection, directory: str, *, guard: Guard | None) -> Removed:
        """Delete everything below a directory, and the directories that this leaves; see Driver.delete_tree."""
        deleted = 0
        may_prune = True
        while True:
            call.rewind()
            tree = await self._reader.read_tree(
                connection, directory, consistent=True, page_read=call.extend, with_above=True
            )
            if deleted:
                call.writing()
            if not any(node.data is not None for node in tree.nodes.values()):
                await self._epochs.require(connection, guard)
                return Removed(deleted, tree.node is not None and tree.node.data is not None)
            above, rest = _prune_tree(directory, tree) if may_prune else Pruning([], None)
            parts = _in_parts(_deletions(tree), _REQUEST_BYTES - sum(map(_size, above)))
            try:
                for part in parts:
                    is_last = part is parts[-1]
                    checks = self._epochs.checks(guard)
                    operations = checks + [operation for operation, _ in part] + (above if is_last else [])
                    connection.check_open()
                    call.writing()
                    is_idle_now = await delete_and_look(connection, operations, rest if is_last else None)
                    deleted += sum(is_key for _, is_key in part)
                    call.extend()
            except TransactionRefusedError as error:
                if not deleted:
                    call.settled()
                if error.position < len(checks):
                    raise guard_failed(error) from error
                if isinstance(error.reason, AccessDeniedError) and error.position >= len(checks) + len(part):
                    may_prune = False
                elif not is_retried(error.reason):
                    raise error.reason from error
                continue
            if is_idle_now and rest is not None:
                await self._tidy_after(connection, [(rest, None)])
            return Removed(deleted, exists=False)

    # -- all ---------------------------------------------------------------------------------------------------------

    async def _transact(
        self, call: Call, connection: Connection, operations: Ops, guard: Guard | None
    ) -> Sequence[Any]:
        """Carry out operations if the guard holds; raises what is wrong with the first that cannot be."""
        checks = self._epochs.checks(guard)
        connection.check_open()
        call.writing()
        try:
            if len(operations) == 1 and not checks:
                return [await connection.ask(operations[0])]
            return (await connection.ask(transaction(checks + operations)))[len(checks) :]
        except TransactionRefusedError as error:
            call.settled()
            if error.position < len(checks):
                raise guard_failed(error) from error
            raise error.reason from error
        except NotReachableError:
            raise
        except StoreError:
            call.settled()
            raise


def _unexpected(place: Place, expected: int) -> StoreError | None:
    """Return what forbids a write that expects the key at an index, 0 for no key."""
    if not expected:
        return None if place.key is None else KeyExistsError()
    return None if place.key is not None and place.key.stat.index == expected else KeyModifiedError()


def fresh(path: str, value: bytes, acl: bytes, owner: int, *, other_than: int | None = None) -> Ops:
    """Create a node within a transaction, where only writing it gives its index.

    Args:
        path: of the node.
        value: its data.
        acl: who may use it.
        owner: the session that it lives with, 0 for none.
        other_than: the version that it is not to have, so that no comparison takes it for the one it replaces.
    """
    node = znode(path)
    operations: Ops = [create(node, b"", acl, ephemeral=owner != 0), set_data(node, value)]
    if other_than == 1:
        operations.insert(1, set_data(node, b""))
    return operations


def no_children() -> StoreError:
    """Say why there can be nothing below a key."""
    return CallNotSupportedError("on ZooKeeper a lock, or a key with ttl or keep_alive, cannot have keys below it")


class _Deletion(NamedTuple):
    """How a key is deleted.

    Attributes:
        operations: of the transaction.
        decisive: how many of them delete the key; those after them prune.
        rest: the directory that is to be looked at afterwards.
    """

    operations: Ops
    decisive: int
    rest: str | None


def _deletion(path: str, key: Node, above: Sequence[tuple[str, Node | None]], expected: int | None) -> _Deletion:
    if key.stat.children:
        operations = empty(path, key.stat.version)
        return _Deletion(operations, len(operations), path)
    pruning = prune(above) if above else Pruning([], next(iter(ancestors(path)), None))
    first = delete(znode(path), ANY_VERSION if expected is None else key.stat.version)
    return _Deletion([first, *pruning.operations], 1, pruning.rest)


def _prune_tree(directory: str, tree: Subtree) -> Pruning:
    """Return how to prune a directory that loses all below it."""
    below = f"{directory}/"
    children = sum("/" not in path[len(below) :] for path in tree.nodes)
    if not directory or not is_idle(tree.node, children):
        return Pruning([], directory or None)
    assert tree.node is not None, "idle"
    pruning = prune(tree.above)
    return Pruning([delete(znode(directory), tree.node.stat.version), *pruning.operations], pruning.rest)


def _deletions(tree: Subtree) -> Iterator[tuple[Operation[None], bool]]:
    """Yield what deletes each node below a directory, children first, and whether it is a key.

    A key is deleted whatever it has become; a directory only as it was read, since it may have become a key that
    is to be counted, and a key with children too, since it may have become a directory.
    """
    for path in sorted(tree.nodes, reverse=True):
        node = tree.nodes[path]
        is_key = node.data is not None
        version = ANY_VERSION if is_key and not node.stat.children else node.stat.version
        yield delete(znode(path), version), is_key


def _in_parts(
    deletions: Iterable[tuple[Operation[None], bool]], limit: int
) -> list[list[tuple[Operation[None], bool]]]:
    """Divide deletions so that each part fits into a request."""
    parts: list[list[tuple[Operation[None], bool]]] = [[]]
    left = limit
    for deletion in deletions:
        left -= _size(deletion[0])
        if left < 0:
            parts.append([])
            left = limit - _size(deletion[0])
        parts[-1].append(deletion)
    return parts


def _size(operation: Operation[None]) -> int:
    return len(operation.path.encode()) + _DELETION_BYTES
