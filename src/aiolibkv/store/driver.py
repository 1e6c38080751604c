"""What the author of a backend reads: the whole of it.

A backend is one class, a *driver*: it subclasses Driver, sets ``name`` and ``capabilities`` (``aiolibkv.Capabilities``
tells what each says; a commit takes at least 20 operations, a value and a commit 256 KiB) and implements the abstract
methods. The library makes a store of it: checks of keys and values, prefixes, deadlines, retries, watches, lifetimes,
locks and events are written once, above every driver.

What a driver is given:

- *Paths*: keys that were checked and rooted at the prefix, as the server is to keep them. A path never begins or ends
  with "/". A directory may be ``""``, which is everything on the server. What the library keeps for itself is below
  ``self.hidden``: for a driver these are keys like others, except that delete_tree spares them.
- A *Call*: it is told when a write is sent and when an answer says that it was not applied. It ends the method by
  cancelling it when the time is over (``config.request_timeout``), and when the store is closed.

What a driver must do:

- Raise the errors of ``aiolibkv.errors`` bare, as in ``KeyNotFoundError()``. Backend, endpoint and key are filled in by
  the library. In ``commit`` the error says of which path it is: ``KeyExistsError(key=path)``.
- NotReachableError means "try again": the library repeats the call, after a pause, until its time is over; the driver
  moves on to its next endpoint. It is not repeated when the driver said ``call.writing()`` and no ``call.settled()``
  since: then the write may have been applied, and the error tells the user so. The driver should first try to find out,
  by something it chose itself and wrote with the value (a nonce, a lease), as far as its server allows.
- Reconnect by itself: after ``connect`` returned, every method is called again and again, whatever happened to the
  connection.
- Let the event loop run: what blocks (files, a client that is not for asyncio) runs in threads. A thread goes on when
  the method that waits for it is cancelled; that is a request whose answer nobody hears.
- Expect any method any number of times at once, in one event loop, and a cancellation at every await. ``revoke`` may
  run beside a ``grant`` of the same lease whose caller was cancelled, and after the store began to close. A request
  that several callers share runs in a task of the driver's own (``aiolibkv.store.Tasks``): what cancels one of them
  must not end it.

What an index is: a number above 0 that the server gives to each modification of a key. A key that is written again,
deleted and created again, or restored never has an index that it had before, and a reader who sees an index sees
everything with a smaller one (a sequence of a database does not do that: it is given before it is visible). A key that
goes because its lifetime ended need not advance it.
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
    """What a driver tells of the call that it carries out. Reads need none of this."""

    maybe_applied: bool
    """Whether the write may have been applied: set by ``writing``, unset by ``settled``."""

    def writing(self) -> None:
        """Say, before a write goes on the wire, that from now on it may be applied. Not for grant and renew."""

    def settled(self) -> None:
        """Say that an answer arrived: what was sent so far was not applied."""

    def extend(self) -> None:
        """Say, in a read of many pages, that a page was read: the next one has the whole request_timeout again."""

    def rewind(self) -> None:
        """Say that the pages begin anew; pages that were read before get no more time."""


class Unseen(Enum):
    """The type of UNSEEN."""

    UNSEEN = "unseen"


UNSEEN: Final = Unseen.UNSEEN
"""What ``Driver.read_at_once`` returns when the read has to wait for something."""


class Listing(NamedTuple):
    """The pairs below a directory.

    Attributes:
        pairs: sorted by path, with paths as keys.
        exists: whether the directory is itself a key; only looked at when there are no pairs. The library decides what
            that means, and that the root is no key.
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
    """What a put says of the time its key has.

    Attributes:
        ttl: seconds.
        keep_alive: whether the library renews it.
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
        """Take what was agreed anew with the server outside ``grant`` and ``renew``, which counts as a renewal.

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
    """The condition of a write that one acquisition of a lock still stands.

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
    """Who is told of a driver's connections."""

    def connected(self, endpoint: str) -> None:
        """Take note that the driver is connected."""

    def disconnected(self, endpoint: str, reason: str) -> None:
        """Take note that a connection ended, and why."""


L = TypeVar("L", bound=Lease)


