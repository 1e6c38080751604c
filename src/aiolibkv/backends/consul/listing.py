"""Reading many keys of Consul: at one instant, by their names alone, in pages."""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

from aiolibkv.backends.consul.connection import Connection, together
from aiolibkv.backends.consul.encoding import (
    Answer,
    kv_target,
    read_mode,
    start_of,
)
from aiolibkv.backends.consul.failures import TxnFailedError
from aiolibkv.backends.consul.transactions import MAX_TXN_OPERATIONS, Operation, Transaction, checking
from aiolibkv.backends.consul.trees import parse_names, parse_tree
from aiolibkv.errors import AccessDeniedError
from aiolibkv.parts import in_parts
from aiolibkv.store import Listing, Names, Page
from aiolibkv.types import KVPair

_ALL, _CHILDREN = "keys", "keys&separator=/"
"""How names are asked for; of children those that end in a slash are directories, of all those are empty folders."""

_MOST_SCANS = 8
"""Of which the names not read yet are kept; of one more they are read again."""
_BYTES_AT_ONCE = 8 * 1024 * 1024
"""Of values that a page of a scan has, more or less."""


@dataclass(slots=True)
class _Scan:
    """What is known of a directory between two pages.

    Attributes:
        paths: in order.
        position: of the first one that was not read.
        largest: bytes of the largest value seen; 0 as long as nothing was.
    """

    paths: Sequence[str]
    position: int
    largest: int = 0


class Listings:
    """The reads of a store that are about more than one key."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._scans: OrderedDict[tuple[str, str], _Scan] = OrderedDict()

    async def pairs(self, directory: str, *, consistent: bool) -> Listing:
        """Return what is below a directory."""
        while True:
            replaced = self._connection.tokens_replaced
            answer = await self._read(directory, "recurse", consistent=consistent)
            with self._connection.understanding(answer):
                pairs = await parse_tree(answer)
            if pairs:
                return Listing(pairs, exists=True)
            if not consistent:
                consistent = True
                continue
            exists = await self.is_key(directory)
            if replaced == self._connection.tokens_replaced:
                return Listing([], exists)

    async def paths(self, directory: str, *, consistent: bool) -> Names:
        """Return the paths of what is below a directory."""
        start = start_of(directory)
        names, exists = await self._names(directory, _ALL, consistent=consistent)
        return Names(await in_parts(lambda part: [start + name for name in part], names), exists)

    async def children(self, directory: str, *, consistent: bool) -> Names:
        """Return the names one level below a directory.

        A marker of an empty folder, as Consul's web pages make them, cannot be told from a directory here.
        """
        return await self._names(directory, _CHILDREN, consistent=consistent)

    async def is_anything_below(self, directory: str) -> bool:
        """Tell whether there is anything below a directory, whether or not that is itself a key."""
        return (await self._connection.read(kv_target(start_of(directory), "keys&consistent"))).found

    async def is_key(self, directory: str) -> bool:
        """Tell whether a directory with nothing below is itself a key, and make sure that it may be read.

        The server leaves out what may not be read. A directory whose own name may not be read is taken for none.
        """
        start = start_of(directory)
        if not directory:
            await self._connection.check_access(start)
            return False
        said = await self._connection.look([start, directory], read_mode(consistent=True))
        if said.is_denied(0):
            said.raise_if_denied()
        return not said.is_denied(1) and said.tells_of_key(1)

    async def get_many(self, paths: Sequence[str], *, consistent: bool) -> Sequence[KVPair | None]:
        """Return the pair of each path, or None; those of one transaction at one instant."""
        found = await together(
            [
                self._get_at_once(paths[first : first + MAX_TXN_OPERATIONS], read_mode(consistent=consistent))
                for first in range(0, len(paths), MAX_TXN_OPERATIONS)
            ]
        )
        return [pair for part in found for pair in part]

    async def page(self, directory: str, after: str, limit: int) -> Page:
        """Return the pairs that follow a path.

        Consul cannot be asked for a part of a directory by order. So the names are read with the first page and kept
        for the next ones, and each page reads its values by their names.
        """
        scan = self._scans.pop((directory, after), None)
        if scan is None:
            paths, exists = await self.paths(directory, consistent=True)
            if not paths:
                return Page([], more=False, exists=exists)
            scan = _Scan(paths, bisect_right(paths, after) if after else 0)
        pairs: list[KVPair] = []
        while not pairs and scan.position < len(scan.paths):
            # Of how much a value takes nothing is known at first.
            room = _BYTES_AT_ONCE // scan.largest if scan.largest else MAX_TXN_OPERATIONS
            end = scan.position + max(1, min(limit, room))
            found = await self.get_many(scan.paths[scan.position : end], consistent=True)
            scan.position = end
            pairs = [pair for pair in found if pair is not None]
        scan.largest = max([scan.largest, 1, *(len(pair.value) for pair in pairs)])
        more = scan.position < len(scan.paths)
        if more:
            self._scans[directory, pairs[-1].key] = scan
            while len(self._scans) > _MOST_SCANS:
                self._scans.popitem(last=False)
        return Page(pairs, more=more, exists=True)

    async def _read(self, directory: str, form: str, *, consistent: bool) -> Answer:
        return await self._connection.read(kv_target(start_of(directory), f"{form}&{read_mode(consistent=consistent)}"))

    async def _names(self, directory: str, form: str, *, consistent: bool) -> Names:
        while True:
            replaced = self._connection.tokens_replaced
            answer = await self._read(directory, form, consistent=consistent)
            with self._connection.understanding(answer):
                names = await parse_names(answer, start_of(directory), folders=form == _CHILDREN)
            if names:
                return Names(names, exists=True)
            if not consistent:
                consistent = True
                continue
            exists = await self.is_key(directory)
            if replaced == self._connection.tokens_replaced:
                return Names([], exists)

    async def _get_at_once(self, paths: Sequence[str], mode: str) -> Sequence[KVPair | None]:
        """Return the pairs of as many paths as a transaction has room for, or None, at one instant.

        One that reads what does not exist fails, and tells what does not. Another one reads the others, and makes sure
        that these are still missing: by a condition, for which the token must be one that may write, or else by reading
        all that begins like them.
        """
        missing: set[str] = set()
        by_condition = True
        while True:
            absent = [checking(path, 0) if by_condition else Operation("get-tree", path) for path in sorted(missing)]
            read = [Operation("get", path) for path in paths if path not in missing]
            transaction = Transaction([*absent, *read], self._connection.scope.fields)
            answer = await self._connection.repeatable("PUT", f"txn?{mode}", transaction.body)
            mode = read_mode(consistent=True)
            try:
                with self._connection.understanding(answer):
                    entries = transaction.parse(answer)
            except TxnFailedError as failed:
                if any(failure.denied for failure in failed.failures):
                    by_condition = False
                    await self._connection.check_access(*missing)
                    continue
                for failure in failed.failures:
                    path = failed.paths[failure.position]
                    (missing.add if failure.missing else missing.discard)(path)
                continue
            found = {entry.pair.key: entry.pair for entry in entries}
            for operation in read:
                # The server leaves out what may not be read.
                if operation.path not in found:
                    raise AccessDeniedError(f"access to {operation.path!r} denied")
            return [found.get(path) for path in paths]
