"""Following the log: one connection and one cursor for all watches of a store.

Notifications only wake: they get lost, and a pooler between passes none on. What follows the cursor in the log is all
that has happened.
"""

# ruff: noqa: S608 - what is put into statements are only names of tables, made of checked identifiers

from __future__ import annotations

import asyncio
import copy
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from itertools import groupby
from operator import itemgetter

from aiolibkv.backends.postgresql.connection import Connections, Link
from aiolibkv.backends.postgresql.reading import Reader
from aiolibkv.backends.postgresql.schema import Identifiers
from aiolibkv.backends.postgresql.statements import Statement
from aiolibkv.errors import NotReachableError, StoreClosedError, StoreError
from aiolibkv.store import Feed, Followers, Tasks
from aiolibkv.store.backoff import growing_pauses
from aiolibkv.types import KVPair

_INTERVAL = 2.0
"""Seconds, about, between two looks at the log, also when nothing is notified."""
_INTERVAL_WITHOUT_NOTIFICATIONS = 0.3
_LATE = 0.05
"""Seconds, at most, after which what has expired is deleted: not all stores are to do it at once."""
_ROWS = 1000
_BYTES = 8 * 1024 * 1024

_NEVER = 2**62
"""Above every revision."""

_log = logging.getLogger("aiolibkv")

_Changes = Sequence[tuple[str, KVPair | None]]


class _Follower:
    """A feed, and what is to be applied to it once it is loaded.

    Attributes:
        feed: the feed.
        early: what has happened since before it began to be loaded; None when it is loaded.
        ended: resolved when it has to be loaded anew, failed when it cannot go on.
    """

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.early: list[tuple[int, _Changes]] | None = []
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()


