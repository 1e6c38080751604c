"""Following the log: one cursor for all watches of a store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from aiolibkv.backends.sqlite.reading import CompactedError, Logged, Reader, State
from aiolibkv.backends.sqlite.signals import Signals
from aiolibkv.errors import StoreError
from aiolibkv.store import Feed, Followers, Tasks
from aiolibkv.types import KVPair

_ENDING_TIME = 0.2
"""Seconds for reads to end that are refused already."""

_log = logging.getLogger("aiolibkv")


class Wakeup:
    """An event that a task waits for, at most some time."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        """Wake the task."""
        self._event.set()

    async def wait(self, seconds: float | None) -> None:
        """Return when woken or after some seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            pass
        self._event.clear()


class Tail:
    """The end of the log, from where the watches of one store are fed.

    Revs are given inside the write transactions, of which there is one at a time, and become visible in their order;
    so what follows the cursor is all that has happened, whichever process did it.
    """

    def __init__(self, reader: Reader, expire: Callable[[], Awaitable[object]]) -> None:
        """Make a tail.

        Args:
            reader: reads the log.
            expire: deletes what has expired.
        """
        self._reader = reader
        self._expire = expire
        self._expiring: asyncio.Task[None] | None = None
        self._tasks = Tasks()
        self._loads = Tasks()
        self._wakeup = Wakeup()
        self._cursor = 0
        self._end: StoreError | None = None
        self._loading: dict[tuple[str, bool], asyncio.Task[State]] = {}
        self._attached: dict[Feed, asyncio.Future[None]] = {}
        self._feeds: Followers[Feed] = Followers()

    def wake(self) -> None:
        """Look at the log."""
        self._wakeup.set()

    async def run(self, signals: Signals) -> None:
        """Feed the watches until cancelled."""
        pause: float | None = None
        while True:
            await self._wakeup.wait(pause)
            try:
                if self._attached:
                    await self._advance()
                pause = self._pause(signals.interval)
            except CompactedError:
                self._begin_again()
            except StoreError as error:
                pause = signals.interval
                self._release(error)

    async def close(self, reason: StoreError) -> None:
        """End the watches with an error, and the deletion that may be under way."""
        self._end = reason
        self._release(reason)
        # The reader refuses them; who waits for one is told that, not cancelled with it.
        await self._loads.settle(_ENDING_TIME)
        await self._tasks.close()

    async def follow(self, feed: Feed, signals: Signals) -> None:
        """Keep a feed up to date until cancelled; see ``Driver.follow``."""
        signals.listen()
        try:
            if feed.index == 0:
                await self._load(feed)
            while True:
                try:
                    await self._catch_up(feed)
                    await self._feed(feed)
                except CompactedError:
                    pass
                await self._load(feed)
        finally:
            signals.ignore()

    async def _load(self, feed: Feed) -> None:
        of = feed.path, feed.tree
        loading = self._loading.get(of)
        if loading is None:
            loading = self._loading[of] = self._loads.start(self._read(*of))
        try:
            state = await asyncio.shield(loading)
        except StoreError as error:
            raise type(error)(error.message) from error
        feed.reset(state.pairs, state.index)

    async def _read(self, path: str, tree: bool) -> State:  # noqa: FBT001 - what identifies a load
        # Who comes from here on needs a newer state than this one may be.
        del self._loading[path, tree]
        return await self._reader.state(path, tree=tree)

    async def _catch_up(self, feed: Feed) -> None:
        """Bring a feed to the cursor, from where all are fed on.

        Also when there are no others: the log may still be being read for the last of them, and is not read again.
        """
        rows: list[Logged] = []
        position = feed.index
        while position < self._cursor:
            page = await self._reader.log(position)
            if not page:
                # The cursor is of a history that was lost, which the others do not know yet.
                self._begin_again()
            for row in page:
                rows.append(row)
                position = row.rev
                if row.rev == row.last:
                    feed.apply([_change(row) for row in rows if _concerns(row, feed)], row.rev)
                    rows = []

    async def _feed(self, feed: Feed) -> None:
        if self._end is not None:
            raise type(self._end)(self._end.message)
        if not self._attached:
            self._cursor = max(self._cursor, feed.index)
        self._attached[feed] = ended = asyncio.get_running_loop().create_future()
        self._feeds.add(feed, feed)
        feed.resumed()
        self.wake()
        try:
            await ended
        finally:
            self._attached.pop(feed, None)
            self._feeds.discard(feed, feed)

    async def _advance(self) -> None:
        rows: list[Logged] = []
        position = self._cursor
        while page := await self._reader.log(position):
            for row in page:
                rows.append(row)
                if row.rev == row.last:
                    self._dispatch(rows, row.rev)
                    self._cursor = row.rev
                    rows = []
            position = page[-1].rev
            await asyncio.sleep(0)

    def _dispatch(self, rows: Sequence[Logged], index: int) -> None:
        for feed, changed in self._feeds.concerned(map(_change, rows)).items():
            if index > feed.index:
                feed.apply(changed, index)

    def _pause(self, interval: float) -> float | None:
        """Return the seconds until the log is to be looked at, having begun to delete what has expired."""
        if not self._attached:
            return None
        remaining = self._reader.until_next_end()
        if remaining is None:
            return interval
        if remaining > 0:
            return min(interval, remaining)
        if self._expiring is None or self._expiring.done():
            self._expiring = self._tasks.start(self._delete_expired())
        return interval

    async def _delete_expired(self) -> None:
        try:
            await self._expire()
        except StoreError as error:
            _log.debug("what has expired could not be deleted yet: %s", error)
        else:
            self.wake()

    def _begin_again(self) -> None:
        """Have all watches list again, and go on from there."""
        self._release(None)
        self._cursor = 0

    def _release(self, error: StoreError | None) -> None:
        """Let the watches begin again, by an error or else with a new list."""
        attached, self._attached = self._attached, {}
        for feed, ended in attached.items():
            feed.apply((), max(feed.index, self._cursor))
            if ended.done():
                continue
            if error is None:
                ended.set_result(None)
            else:
                ended.set_exception(type(error)(error.message))


def _change(row: Logged) -> tuple[str, KVPair | None]:
    return row.key, None if row.value is None else KVPair(row.key, row.value, row.rev)


def _concerns(row: Logged, feed: Feed) -> bool:
    if feed.tree:
        return not feed.path or row.key.startswith(f"{feed.path}/")
    return row.key == feed.path
