"""The values that a store takes and gives."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from operator import attrgetter
from typing import Final, NamedTuple, overload

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

    def __eq__(self, other: object) -> bool:
        # Written out so that type checkers take ``"a/b" in snapshot`` for a question that makes sense.
        if not isinstance(other, KVPair):
            return NotImplemented
        return (self.last_index, self.key, self.value) == (other.last_index, other.key, other.value)

    def __repr__(self) -> str:
        value = self.value if len(self.value) <= _SHOWN_BYTES else self.value[:_SHOWN_BYTES] + b"..."
        return f"KVPair({self.key!r}, {value!r}, {self.last_index})"


_set_key, _set_value, _set_last_index = (vars(KVPair)[name].__set__ for name in ("key", "value", "last_index"))


class Change(NamedTuple):
    """How one key changed between two snapshots.

    Attributes:
        key: the key.
        pair: what it is now, None when it was deleted.
        previous: what it was in the snapshot before, None when it was not there.
    """

    key: str
    pair: KVPair | None
    previous: KVPair | None


class Snapshot(Sequence[KVPair]):
    """The pairs below a directory at one moment, sorted by key. Immutable.

    It can be asked by key too: ``"config/a" in snapshot``; ``snapshot["config/a"]``, which raises KeyError when there
    is no such key; and ``snapshot.get("config/a")``, which gives None then.
    """

    __slots__ = ("_changes", "_last_index", "_pairs")

    def __init__(self, pairs: Iterable[KVPair] = (), *, changes: Iterable[Change] = (), last_index: int = 0) -> None:
        # A list, since a change of one pair in many then costs one copy of it and a half.
        self._pairs = list(pairs)
        self._changes = tuple(changes)
        self._last_index = last_index

    @property
    def changes(self) -> tuple[Change, ...]:
        """What differs from the snapshot before; everything in the first one of a watch."""
        return self._changes

    @property
    def last_index(self) -> int:
        """The store's index up to which everything is in the snapshot; it never decreases along one watch.

        Where ``atomic_list`` does not hold, a pair may be newer.
        """
        return self._last_index

    @overload
    def __getitem__(self, item: int | str) -> KVPair: ...
    @overload
    def __getitem__(self, item: slice) -> Sequence[KVPair]: ...
    def __getitem__(self, item: int | str | slice) -> KVPair | Sequence[KVPair]:
        if isinstance(item, str):
            if (pair := self.get(item)) is None:
                raise KeyError(item)
            return pair
        return tuple(self._pairs[item]) if isinstance(item, slice) else self._pairs[item]

    def __contains__(self, item: object) -> bool:
        if isinstance(item, str):
            return self.get(item) is not None
        return isinstance(item, KVPair) and self.get(item.key) == item

    def __iter__(self) -> Iterator[KVPair]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)

    def __eq__(self, other: object) -> bool:
        """Compare the pairs with those of another snapshot, list or tuple."""
        if isinstance(other, Snapshot):
            return self._pairs == other._pairs
        return self._pairs == list(other) if isinstance(other, list | tuple) else NotImplemented

    def __hash__(self) -> int:
        return hash(tuple(self._pairs))

    def __repr__(self) -> str:
        return f"<Snapshot of {len(self)} pairs, {len(self.changes)} changes, index {self.last_index}>"

    def get(self, key: str) -> KVPair | None:
        """Return the pair of a key, or None when it is not in the snapshot."""
        key = key.strip("/")
        at = bisect_left(self._pairs, key, key=_by_key)
        return self._pairs[at] if at < len(self._pairs) and self._pairs[at].key == key else None

    def _updated(self, states: Mapping[str, KVPair | None], last_index: int) -> Snapshot:
        """Return the snapshot that follows this one: with what keys are now, None where they are gone."""
        before = self._pairs
        pairs: list[KVPair] = []
        changes = []
        taken = 0
        for key in sorted(states):
            pair = states[key]
            at = bisect_left(before, key, taken, key=_by_key)
            previous = before[at] if at < len(before) and before[at].key == key else None
            if pair == previous:
                continue
            pairs += before[taken:at]
            if pair is not None:
                pairs.append(pair)
            taken = at if previous is None else at + 1
            changes.append(Change(key, pair, previous))
        pairs += before[taken:]
        following = Snapshot(changes=changes, last_index=last_index)
        following._pairs = pairs  # nobody else has this list, so that it need not be copied
        return following


updated: Callable[[Snapshot, Mapping[str, KVPair | None], int], Snapshot] = Snapshot._updated  # noqa: SLF001 - for feeds and namespaces, not for users


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a backend can and cannot do; everything else is the same on all of them.

    What has a default is a promise of every backend that does not say otherwise; the conformance suite checks it.

    Attributes:
        distributed: stores on several machines share the data.
        durable: the data outlives the server's restart.
        survives_failover: acknowledged writes outlive the loss of one server.
        linearizable_reads: a consistent read sees every write that was answered before it began.
        exact_compare: atomic calls compare and write in one step of the server.
        atomic_list: a list is the state of one instant.
        atomic_delete_tree: delete_tree takes effect at one instant.
        every_change: a watch whose consumer keeps up sees every change.
        lifetime_with_children: a key with ttl, keep_alive or a lock may have keys below it.
        ttl_survives_client: a plain ttl key lives to its end when its writer dies.
        min_ttl: seconds; the shortest lifetime that the server itself enforces.
        max_value_bytes: bytes; a larger value raises ValueTooLargeError.
        max_operations: of one commit; more are a ValueError.
        max_commit_bytes: of the keys, as stored, and values of one commit together; more raise ValueTooLargeError.
        ttl_overshoot: gives for a ttl how many seconds later than that the key may go when its writer has died.
    """

    distributed: bool
    durable: bool
    survives_failover: bool
    linearizable_reads: bool = True
    exact_compare: bool = True
    atomic_list: bool = True
    atomic_delete_tree: bool = True
    every_change: bool = True
    lifetime_with_children: bool = True
    ttl_survives_client: bool = True
    min_ttl: float
    max_value_bytes: int
    max_operations: int
    max_commit_bytes: int
    ttl_overshoot: Callable[[float], float]


class Any_(Enum):  # noqa: N801 - nobody needs its name but type checkers
    """The type of ANY."""

    ANY = "any"

    def __repr__(self) -> str:
        return self.name


ANY: Final = Any_.ANY
"""The previous of an operation that does not depend on what the key is."""


@dataclass(frozen=True, slots=True)
class Put:
    """An operation of a commit: write a key.

    Attributes:
        key: the key.
        value: its value.
        previous: ANY: whatever was there; a pair: only when the key is at its index; None: only when there is none.
    """

    key: str
    value: Bytes
    previous: KVPair | Any_ | None = ANY


@dataclass(frozen=True, slots=True)
class Delete:
    """An operation of a commit: delete a key, which must exist.

    Attributes:
        key: the key.
        previous: ANY: whatever was there; a pair: only when the key is at its index.
    """

    key: str
    previous: KVPair | Any_ = ANY


@dataclass(frozen=True, slots=True)
class Check:
    """An operation of a commit that writes nothing: a condition.

    Attributes:
        key: the key.
        previous: ANY: it must exist; a pair: it must be at its index; None: it must not exist.
    """

    key: str
    previous: KVPair | Any_ | None = ANY


Operation = Put | Delete | Check
