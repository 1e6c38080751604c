"""Which feeds a change concerns: for drivers that hear of all changes and hand each to the feeds that want it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterable, Iterator
from typing import Generic, TypeVar

from aiolibkv.store.watch import Feed
from aiolibkv.types import KVPair

F = TypeVar("F", bound=Hashable)


class Followers(Generic[F]):
    """Feeds by key or directory, or whatever a driver keeps for each feed."""

    def __init__(self) -> None:
        self._of_key: defaultdict[str, set[F]] = defaultdict(set)
        self._of_directory: defaultdict[str, set[F]] = defaultdict(set)

    def __bool__(self) -> bool:
        return bool(self._of_key or self._of_directory)

    def __len__(self) -> int:
        return sum(len(of_path) for of_path in (*self._of_key.values(), *self._of_directory.values()))

    def add(self, feed: Feed, follower: F) -> None:
        """Add a follower for the key or directory of its feed."""
        (self._of_directory if feed.tree else self._of_key)[feed.path].add(follower)

    def discard(self, feed: Feed, follower: F) -> None:
        """Forget a follower, if it is known."""
        followers = self._of_directory if feed.tree else self._of_key
        of_path = followers[feed.path]
        of_path.discard(follower)
        if not of_path:
            del followers[feed.path]

    def concerned(self, changes: Iterable[tuple[str, KVPair | None]]) -> dict[F, list[tuple[str, KVPair | None]]]:
        """Return, for each follower, those of the changes that concern it; they are as ``Feed.apply`` takes them."""
        found: defaultdict[F, list[tuple[str, KVPair | None]]] = defaultdict(list)
        for change in changes:
            for follower in self._of(change[0]):
                found[follower].append(change)
        return found

    def is_concerned(self, path: str) -> bool:
        """Tell whether a change of this key concerns any follower."""
        return any(True for _ in self._of(path))

    def _of(self, path: str) -> Iterator[F]:
        yield from self._of_key.get(path, ())
        if self._of_directory:
            yield from self._of_directory.get("", ())
            end = path.find("/")
            while end >= 0:
                yield from self._of_directory.get(path[:end], ())
                end = path.find("/", end + 1)
