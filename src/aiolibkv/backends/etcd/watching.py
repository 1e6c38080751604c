"""All watches of a store on one stream.

A watch begins with a read at revision R and goes on with the changes from R + 1. When its stream broke it reads the
state at the revision that it has arrived at, and goes on from there. That state is known already, unless the server was
restored from a backup, or replaced, and counts the same revisions again for other changes: then the feed works out the
difference, as it does when that revision was compacted or is not reached yet, and the present state is read.

Each watch is created under a number of ours. ``etcd grpc-proxy`` gives numbers of its own, and answers in another order
than it was asked: on a stream where another number comes back, watches are created one at a time. When the server
behind it restarts and forgets the tokens, it drops the watches of users without a word: there a watch that is silent
for a while reads the present state and begins again. So does a watch that is not created though reads are answered, as
by that proxy for keys whose watches it has dropped.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from itertools import count, groupby
from typing import NamedTuple

from aiolibkv.backends.etcd.channel import RpcFailedError
from aiolibkv.backends.etcd.codec import (
    Event,
    WatchAnswer,
    WatchCancel,
    WatchCreate,
    WatchRequest,
    decode,
    encode,
)
from aiolibkv.backends.etcd.connection import Connection
from aiolibkv.backends.etcd.failures import explain_cancellation
from aiolibkv.backends.etcd.keyspace import Keyspace
from aiolibkv.backends.etcd.link import Link, LinkStream
from aiolibkv.backends.etcd.reading import Reader, RevisionGoneError
from aiolibkv.backends.etcd.table import MalformedError
from aiolibkv.errors import AccessDeniedError, NotReachableError, StoreError
from aiolibkv.store import Feed
from aiolibkv.store.tasks import Tasks
from aiolibkv.types import KVPair

_READS_AT_ONCE = 50
_ENDING_TIME = 0.3
"""Seconds for the streams to end by themselves."""
_FIRST_ID = 1 << 32
"""Numbers of watches begin here, where none of a server's own choice is."""
_PROXYS_SILENCE = 5.0
"""Seconds without a change, after which a watch of a user through a proxy may have been dropped."""
_REFUSALS = 3
"""How often in a row a watch is refused, though its keys may be read, until that is no matter of an old token."""


class _NotCreatedError(NotReachableError):
    """The server does not say that it watches, though it may answer everything else."""


class Watching:
    """The watches of one store."""

    def __init__(self, connection: Connection, keyspace: Keyspace, creating_time: float) -> None:
        """Make an empty set of watches; nothing is sent.

        Args:
            connection: to the servers.
            keyspace: what paths are called there.
            creating_time: seconds within which a server that is alive creates a watch.
        """
        self._connection = connection
        self._keyspace = keyspace
        self._reader = Reader(connection, keyspace)
        self._creating_time = creating_time
        self._tasks = Tasks()
        self._stream: _WatchStream | None = None
        self._opening = asyncio.Lock()
        self._reading = asyncio.Semaphore(_READS_AT_ONCE)

    async def follow(self, feed: Feed) -> None:
        """Keep a feed equal to the server's state until cancelled.

        Raises:
            NotReachableError: the connection broke.
            AccessDeniedError: the user may not read this.
            StoreError: the server refuses the watch.
        """
        refusals = 0
        await self._read(feed)
        while True:
            stream = await self._usable_stream()
            watched = stream.add(feed)
            try:
                is_over = await self._is_over(stream, watched)
            finally:
                stream.release(watched)
            if not is_over:
                refusals = 0
                if await self._has_missed(feed):
                    stream.retire()
                continue
            outcome = watched.outcome.result()
            if isinstance(outcome, AccessDeniedError):
                # The read above was allowed: the token with which the stream was opened is too old.
                stream.retire()
                refusals += 1
                if refusals == _REFUSALS:
                    raise outcome
            elif outcome is not None:
                if isinstance(outcome, _NotCreatedError) and watched.id is None:
                    # Else it would see no change for as long as that goes on.
                    await self._has_missed(feed)
                raise outcome
            else:
                refusals = 0
            await self._read(feed)

    async def close(self) -> None:
        """End the streams; whoever follows was cancelled before."""
        await self._tasks.settle(_ENDING_TIME)
        await self._tasks.close()
        self._stream = None

    async def _read(self, feed: Feed) -> None:
        read = self._reader.tree if feed.tree else self._reader.key
        async with self._reading:
            try:
                found = await read(feed.path, revision=feed.index)
            except RevisionGoneError:
                found = await read(feed.path)
        feed.reset(found.pairs, found.revision)

    async def _is_over(self, stream: _WatchStream, watched: _Watched) -> bool:
        """Wait for the end of a watch; False when it is silent and a proxy may have dropped it without a word."""
        while not watched.outcome.done():
            may_be_dropped = self._connection.has_user and not stream.keeps_numbers
            known = watched.feed.index
            await asyncio.wait({watched.outcome}, timeout=_PROXYS_SILENCE if may_be_dropped else None)
            if not (watched.outcome.done() or stream.keeps_numbers) and watched.feed.index == known:
                return False
        return True

    async def _has_missed(self, feed: Feed) -> bool:
        """Read the present state; tell whether there are changes that nobody has told."""
        known = feed.index
        async with self._reading:
            found = await (self._reader.tree if feed.tree else self._reader.key)(feed.path)
        feed.reset(found.pairs, found.revision)
        return any(pair.last_index > known for pair in found.pairs)

    async def _usable_stream(self) -> _WatchStream:
        async with self._opening:
            if self._stream is None or not self._stream.usable:
                link, stream = await self._connection.watch_stream()
                self._stream = _WatchStream(
                    self._connection, self._keyspace, link, stream, self._tasks, self._creating_time
                )
            return self._stream


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


