"""All that the author of a backend has to read.

A backend is one class, a *driver*: it subclasses Driver, sets ``name`` and ``capabilities`` (each field is described in
``aiolibkv.Capabilities``; a commit takes at least 20 operations, a value and a commit at least 256 KiB) and implements
the abstract methods. The other methods have defaults, made of the abstract ones; override those that your server can do
better. The library makes a store of it: checks of keys and values, prefixes, deadlines, retries, watches, lifetimes,
locks and events are written once, above every driver.

What a driver is given:

- *Paths*: keys that were checked and rooted at the prefix, as the server is to keep them. A path never begins or ends
  with "/". A directory may be ``""``, which is everything on the server. What the library keeps for itself is below
  ``self.hidden``: for a driver these are keys like others, except that delete_tree spares them. Whether a directory is
  there is the library's to decide: a driver only says whether there is a key of that name.
- A *Config*: the driver connects as it says (``tls`` and the files, ``username``, ``password``, ``token``, and its own
  ``options``). The prefix, ``request_timeout`` and the listener are used by the library.
- A *Call*: the driver tells it when a write is sent, and when an answer says that it was not applied. The library
  cancels the method when its time is over (``config.request_timeout``) and when the store is closed.

What a driver must do:

- Raise the errors of ``aiolibkv.errors`` bare, as in ``KeyNotFoundError()``. Backend, endpoint and key are filled in by
  the library. In ``commit`` the error says of which path it is: ``KeyExistsError(key=path)``.
- Let no exception of a client library out. AccessDeniedError is for credentials and rights, StoreError with the
  server's words for any other refusal; ``raise ... from error`` keeps the cause. No message shows a password or token.
- Raise NotReachableError for "try again": the library repeats the call, after a pause, until its time is over; the
  driver moves on to its next endpoint. The call is not repeated after ``call.writing()`` without ``call.settled()``:
  then the write may have been applied, and the error tells the user so. The driver should first try to find out what
  happened, by something that it chose itself and wrote with the value (a nonce, a lease), as far as its server allows.
- Reconnect by itself: after ``connect`` returned, the library calls the other methods, and never ``connect`` again,
  whatever happens to the connection.
- Let the event loop run: what blocks (files, a client that is not for asyncio) runs in threads. A thread goes on when
  the method that waits for it is cancelled; that is a request whose answer nobody hears.
- Expect every method to run many times at once, in one event loop, and to be cancelled at any await. ``revoke`` may
  run beside a ``grant`` of the same lease whose caller was cancelled, and after the store began to close. A request
  that several callers share runs in a task of the driver's own (``aiolibkv.store.Tasks``), so that the cancellation of
  one caller does not end it.

What an index is: a number above 0 that the server gives to each modification of a key. A key that is written again,
deleted and created again, or restored never has an index that it had before. A reader who sees an index sees everything
with a smaller one (with a sequence of a database this is not so: its numbers become visible in another order). A key
that goes because its lifetime ended need not advance the index.

What a lease is: a lifetime that ends unless it is renewed; then the server deletes all keys under it. A key with a
plain ttl has a lease of its own, which is never renewed. Keys that a store keeps alive with the same ttl share one. So
do the key of a lock and its holder's place in the line of waiters.

Some servers have no leases and keep a lifetime with each key. There a driver chooses a random owner in ``new_lease``
and writes it, with the ttl, beside each value; it notes the paths in its Lease before it sends them. ``renew`` prolongs
those of them that still have the owner, and ``revoke`` deletes them. ``renew`` is False when the last renewal (or
grant) was sent longer than the ttl ago and no key with the owner is left. It is True while the ttl still runs, also
when others have deleted or overwritten all of the keys.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar, Final, Generic, NamedTuple, Protocol, TypeVar

from aiolibkv.config import Config, nearest_first
from aiolibkv.keys import RESERVED
from aiolibkv.store.watch import Feed
from aiolibkv.types import Capabilities, KVPair


class Call(Protocol):
    """The call that a driver carries out. Only writes, and reads of many pages, have something to tell it."""

    maybe_applied: bool
    """Whether the write may have been applied: set by ``writing``, unset by ``settled``."""

    def writing(self) -> None:
        """Say, before a write is sent, that from now on it may be applied. Not for grant, renew and revoke."""

    def settled(self) -> None:
        """Say that by an answer of the server, nothing that was sent so far was applied."""

    def extend(self) -> None:
        """Say that a page of a long read has arrived: the next one has the whole request_timeout again."""

    def rewind(self) -> None:
        """Say that the read begins again at its first page; pages that had arrived before get no more time."""


class Unseen(Enum):
    """The type of UNSEEN."""

    UNSEEN = "unseen"


UNSEEN: Final = Unseen.UNSEEN
"""What ``Driver.read_at_once`` returns when it cannot read without waiting."""


class Listing(NamedTuple):
    """The pairs below a directory.

    Attributes:
        pairs: sorted by path, with paths as keys.
        exists: whether the directory is itself a key; only looked at when there are no pairs. The library decides what
            that means; the root is never a key.
    """

    pairs: Sequence[KVPair]
    exists: bool


class Names(NamedTuple):
    """The keys below a directory, without values.

    Attributes:
        names: sorted. Of ``keys``: paths. Of ``children``: relative to the directory, with a "/" at the end of what has
            keys below it.
        exists: as in Listing.
    """

    names: Sequence[str]
    exists: bool


class Page(NamedTuple):
    """A part of what is below a directory.

    Attributes:
        pairs: sorted by path, with paths as keys.
        more: whether there may be pairs after the last one.
        exists: as in Listing.
    """

    pairs: Sequence[KVPair]
    more: bool
    exists: bool


class Removed(NamedTuple):
    """What delete_tree did.

    Attributes:
        number: how many keys were deleted.
        exists: whether the directory is itself a key; only looked at when nothing was deleted.
    """

    number: int
    exists: bool


class Write(NamedTuple):
    """A step of a commit: write a key.

    Attributes:
        path: the key.
        value: its value.
        expected: None: whatever is there; 0: only when there is no such key; else only when the key is at this index.
    """

    path: str
    value: bytes
    expected: int | None = None


class Removal(NamedTuple):
    """A step of a commit: delete a key, which must exist.

    Attributes:
        path: the key.
        expected: None: whatever is there; else only when the key is at this index.
    """

    path: str
    expected: int | None = None


class Condition(NamedTuple):
    """A step of a commit that writes nothing.

    Attributes:
        path: the key.
        expected: None: it must exist; 0: it must not exist; else it must be at this index.
    """

    path: str
    expected: int | None = None


Step = Write | Removal | Condition


class Lifetime(NamedTuple):
    """What a put says about the lifetime of its key.

    Attributes:
        ttl: seconds.
        keep_alive: whether the library renews the lease.
    """

    ttl: float
    keep_alive: bool


@dataclass(eq=False)
class Lease:
    """A lifetime that the server enforces. A driver subclasses it to keep its identifiers.

    Attributes:
        ttl: seconds from a grant or renewal to its end, as agreed with the server. The driver sets it in ``grant`` and
            whenever it is agreed anew; the library reads it each time.
        overshoot: seconds after that end within which the server has removed the keys under it.
        on_agreed: set by the library; see ``agree``.
    """

    ttl: float
    overshoot: float = 0.0
    on_agreed: Callable[[float], None] | None = field(default=None, repr=False)

    def agree(self, ttl: float, sent: float) -> None:
        """Note a ttl that the server agreed to outside ``grant`` and ``renew``; this counts as a renewal.

        Args:
            ttl: seconds.
            sent: when the request was sent, by ``aiolibkv.store.leases.clock``.
        """
        self.ttl = ttl
        if self.on_agreed is not None:
            self.on_agreed(sent)


class LeaseLostError(Exception):
    """The server does not know the lease; nothing was written."""


class Guard(NamedTuple):
    """The condition of a write: the lock is still held by one certain acquisition.

    Attributes:
        path: the lock's key.
        token: what ``acquire`` returned as token.
    """

    path: str
    token: int


class Acquired(NamedTuple):
    """A lock's key that was created.

    Attributes:
        last_index: the key's index, which is the fencing token that users see.
        token: what guards of this acquisition compare.
    """

    last_index: int
    token: int


class Observer(Protocol):
    """An object that is told of a driver's connections."""

    def connected(self, endpoint: str) -> None:
        """Note that the driver is connected."""

    def disconnected(self, endpoint: str, reason: str) -> None:
        """Note that a connection ended, and why."""


