"""Paths, nodes, and the parents that keys need without being keys.

Every key needs a node for each of its directories. Such a node, an implicit parent, has null data and is no key; a key
without a value has empty data. Whoever deletes the last key below deletes the implicit parents in the same transaction.

A transaction can depend only on versions, and those begin at 0 again when a node is created again. A parent that others
prune and somebody creates again as a key, both while a deletion is on its way, must not be taken for the one that
was read: an implicit parent is therefore written until it is at a version that a key does not reach so quickly, and
only one at such a version is pruned. That is an even one, since the keys of locks are at odd ones at once. Empty nodes
that other programs left at another version stay where they are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, NamedTuple

from aiolibkv.backends.zookeeper.connection import Connection
from aiolibkv.backends.zookeeper.failures import (
    BadVersionError,
    NoNodeError,
    NotEmptyError,
    TransactionRefusedError,
    UnknownOperationError,
)
from aiolibkv.backends.zookeeper.operations import (
    Node,
    Operation,
    Stat,
    create,
    delete,
    exists,
    get,
    get_children,
    read_all,
    set_data,
    transaction,
)
from aiolibkv.errors import AccessDeniedError, StoreError
from aiolibkv.types import KVPair

PARENT_VERSION = 4
"""The least version of an implicit parent; see above."""

SERVERS_OWN = "zookeeper"
"""The server's own subtree, at the root."""

_FIRST_NODES = 100
"""Asked for at once while nothing is known of their sizes: one round trip for what most directories hold."""
_MOST_NODES = 2000
_READS_IN_A_REQUEST = 200
_BYTES_AT_ONCE = 4_000_000
"""The server keeps its answers in memory until they are taken; each is of one node, and so of at most 1 MB."""
_NODE_BYTES = 100
"""Of a node without its data."""
_GROWTH = 4
_MOST_FLAT = 1000
"""How many levels are remembered that had nothing below them when they were read last."""

Ops = list[Operation[Any]]


def znode(path: str) -> str:
    """Return the server's spelling of a path."""
    return f"/{path}"


def path_of(spelling: str) -> str:
    """Return the path that a server's spelling stands for."""
    return spelling[1:]


def ancestors(path: str) -> list[str]:
    """Return a path's directories, the nearest first; the root is none."""
    parts = path.split("/")
    return ["/".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]


def is_servers_own(path: str) -> bool:
    """Tell whether a path is in the server's own subtree."""
    return path == SERVERS_OWN or path.startswith(f"{SERVERS_OWN}/")


class Place(NamedTuple):
    """What is at a path and above it.

    Attributes:
        node: None when there is none.
        above: the directories, the nearest first, and their nodes; None where there is none.
    """

    node: Node | None
    above: Sequence[tuple[str, Node | None]]

    @property
    def key(self) -> Node | None:
        """The node, if it is a key."""
        return None if self.node is None or self.node.data is None else self.node


async def read_places(connection: Connection, paths: Sequence[str], *, consistent: bool = True) -> list[Place]:
    """Read paths with their directories, in one round trip."""
    wanted = list(dict.fromkeys(name for path in paths for name in (path, *ancestors(path))))
    results = await connection.ask_all([get(znode(name)) for name in wanted], consistent=consistent)
    nodes = dict(zip(wanted, results.values, strict=True))
    places = []
    for path in paths:
        node = nodes[path]
        if isinstance(node, StoreError) and not isinstance(node, NoNodeError):
            raise node
        above = [(name, seen(nodes[name])) for name in ancestors(path)]
        places.append(Place(None if isinstance(node, StoreError) else node, above))
    return places


async def read_place(connection: Connection, path: str) -> Place:
    """Read a path with its directories, in one round trip."""
    (place,) = await read_places(connection, [path])
    return place


async def read_node(connection: Connection, path: str) -> Place:
    """Read a path without its directories."""
    try:
        return Place(await connection.ask(get(znode(path)), consistent=True), ())
    except NoNodeError:
        return Place(None, ())


