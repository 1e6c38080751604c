"""All watches of a store on its one connection, and those of locks on their own.

A watch is armed first and reads then, so nothing is missed in between; what an event says is only which node to read
again. Since 3.6 a server keeps one watch for a key or tree. Before, each node that was read has one that ends with its
event, and reading it again is what renews it. No watch outlives its connection here: after each a watch begins anew.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from functools import partial

from aiolibkv.backends.zookeeper.connection import Answer, Connection
from aiolibkv.backends.zookeeper.failures import NoNodeError, UnknownOperationError
from aiolibkv.backends.zookeeper.operations import Event, Node, add_watch, exists, get, remove_watches, sync
from aiolibkv.backends.zookeeper.tree import Reader, ancestors, pair, path_of, znode
from aiolibkv.errors import NotReachableError, StoreError
from aiolibkv.store import Feed
from aiolibkv.types import KVPair

_CATCHING_UP = 0.1
"""Seconds for which what was told meanwhile is read as well, before what has been read by then is handed on."""


class _Interest:
    """What one watch has been told and has not read yet."""

    def __init__(self, feed: Feed, connection: Connection) -> None:
        self.feed = feed
        self.connection = connection
        self.watched: set[str] = set()
        self.concerns: Callable[[str], bool] = lambda _: True
        self.is_gone = False
        self._changed: set[str] = set()
        self._wakeup: asyncio.Future[None] | None = None
        connection.when_closed.add(self._wake)

    def close(self) -> None:
        self.connection.when_closed.discard(self._wake)

    def tell(self, path: str) -> None:
        if self.concerns(path):
            self._changed.add(path)
            self._wake()

    async def wait(self) -> None:
        """Wait until a change has been told."""
        while not self._changed:
            self.connection.check_open()
            self._wakeup = asyncio.get_running_loop().create_future()
            try:
                await self._wakeup
            finally:
                self._wakeup = None

    @property
    def is_told(self) -> bool:
        """Whether a change has been told that was not taken yet."""
        return bool(self._changed)

    def take(self) -> set[str]:
        """Return the paths of the changes that have been told."""
        changed, self._changed = self._changed, set()
        return changed

    def _wake(self) -> None:
        if self._wakeup is not None and not self._wakeup.done():
            self._wakeup.set_result(None)


class Watching:
    """The watches of one store."""

    def __init__(self, reader: Reader, *, are_persistent: bool) -> None:
        """Begin without any.

        Args:
            reader: of many nodes.
            are_persistent: whether the server keeps a watch until it is removed; given up when it cannot.
        """
        self._reader = reader
        self._are_persistent = are_persistent
        self._interests: defaultdict[str, set[_Interest]] = defaultdict(set)
        self._armed: Counter[tuple[Connection, str]] = Counter()
        self._reading: dict[str, tuple[Connection, asyncio.Future[Answer | None]]] = {}

    def dispatch(self, event: Event) -> None:
        """Tell those that an event concerns."""
        path = path_of(event.path)
        self._reading.pop(path, None)  # it may have been sent before
        for above in (path, *ancestors(path), ""):
            for interest in self._interests.get(above, ()):
                if above == path or interest.feed.tree:
                    interest.tell(path)

    async def follow(self, connection: Connection, feed: Feed) -> None:
        """Keep a feed equal to the server's state until cancelled.

        Raises:
            NotReachableError: the connection ended.
            AccessDeniedError: the user may not read this.
        """
        interest = _Interest(feed, connection)
        try:
            if self._are_persistent:
                try:
                    await self._follow_persistently(interest)
                except UnknownOperationError:
                    self._are_persistent = False
                    self._release(interest)
            await self._follow_renewing(interest)
        finally:
            interest.close()
            self._release(interest)

    # -- watches that stay -------------------------------------------------------------------------------------------

    async def _follow_persistently(self, interest: _Interest) -> None:
        feed, connection = interest.feed, interest.connection
        if feed.tree:
            interest.concerns = lambda path: path != feed.path and not self._reader.is_hidden(feed.path, path)
        self._hold(interest, feed.path)
        # Each watch asks, though one is enough for all of a path, to be told itself when the server does not know how.
        await connection.ask(add_watch(znode(feed.path)))
        state: dict[str, KVPair | None]
        if feed.tree:
            tree = await self._reader.read_tree(connection, feed.path, consistent=True)
            state, index = {found.key: found for found in tree.pairs()}, tree.zxid
        else:
            found, index = await self._read_key(connection, feed.path)
            state = {feed.path: found}
        index = await _catch_up(interest, index, partial(self._read_told, interest, state))
        feed.reset([found for found in state.values() if found is not None], index)
        while True:
            await interest.wait()
            changes: dict[str, KVPair | None] = {}
            index = await _catch_up(interest, index, partial(self._read_told, interest, changes))
            feed.apply(changes.items(), index)

    async def _read_key(self, connection: Connection, path: str) -> tuple[KVPair | None, int]:
        results = await connection.ask_all([get(znode(path))], consistent=True)
        return _pair_of(path, results.values[0]), results.zxid

    async def _read_told(self, interest: _Interest, changes: dict[str, KVPair | None], told: set[str]) -> int:
        """Read what has changed; returns the last transaction that the server knew."""
        index = 0
        if len(told) == 1:
            (path,) = told
            changes[path], index = await self._read_changed(interest.connection, path)
            return index
        reads = self._reader.read_nodes(interest.connection, sorted(told), with_children=False)
        async for path, node, _, zxid in reads:
            changes[path] = _pair_of(path, node)
            index = zxid
        return index

    async def _read_changed(self, connection: Connection, path: str) -> tuple[KVPair | None, int]:
        """Read a key that has changed, once for all that watch it."""
        operation = get(znode(path))
        reading = self._reading.get(path)
        if reading is None or reading[0] is not connection or reading[1].done():
            (answering,) = connection.send([operation])
            reading = self._reading[path] = connection, answering
            answering.add_done_callback(lambda _: self._read(path, answering))
        answer = await asyncio.shield(reading[1])
        try:
            node: Node | StoreError = connection.read(operation, answer)
        except NoNodeError as error:
            node = error
        return _pair_of(path, node), 0 if answer is None else answer.zxid

    def _read(self, path: str, answering: asyncio.Future[Answer | None]) -> None:
        if path in self._reading and self._reading[path][1] is answering:
            del self._reading[path]

    # -- watches that end with their event ---------------------------------------------------------------------------

    async def _follow_renewing(self, interest: _Interest) -> None:
        feed, connection = interest.feed, interest.connection
        interest.concerns = lambda path: feed.tree or path == feed.path
        await connection.ask(sync())
        children: dict[str, set[str]] = {}
        index = 0
        is_first = True
        interest.tell(feed.path)
        while True:
            await interest.wait()
            changes: dict[str, KVPair | None] = {}
            index = await _catch_up(interest, index, partial(self._renew_told, interest, children, changes))
            if is_first:
                feed.reset([found for found in changes.values() if found is not None], index)
            else:
                feed.apply(changes.items(), index)
            is_first = False

    async def _renew_told(
        self,
        interest: _Interest,
        children: dict[str, set[str]],
        changes: dict[str, KVPair | None],
        told: set[str],
    ) -> int:
        """Read what has changed, and what is new below; returns the last transaction that the server knew."""
        index = 0
        while told:
            told, index = await self._renew(interest, told, children, changes)
        return index

    async def _renew(
        self,
        interest: _Interest,
        paths: set[str],
        children: dict[str, set[str]],
        changes: dict[str, KVPair | None],
    ) -> tuple[set[str], int]:
        """Read nodes and renew their watches; returns those that have to be read next, and the server's index."""
        feed, connection = interest.feed, interest.connection
        following: set[str] = set()
        index = 0
        for path in paths:
            self._hold(interest, path)
        reads = self._reader.read_nodes(connection, sorted(paths), with_children=feed.tree, watch=True)
        async for path, node, names, zxid in reads:
            index = zxid
            if not feed.tree or path != feed.path:
                changes[path] = _pair_of(path, node)
            if node is None:
                self._forget(interest, path, children, changes)
                if path == feed.path and await self._await_creation(interest):
                    following.add(path)
            elif feed.tree:
                start = f"{path}/" if path else ""
                found = {start + name for name in names if not self._reader.is_hidden(feed.path, start + name)}
                known = children.get(path, set())
                children[path] = found
                following |= found - known
                for gone in known - found:
                    changes[gone] = None
                    self._forget(interest, gone, children, changes)
        return following, index

    async def _await_creation(self, interest: _Interest) -> bool:
        """Be told when a missing node is created; tell whether it has been already."""
        self._hold(interest, interest.feed.path)
        try:
            await interest.connection.ask(exists(znode(interest.feed.path), watch=True))
        except NoNodeError:
            return False
        return True

    def _forget(
        self, interest: _Interest, path: str, children: dict[str, set[str]], changes: dict[str, KVPair | None]
    ) -> None:
        for child in children.pop(path, ()):
            changes[child] = None
            self._forget(interest, child, children, changes)
        if path != interest.feed.path:
            self._drop(interest, path, is_over=True)

    # -- who watches what --------------------------------------------------------------------------------------------

    def _hold(self, interest: _Interest, path: str) -> None:
        """Have an interest told of a path."""
        if path not in interest.watched:
            interest.watched.add(path)
            self._interests[path].add(interest)
            self._armed[interest.connection, path] += 1

    def _drop(self, interest: _Interest, path: str, *, is_over: bool = False) -> None:
        """Have an interest not told of a path any more, and with the last one the server, unless its watch is over."""
        if path not in interest.watched:
            return
        interest.watched.discard(path)
        self._interests[path].discard(interest)
        if not self._interests[path]:
            del self._interests[path]
        self._armed[interest.connection, path] -= 1
        if not self._armed[interest.connection, path]:
            del self._armed[interest.connection, path]
            if is_over:
                return
            _forget_watch(interest.connection, path)

    def _release(self, interest: _Interest) -> None:
        for path in tuple(interest.watched):
            self._drop(interest, path)


