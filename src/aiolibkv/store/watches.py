"""Watches that go on through outages, until they are released or the store is closed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from aiolibkv.errors import (
    AccessDeniedError,
    InvalidKeyError,
    NotReachableError,
    RequestTimeoutError,
    StoreClosedError,
    StoreError,
)
from aiolibkv.events import WatchResumed, WatchStale
from aiolibkv.store.backoff import growing_pauses
from aiolibkv.store.calls import Calls
from aiolibkv.store.driver import Lease, LeaseLostError
from aiolibkv.store.watch import Feed, StoreWatch
from aiolibkv.types import KVPair, Snapshot

_log = logging.getLogger("aiolibkv")


class Watches:
    """The watches of one store."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._tasks = calls.new_tasks()
        self._feeds: set[Feed] = set()

    def watch(self, path: str) -> StoreWatch[KVPair | None]:
        """Make a watch of a key."""
        name = self._calls.paths.name(path)
        feed = Feed(path, tree=False, name=self._calls.paths.visible)
        return StoreWatch(feed, self._start, lambda snapshot: snapshot.get(name), self._calls.check_home)

    def watch_tree(self, path: str) -> StoreWatch[Snapshot]:
        """Watch what is below a directory."""
        feed = Feed(path, tree=True, name=self._calls.paths.visible)
        return StoreWatch(feed, self._start, lambda snapshot: snapshot, self._calls.check_home)

    def watch_under(self, lease: Lease, path: str) -> tuple[Feed, StoreWatch[KVPair | None]]:
        """Watch any path, also one of the library's own, on behalf of a lease; LeaseLostError ends the watch."""
        feed = Feed(path, tree=False, name=lambda name: name)
        follow = self._calls.driver.follow_under
        return feed, StoreWatch(
            feed,
            lambda feed: self._start_following(feed, lambda: follow(lease, feed)),
            lambda snapshot: snapshot.get(path),
            self._calls.check_home,
        )

    def fail_all(self) -> None:
        """End all watches, because the store is closed."""
        for feed in self._feeds:
            feed.fail(self._calls.located(StoreClosedError(), feed.path))

    async def close(self) -> None:
        """End the tasks that fill the feeds."""
        await self._tasks.close()

    def _start(self, feed: Feed) -> asyncio.Task[None]:
        return self._start_following(feed, lambda: self._calls.driver.follow(feed))

    def _start_following(self, feed: Feed, follow: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        self._calls.check_open()
        self._feeds.add(feed)
        task = self._tasks.start(_Following(self._calls, feed, follow).run())
        # Not in the task itself: one that is cancelled before its first step never runs.
        task.add_done_callback(lambda _: self._discard(feed), context=self._calls.context)
        return task

    def _discard(self, feed: Feed) -> None:
        self._feeds.discard(feed)
        self._calls.outages.ended(feed)


class _Following:
    """Keeps one feed up to date: has the driver follow, and follow again after each outage."""

    def __init__(self, calls: Calls, feed: Feed, follow: Callable[[], Awaitable[None]]) -> None:
        self._calls = calls
        self._feed = feed
        self._follow = follow
        self._is_waiting = True
        self._stale_since: float | None = None

    async def run(self) -> None:
        """Follow until this is cancelled, or until what cannot heal has ended the watch."""
        calls, feed = self._calls, self._feed
        calls.outages.waits(feed)
        feed.on_heard, feed.on_cut_off = self._heard, self._cut_off
        breaks = growing_pauses()
        try:
            while True:
                began = feed.index
                try:
                    await self._follow()
                except (NotReachableError, RequestTimeoutError) as error:
                    feed.cut_off(error)
                except LeaseLostError as error:
                    feed.fail(error)
                    return
                except (AccessDeniedError, InvalidKeyError) as error:
                    # It cannot heal: no right, or a key that this server refuses.
                    feed.fail(calls.located(error, feed.path))
                    return
                except StoreError as error:
                    _log.debug("%s: a watch begins again: %s", calls.driver.name, error)
                    feed.cut_off(error)
                else:
                    feed.cut_off()
                if feed.index != began:
                    breaks = growing_pauses()
                await asyncio.sleep(next(breaks))
        except Exception as error:
            # A bug: whoever waits for the watch is told, and the owner of this task reports it.
            failure = calls.located(StoreError("the watch failed"), feed.path)
            failure.__cause__ = error
            feed.fail(failure)
            raise

    def _cut_off(self, error: StoreError | None) -> None:
        calls, feed = self._calls, self._feed
        self._is_waiting = True
        if error is None:
            calls.outages.waits(feed)
        else:
            calls.outages.failed(feed, calls.located(error, feed.path))
        if self._stale_since is None:
            self._stale_since = asyncio.get_running_loop().time()
            reason = "it begins again" if error is None else error.message
            calls.tell(WatchStale, calls.paths.name(feed.path), reason)

    def _heard(self) -> None:
        if not self._is_waiting:
            return
        self._is_waiting = False
        calls, feed = self._calls, self._feed
        calls.outages.healed(feed)
        if self._stale_since is not None:
            seconds = asyncio.get_running_loop().time() - self._stale_since
            self._stale_since = None
            calls.tell(WatchResumed, calls.paths.name(feed.path), seconds)
