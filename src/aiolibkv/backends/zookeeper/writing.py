"""Writes: what each call asks of the server, and what it makes of the answers.

A write is first tried as it usually succeeds. When the server refuses, the key and its directories are read, and one
transaction is made of what was found; it depends on the versions read, and is made anew when others were faster.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from typing import Any, NamedTuple

from aiolibkv.backends.zookeeper.connection import Connection
from aiolibkv.backends.zookeeper.operations import (
    ANY_VERSION,
    BadVersionError,
    EphemeralParentError,
    Node,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    Operation,
    Stat,
    TransactionRefusedError,
    check,
    create,
    delete,
    get,
    set_data,
    sync,
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
    read_place,
    read_places,
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
    LockLostError,
    NotReachableError,
    StoreError,
)
from aiolibkv.store import Call, Guard, LeaseLost, Removed

_LOCK_VERSION = 3
"""The least version of a held lock's key, so that a guard sees when others deleted and wrote it."""
_VERSIONS = 2**32
"""More than a node has versions."""
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

    def __init__(self, reader: Reader, *, acl: bytes, hidden: str, root: str) -> None:
        """Make a writer.

        Args:
            reader: of trees.
            acl: of the nodes that are created.
            hidden: where the library keeps what is its own, with a slash at the end.
            root: the store's prefix.
        """
        self._reader = reader
        self._acl = acl
        self._hidden = hidden
        # Stores that know the same key by another name have other epochs, and a prefix of another depth.
        depth = len(root.split("/")) if root else 0
        self._lock_version = _LOCK_VERSION + 2 * depth
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
        guesses = self._guesses(path, value, expected, owner, version, is_alone=guard is None)
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
                    raise _no_children() from error
                if stat.owner != owner:
                    return await self._change_kind(call, connection, path, value, stat, owner)
                return stat
            if is_directory_missing and directory in self._making:
                await asyncio.wait([self._making[directory]])
                guesses = guesses[-1:]
                continue
            with self._making_directory(directory if is_directory_missing else None):
                place = await read_place(connection, path)
                if expected is not None and (unexpected := _unexpected(place, expected)) is not None:
                    await self._require(connection, guard)
                    raise unexpected
                try:
                    return await self._write_at(call, connection, path, value, place, owner, guard)
                except EphemeralParentError as error:
                    raise _no_children() from error
                except (NoNodeError, NodeExistsError, BadVersionError, NotEmptyError) as error:
                    _log.debug("zookeeper: a write begins again: %s", error)
            guesses = []

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
    ) -> list[Ops]:
        """Return what will usually do, to be tried in turn; the last creates the key, if that may be."""
        guesses: list[Ops] = []
        if expected is None and owner == 0:
            guesses.append([set_data(znode(path), value)])
        elif expected is None and version is not None:
            guesses.append([set_data(znode(path), value, version)])
        if not expected and is_alone:
            guesses.append([create(znode(path), value, self._acl, ephemeral=owner != 0)])
        elif not expected:
            guesses.append(self._fresh(path, value, owner))
        return guesses

    def _fresh(self, path: str, value: bytes, owner: int, *, other_than: int | None = None) -> Ops:
        """Create a node within a transaction, where only writing it gives its index.

        Args:
            path: of the node.
            value: its data.
            owner: the session that it lives with, 0 for none.
            other_than: the version that it is not to have, so that no comparison takes it for the one it replaces.
        """
        node = znode(path)
        operations: Ops = [create(node, b"", self._acl, ephemeral=owner != 0), set_data(node, value)]
        if other_than == 1:
            operations.insert(1, set_data(node, b""))
        return operations

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
            operations = self._fresh(path, value, owner)
            results = await self._create(call, connection, operations, len(value), [place], guard)
        elif node.stat.owner == owner:
            operations = [set_data(znode(path), value, node.stat.version)]
            results = await self._transact(call, connection, operations, guard)
        elif node.stat.children and not await self._sweep(connection, path):
            raise _no_children()
        else:
            operations = self._replace(path, value, node.stat.version, owner)
            results = await self._transact(call, connection, operations, guard)
        stat: Stat = results[-1]
        return stat

    def _replace(self, path: str, value: bytes, version: int, owner: int) -> Ops:
        """Make a node of the other kind."""
        return [delete(znode(path), version), *self._fresh(path, value, owner, other_than=version)]

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
            raise _no_children() from error
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

    async def _create(
        self,
        call: Call,
        connection: Connection,
        operations: Ops,
        size: int,
        places: Sequence[Place],
        guard: Guard | None,
    ) -> Sequence[Any]:
        """Create nodes with those of their directories that are missing."""
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
                await self._require(connection, guard)
                raise KeyNotFoundError if key is None else KeyModifiedError
            deletion = _deletion(path, key, place.above if may_prune else (), expected)
            checks = self._checks(guard)
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
                    raise _guard_failed(error) from error
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
        _, read, deleted, *found = (await connection.ask_all([sync(), get(node), deletion, *reads])).values
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

    async def delete_places(self, connection: Connection, paths: Sequence[str]) -> None:
        """Delete nodes whose names nobody else uses, in one round trip; what is gone is gone."""
        await self._delete_all(connection, [delete(znode(path)) for path in paths])

    async def _delete_all(self, connection: Connection, deletions: Ops) -> None:
        for result in (await connection.ask_all(deletions)).values:
            if isinstance(result, StoreError) and not isinstance(result, NoNodeError):
                raise result

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

    async def _sweep(self, connection: Connection, path: str) -> bool:
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
                await self._require(connection, guard)
                return Removed(deleted, tree.node is not None and tree.node.data is not None)
            above, rest = _prune_tree(directory, tree) if may_prune else Pruning([], None)
            parts = _in_parts(_deletions(tree), _REQUEST_BYTES - sum(map(_size, above)))
            try:
                for part in parts:
                    is_last = part is parts[-1]
                    checks = self._checks(guard)
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
                    raise _guard_failed(error) from error
                if isinstance(error.reason, AccessDeniedError) and error.position >= len(checks) + len(part):
                    may_prune = False
                elif not is_retried(error.reason):
                    raise error.reason from error
                continue
            if is_idle_now and rest is not None:
                await self._tidy_after(connection, [(rest, None)])
            return Removed(deleted, exists=False)

    # -- locks -------------------------------------------------------------------------------------------------------

    async def acquire(
        self, call: Call, connection: Connection, path: str, value: bytes, holder: int
    ) -> tuple[Stat, int]:
        """Create a lock's key for the connection's session, and count the acquisition.

        Args:
            call: told when the write is sent and when its answer is known.
            connection: of the session.
            path: the key.
            value: its value.
            holder: a number that no other acquisition has.

        Returns:
            The key's stat, and the token of the acquisition, which guards compare.
        """
        node, epoch = znode(path), self._epoch(path)
        acquire: Ops = [
            create(node, b"", self._acl, ephemeral=True),
            *(set_data(node, b"") for _ in range(self._lock_version - 1)),
            set_data(node, value),
        ]
        count: Ops = [
            create(znode(_holder(epoch, holder)), None, self._acl, ephemeral=True),
            set_data(znode(epoch), b""),
        ]
        places: Sequence[Place] = []
        while True:
            if places and places[0].node is not None:
                take = [delete(node, places[0].node.stat.version), *acquire]
            else:
                take = acquire
            operations = [*take, *count]
            if places and places[1].node is None:
                operations = [*take, create(znode(epoch), b"", self._acl), *count]
            try:
                results = await self._create(call, connection, operations, len(value), places, None)
                return results[len(take) - 1], _token(holder, results[-1].version)
            except EphemeralParentError as error:
                raise _no_children() from error
            except (NoNodeError, NodeExistsError, BadVersionError, NotEmptyError) as error:
                _log.debug("zookeeper: a lock is tried again: %s", error)
            places = await read_places(connection, [path, epoch])
            if places[0].key is not None:
                raise KeyExistsError
            if places[0].node is not None and places[0].node.stat.children and not await self._sweep(connection, path):
                raise _no_children()

    async def find_acquired(self, connection: Connection, path: str, holder: int) -> tuple[Stat, int] | None:
        """Return what ``acquire`` would have, if it was carried out.

        Raises:
            LeaseLost: it was, and somebody has taken the lock away since.
        """
        path_of_epoch = self._epoch(path)
        lock, epoch, found = await read_places(connection, [path, path_of_epoch, _holder(path_of_epoch, holder)])
        if found.node is None:
            return None
        if lock.node is None or epoch.node is None:
            raise LeaseLost
        if (lock.node.stat.owner, lock.node.stat.version) != (connection.welcome.session, self._lock_version):
            raise LeaseLost
        return lock.node.stat, _token(holder, epoch.node.stat.version)

    async def release(
        self,
        connection: Connection,
        path: str,
        holder: int,
        token: int | None,
        places: Sequence[str],
        *,
        is_key: bool,
    ) -> bool:
        """Delete a lock's key if its acquisition still stands, and what was left of that otherwise; may be repeated.

        Args:
            connection: of the session that acquired it.
            path: the key.
            holder: the number of the acquisition.
            token: of the acquisition; None when it is not known whether it was carried out.
            places: nodes whose names nobody else uses, which are deleted as well.
            is_key: whether the session has written the lock's key meanwhile as one that is not to go.

        Returns:
            Whether the acquisition stood.
        """
        if token is None:
            token = await self._find_token(connection, path, holder)
        left = delete(znode(_holder(self._epoch(path), holder)))
        deletions: Ops = [delete(znode(place)) for place in places]
        if token is not None:
            checks = self._checks(Guard(path, token))
            decisive = [*checks, delete(znode(path), self._lock_version), left]
            try:
                await connection.ask(transaction([*decisive, *deletions]))
            except TransactionRefusedError as error:
                if not is_retried(error.reason):
                    raise error.reason from error
                if error.position >= len(decisive):
                    # A place has gone already: each is then deleted by itself.
                    await self._delete_all(connection, deletions)
                    return await self.release(connection, path, holder, token, [], is_key=is_key)
            else:
                return True
            if not is_key:
                await self._delete_overwritten(connection, path, checks[1:])
        await self._delete_all(connection, [left, *deletions])
        return False

    async def _find_token(self, connection: Connection, path: str, holder: int) -> int | None:
        path_of_epoch = self._epoch(path)
        epoch, found = await read_places(connection, [path_of_epoch, _holder(path_of_epoch, holder)])
        return None if epoch.node is None or found.node is None else _token(holder, epoch.node.stat.version)

    async def _delete_overwritten(self, connection: Connection, path: str, checks: Ops) -> None:
        """Delete a lock's node that others have written since, but which lives with the session of the holder.

        It always went with its holder; a store that writes a lock's key makes a node of its own of it.
        """
        node = (await read_place(connection, path)).node
        if node is not None and node.stat.owner == connection.welcome.session:
            try:
                await connection.ask(transaction([*checks, delete(znode(path), node.stat.version)]))
            except TransactionRefusedError as error:
                _log.debug("zookeeper: a lock's node is somebody else's: %s", error)

    def _epoch(self, path: str) -> str:
        return f"{self._hidden}epochs/{blake2b(path.encode(), digest_size=16).hexdigest()}"

    def _checks(self, guard: Guard | None) -> Ops:
        if guard is None:
            return []
        epoch = self._epoch(guard.path)
        holder, version = divmod(guard.token, _VERSIONS)
        return [
            check(znode(guard.path), self._lock_version),
            check(znode(epoch), version),
            check(znode(_holder(epoch, holder))),
        ]

    async def _require(self, connection: Connection, guard: Guard | None) -> None:
        """Raise LockLostError unless a guard holds."""
        if guard is not None:
            try:
                await connection.ask(transaction(self._checks(guard)))
            except TransactionRefusedError as error:
                raise _guard_failed(error) from error

    # -- all ---------------------------------------------------------------------------------------------------------

    async def _transact(
        self, call: Call, connection: Connection, operations: Ops, guard: Guard | None
    ) -> Sequence[Any]:
        """Carry out operations if the guard holds; raises what is wrong with the first that cannot be."""
        checks = self._checks(guard)
        connection.check_open()
        call.writing()
        try:
            if len(operations) == 1 and not checks:
                return [await connection.ask(operations[0])]
            return (await connection.ask(transaction(checks + operations)))[len(checks) :]
        except TransactionRefusedError as error:
            call.settled()
            if error.position < len(checks):
                raise _guard_failed(error) from error
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


def _holder(epoch: str, number: int) -> str:
    """Return the node that keeps an epoch from being deleted and made again while a guard may be of the old one."""
    return f"{epoch}/{number}"


def _token(holder: int, version: int) -> int:
    return holder * _VERSIONS + version


def _no_children() -> StoreError:
    return CallNotSupportedError("on ZooKeeper a key with ttl or keep_alive, or a lock, has no keys below it")


def _guard_failed(error: TransactionRefusedError) -> StoreError:
    return LockLostError() if is_retried(error.reason) else error.reason


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
