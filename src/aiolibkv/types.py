"""The values that a store takes and gives."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple, overload

Bytes = bytes | bytearray | memoryview
"""What is taken as a value; it is kept, and given back, as bytes."""

_SHOWN_BYTES = 32
_by_key = attrgetter("key")


@dataclass(frozen=True, slots=True)
class KVPair:
    """A key with its value, as it was at one modification.

    Attributes:
        key: without leading or trailing slashes, and without the store's prefix.
        value: the bytes stored.
        last_index: the store's modification index of the key; every successful write advances it.
    """

    key: str
    value: bytes
    last_index: int

    def __init__(self, key: str, value: bytes, last_index: int) -> None:
        # Every read makes pairs, and what a frozen dataclass has for this takes twice as long.
        _set_key(self, key)
        _set_value(self, value)
        _set_last_index(self, last_index)

    def __repr__(self) -> str:
        value = self.value if len(self.value) <= _SHOWN_BYTES else self.value[:_SHOWN_BYTES] + b"..."
        return f"KVPair({self.key!r}, {value!r}, {self.last_index})"


_set_key, _set_value, _set_last_index = (vars(KVPair)[name].__set__ for name in ("key", "value", "last_index"))


class Change(NamedTuple):
    """What happened to one key between two snapshots.

    Attributes:
        key: the key.
        pair: what it is now, None when it was deleted.
        previous: what it was in the snapshot before, None when it was not there.
    """

    key: str
    pair: KVPair | None
    previous: KVPair | None


class Snapshot(Sequence[KVPair]):
    """The pairs below a directory at one moment, sorted by key. Immutable."""

    __slots__ = ("_changes", "_last_index", "_pairs")

    def __init__(self, pairs: Iterable[KVPair] = (), *, changes: Iterable[Change] = (), last_index: int = 0) -> None:
        self._pairs = tuple(pairs)
        self._changes = tuple(changes)
        self._last_index = last_index

    @property
    def changes(self) -> tuple[Change, ...]:
        """What differs from the snapshot before; everything in the first one of a watch."""
        return self._changes

    @property
    def last_index(self) -> int:
        """The store's index that the snapshot reflects; it never decreases along one watch."""
        return self._last_index

    @overload
    def __getitem__(self, item: int) -> KVPair: ...
    @overload
    def __getitem__(self, item: slice) -> Sequence[KVPair]: ...
    def __getitem__(self, item: int | slice) -> KVPair | Sequence[KVPair]:
        return self._pairs[item]

    def __len__(self) -> int:
        return len(self._pairs)

    def __eq__(self, other: object) -> bool:
        """Compare the pairs with those of another snapshot, list or tuple."""
        if isinstance(other, Snapshot):
            return self._pairs == other._pairs
        return self._pairs == tuple(other) if isinstance(other, list | tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._pairs)

    def __repr__(self) -> str:
        return f"<Snapshot of {len(self)} pairs, {len(self.changes)} changes, index {self.last_index}>"

    def get(self, key: str) -> KVPair | None:
        """Return the pair of a key, or None when it is not in the snapshot."""
        key = key.strip("/")
        at = bisect_left(self._pairs, key, key=_by_key)
        return self._pairs[at] if at < len(self) and self._pairs[at].key == key else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a backend can and cannot do; everything else is the same on all of them.

    Attributes:
        distributed: stores on several machines share the data.
        durable: the data outlives the server's restart.
        linearizable_reads: a consistent read sees every write that was answered before it began.
        exact_compare: atomic calls compare and write in one step of the server.
        atomic_list: a list is the state of one instant.
        atomic_delete_tree: delete_tree takes effect at one instant.
        every_change: a watch whose consumer keeps up sees every change.
        lifetime_with_children: a key with ttl, keep_alive or a lock may have keys below it.
        ttl_survives_client: a plain ttl key lives to its end when its writer dies.
        min_ttl: seconds; the shortest lifetime that the server itself enforces.
        max_value_bytes: bytes; a larger value raises ValueTooLargeError.
        ttl_overshoot: gives for a ttl how many seconds later than that the key may go when its writer has died.
    """

    distributed: bool
    durable: bool
    linearizable_reads: bool
    exact_compare: bool
    atomic_list: bool
    atomic_delete_tree: bool
    every_change: bool
    lifetime_with_children: bool
    ttl_survives_client: bool
    min_ttl: float
    max_value_bytes: int
    ttl_overshoot: Callable[[float], float]
