"""All watches of a store on one stream.

A watch begins with a read at revision R and goes on with the changes from R + 1. When its stream broke it resumes
after the last change it took, provided that the server's history is still the one that was followed; otherwise, and
when the history was compacted, it reads again, and the feed works out the difference.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from itertools import groupby
from weakref import WeakKeyDictionary

from aiolibkv.backends.etcd.channel import RpcFailedError
from aiolibkv.backends.etcd.codec import (
    Event,
    MalformedError,
    Range,
    RangeAnswer,
    WatchAnswer,
    WatchCancel,
    WatchCreate,
    WatchRequest,
    decode,
    encode,
)
from aiolibkv.backends.etcd.connection import Connection, shared
from aiolibkv.backends.etcd.failures import RefusedError
from aiolibkv.backends.etcd.link import Link, LinkStream
from aiolibkv.backends.etcd.reading import bounds, read_key, read_tree, to_path
from aiolibkv.errors import AccessDeniedError, NotReachableError, StoreError
from aiolibkv.store import Feed
from aiolibkv.store.tasks import Tasks
from aiolibkv.types import KVPair

_READS_AT_ONCE = 50
_ENDING_TIME = 0.3
"""Seconds for the streams to end by themselves."""
_REFUSALS = 3
"""How often a watch is refused, though reading the same keys is not, until that is no matter of an old token."""


class Watching:
    """The watches of one store."""

    def __init__(self, connection: Connection) -> None:
        """Make an empty set of watches; nothing is sent."""
        self._connection = connection
        self._tasks = Tasks()
        self._stream: _WatchStream | None = None
        self._opening = asyncio.Lock()
        self._reading = asyncio.Semaphore(_READS_AT_ONCE)
        self._newest: KVPair | None = None
        self._history = 0
        self._history_of: WeakKeyDictionary[Feed, int] = WeakKeyDictionary()
        self._checked: tuple[Link, asyncio.Task[int]] | None = None

    async def follow(self, feed: Feed) -> None:
        """Keep a feed equal to the server's state until cancelled.

        Raises:
            NotReachableError: the connection broke.
            AccessDeniedError: the user may not read this.
            StoreError: the server refuses the watch.
        """
        known = await self._may_resume(feed)
        refusals = 0
        while True:
            if not known:
                await self._read(feed)
            known = False
            stream = await self._usable_stream()
            watched = stream.add(feed)
            try:
                outcome = await watched.outcome
            finally:
                stream.release(watched)
            if isinstance(outcome, AccessDeniedError):
                # The read above was allowed: the token with which the stream was opened is too old.
                stream.usable = False
                refusals += 1
                if refusals == _REFUSALS:
                    raise outcome
            elif outcome is not None:
                raise outcome

    async def close(self) -> None:
        """End the streams; whoever follows was cancelled before."""
        await self._tasks.settle(_ENDING_TIME)
        await self._tasks.close()
        self._stream = self._checked = None

    async def _read(self, feed: Feed) -> None:
        async with self._reading:
            history = self._history
            read = await (read_tree if feed.tree else read_key)(self._connection, feed.path)
        feed.reset(read.pairs, read.revision)
        self._history_of[feed] = history
        self._saw(read.pairs)

    def _saw(self, pairs: list[KVPair]) -> None:
        newest = max(pairs, key=lambda pair: pair.last_index, default=None)
        if newest is not None and (self._newest is None or newest.last_index > self._newest.last_index):
            self._newest = newest

    async def _usable_stream(self) -> _WatchStream:
        async with self._opening:
            if self._stream is None or not self._stream.usable:
                link, stream = await self._connection.watch_stream()
                self._stream = _WatchStream(self._connection, link, stream, self._tasks, self._saw)
            return self._stream

    async def _may_resume(self, feed: Feed) -> bool:
        """Tell whether the server's history up to the feed's index is the one that the feed has followed."""
        if not feed.index or self._history_of.get(feed) != self._history:
            return False
        link = await self._connection.link()
        if self._checked is None or self._checked[0] is not link:
            self._checked = (link, self._tasks.start(self._check_history()))
        checking = self._checked[1]
        try:
            revision = await shared(checking)
        except StoreError:
            if self._checked is not None and self._checked[1] is checking:
                self._checked = None
            raise
        return feed.index <= revision and self._history_of.get(feed) == self._history

    async def _check_history(self) -> int:
        """Return the server's revision if its history is the one followed so far.

        A server that was restored from a backup, or replaced by an empty one, counts the same revisions again for
        other changes. The newest pair seen tells: it must be there, or have been there at its revision.
        """
        pair = self._newest
        if pair is not None:
            key = pair.key.encode()
            try:
                now = await self._connection.call(Range(key), RangeAnswer)
                if _shows(now, pair):
                    return now.header.revision
                if _shows(await self._connection.call(Range(key, revision=pair.last_index), RangeAnswer), pair):
                    return now.header.revision
            except (RefusedError, AccessDeniedError):
                pass  # compacted or not reached yet, or not to be read any more: it cannot be told
        self._newest = None
        self._history += 1
        return 0


def _shows(answer: RangeAnswer, pair: KVPair) -> bool:
    return [(kv.mod_revision, kv.value) for kv in answer.kvs] == [(pair.last_index, pair.value)]


class _Watched:
    """A feed on a stream.

    Attributes:
        outcome: why it is over: an error, or None when the feed has to be read again.
    """

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.start = feed.index + 1
        self.id: int | None = None
        self.released = False
        self.partial: list[Event] = []
        self.outcome: asyncio.Future[StoreError | None] = asyncio.get_running_loop().create_future()

    def end(self, outcome: StoreError | None) -> None:
        if not self.outcome.done():
            self.outcome.set_result(outcome)


class _WatchStream:
    """A stream with watches. It ends when the last one is released.

    Attributes:
        usable: whether more watches can be added.
    """

    def __init__(
        self,
        connection: Connection,
        link: Link,
        stream: LinkStream,
        tasks: Tasks,
        saw: Callable[[list[KVPair]], None],
    ) -> None:
        self.usable = True
        self._ended = False
        self._connection = connection
        self._link = link
        self._stream = stream
        self._saw = saw
        self._live: set[_Watched] = set()
        self._creating: deque[tuple[_Watched, object]] = deque()
        self._created: dict[int, _Watched] = {}
        self._outgoing: deque[WatchRequest] = deque()
        self._to_send = asyncio.Event()
        tasks.start(self._receive())
        self._writer: asyncio.Task[None] | None = tasks.start(self._transmit())

    def add(self, feed: Feed) -> _Watched:
        """Watch from the feed's index on."""
        watched = _Watched(feed)
        self._live.add(watched)
        # The server answers creations in their order. One that is lost on its way to the server would not be noticed by
        # the stream's silence, because the other watches' changes may still arrive.
        self._creating.append((watched, self._link.expect()))
        key, end = bounds(feed.path) if feed.tree else (feed.path.encode(), b"")
        self._send(WatchRequest(create=WatchCreate(key, end, watched.start, fragment=True)))
        return watched

    def release(self, watched: _Watched) -> None:
        """Stop watching for a feed; the server is told as soon as it has said under which number it watches."""
        watched.released = True
        self._live.discard(watched)
        if watched.id is not None and self._created.pop(watched.id, None) is not None:
            self._send(WatchRequest(cancel=WatchCancel(watched.id)))
        if not self._live:
            self._end()

    def _send(self, request: WatchRequest) -> None:
        self._outgoing.append(request)
        self._to_send.set()

    async def _transmit(self) -> None:
        while True:
            await self._to_send.wait()
            self._to_send.clear()
            while self._outgoing:
                try:
                    await self._stream.write(encode(self._outgoing.popleft()))
                except RpcFailedError:
                    return  # the reader learns why

    async def _receive(self) -> None:
        try:
            while True:
                self._take(decode(WatchAnswer, await self._stream.read()))
        except RpcFailedError as failure:
            if self._ended:
                return
            reason = self._connection.broken(self._link, failure).message
        except MalformedError as error:
            reason = f"the answer is not etcd's: {error}"
            self._connection.lost(self._link, reason)
        self._end()
        for watched in self._live:
            watched.end(NotReachableError(reason, endpoint=str(self._link.endpoint)))

    def _end(self) -> None:
        self.usable = False
        self._ended = True
        self._stream.cancel()
        for _, waiting in self._creating:
            self._link.expect_no_more(waiting)
        # The reader ends with the stream. The writer might wait for ever, and is not kept, because the traceback of a
        # cancelled task would keep the stream, and with it the connection.
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.cancel()

    def _take(self, answer: WatchAnswer) -> None:
        if answer.created:
            if not self._creating:
                raise MalformedError("a watch was created that nobody asked for")
            watched, waiting = self._creating.popleft()
            self._link.expect_no_more(waiting)
            self._take_created(watched, answer)
        elif answer.canceled:
            ended = self._created.pop(answer.watch_id, None)
            if ended is not None:
                # Compacted: what the watch had to begin with is not there any more.
                ended.end(None if answer.compact_revision else StoreError(f"a watch ended: {answer.cancel_reason}"))
        elif answer.watch_id in self._created:
            self._take_events(self._created[answer.watch_id], answer)

    def _take_created(self, watched: _Watched, answer: WatchAnswer) -> None:
        if answer.canceled:
            watched.end(_refusal(answer))
        elif watched.released:
            self._send(WatchRequest(cancel=WatchCancel(answer.watch_id)))
        else:
            watched.id = answer.watch_id
            self._created[answer.watch_id] = watched
            if answer.header.revision < watched.start - 1:
                watched.end(None)
            else:
                watched.feed.resumed()

    def _take_events(self, watched: _Watched, answer: WatchAnswer) -> None:
        events = watched.partial + answer.events
        whole = len(events)
        if answer.fragment and events:
            # More of the last revision may follow, and one revision is one change.
            last = _revision(events[-1])
            while whole and _revision(events[whole - 1]) == last:
                whole -= 1
        watched.partial = events[whole:]
        for revision, changes in groupby(events[:whole], key=_revision):
            applied = [(path, pair) for event in changes for path, pair in _change(event)]
            self._saw([pair for _, pair in applied if pair is not None])
            watched.feed.apply(applied, revision)


def _revision(event: Event) -> int:
    if event.kv is None:
        raise MalformedError("an event is of no key")
    return event.kv.mod_revision


def _change(event: Event) -> Iterator[tuple[str, KVPair | None]]:
    kv = event.kv
    if kv is not None and (path := to_path(kv.key)) is not None:
        yield path, None if event.type == Event.DELETE else KVPair(path, kv.value, kv.mod_revision)


def _refusal(answer: WatchAnswer) -> StoreError | None:
    if answer.compact_revision:
        return None
    if "permission denied" in answer.cancel_reason or "auth" in answer.cancel_reason:
        return AccessDeniedError(answer.cancel_reason)
    return StoreError(f"the server does not watch: {answer.cancel_reason}")