_UNSEEN = Node(b"", Stat(index=0, version=0, size=0, children=0, owner=0))
"""What is there and may not be read; nobody takes it for an implicit parent."""


def seen(result: Node | StoreError) -> Node | None:
    """Return a directory that was read, None where there is none."""
    if isinstance(result, StoreError):
        return None if isinstance(result, NoNodeError) else _UNSEEN
    return result


def make_parent(path: str, acl: bytes) -> Ops:
    """Create an implicit parent."""
    return [create(znode(path), None, acl), *(set_data(znode(path), None) for _ in range(PARENT_VERSION))]


def make_parents(place: Place, acl: bytes) -> list[Ops]:
    """Create those directories of a place that are missing, the highest first."""
    return [make_parent(path, acl) for path, node in reversed(place.above) if node is None]


def empty(path: str, version: int) -> Ops:
    """Make an implicit parent of a key with this version."""
    times = max(PARENT_VERSION - version, 2 - version % 2)
    return [set_data(znode(path), None, version), *(set_data(znode(path), None) for _ in range(times - 1))]


def _is_of_parent(version: int) -> bool:
    return version >= PARENT_VERSION and version % 2 == 0


def is_idle(node: Node | None, children: int) -> bool:
    """Tell whether a node is an implicit parent that has no more than so many children."""
    return (
        node is not None
        and node.data is None
        and node.stat.owner == 0
        and _is_of_parent(node.stat.version)
        and node.stat.children == children
    )


class Pruning(NamedTuple):
    """The deletion of those directories that a deletion leaves without keys.

    Attributes:
        operations: to be carried out in the transaction of the deletion, after it.
        rest: the directory that stays, to be looked at afterwards: others may empty it at the same time.
    """

    operations: Ops
    rest: str | None


def prune(above: Sequence[tuple[str, Node | None]]) -> Pruning:
    """Return how to prune the directories above a node that goes."""
    operations: Ops = []
    for path, node in above:
        if node is None or not is_idle(node, 1):
            return Pruning(operations, path)
        operations.append(delete(znode(path), node.stat.version))
    return Pruning(operations, None)


async def delete_and_look(connection: Connection, operations: Ops, rest: str | None) -> bool:
    """Carry out a transaction, and tell whether it left a directory that may have to be pruned, in one round trip."""
    asked: Ops = [transaction(operations)]
    if rest is not None:
        asked.append(exists(znode(rest)))
    results = (await connection.ask_all(asked)).values
    if isinstance(results[0], StoreError):
        raise results[0]
    return rest is not None and looks_idle(results[1])


def looks_idle(stat: Stat | StoreError) -> bool:
    """Tell whether a node may be an implicit parent without children."""
    return isinstance(stat, Stat) and stat.children == 0 and stat.size == 0 and _is_of_parent(stat.version)


async def tidy_from(connection: Connection, above: Sequence[tuple[str, Node | None]]) -> None:
    """Prune a directory, and those above, if it has no children any more.

    Args:
        connection: to a server.
        above: the directory, and those above it as far as they were read already, with their nodes.
    """
    rest, node = above[0]
    while True:
        if node is None:
            (place,) = await read_places(connection, [rest], consistent=False)
            node, above = place.node, [(rest, node), *place.above]
        if node is None or not is_idle(node, 0):
            return
        pruning = prune(above[1:])
        operations = [delete(znode(rest), node.stat.version), *pruning.operations]
        try:
            if not await delete_and_look(connection, operations, pruning.rest) or pruning.rest is None:
                return
            rest = pruning.rest
        except TransactionRefusedError as error:
            if error.position == 0 or isinstance(error.reason, AccessDeniedError):
                return
        node = None


def is_retried(error: StoreError) -> bool:
    """Tell whether an operation was refused because others changed what had been read."""
    return isinstance(error, NoNodeError | BadVersionError | NotEmptyError)


