"""The data behind memory stores: an ordered map with a counter, leases, and the feeds that follow it.

It plays the part of the server. Nothing here awaits, so every method is a transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from heapq import heappop, heappush
from weakref import WeakKeyDictionary

from sortedcontainers import SortedDict

from aiolibkv.errors import KeyExistsError, KeyModifiedError, KeyNotFoundError, LockLostError
from aiolibkv.keys import below as bounds
from aiolibkv.store import Feed, Guard, Lease, LeaseLost
from aiolibkv.types import KVPair


class Space:
    """What the memory stores of one name share."""

    def __init__(self) -> None:
        self.index = 0
        self.stores = 0
        self._pairs: SortedDict[str, KVPair] = SortedDict()
        self._lease_of: dict[str, Lease] = {}
        self._ends: dict[Lease, float] = {}
        self._paths_of: dict[Lease, set[str]] = {}
        self._agenda: list[tuple[float, int, Lease]] = []
        self._alarm: asyncio.TimerHandle | None = None
        self._feeds: set[Feed] = set()

    def get(self, path: str) -> KVPair | None:
        """Return a pair, or None."""
        self._expire()
        return self._pairs.get(path)

    def below(self, directory: str) -> list[KVPair]:
        """Return the pairs strictly below a directory, in order."""
        self._expire()
        return [self._pairs[path] for path in self._paths_below(directory)]

    def put(self, path: str, value: bytes, expected: int | None, lease: Lease | None, guard: Guard | None) -> int:
        """Write a pair if the conditions hold, and return its index."""
        self._check(guard)
        current = self.get(path)
        if expected == 0 and current is not None:
            raise KeyExistsError
        if expected and (current is None or current.last_index != expected):
            raise KeyModifiedError
        if lease is not None and lease not in self._ends:
            raise LeaseLost
        self._release(path)
        if lease is not None:
            self._lease_of[path] = lease
            self._paths_of[lease].add(path)
        self.index += 1
        self._pairs[path] = KVPair(path, value, self.index)
        self._tell([path])
        return self.index

    def delete(self, path: str, expected: int | None, guard: Guard | None) -> None:
        """Delete a pair if the conditions hold."""
        self._check(guard)
        current = self.get(path)
        if current is None:
            raise KeyNotFoundError
        if expected is not None and current.last_index != expected:
            raise KeyModifiedError
        self._remove([path])

    def delete_tree(self, directory: str, hidden: str, guard: Guard | None) -> int:
        """Delete the pairs strictly below a directory, but not those below the hidden one; return how many."""
        self._check(guard)
        paths = [pair.key for pair in self.below(directory) if not pair.key.startswith(hidden)]
        self._remove(paths)
        return len(paths)

    def grant(self, lease: Lease) -> None:
        """Begin a lease, or begin it anew."""
        end = asyncio.get_running_loop().time() + lease.ttl
        self._ends[lease] = end
        self._paths_of.setdefault(lease, set())
        heappush(self._agenda, (end, id(lease), lease))
        self._set_alarm()

    def renew(self, lease: Lease) -> bool:
        """Begin a lease anew, unless it is over."""
        self._expire()
        if lease not in self._ends:
            return False
        self.grant(lease)
        return True

    def revoke(self, lease: Lease) -> None:
        """End a lease, with its keys."""
        if self._ends.pop(lease, None) is not None:
            self._remove(sorted(self._paths_of[lease]))
            del self._paths_of[lease]

    def attach(self, feed: Feed) -> None:
        """Fill a feed with the state, and from now on with the changes."""
        if feed.tree:
            pairs = self.below(feed.path)
        else:
            pair = self.get(feed.path)
            pairs = [] if pair is None else [pair]
        feed.reset(pairs, self.index)
        self._feeds.add(feed)

    def detach(self, feed: Feed) -> None:
        """Leave a feed as it is."""
        self._feeds.discard(feed)

    def close(self) -> None:
        """Stop the clock."""
        if self._alarm is not None:
            self._alarm.cancel()

    def _paths_below(self, directory: str) -> Iterator[str]:
        first, end = bounds(directory)
        return self._pairs.irange(first, end or None, inclusive=(True, False))

    def _check(self, guard: Guard | None) -> None:
        if guard is not None:
            lock = self.get(guard.path)
            if lock is None or lock.last_index != guard.token:
                raise LockLostError

    def _remove(self, paths: list[str]) -> None:
        if paths:
            self.index += 1
            for path in paths:
                del self._pairs[path]
                self._release(path)
            self._tell(paths)

    def _release(self, path: str) -> None:
        lease = self._lease_of.pop(path, None)
        if lease is not None:
            self._paths_of[lease].discard(path)

    def _tell(self, paths: list[str]) -> None:
        for feed in self._feeds:
            start = f"{feed.path}/" if feed.tree and feed.path else feed.path
            seen = [path for path in paths if (path.startswith(start) if feed.tree else path == start)]
            if seen:
                feed.apply([(path, self._pairs.get(path)) for path in seen], self.index)

    def _expire(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._agenda and self._agenda[0][0] <= now:
            end, _, lease = heappop(self._agenda)
            if self._ends.get(lease) == end:
                self.revoke(lease)

    def _set_alarm(self) -> None:
        self.close()
        if self._agenda:
            self._alarm = asyncio.get_running_loop().call_at(self._agenda[0][0], self._ring)

    def _ring(self) -> None:
        self._expire()
        self._set_alarm()


_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, Space]] = WeakKeyDictionary()


def open_space(name: str | None) -> Space:
    """Return the space of a name in this event loop, or a private one."""
    named = _shared.setdefault(asyncio.get_running_loop(), {})
    space = Space() if name is None else named.setdefault(name, Space())
    space.stores += 1
    return space


def close_space(name: str | None, space: Space) -> None:
    """Give a space back; the last store to do so drops it."""
    space.stores -= 1
    if space.stores == 0:
        space.close()
        if name is not None:
            del _shared[asyncio.get_running_loop()][name]
