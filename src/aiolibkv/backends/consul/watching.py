"""Watching by blocking queries, which the watches of a store share.

A blocking query is a read that the server answers when the state is past an index, or after a while. It
occupies a connection, and Consul (1.8.7) allows 200 to a client. It cannot be taken back: when the client
hangs up, the server keeps both the query and its place among the 200 until the query would have ended.
Therefore

- all watches of one key or tree share one query after the other: a poll;
- there are at most 100 polls; beyond that, watches share the poll of a common directory;
- a poll that nobody follows any more is not cut short: it ends with its query, or serves whoever comes back;
- queries are no longer than the poll has lived, so that short-lived watches leave little;
- those given up because the server is mute are counted for as long as the server may keep them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass

from aiolibkv.backends.consul.connection import Connection, MuteError
from aiolibkv.backends.consul.encoding import duration, kv_target, start_of
from aiolibkv.backends.consul.trees import parse_tree
from aiolibkv.config import Config
from aiolibkv.errors import AccessDeniedError, NotReachableError, RequestTimeoutError, StoreError
from aiolibkv.store import Endpoint, Feed
from aiolibkv.store.tasks import Tasks
from aiolibkv.types import KVPair

MOST_POLLS = 100
_FOR_DIRECTORIES = 16
"""Of those, the ones kept back for common directories; the last one is the root's."""
_MOST_OCCUPIED = 150
"""Queries that a server may have of one store, those given up included; the rest of the 200 is for calls."""
_ABANDONED_TIME = 35.0
"""Seconds for which a server may keep a query that was given up (20 to 35 were seen, with a mute leader)."""

_LISTENING_INTERVAL = 1.0
_SHARE_FOR_LISTENING = 0.3
"""Of request_timeout, after which a server that was asked who leads counts as mute, at first."""
_NO_LEADER = '""'

_SHORTEST_WAIT = 1.0
_LONGEST_WAIT = 9.0
"""Seconds; with what the server adds less than ten, after which some proxies close a connection that is silent."""
_LONGER = 17 / 16
"""The server adds up to a sixteenth of the wait at random; and then the answer has request_timeout to arrive."""

_READING_TIME = 30.0
"""Seconds for a read to begin; a mute server is noticed earlier, by whoever listens to it."""

_CHECKING_INTERVAL = 5.0
"""Seconds after which it is asked whether what was missing all the time may still be read."""

_FIRST_PAUSE = 0.005
_LONGEST_PAUSE = 0.1
"""Seconds before a query is repeated that brought nothing new: neighbours of a missing key wake its query."""


@dataclass(eq=False, slots=True)
class _Read:
    """A read under way.

    Attributes:
        endpoint: the server that it was sent to.
        leader: who led then, as far as was heard; None as long as nothing was.
    """

    endpoint: Endpoint
    leader: str | None