class LeaseWatching:
    """The watches of single keys on a session of leases.

    The server keeps each until its event, which says that the key is gone or is to be read again. There is no need to
    sync: the session has seen what it wrote and was answered, and what it waits for was there before.
    """

    def __init__(self) -> None:
        """Begin without any."""
        self._interests: defaultdict[str, set[_Interest]] = defaultdict(set)

    def dispatch(self, event: Event) -> None:
        """Take what the session's watches say."""
        path = path_of(event.path)
        for interest in self._interests.get(path, ()):
            interest.is_gone = event.is_deletion
            interest.tell(path)

    async def follow(self, connection: Connection, feed: Feed) -> None:
        """Give a feed the state of its key, and return when that has changed, to be called again.

        Raises:
            NotReachableError: the connection ended.
            AccessDeniedError: the user may not read this.
        """
        interest, path = _Interest(feed, connection), feed.path
        self._interests[path].add(interest)
        is_left = True
        try:
            results = await connection.ask_all([get(znode(path), watch=True)])
            node = results.values[0]
            found = _pair_of(path, node)
            # What is this session's own goes before it does not matter any more.
            is_left = found is not None and node.stat.owner != connection.welcome.session
            feed.reset([] if found is None else [found], results.zxid)
            if found is not None:
                await interest.wait()
            is_left = False
            if interest.is_gone:
                feed.reset([], connection.zxid)
        finally:
            interest.close()
            self._interests[path].discard(interest)
            if not self._interests[path]:
                del self._interests[path]
                if is_left:
                    _forget_watch(connection, path)