def pair(path: str, node: Node) -> KVPair:
    """Return the pair of a key."""
    assert node.data is not None, "a key"
    return KVPair(path, node.data, node.stat.index)


class Subtree(NamedTuple):
    """What is at a directory and below it.

    Attributes:
        node: the directory's; None when there is none.
        above: if asked for, the directories above it, the nearest first, and their nodes; None where there is none.
        nodes: of everything below, by path; implicit parents, too.
        zxid: the last transaction that the server knew at the end.
    """

    node: Node | None
    above: Sequence[tuple[str, Node | None]]
    nodes: dict[str, Node]
    zxid: int

    def pairs(self) -> list[KVPair]:
        """Return the pairs of the keys below, sorted."""
        return [pair(path, node) for path, node in sorted(self.nodes.items()) if node.data is not None]


def nothing() -> None:
    """Take as long as it takes."""


class Reader:
    """Reads of many nodes: as many at once as are worth a few megabytes, by the sizes that were seen last.

    Many reads in one request, which servers know since 3.6, make one answer in the server's memory: 20 values of 0.9 MB
    ended a server with 128 MB. Only what the library keeps for itself, which is small, is read in that way.
    """

    def __init__(self, hidden: str, *, bundles: bool) -> None:
        """Make a reader.

        Args:
            hidden: the directory that is not read with those above it, where the library keeps what is its own.
            bundles: whether to try many reads in one request; given up when a server does not know it.
        """
        self._hidden = hidden
        self._bundles = bundles
        self._nodes_at_once = _FIRST_NODES
        self._flat: dict[tuple[str, int], None] = {}

    def is_hidden(self, directory: str, path: str) -> bool:
        """Tell whether a path is left out of what is below a directory."""
        if not directory and is_servers_own(path):
            return True
        return _is_within(path, self._hidden) and not _is_within(directory, self._hidden)

    async def read_tree(
        self,
        connection: Connection,
        directory: str,
        *,
        consistent: bool,
        page_read: Callable[[], None] = nothing,
        with_above: bool = False,
    ) -> Subtree:
        """Read a directory and everything below it, a level in one round trip.

        What had nothing below the last time is read without its children, at half the server's work. A node tells how
        many it has; those that have some now are read again with them.

        Args:
            connection: to a server.
            directory: ``""`` is the root.
            consistent: let the server catch up first.
            page_read: called after each level, and within one of thousands of nodes after each round trip.
            with_above: read the directories above it, too.
        """
        directories = ancestors(directory) if with_above else []
        reads = [*(get(znode(path)) for path in directories), get(znode(directory)), get_children(znode(directory))]
        values, zxid = await self._read(connection, reads, consistent=consistent)
        page_read()
        above = [(path, seen(node)) for path, node in zip(directories, values[:-2], strict=True)]
        node, names = values[-2:]
        for result in (node, names):
            if isinstance(result, StoreError) and not isinstance(result, NoNodeError):
                raise result
        if isinstance(node, StoreError) or isinstance(names, StoreError):
            return Subtree(None, above, {}, zxid)
        nodes: dict[str, Node] = {}
        level, depth = self.children(directory, directory, names), 0
        while level:
            is_flat = (directory, depth) in self._flat
            deeper: list[str] = []
            grown: list[str] = []
            reads_of_level = self.read_nodes(connection, level, with_children=not is_flat, page_read=page_read)
            async for path, found, below, known in reads_of_level:
                zxid = known
                nodes.pop(path, None)
                if found is not None:
                    nodes[path] = found
                    deeper += self.children(directory, path, below)
                    if is_flat and found.stat.children:
                        grown.append(path)
            self._note_level(directory, depth, is_flat=not deeper and not grown)
            level = grown or deeper
            depth += not grown
        return Subtree(node, above, nodes, zxid)

    def _note_level(self, directory: str, depth: int, *, is_flat: bool) -> None:
        """Take note whether a level has anything below: if not, its nodes are not asked for children the next time."""
        self._flat.pop((directory, depth), None)
        if is_flat:
            self._flat[directory, depth] = None
            if len(self._flat) > _MOST_FLAT:
                del self._flat[next(iter(self._flat))]

    def children(self, directory: str, path: str, names: Sequence[str]) -> list[str]:
        """Return the paths of a node's children, without what is left out of what is below a directory."""
        start = f"{path}/" if path else ""
        return [child for name in names if not self.is_hidden(directory, child := start + name)]

    async def read_nodes(
        self,
        connection: Connection,
        paths: Sequence[str],
        *,
        with_children: bool = True,
        watch: bool = False,
        page_read: Callable[[], None] = nothing,
        consistent: bool = False,
    ) -> AsyncIterator[tuple[str, Node | None, Sequence[str], int]]:
        """Read nodes.

        Args:
            connection: to a server.
            paths: of the nodes.
            with_children: read the names of their children, too.
            watch: be told once of a change of what is read of each that exists.
            page_read: called after each round trip.
            consistent: let the server catch up first.

        Yields:
            (path, node or None, names of its children, the last transaction that the server knew).
        """
        kinds: list[Callable[..., Operation[Any]]] = [get, get_children] if with_children else [get]
        is_small = not watch and bool(paths) and _is_within(paths[0], self._hidden)
        at_once = _MOST_NODES if is_small else min(self._nodes_at_once, _FIRST_NODES)
        start = 0
        while start < len(paths):
            group = paths[start : start + at_once]
            start += len(group)
            reads = [kind(znode(path), watch=watch) for path in group for kind in kinds]
            if is_small:
                values, zxid = await self._read_bundles(connection, reads)
            else:
                values, zxid = await self._read(connection, reads, consistent=consistent)
            consistent = False
            page_read()
            size = 0
            for path, results in zip(group, _slices(values, len(kinds)), strict=True):
                for result in results:
                    if isinstance(result, StoreError) and not isinstance(result, NoNodeError):
                        raise result
                if any(isinstance(result, StoreError) for result in results):
                    yield path, None, (), zxid
                else:
                    size += results[0].stat.size
                    yield path, results[0], results[1] if with_children else (), zxid
            if is_small:
                continue
            fitting = int(_BYTES_AT_ONCE / (_NODE_BYTES + size / len(group)))
            at_once = self._nodes_at_once = max(1, min(fitting, at_once * _GROWTH, _MOST_NODES))

    async def find_idle(self, connection: Connection, paths: Sequence[str]) -> list[str]:
        """Return those paths where an implicit parent is that has no children, in one round trip."""
        nodes, _ = await self._read(connection, [get(znode(path)) for path in paths])
        return [path for path, node in zip(paths, nodes, strict=True) if isinstance(node, Node) and is_idle(node, 0)]

    async def _read(self, connection: Connection, reads: Ops, *, consistent: bool = False) -> tuple[Sequence[Any], int]:
        """Carry out reads in one round trip; returns their results, and the last transaction the server knew."""
        results = await connection.ask_all(reads, consistent=consistent)
        return results.values, results.zxid

    async def _read_bundles(self, connection: Connection, reads: Ops) -> tuple[Sequence[Any], int]:
        """As ``_read``, for what has small values."""
        if not self._bundles:
            return await self._read(connection, reads)
        results = await connection.ask_all([read_all(part) for part in _slices(reads, _READS_IN_A_REQUEST)])
        values: list[Any] = []
        for bundle in results.values:
            if isinstance(bundle, UnknownOperationError):
                self._bundles = False
                return await self._read(connection, reads)
            if isinstance(bundle, StoreError):
                raise bundle
            values += bundle
        return values, results.zxid


def _is_within(path: str, directory: str) -> bool:
    return path == directory or path.startswith(f"{directory}/")


def _slices(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
