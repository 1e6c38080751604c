"""Reads of several keys, of one level of a directory, and of a part of it."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heappop, heappush

from aiolibkv.backends.zookeeper.connection import Connection
from aiolibkv.backends.zookeeper.failures import NoNodeError
from aiolibkv.backends.zookeeper.operations import get, get_children
from aiolibkv.backends.zookeeper.tree import Reader, pair, znode
from aiolibkv.errors import StoreError
from aiolibkv.store import Names, Page
from aiolibkv.types import KVPair

_PAGE_BYTES = 8_000_000
"""Of values in a page, beyond which it ends early."""
_NODES_AT_ONCE = 100


async def read_many(
    reader: Reader, connection: Connection, paths: Sequence[str], *, consistent: bool
) -> Sequence[KVPair | None]:
    """Return the pairs of keys, None for each that is none."""
    pairs: list[KVPair | None] = []
    async for path, node, _, _ in reader.read_nodes(connection, paths, with_children=False, consistent=consistent):
        pairs.append(None if node is None or node.data is None else pair(path, node))
    return pairs


async def read_children(reader: Reader, connection: Connection, directory: str, *, consistent: bool) -> Names:
    """Return the names of one level: of keys, and with a slash at the end of what has something below."""
    below, exists = await _read_names(reader, connection, directory, consistent=consistent)
    start = len(directory) + 1 if directory else 0
    names = []
    async for path, node, _, _ in reader.read_nodes(connection, below, with_children=False):
        if node is not None and node.data is not None:
            names.append(path[start:])
        if node is not None and node.stat.children:
            names.append(f"{path[start:]}/")
    return Names(sorted(names), exists)


async def read_page(reader: Reader, connection: Connection, directory: str, after: str, limit: int) -> Page:
    """Return the first pairs below a directory whose path is above ``after``, at most ``limit``.

    What is found is kept in the order of paths, in which what is below a key need not follow it at once: "a-b" stands
    between "a" and "a/b". A directory stands where its paths begin, with a slash at its end.
    """
    below, exists = await _read_names(reader, connection, directory, consistent=True)
    found: list[tuple[str, KVPair | Sequence[str] | None]] = []
    pairs: list[KVPair] = []
    size = 0

    def add(paths: Sequence[str]) -> None:
        for path in paths:
            if path > after or _is_before_end(f"{path}/", after):
                heappush(found, (path, None))

    add(below)
    while found and len(pairs) < limit and size < _PAGE_BYTES:
        path, known = heappop(found)
        if isinstance(known, KVPair):
            pairs.append(known)
            size += len(known.value)
        elif known is not None:
            add(known)
        else:
            paths = [path]
            while found and found[0][1] is None and len(paths) < min(limit - len(pairs), _NODES_AT_ONCE):
                paths.append(heappop(found)[0])
            async for each, node, names, _ in reader.read_nodes(connection, paths):
                if node is not None and node.data is not None and each > after:
                    heappush(found, (each, pair(each, node)))
                if names and _is_before_end(f"{each}/", after):
                    heappush(found, (f"{each}/", reader.children(directory, each, names)))
    return Page(pairs, bool(found), exists)


def _is_before_end(start: str, after: str) -> bool:
    """Tell whether some path that begins so is above another path."""
    return start > after or after.startswith(start)


async def _read_names(
    reader: Reader, connection: Connection, directory: str, *, consistent: bool
) -> tuple[Sequence[str], bool]:
    """Return the paths one level below a directory, and whether it is a key itself."""
    reads = [get(znode(directory)), get_children(znode(directory))]
    node, names = (await connection.ask_all(reads, consistent=consistent)).values
    for result in (node, names):
        if isinstance(result, StoreError) and not isinstance(result, NoNodeError):
            raise result
    if isinstance(node, StoreError) or isinstance(names, StoreError):
        return [], False
    return reader.children(directory, directory, names), node.data is not None
