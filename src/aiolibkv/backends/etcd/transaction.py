"""Several writes and their conditions as one transaction of the server's.

etcd refuses more than 128 conditions, or 128 writes, and a key that is written twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from aiolibkv.backends.etcd.codec import Compare, DeleteRange, Operation, Put, Range, Txn, TxnAnswer
from aiolibkv.backends.etcd.keyspace import Keyspace, Span


class Unmet(NamedTuple):
    """A condition that did not hold.

    Attributes:
        path: of which key.
        required: the index that it had to have, as for ``Transaction.require``.
        found: the index that it had; 0 when there was none.
    """

    path: str
    required: int | None
    found: int


class Transaction:
    """Writes that are carried out together, if every condition holds.

    Attributes:
        request: the message.
    """

    def __init__(self, keyspace: Keyspace) -> None:
        """Make one that does nothing."""
        self._keyspace = keyspace
        self._required: list[tuple[str, int | None]] = []
        self.request: Txn = Txn()

    def require(self, path: str, index: int | None) -> None:
        """Require that a key is at an index; 0 for a key that does not exist, None for any index of one that does."""
        self._require(path, index, (self._keyspace.key(path), b""))

    def require_nothing_below(self, directory: str) -> None:
        """Require that a directory is empty; if it is not, that is as if it were a key itself."""
        self._require(directory, 0, self._keyspace.below(directory))

    def put(self, path: str, value: bytes, lease: int) -> None:
        """Write a key; lease 0 is none."""
        self.request.success.append(Operation(put=Put(self._keyspace.key(path), value, lease)))

    def delete(self, path: str) -> None:
        """Delete a key."""
        self.delete_span((self._keyspace.key(path), b""))

    def delete_span(self, span: Span) -> None:
        """Delete all keys of a span."""
        self.request.success.append(Operation(delete_range=DeleteRange(*span)))

    def _require(self, path: str, index: int | None, span: Span) -> None:
        self._required.append((path, index))
        result = Compare.EQUAL if index is not None else Compare.GREATER
        key, end = span
        self.request.compare.append(Compare(result, Compare.MOD, key, index or 0, end))
        # A transaction that is not carried out says nothing of why, unless it is told to read.
        self.request.failure.append(Operation(range=Range(key, end, limit=1, keys_only=True)))

    def unmet(self, answer: TxnAnswer) -> Iterator[Unmet]:
        """Return the conditions that did not hold, in the order in which they were required."""
        for (path, required), response in zip(self._required, answer.responses, strict=True):
            kvs = response.range.kvs if response.range is not None else []
            found = kvs[0].mod_revision if kvs else 0
            if found != required if required is not None else not found:
                yield Unmet(path, required, found)


def deleted(answer: TxnAnswer) -> int:
    """Return how many keys a transaction deleted."""
    return sum(response.delete_range.deleted for response in answer.responses if response.delete_range is not None)