async def _catch_up(interest: _Interest, index: int, read: Callable[[set[str]], Awaitable[int]]) -> int:
    """Read what an interest has been told, until nothing more was told meanwhile.

    A server tells of a change before it answers that it knows it. So all that it knows when it answers has been read as
    soon as nothing else has been told; until then, only what it knew when it was asked. When the changes come faster
    than they can be read, that is what is returned, as soon as it is more than before.

    Args:
        interest: whose changes.
        index: the last transaction that the server knew, if nothing has been told.
        read: reads changes, and returns the last transaction that the server knew then.

    Returns:
        The transaction up to which everything has been read; a pair may be newer.
    """
    began = index
    clock = asyncio.get_running_loop().time
    deadline = clock() + _CATCHING_UP
    while True:
        known = interest.connection.zxid
        told = interest.take()
        if not told:
            return index
        index = await read(told)
        if known > began and clock() >= deadline and interest.is_told:
            return known


def _forget_watch(connection: Connection, path: str) -> None:
    try:
        connection.send([remove_watches(znode(path))])
    except NotReachableError:
        return  # the watch has ended with the connection


def _pair_of(path: str, node: Node | StoreError | None) -> KVPair | None:
    if node is None or isinstance(node, NoNodeError):
        return None
    if isinstance(node, StoreError):
        raise node
    return None if node.data is None else pair(path, node)
