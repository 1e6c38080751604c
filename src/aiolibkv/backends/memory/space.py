"""The data behind memory stores: an ordered map with a counter, leases, and the feeds that follow it.

It plays the part of the server. Nothing here awaits, so every method is a transaction.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextvars import Context
from heapq import heapify, heappop, heappush
from weakref import WeakKeyDictionary

from sortedcontainers import SortedDict

from aiolibkv.errors import KeyExistsError, KeyModifiedError, KeyNotFoundError, LockLostError
from aiolibkv.keys import below as bounds
from aiolibkv.store import Feed, Followers, Guard, Lease, LeaseLostError, Removal, Step, Write
from aiolibkv.types import KVPair

_LEFT_IN_AGENDA = 50
"""The agenda is made anew when it has so many entries more than two for each lease: most are of revoked ones."""


class Space:
    """What the memory stores of one name share."""

    def __init__(self) -> None:
        self.index: int = 0
        self.stores: int = 0
        self._pairs: SortedDict[str, KVPair] = SortedDict()
        self._lease_of: dict[str, Lease] = {}
        self._ends: dict[Lease, float] = {}
        self._paths_of: dict[Lease, set[str]] = {}
        self._agenda: list[tuple[float, int, Lease]] = []
        self._alarm: asyncio.TimerHandle | None = None
        # An empty one: the alarm would keep that of the call that sets it.
        self._context = Context()
        self._feeds: Followers[Feed] = Followers()

    def get(self, path: str) -> KVPair | None:
        """Return a pair, or None."""
        if self._agenda:
            self._expire()
        return self._pairs.get(path)

    def below(self, directory: str, after: str = "") -> Iterator[KVPair]:
        """Return the pairs strictly below a directory whose path is above another one, in order."""
        self._expire()
        return (self._pairs[path] for path in self.paths_below(directory, after))

    def paths_below(self, directory: str, after: str = "") -> Iterator[str]:
        """Return the paths of those pairs."""
        self._expire()
        first, end = bounds(directory)
        start = max(first, after)
        return self._pairs.irange(start, end or None, inclusive=(start != after, False))

    def children(self, directory: str) -> list[str]:
        """Return the names one level below a directory, without looking at all that is below them."""
        first, end = bounds(directory)
        names: set[str] = set()
        paths = self.paths_below(directory)
        while (path := next(paths, None)) is not None:
            name, slash, _ = path[len(first) :].partition("/")
            names.add(name + slash)
            if slash:
                # "0" comes after "/": the first key past all that is below this child.
                paths = self._pairs.irange(f"{first}{name}0", end or None, inclusive=(True, False))
        return sorted(names)

    def commit(self, steps: Sequence[Step], lease: Lease | None, guard: Guard | None) -> list[int]:
        """Carry out all steps, or none when a condition does not hold."""
        self._expire()
        self._check(guard)
        for step in steps:
            self._require(step)
        if lease is not None and lease not in self._ends:
            raise LeaseLostError
        changed = [step.path for step in steps if isinstance(step, Write | Removal)]
        if not changed:
            return [0] * len(steps)
        self.index += 1
        for step in steps:
            if isinstance(step, Write):
                self._set(step.path, step.value, lease)
            elif isinstance(step, Removal):
                self._unset(step.path)
        self._tell(changed)
        return [self.index if isinstance(step, Write) else 0 for step in steps]

    def put(self, path: str, value: bytes, expected: int | None, lease: Lease | None, guard: Guard | None) -> int:
        """Write a pair if the conditions hold, and return its index."""
        if self._agenda:
            self._expire()
        if guard is not None:
            self._check(guard)
        if expected is not None:
            self._require(Write(path, value, expected))
        if lease is not None and lease not in self._ends:
            raise LeaseLostError
        self.index += 1
        self._set(path, value, lease)
        self._tell((path,))
        return self.index

    def delete(self, path: str, expected: int | None, guard: Guard | None) -> None:
        """Delete a pair if the conditions hold."""
        self._expire()
        self._check(guard)
        self._require(Removal(path, expected))
        self._remove((path,))

    def delete_tree(self, directory: str, hidden: str, guard: Guard | None) -> int:
        """Delete the pairs strictly below a directory, but not the hidden one and those below it; return how many."""
        self._expire()
        self._check(guard)
        start = f"{hidden}/"
        paths = [path for path in self.paths_below(directory) if path != hidden and not path.startswith(start)]
        self._remove(paths)
        return len(paths)

    def grant(self, lease: Lease) -> None:
        """Begin a lease, or begin it anew."""
        end = asyncio.get_running_loop().time() + lease.ttl
        is_known = lease in self._ends
        self._ends[lease] = end
        self._paths_of.setdefault(lease, set())
        if not is_known:
            self._schedule(lease, end)

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
            pairs = list(self.below(feed.path))
        else:
            pair = self.get(feed.path)
            pairs = [] if pair is None else [pair]
        feed.reset(pairs, self.index)
        self._feeds.add(feed, feed)

    def detach(self, feed: Feed) -> None:
        """Leave a feed as it is."""
        self._feeds.discard(feed, feed)

    def close(self) -> None:
        """Stop the clock."""
        if self._alarm is not None:
            self._alarm.cancel()

    @property
    def feeds(self) -> int:
        """How many feeds follow."""
        return len(self._feeds)

    @property
    def leases(self) -> int:
        """How many leases there are."""
        return len(self._ends)

    def _check(self, guard: Guard | None) -> None:
        if guard is not None:
            lock = self._pairs.get(guard.path)
            if lock is None or lock.last_index != guard.token:
                raise LockLostError

    def _require(self, step: Step) -> None:
        path, expected = step.path, step.expected
        current = self._pairs.get(path)
        if isinstance(step, Write):
            if expected is None:
                return
        elif current is None and (expected is None or isinstance(step, Removal)):
            raise KeyNotFoundError(key=path)
        if expected == 0 and current is not None:
            raise KeyExistsError(key=path)
        if expected and (current is None or current.last_index != expected):
            raise KeyModifiedError(key=path)

    def _set(self, path: str, value: bytes, lease: Lease | None) -> None:
        if self._lease_of:
            self._release(path)
        if lease is not None:
            self._lease_of[path] = lease
            self._paths_of[lease].add(path)
        self._pairs[path] = KVPair(path, value, self.index)

    def _unset(self, path: str) -> None:
        del self._pairs[path]
        self._release(path)

    def _remove(self, paths: Sequence[str]) -> None:
        if paths:
            self.index += 1
            for path in paths:
                self._unset(path)
            self._tell(paths)

    def _release(self, path: str) -> None:
        lease = self._lease_of.pop(path, None)
        if lease is not None:
            self._paths_of[lease].discard(path)

    def _tell(self, paths: Sequence[str]) -> None:
        if self._feeds:
            changes = self._feeds.concerned((path, self._pairs.get(path)) for path in paths)
            for feed, seen in changes.items():
                feed.apply(seen, self.index)

    def _schedule(self, lease: Lease, end: float) -> None:
        heappush(self._agenda, (end, id(lease), lease))
        if len(self._agenda) > 2 * len(self._ends) + _LEFT_IN_AGENDA:
            self._agenda = [(end, id(lease), lease) for lease, end in self._ends.items()]
            heapify(self._agenda)
        if self._agenda[0][2] is lease:
            self._set_alarm()

    def _expire(self) -> None:
        now = asyncio.get_running_loop().time()
        while self._agenda and self._agenda[0][0] <= now:
            lease = heappop(self._agenda)[2]
            end = self._ends.get(lease)
            if end is None:
                continue
            if end <= now:
                self.revoke(lease)
            else:
                # It was renewed since.
                heappush(self._agenda, (end, id(lease), lease))

    def _set_alarm(self) -> None:
        self.close()
        if self._agenda:
            self._alarm = asyncio.get_running_loop().call_at(self._agenda[0][0], self._ring, context=self._context)

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