class _Creating(NamedTuple):
    """A watch that the server was asked for.

    Attributes:
        watched: for what.
        waiting: what the link gave for it.
        timer: ends the stream when it is not created in time.
    """

    watched: _Watched
    waiting: object
    timer: asyncio.TimerHandle


class _WatchStream:
    """A stream with watches. It ends when the last one is released.

    Attributes:
        usable: whether more watches can be added.
        keeps_numbers: whether the server has shown to keep the numbers that it is given, as a proxy does not.
    """

    def __init__(
        self,
        connection: Connection,
        keyspace: Keyspace,
        link: Link,
        stream: LinkStream,
        tasks: Tasks,
        creating_time: float,
    ) -> None:
        self.usable = True
        self._creating_time = creating_time
        self._ended = False
        self._connection = connection
        self._keyspace = keyspace
        self._link = link
        self._stream = stream
        self._live: set[_Watched] = set()
        self._numbers = count(_FIRST_ID)
        self.keeps_numbers = False
        self._to_create: deque[_Watched] = deque()
        self._creating: dict[int, _Creating] = {}
        self._created: dict[int, _Watched] = {}
        self._outgoing: deque[WatchRequest] = deque()
        self._to_send = asyncio.Event()
        tasks.start(self._receive())
        self._writer: asyncio.Task[None] | None = tasks.start(self._transmit())

    def add(self, feed: Feed) -> _Watched:
        """Watch from the feed's index on."""
        watched = _Watched(feed)
        self._live.add(watched)
        self._to_create.append(watched)
        self._create()
        return watched

    def release(self, watched: _Watched) -> None:
        """Stop watching for a feed; the server is told as soon as it has said under which number it watches."""
        watched.released = True
        self._live.discard(watched)
        if watched.id is not None and self._created.pop(watched.id, None) is not None:
            self._send(WatchRequest(cancel=WatchCancel(watched.id)))
        if not self._live:
            self._end()

    def retire(self) -> None:
        """Add no more watches, because the token is too old. A proxy would go on to use it for those that there are."""
        self.usable = False
        if not self.keeps_numbers:
            self.fail("the token of the watches has expired")

    def fail(self, reason: str, error: type[NotReachableError] = NotReachableError) -> None:
        """End the stream; what is watched has to be read again."""
        self._end()
        for watched in self._live:
            watched.end(error(reason, endpoint=str(self._link.endpoint)))

    def _settle(self, creating: _Creating) -> None:
        self._link.expect_no_more(creating.waiting)
        creating.timer.cancel()

    def _create(self) -> None:
        """Create what waits for it: one watch until the server has shown that it keeps our numbers, then all."""
        while self._to_create and (self.keeps_numbers or not self._creating):
            watched = self._to_create.popleft()
            if watched.released:
                continue
            number = next(self._numbers)
            # That a creation was lost on its way would not be noticed by the stream's silence, because the other
            # watches' changes may still arrive.
            timer = asyncio.get_running_loop().call_later(
                self._creating_time, self.fail, "a watch was not created", _NotCreatedError
            )
            self._creating[number] = _Creating(watched, self._link.expect(), timer)
            feed = watched.feed
            key, end = self._keyspace.below(feed.path) if feed.tree else (self._keyspace.key(feed.path), b"")
            self._send(WatchRequest(create=WatchCreate(key, end, watched.start, number, fragment=True)))

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
        self.fail(reason)

    def _end(self) -> None:
        self.usable = False
        self._ended = True
        self._stream.cancel()
        for creating in self._creating.values():
            self._settle(creating)
        # The reader ends with the stream. The writer might wait for ever, and is not kept, because the traceback of a
        # cancelled task would keep the stream, and with it the connection.
        writer, self._writer = self._writer, None
        if writer is not None:
            writer.cancel()

    def _take(self, answer: WatchAnswer) -> None:
        if answer.created:
            if not self._creating:
                raise MalformedError("a watch was created that nobody asked for")
            self.keeps_numbers = self.keeps_numbers or answer.watch_id in self._creating
            # A refusal has no number; they come in the order of what was asked.
            number = answer.watch_id if answer.watch_id in self._creating else next(iter(self._creating))
            created = self._creating.pop(number)
            self._settle(created)
            self._take_created(created.watched, answer)
            self._create()
        elif answer.canceled:
            ended = self._created.pop(answer.watch_id, None)
            if ended is not None:
                # A proxy goes on to count it.
                self._send(WatchRequest(cancel=WatchCancel(answer.watch_id)))
                ended.end(_reason(answer))
        elif answer.watch_id in self._created:
            self._take_events(self._created[answer.watch_id], answer)

    def _take_created(self, watched: _Watched, answer: WatchAnswer) -> None:
        if answer.canceled:
            watched.end(_reason(answer))
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
            applied = [(path, pair) for event in changes for path, pair in self._change(event)]
            watched.feed.apply(applied, revision)

    def _change(self, event: Event) -> Iterator[tuple[str, KVPair | None]]:
        kv = event.kv
        if kv is not None and (path := self._keyspace.path(kv.key)) is not None:
            yield path, None if event.type == Event.DELETE else KVPair(path, kv.value, kv.mod_revision)


def _revision(event: Event) -> int:
    if event.kv is None:
        raise MalformedError("an event is of no key")
    return event.kv.mod_revision


def _reason(answer: WatchAnswer) -> StoreError | None:
    """Return why the server ended a watch; None when it was compacted, and has to be read again."""
    return None if answer.compact_revision else explain_cancellation(answer.cancel_reason)