class Poll:
    """Blocking queries for one key or tree, and the feeds that are filled by them.

    Every state that is handed on is that of a consistent read. A feed that joins gets one that began after it
    came, since its user may have seen a newer state elsewhere than the poll has so far. Of two reads that
    overlap, the one with the higher index is newer, unless the server went back (it was restored): that is so
    when the index is lower than one known before the read began, and then reads begun earlier do not count
    any more.

    Attributes:
        path: the key or directory.
        tree: whether it is everything below a directory.
        own: whether it is there for watches of just this, and not only for sharing.
        is_over: whether it is, and its watches are to find another.
        failure: why it is over; None when it just is.
        reads: what was sent and not answered yet.
    """

    def __init__(
        self,
        connection: Connection,
        tasks: Tasks,
        path: str,
        *,
        tree: bool,
        own: bool,
        on_end: Callable[[Poll], None],
    ) -> None:
        """Prepare a poll; it begins with the first feed that joins.

        Args:
            connection: to the servers.
            tasks: owner of what runs in the background.
            path: see above.
            tree: see above.
            own: see above.
            on_end: called when the poll is over.
        """
        self.path = path
        self.tree = tree
        self.own = own
        self.is_over: bool = False
        self.failure: StoreError | None = None
        self.reads: set[_Read] = set()
        self._connection = connection
        self._tasks = tasks
        self._on_end = on_end
        self._running: set[asyncio.Task[None]] = set()
        self._followers: dict[Feed, asyncio.Future[None]] = {}
        self._waiting: set[Feed] = set()
        self._filled: set[Feed] = set()
        self._refreshing = False
        self._repeating = False
        self._state: dict[str, KVPair] = {}
        self._body = b""
        self._index = 0
        self._setbacks = 0
        self._checked = asyncio.get_running_loop().time()

    def join(self, feed: Feed) -> asyncio.Future[None]:
        """Fill a feed, beginning with a read from now; what is returned is done when the poll is over.

        Each follower has a future of its own, since one of many is left only after a look at all who wait for it.
        """
        self._waiting.add(feed)
        if not self._refreshing:
            self._refreshing = True
            self._start(self._refresh())
        over = self._followers[feed] = asyncio.get_running_loop().create_future()
        return over

    def leave(self, feed: Feed) -> None:
        """Fill a feed no more."""
        del self._followers[feed]
        self._waiting.discard(feed)
        self._filled.discard(feed)

    def end(self, failure: StoreError | None) -> None:
        """Be over, at once."""
        if not self.is_over:
            self.is_over = True
            self.failure = failure
            self._on_end(self)
            for over in self._followers.values():
                if not over.done():
                    over.set_result(None)
            for task in self._running:
                task.cancel()

    def _start(self, work: Coroutine[object, object, None]) -> None:
        task = self._tasks.start(work)
        self._running.add(task)
        task.add_done_callback(self._stopped)

    def _stopped(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.end(error if isinstance(error, StoreError) else StoreError("a poll failed"))

    async def _refresh(self) -> None:
        while self._waiting:
            coming = list(self._waiting)
            while await self._read("", _READING_TIME) is None:
                pass
            for feed in coming:
                if feed in self._waiting:
                    self._waiting.discard(feed)
                    self._filled.add(feed)
                    feed.reset(self._part(feed), self._index)
        self._refreshing = False
        if not self._repeating:
            self._repeating = True
            self._start(self._repeat())

    async def _repeat(self) -> None:
        clock = asyncio.get_running_loop().time
        began, pause = clock(), _FIRST_PAUSE
        while self._filled or self._waiting:
            asked = clock()
            wait = min(max(asked - began, _SHORTEST_WAIT), _LONGEST_WAIT)
            query = f"&index={max(1, self._index)}&wait={duration(wait)}"
            try:
                is_new = await self._read(query, wait * _LONGER + self._connection.timeout)
            except MuteError:
                raise
            except NotReachableError:
                if clock() - asked < _SHORTEST_WAIT:
                    raise
                # A proxy may have less patience than a query: only what does not answer at once is an outage.
                began = clock()
                is_new = await self._read("", _READING_TIME)
            if is_new:
                pause = _FIRST_PAUSE
                if not self._state:
                    # Whoever has waited for a key to go leaves now: the next query would be for nobody.
                    await asyncio.sleep(pause)
            else:
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
        self.end(None)

    async def _read(self, query: str, patience: float) -> bool | None:
        """Read the state and hand it on; tell whether it is a new one, None when the read does not count."""
        index, setbacks, replaced = self._index, self._setbacks, self._connection.tokens_replaced
        form = "recurse" if self.tree else "raw"
        target = kv_target(start_of(self.path) if self.tree else self.path, f"{form}&consistent{query}")
        read = _Read(self._connection.endpoint, self._connection.leader)
        self.reads.add(read)
        try:
            answer = await self._connection.request("GET", target, patience=patience, is_call=not query)
        except MuteError:
            raise
        except StoreError:
            self.reads.discard(read)
            raise
        self.reads.discard(read)
        if self.tree:
            if answer.found and answer.body == self._body:
                # As after each query that ended without a change.
                state = self._state
            else:
                with self._connection.understanding(answer):
                    state = {pair.key: pair for pair in await parse_tree(answer)}
            if not await self._is_readable(state, replaced):
                return None
        elif not answer.found:
            state = {}
        else:
            state = {self.path: KVPair(self.path, answer.body, answer.index)}
        if setbacks != self._setbacks:
            return None
        if answer.index < index:
            self._setbacks += 1
        elif answer.index < self._index:
            return False
        self._body = answer.body
        return self._take(state, answer.index)

    async def _is_readable(self, state: dict[str, KVPair], replaced: int) -> bool:
        """Tell whether what is missing may be read: the server leaves out what may not, as if it were not there.

        Args:
            state: what was read.
            replaced: how often the token had been replaced before. What another one may read shows nothing.

        Raises:
            AccessDeniedError: it is not so for the directory of the poll itself.
        """
        own = [start_of(self.path)] if self.own and not state else []
        await self._connection.check_access(*own)
        now = asyncio.get_running_loop().time()
        is_due = now >= self._checked + _CHECKING_INTERVAL
        if is_due:
            self._checked = now
        gone = set() if state is self._state else self._state.keys() - state.keys()
        sharing = [feed for feed in self._filled if not self.own or feed.path != self.path]
        shared = [_resource_of(feed) for feed in sharing if is_due or _concerns(feed, gone)]
        try:
            await self._connection.check_access(*shared)
        except AccessDeniedError:
            # Who may not go on comes out when all of them begin anew.
            self.end(None)
            return False
        return not (own or shared) or replaced == self._connection.tokens_replaced

    def _take(self, state: dict[str, KVPair], index: int) -> bool:
        before, self._state, self._index = self._state, state, index
        if state is before:
            return False
        changed: dict[str, KVPair | None] = dict.fromkeys(before.keys() - state.keys())
        changed |= {path: pair for path, pair in state.items() if _differs(pair, before.get(path))}
        if not changed:
            return False
        for feed in self._filled:
            if feed.tree:
                start = start_of(feed.path)
                seen = [(path, pair) for path, pair in changed.items() if path.startswith(start)]
            else:
                seen = [(feed.path, changed[feed.path])] if feed.path in changed else []
            if seen:
                feed.apply(seen, index)
        return True

    def _part(self, feed: Feed) -> list[KVPair]:
        if feed.tree:
            start = start_of(feed.path)
            return [pair for path, pair in self._state.items() if path.startswith(start)]
        return [self._state[feed.path]] if feed.path in self._state else []


def _differs(pair: KVPair, before: KVPair | None) -> bool:
    return before is None or pair.last_index != before.last_index or pair.value != before.value


def _resource_of(feed: Feed) -> str:
    """Return what the right to read is asked for."""
    return start_of(feed.path) if feed.tree else feed.path


def _concerns(feed: Feed, paths: set[str]) -> bool:
    """Tell whether a feed is about one of some keys."""
    start = start_of(feed.path)
    return any(path.startswith(start) for path in paths) if feed.tree else feed.path in paths


class Polls:
    """All polls of a store."""

    def __init__(self, connection: Connection, tasks: Tasks, config: Config) -> None:
        """Make the empty collection.

        Args:
            connection: to the servers.
            tasks: owner of what runs in the background.
            config: the store's.
        """
        self._connection = connection
        self._tasks = tasks
        self._root = config.prefix
        self._timeout = config.request_timeout
        self._polls: dict[tuple[str, bool], Poll] = {}
        self._abandoned: list[tuple[float, Endpoint]] = []
        self._listening = False

    async def follow(self, feed: Feed) -> None:
        """Keep a feed equal to the server's state.

        Raises:
            StoreError: the poll failed.
        """
        while True:
            if not self._has_own(feed):
                # The server leaves out of a directory what the token may not read, as if it were not there.
                await self._check_access(feed)
            poll = self._place(feed)
            over = poll.join(feed)
            try:
                await over
            finally:
                poll.leave(feed)
            if (failure := poll.failure) is not None:
                raise type(failure)(failure.message, endpoint=failure.endpoint) from failure

    async def _check_access(self, feed: Feed) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                await self._connection.check_access(_resource_of(feed))
        except TimeoutError as error:
            raise RequestTimeoutError(f"no answer within {self._timeout:g} s") from error

    async def _listen(self) -> None:
        """Ask the server who leads, every second while there are polls.

        A read that waits says nothing, whatever becomes of its server. When that does not answer, or knows no
        leader, the polls end with an error; when the leader is another one, or the store has moved on to
        another server, the polls begin anew, because a query that waits for a deposed leader's answer waits
        for long.
        """
        clock = asyncio.get_running_loop().time
        patience = first = self._timeout * _SHARE_FOR_LISTENING
        while self._polls:
            endpoint, began = self._connection.endpoint, clock()
            try:
                answer = await self._connection.request("GET", "status/leader", patience=patience, is_call=False)
                if answer.text == _NO_LEADER:
                    raise NotReachableError("no leader is known", endpoint=str(endpoint))
            except StoreError as error:
                if isinstance(error, MuteError):
                    # It may be slow at everything, and then its polls need as much time.
                    patience = min(patience * 2, self._timeout)
                self._connection.failed(endpoint, error.message)
                self._lost(endpoint, error)
            else:
                if clock() < began + first / 2:
                    patience = first
                self._found(answer.text)
            await asyncio.sleep(_LISTENING_INTERVAL)
        self._listening = False

    def _lost(self, endpoint: Endpoint, failure: StoreError) -> None:
        for poll in list(self._polls.values()):
            if not poll.reads or any(read.endpoint == endpoint for read in poll.reads):
                poll.end(failure)

    def _found(self, leader: str) -> None:
        self._connection.leader = leader
        for poll in list(self._polls.values()):
            for read in poll.reads:
                read.leader = read.leader or leader
            if any(read.endpoint != self._connection.endpoint or read.leader != leader for read in poll.reads):
                poll.end(None)

    def _has_own(self, feed: Feed) -> bool:
        poll = self._polls.get((feed.path, feed.tree))
        return poll.own if poll is not None else self._has_room(_FOR_DIRECTORIES)

    def _place(self, feed: Feed) -> Poll:
        """Return the poll for a feed: its own, or that of a directory above it, the nearest there is."""
        poll = self._polls.get((feed.path, feed.tree))
        if poll is None and self._has_room(_FOR_DIRECTORIES):
            return self._new(feed.path, tree=feed.tree, own=True)
        above = list(self._above(feed.path))
        polls = (self._polls.get((directory, True)) for directory in above)
        poll = poll or next((found for found in polls if found is not None), None)
        if poll is not None:
            return poll
        directory = above[0] if above and self._has_room(1) else self._root
        return self._new(directory, tree=True, own=False)

    def _above(self, path: str) -> Iterator[str]:
        while path != self._root:
            path = path.rpartition("/")[0]
            yield path

    def _has_room(self, kept_back: int) -> bool:
        now = asyncio.get_running_loop().time()
        self._abandoned = [(until, endpoint) for until, endpoint in self._abandoned if until > now]
        occupied = sum(endpoint == self._connection.endpoint for _, endpoint in self._abandoned) + len(self._polls)
        return len(self._polls) < MOST_POLLS - kept_back and occupied < _MOST_OCCUPIED - kept_back

    def _new(self, path: str, *, tree: bool, own: bool) -> Poll:
        poll = Poll(self._connection, self._tasks, path, tree=tree, own=own, on_end=self._ended)
        self._polls[path, tree] = poll
        if not self._listening:
            self._listening = True
            self._tasks.start(self._listen())
        return poll

    def _ended(self, poll: Poll) -> None:
        del self._polls[poll.path, poll.tree]
        until = asyncio.get_running_loop().time() + _ABANDONED_TIME
        self._abandoned += [(until, read.endpoint) for read in poll.reads]