class Tail:
    """The end of the log, from where the watches of one store are fed."""

    def __init__(
        self,
        names: Identifiers,
        connections: Connections,
        reader: Reader,
        tasks: Tasks,
        sweep: Callable[[], Awaitable[None]],
    ) -> None:
        """Make one; nothing is sent before the first watch.

        Args:
            names: of the tables.
            connections: gives the connection that listens.
            reader: loads feeds.
            tasks: owns the task that follows the log.
            sweep: deletes what has expired.
        """
        self._connections = connections
        self._reader = reader
        self._tasks = tasks
        self._sweep = sweep
        self._channel = names.channel
        self._log = Statement(
            f"SELECT {names.revision()} AS index, s.floor, {names.remaining()}, l.rev, l.key, l.value"
            f" FROM {names.state} AS s LEFT JOIN LATERAL (SELECT rev, key, value, sum(octet_length(value))"
            " OVER (ORDER BY rev RANGE BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS before"
            f" FROM (SELECT rev, key, value FROM {names.log} WHERE rev > $1 ORDER BY rev"
            f" FETCH FIRST {_ROWS} ROWS WITH TIES) AS next) AS l ON coalesce(l.before, 0) < {_BYTES} ORDER BY l.rev",
            "iifitb",
        )
        self._wakeup = asyncio.Event()
        self._cursor: int | None = None
        self._positioned: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._task: asyncio.Task[None] | None = None
        self._sweeping: asyncio.Task[None] | None = None
        self._followers: set[_Follower] = set()
        self._are_cut_off = False
        self._of_path: Followers[_Follower] = Followers()

    async def follow(self, feed: Feed) -> None:
        """Keep a feed up to date until cancelled; see ``Driver.follow``."""
        while True:
            follower = _Follower(feed)
            self._attach(follower)
            try:
                await self._load(follower)
                await follower.ended
            finally:
                self._detach(follower)

    def _attach(self, follower: _Follower) -> None:
        self._of_path.add(follower.feed, follower)
        self._followers.add(follower)
        if self._cursor is None:
            self._wakeup.set()
        if self._task is None:
            self._task = self._tasks.start(self._run())

    def _detach(self, follower: _Follower) -> None:
        self._followers.discard(follower)
        self._of_path.discard(follower.feed, follower)
        if follower.ended.done():
            follower.ended.exception()

    def _lose_position(self) -> None:
        self._cursor = None
        if self._positioned.done():
            self._positioned = asyncio.get_running_loop().create_future()

    async def _load(self, follower: _Follower) -> None:
        """Read the state, once the cursor is where nothing that comes later is missed."""
        feed = follower.feed
        await asyncio.wait([self._positioned, follower.ended], return_when=asyncio.FIRST_COMPLETED)
        if follower.ended.done():
            return
        state = await self._reader.state(feed.path, tree=feed.tree)
        feed.reset(state.pairs, state.revision)
        if state.remaining is not None and state.remaining < _INTERVAL:
            asyncio.get_running_loop().call_later(max(0, state.remaining), self._wakeup.set)
        early, follower.early = follower.early or (), None
        for index, changes in early:
            if index > state.revision:
                feed.apply(changes, index)

    # -- the task that follows the log -------------------------------------------------------------------------------

    async def _run(self) -> None:
        breaks = growing_pauses()
        while True:
            try:
                link = await self._connections.open()
                try:
                    if not link.server.is_pooled:
                        await link.listen(self._channel, self._notified)
                    while True:
                        pause = await self._look(link)
                        breaks = growing_pauses()
                        await self._wait(pause)
                finally:
                    self._connections.retire(link)
            except StoreClosedError:
                return
            except NotReachableError as error:
                self._are_cut_off = True
                for follower in tuple(self._followers):
                    follower.feed.cut_off(_copy(error))
            except StoreError as error:
                self._end_all(error)
            await asyncio.sleep(next(breaks))

    def _notified(self, paths: str) -> None:
        """Look at the log if somebody follows one of the keys written; which they are is not always told."""
        if not paths or any(map(self._of_path.is_concerned, paths.split("\n"))):
            self._wakeup.set()

    async def _look(self, link: Link) -> float | None:
        """Take what is new in the log, if somebody follows it; return the seconds until it is to be looked at again."""
        if not self._followers:
            self._lose_position()
            return None
        remaining = await self._read_on(link)
        if self._are_cut_off:
            self._are_cut_off = False
            for follower in tuple(self._followers):
                if follower.feed.is_stale and follower.early is None:
                    follower.feed.resumed()
        if remaining is not None and remaining <= 0 and (self._sweeping is None or self._sweeping.done()):
            self._sweeping = self._tasks.start(self._delete_expired())
        interval = _INTERVAL_WITHOUT_NOTIFICATIONS if link.server.is_pooled else _INTERVAL
        pause = interval * random.uniform(0.75, 1.25)
        return pause if remaining is None or remaining <= 0 else min(pause, remaining + random.uniform(0, _LATE))

    async def _read_on(self, link: Link) -> float | None:
        """Take what is new in the log; return the seconds until something expires."""
        while True:
            rows = await link.rows(self._log, _NEVER if self._cursor is None else self._cursor)
            if not rows:
                raise self._connections.emptied(link)
            index, floor, remaining = rows[0][:3]
            if self._cursor is not None and not floor <= self._cursor <= index:
                # The log does not reach back so far, or another server has taken over: all begin anew.
                self._lose_position()
                self._end_all(None)
                continue
            new = [row[3:] for row in rows if row[3] is not None]
            for rev, of_rev in groupby(new, key=itemgetter(0)):
                changes = [(key, None if value is None else KVPair(key, value, rev)) for _, key, value in of_rev]
                self._dispatch(rev, changes)
            self._cursor = new[-1][0] if new else index
            if not self._positioned.done():
                self._positioned.set_result(None)
            if self._cursor >= index:
                return remaining  # type: ignore[no-any-return] # asyncpg has no types

    async def _wait(self, pause: float | None) -> None:
        try:
            async with asyncio.timeout(pause):
                await self._wakeup.wait()
        except TimeoutError:
            pass
        self._wakeup.clear()

    def _dispatch(self, index: int, changes: _Changes) -> None:
        for follower, own in self._of_path.concerned(changes).items():
            if follower.early is not None:
                follower.early.append((index, own))
            elif index > follower.feed.index:
                follower.feed.apply(own, index)

    def _end_all(self, error: StoreError | None) -> None:
        for follower in self._followers:
            if follower.ended.done():
                continue
            if error is None:
                follower.ended.set_result(None)
            else:
                follower.ended.set_exception(_copy(error))

    async def _delete_expired(self) -> None:
        try:
            await self._sweep()
        except StoreError as error:
            _log.debug("what has expired could not be deleted yet: %s", error)
            if not isinstance(error, NotReachableError | StoreClosedError):
                # Nor may it ever be, by a role that only reads. Whoever reads the state does not see it.
                self._end_all(None)
        else:
            self._wakeup.set()


def _copy(error: StoreError) -> StoreError:
    return copy.copy(error).with_traceback(None)