class Driver(ABC, Generic[L]):
    """A backend. ``L`` is its Lease."""

    name: ClassVar[str]
    """The backend's name, in errors and logs."""

    capabilities: Capabilities
    """What it can do. ``connect`` may replace it, where that depends on the server."""

    option_names: ClassVar[frozenset[str]] = frozenset()
    """What ``Config.options`` may hold for this backend."""

    endpoint_is_path: ClassVar[bool] = False
    """Whether the endpoint is a path, which in a URL stands after three slashes, where others have their prefix."""

    path_option: ClassVar[str | None] = None
    """The option that the path of a URL gives, such as a database, where others have their prefix."""

    longest_ttl: ClassVar[float] = math.inf
    """Seconds; a longer ttl is refused before anything is sent."""

    keeps_line: ClassVar[bool] = False
    """Whether ``acquire`` refuses while others stand in the line that it is given."""

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
        """Reach a server once, at one endpoint after the other.

        Called again, after ``disconnect`` and a pause, while it raises NotReachableError, until connection_timeout is
        over. Anything else ends the entering of the store at once: AccessDeniedError, or ValueError for settings that
        cannot be used.
        """

    @abstractmethod
    async def disconnect(self) -> None:
        """End all that was started, also by a ``connect`` that failed; never raise. Cancelled after 0.6 s.

        Methods that still run, or come later, raise NotReachableError.
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
            lease: how long the keys that are written live; None: for ever, and leases that they had matter no more.
            guard: the lock's key must be as the guard says.

        Returns:
            For each step the new index of a Write, 0 for others. Writes of one commit may share an index.

        Raises:
            KeyExistsError: of a step with expected 0 whose key exists.
            KeyModifiedError: a key is not at the index expected, or one that has to be at some index does not exist
                (for a Removal that is KeyNotFoundError).
            KeyNotFoundError: a Removal's key does not exist, or that of a Condition with expected None.
            LockLostError: the guard does not hold. It comes before the others.
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

        It is of all that is strictly below ``feed.path`` when ``feed.tree`` is True, else of that one key. Begin with
        ``feed.reset(pairs, index)`` of a consistent read, or go on after ``feed.index`` when nothing was missed
        (``feed.resumed()``); then ``feed.apply([(path, pair or None), ...], index)`` or ``reset`` as things change.
        Pairs have paths as keys; the index is that of the state: not less than theirs, not more than what the state
        shows, and 0 where nothing was ever written. What the feed knows already does no harm: it finds the
        differences, so a driver may look again and again, and reset.

        When this returns, or raises NotReachableError because the connection broke, the watch is stale, and it is
        called again after a pause. AccessDeniedError ends the watch. A driver that stays through an outage itself
        calls ``feed.cut_off`` with the error, and later ``feed.resumed``, or ``reset`` and ``apply``. When it is
        cancelled the server must not be left watching.
        """

    @abstractmethod
    def new_lease(self, lifetime: Lifetime) -> L:
        """Make a lease that is not granted yet, under an identifier by which a lost grant can be found again."""

    async def grant(self, call: Call, lease: L) -> None:
        """Have the server begin a lease, and set its ttl to what the server gives.

        Called again for the same lease when the answer was lost. Nothing is to be done by default: for servers that
        keep the lifetime with each key.

        Raises:
            LeaseLostError: what it was to live in has ended meanwhile; it is called again.
        """

    @abstractmethod
    async def renew(self, call: Call, lease: L) -> bool:
        """Renew a lease, with the keys under it; False when the server does not know it any more.

        True only when a server answered that would notice if the others had elected a leader without it.
        """

    @abstractmethod
    async def revoke(self, call: Call, lease: L) -> None:
        """End a lease, with the keys that are still under it. One that the server does not know is no error.

        Called also when the grant failed: who notes in the lease that it certainly was refused need not ask the server.
        """

    # -- what a driver may do better ------------------------------------------------------------------------------

    def hosts(self) -> str:
        """Name the server that is spoken to, or else all endpoints, for errors."""
        return ", ".join(self.endpoints)

    def check_path(self, path: str) -> None:
        """Raise InvalidKeyError for a path that the server keeps for itself."""

    def read_at_once(self, path: str) -> KVPair | Unseen | None:
        """Return what a consistent ``get`` would, without waiting, or UNSEEN to have that called.

        For a driver that has its data at hand. It raises nothing, and is UNSEEN now and then, so that others run too.
        """
        return UNSEEN

    async def exists(self, call: Call, path: str, *, consistent: bool) -> bool:
        """Tell whether there is such a key."""
        return await self.get(call, path, consistent=consistent) is not None

    async def get_many(self, call: Call, paths: Sequence[str], *, consistent: bool) -> Sequence[KVPair | None]:
        """Return the pair of each path, or None, all of one instant if ``capabilities.atomic_list`` says so."""
        return [await self.get(call, path, consistent=consistent) for path in paths]

    async def keys(self, call: Call, directory: str, *, consistent: bool) -> Names:
        """Return the paths of what ``list`` would, without reading values if that can be."""
        pairs, exists = await self.list(call, directory, consistent=consistent)
        return Names([pair.key for pair in pairs], exists)

    async def children(self, call: Call, directory: str, *, consistent: bool) -> Names:
        """Return the names one level below a directory, if that can be without reading all that is below."""
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
        """Carry out a commit of one Write, if there is a cheaper way."""
        return (await self.commit(call, [Write(path, value, expected)], lease=lease, guard=guard))[0]

    async def delete(self, call: Call, path: str, *, expected: int | None, guard: Guard | None) -> None:
        """Carry out a commit of one Removal, if there is a cheaper way."""
        await self.commit(call, [Removal(path, expected)], guard=guard)

    async def acquire(self, call: Call, path: str, value: bytes, lease: L, *, line: str | None) -> Acquired:
        """Create a lock's key in one transaction; overridden where guards compare something else than its index.

        Args:
            call: as for commit.
            path: the lock's key.
            value: its value.
            lease: under which it lives; nobody else uses it.
            line: the directory of those who wait for the lock; None for the first among them. A driver that can look at
                it in the same transaction refuses with KeyExistsError when it is not empty, and sets ``keeps_line``.

        Raises:
            KeyExistsError: the key exists, with its path as key; or else somebody is in the line, with the line as key.
            LeaseLostError: the server does not know the lease.
        """
        index = await self.put(call, path, value, expected=0, lease=lease, guard=None)
        return Acquired(index, index)

    async def release(self, call: Call, path: str, index: int, place: str | None, lease: L) -> None:
        """Delete a lock's key, and then its holder's place in the line when there is one; the lease is used again.

        Raises:
            KeyModifiedError: the key is not at its index any more.
            KeyNotFoundError: likewise, or the place is gone.
        """
        await self.delete(call, path, expected=index, guard=None)
        if place is not None:
            await self.delete(call, place, expected=None, guard=None)

    async def place_ahead(self, call: Call, line: str, place: str) -> str | None:
        """Return who stands before a place in a line, None for the first; the order is that of creation.

        Raises:
            LeaseLostError: the place is gone, which it is only with its lease.
        """
        pairs = (await self.list(call, line, consistent=True)).pairs
        order = [pair.key for pair in sorted(pairs, key=lambda pair: pair.last_index)]
        if place not in order:
            raise LeaseLostError
        at = order.index(place)
        return order[at - 1] if at else None

    async def is_anybody_in(self, call: Call, line: str) -> bool:
        """Tell whether somebody stands in a line."""
        return bool((await self.keys(call, line, consistent=True)).names)

    async def follow_under(self, lease: L, feed: Feed) -> None:
        """Keep a feed of one key equal to the server's state, as ``follow``, for who holds a lock or waits for it.

        For a driver that knows a cheaper way: the watch is over soon, and at the latest with the lease.

        Raises:
            LeaseLostError: the server does not know the lease any more.
        """
        await self.follow(feed)

    # -- what a driver calls --------------------------------------------------------------------------------------

    def connected(self, endpoint: str) -> None:
        """Tell that a connection to a server stands."""
        if self.observer is not None:
            self.observer.connected(endpoint)

    def disconnected(self, endpoint: str, reason: str) -> None:
        """Tell that a connection that stood has ended, and why; no secrets."""
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
    """A Call for what a driver does of its own accord; nobody is told."""

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