L = TypeVar("L", bound=Lease)


class Driver(ABC, Generic[L]):
    """A backend. ``L`` is its Lease.

    Attributes:
        config: the settings.
        endpoints: the servers, as the user gave them.
        hidden: the path below which the library keeps its own keys.
        observer: set by the library; see ``connected``.
    """

    name: ClassVar[str]
    """The backend's name, in errors and logs."""

    capabilities: Capabilities
    """What the backend can do. ``connect`` may replace it, if that depends on the server."""

    option_names: ClassVar[frozenset[str]] = frozenset()
    """What ``Config.options`` may hold for this backend."""

    endpoint_is_path: ClassVar[bool] = False
    """Whether the endpoint is a path, which in a URL stands after three slashes, where others have their prefix."""

    path_option: ClassVar[str | None] = None
    """The option that the path of a URL gives, such as a database, where others have their prefix."""

    longest_ttl: ClassVar[float] = math.inf
    """Seconds; a longer ttl is refused before anything is sent."""

    keeps_line: ClassVar[bool] = False
    """Whether ``acquire`` refuses while there are waiters in the line that it is given."""

    def __init__(self, endpoints: Sequence[str] = (), config: Config | None = None) -> None:
        """Make a driver; no I/O.

        Args:
            endpoints: what the backend connects to.
            config: settings; the defaults when not given.

        Raises:
            ValueError: an option that the backend does not have.
        """
        self.config: Config = config or Config()
        self.endpoints: tuple[str, ...] = tuple(endpoints)
        self.hidden: str = f"{self.config.prefix}/{RESERVED}".lstrip("/")
        self.observer: Observer | None = None
        for option in sorted(set(self.config.options) - self.option_names):
            known = ", ".join(nearest_first(option, self.option_names)) or "none"
            raise ValueError(f"{self.name}: unknown option {option!r}; options are: {known}")

    # -- what every driver implements ----------------------------------------------------------------------------

    @abstractmethod
    async def connect(self) -> None:
        """Connect to a server; try each endpoint once. Call ``self.connected`` then, and after each reconnection.

        After NotReachableError the library calls ``disconnect``, waits and calls this again, until connection_timeout
        is over. Any other error ends the entering of the store at once: AccessDeniedError, or ValueError for settings
        that cannot be used.
        """

    @abstractmethod
    async def disconnect(self) -> None:
        """End all that was started, also by a ``connect`` that failed; raise nothing. It is cancelled after 0.6 s.

        Methods that still run, or are called later, raise NotReachableError.
        """

    @abstractmethod
    async def get(self, call: Call, path: str, *, consistent: bool) -> KVPair | None:
        """Return the pair, with the path as its key, or None. ``consistent=False`` may be stale and cheaper."""

    @abstractmethod
    async def list(self, call: Call, directory: str, *, consistent: bool) -> Listing:
        """Return what is strictly below a directory, at any depth."""

    @abstractmethod
    async def commit(
        self, call: Call, steps: Sequence[Step], *, lease: L | None = None, guard: Guard | None = None
    ) -> Sequence[int]:
        """Carry out all steps in one transaction, or none.

        Args:
            call: told when the transaction is sent and when an answer says that it was not applied.
            steps: each of another path; their order means nothing.
            lease: the lease of the keys that are written; None: they are permanent, also if they had a lease before.
            guard: the lock's key must be as the guard says.

        Returns:
            For each step the new index of a Write, 0 for others. Writes of one commit may share an index.

        Raises:
            KeyExistsError: of a step with expected 0 whose key exists.
            KeyModifiedError: a key is not at the index expected, or one that has to be at some index does not exist
                (for a Removal that is KeyNotFoundError).
            KeyNotFoundError: a Removal's key does not exist, or that of a Condition with expected None.
            LockLostError: the guard does not hold; this error has precedence over the others.
            LeaseLostError: the server does not know the lease.
        """

    @abstractmethod
    async def delete_tree(self, call: Call, directory: str, *, guard: Guard | None) -> Removed:
        """Delete what is strictly below a directory in one transaction, ``self.hidden`` and what is below it excepted.

        Raises:
            LockLostError: the guard does not hold.
        """

    @abstractmethod
    async def follow(self, feed: Feed) -> None:
        """Keep a feed equal to the server's state until cancelled.

        The feed is of all keys strictly below ``feed.path`` when ``feed.tree`` is True, else of that one key. Begin
        with a consistent read and ``feed.reset(pairs, index)``, or go on after ``feed.index`` if the server can tell
        all changes since (``feed.resumed()``). Then call ``feed.apply([(path, pair or None), ...], index)``, or
        ``reset`` again, whenever something has changed. Pairs have paths as keys. The index is that of the state:
        the state shows all changes up to it and none after it; it is 0 where nothing was ever written. The feed finds
        the differences itself, so a driver may repeat what the feed knows already, or poll and reset each time.

        When this returns, or raises NotReachableError because the connection broke, the watch is stale and this is
        called again after a pause. AccessDeniedError ends the watch. A driver that reconnects within this method calls
        ``feed.cut_off`` with the error, and later ``feed.resumed``, or ``reset`` and ``apply``. After a cancellation
        nothing may be left at the server, such as a subscription.
        """

    @abstractmethod
    def new_lease(self, lifetime: Lifetime) -> L:
        """Make a lease that is not granted yet, with an identifier that finds it if the answer is lost."""

    async def grant(self, call: Call, lease: L) -> None:
        """Have the server begin a lease, and set its ttl to what the server gives.

        Called again for the same lease when the answer was lost. The default does nothing, for servers that keep a
        lifetime with each key.

        Raises:
            LeaseLostError: the lease cannot begin, since the session of the server that it needs has ended; this is
                called again.
        """

    @abstractmethod
    async def renew(self, call: Call, lease: L) -> bool:
        """Renew a lease, with the keys under it; False when the server does not know it any more.

        In a cluster, True only when the answer came with the consent of a leader: a server that is cut off from the
        others must not renew.
        """

    @abstractmethod
    async def revoke(self, call: Call, lease: L) -> None:
        """End a lease, with the keys that are still under it. One that the server does not know is no error.

        Called also when the grant failed. A driver that noted in its lease that the grant was certainly not applied
        need not ask the server.
        """

    # -- what a driver may do better ------------------------------------------------------------------------------

    def hosts(self) -> str:
        """Name the server that is spoken to, or else all endpoints, for errors."""
        return ", ".join(self.endpoints)

    def check_path(self, path: str) -> None:
        """Raise InvalidKeyError for a path that the server keeps for itself; by default there is none."""

    def read_at_once(self, path: str) -> KVPair | Unseen | None:
        """Return what a consistent ``get`` would, without waiting; UNSEEN to have ``get`` called instead.

        For a driver that has its data in this process. It raises nothing. It is UNSEEN now and then, so that a loop of
        reads lets other tasks run.
        """
        return UNSEEN

    async def exists(self, call: Call, path: str, *, consistent: bool) -> bool:
        """Tell whether there is such a key."""
        return await self.get(call, path, consistent=consistent) is not None

    async def get_many(self, call: Call, paths: Sequence[str], *, consistent: bool) -> Sequence[KVPair | None]:
        """Return the pair of each path or None; all of one instant if ``capabilities.atomic_list`` says so."""
        return [await self.get(call, path, consistent=consistent) for path in paths]

    async def keys(self, call: Call, directory: str, *, consistent: bool) -> Names:
        """Return the paths of the pairs that ``list`` would return; if possible without reading the values."""
        pairs, exists = await self.list(call, directory, consistent=consistent)
        return Names([pair.key for pair in pairs], exists)

    async def children(self, call: Call, directory: str, *, consistent: bool) -> Names:
        """Return the names one level below a directory; if possible without reading all that is below them."""
        paths, exists = await self.keys(call, directory, consistent=consistent)
        return Names(children_of(paths, directory), exists)

    async def page(self, call: Call, directory: str, after: str, limit: int) -> Page:
        """Return the first pairs strictly below a directory whose path is above ``after``, at most ``limit``.

        Fewer may be returned, to bound the memory that they take.
        """
        pairs, exists = await self.list(call, directory, consistent=True)
        rest = [pair for pair in pairs if pair.key > after]
        return Page(rest[:limit], len(rest) > limit, exists)

    async def put(
        self, call: Call, path: str, value: bytes, *, expected: int | None, lease: L | None, guard: Guard | None
    ) -> int:
        """Carry out a commit of one Write; overridden if there is a cheaper way."""
        return (await self.commit(call, [Write(path, value, expected)], lease=lease, guard=guard))[0]

    async def delete(self, call: Call, path: str, *, expected: int | None, guard: Guard | None) -> None:
        """Carry out a commit of one Removal; overridden if there is a cheaper way."""
        await self.commit(call, [Removal(path, expected)], guard=guard)

    async def acquire(self, call: Call, path: str, value: bytes, lease: L, *, line: str | None) -> Acquired:
        """Create a lock's key in one transaction; overridden if guards compare something else than its index.

        Args:
            call: as for commit.
            path: the lock's key.
            value: its value.
            lease: the lease of the key; only this lock uses it.
            line: the directory with the places of the waiters; None when the first of the waiters acquires. A driver
                that can look at it in the same transaction sets ``keeps_line`` and refuses with KeyExistsError when
                it is not empty.

        Raises:
            KeyExistsError: the key exists (with its path as key), or there is a waiter (with the line as key).
            LeaseLostError: the server does not know the lease.
        """
        index = await self.put(call, path, value, expected=0, lease=lease, guard=None)
        return Acquired(index, index)

    async def release(self, call: Call, path: str, index: int, place: str | None, lease: L) -> None:
        """Delete a lock's key, and then its holder's place in the line if it has one; the lease will be used again.

        Raises:
            KeyModifiedError: the key is not at its index any more.
            KeyNotFoundError: the key or the place does not exist any more.
        """
        await self.delete(call, path, expected=index, guard=None)
        if place is not None:
            await self.delete(call, place, expected=None, guard=None)

    async def place_ahead(self, call: Call, line: str, place: str) -> str | None:
        """Return the place before another one in a line, None for the first; the order is that of creation.

        Raises:
            LeaseLostError: the place is gone, and so its lease was lost.
        """
        pairs = (await self.list(call, line, consistent=True)).pairs
        order = [pair.key for pair in sorted(pairs, key=lambda pair: pair.last_index)]
        if place not in order:
            raise LeaseLostError
        at = order.index(place)
        return order[at - 1] if at else None

    async def is_anybody_in(self, call: Call, line: str) -> bool:
        """Tell whether there is any place in a line."""
        return bool((await self.keys(call, line, consistent=True)).names)

    async def follow_under(self, lease: L, feed: Feed) -> None:
        """Keep a feed of one key equal to the server's state, as ``follow`` does, for the holder or a waiter of a lock.

        For a driver that knows a cheaper way, since such a watch is short, and ends with the lease at the latest.

        Raises:
            LeaseLostError: the server does not know the lease any more.
        """
        await self.follow(feed)

    # -- what a driver calls --------------------------------------------------------------------------------------

    def connected(self, endpoint: str) -> None:
        """Tell the library that the driver is connected to a server."""
        if self.observer is not None:
            self.observer.connected(endpoint)

    def disconnected(self, endpoint: str, reason: str) -> None:
        """Tell the library that a connection told by ``connected`` has ended, and why; without secrets."""
        if self.observer is not None:
            self.observer.disconnected(endpoint, reason)


def children_of(paths: Iterable[str], directory: str) -> list[str]:
    """Return the names one level below a directory: ``name`` for a key, ``name/`` for what has keys below it."""
    start = len(directory) + 1 if directory else 0
    names = set()
    for path in paths:
        name, slash, _ = path[start:].partition("/")
        names.add(name + slash)
    return sorted(names)


class OwnCall:
    """A Call for requests that a driver makes of its own accord."""

    __slots__ = ("maybe_applied",)

    def __init__(self) -> None:
        self.maybe_applied: bool = False

    def writing(self) -> None:
        """See Call."""
        self.maybe_applied = True

    def settled(self) -> None:
        """See Call."""
        self.maybe_applied = False

    def extend(self) -> None:
        """See Call."""

    def rewind(self) -> None:
        """See Call."""
