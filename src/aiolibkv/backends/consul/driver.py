"""The Consul driver: each call as requests and transactions of the server."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import ClassVar

from aiolibkv.backends.consul.connection import Connection
from aiolibkv.backends.consul.encoding import (
    MAX_VALUE_BYTES,
    deletion_units,
    kv_target,
    read_mode,
    start_of,
)
from aiolibkv.backends.consul.listing import Listings
from aiolibkv.backends.consul.scope import Scope
from aiolibkv.backends.consul.sessions import (
    LONGEST_TTL,
    SHORTEST_TTL,
    ConsulLease,
    Sessions,
    new_lease,
    overshoot,
)
from aiolibkv.backends.consul.transactions import (
    MAX_COMMIT_BYTES,
    MAX_STEPS,
    MAX_TXN_OPERATIONS,
    Operation,
    guarding,
)
from aiolibkv.backends.consul.trees import parse_names
from aiolibkv.backends.consul.watching import Polls
from aiolibkv.backends.consul.writing import Writer
from aiolibkv.config import Config
from aiolibkv.errors import (
    CallNotSupportedError,
    NotReachableError,
)
from aiolibkv.keys import RESERVED, is_key
from aiolibkv.store import (
    Acquired,
    Call,
    Driver,
    Endpoints,
    Feed,
    Guard,
    Lifetime,
    Listing,
    Names,
    Page,
    Removed,
    Step,
    Write,
)
from aiolibkv.store.tasks import Tasks
from aiolibkv.types import Capabilities, KVPair

_DEFAULT_PORT = 8500
_ENTERING_SHARE = 0.9
"""Of connection_timeout, in which all servers are asked; then there is still time to tell why none can be used."""


class ConsulDriver(Driver[ConsulLease]):
    """A store in Consul's key/value tree.

    Made for and tested with Consul 1.8.7. A write is one transaction that first deletes the key, which
    detaches it from a session, and sets its flags to a number of its own: a write of the value already there
    is then a change like any other, and a write whose answer was lost is recognised by reading the key.

    Values that do not fit into a transaction (above about 390 KB) are written by plain requests, which can
    neither check a guard nor begin a lifetime: CallNotSupportedError, before anything is written.

    ``delete_tree("")`` is one transaction, which has room for about 60 first characters of keys (30 without a
    prefix). Of more it is a CallNotSupportedError, before anything is deleted; one directory after the other can be.
    """

    name: ClassVar[str] = "consul"
    longest_ttl: ClassVar[float] = LONGEST_TTL
    option_names: ClassVar[frozenset[str]] = Scope.options
    capabilities: Capabilities = Capabilities(
        distributed=True,
        durable=True,
        survives_failover=True,
        every_change=False,
        min_ttl=SHORTEST_TTL,
        max_value_bytes=MAX_VALUE_BYTES,
        max_operations=MAX_STEPS,
        max_commit_bytes=MAX_COMMIT_BYTES,
        ttl_overshoot=overshoot,
    )

    def __init__(self, endpoints: Sequence[str] = (), config: Config | None = None) -> None:
        """Make a driver.

        Args:
            endpoints: "host:port" of agents of one datacenter, the port is 8500 when not given; or
                "unix:/path/of/socket".
            config: settings. Consul knows tokens; a user and a password are for a proxy before it, as by
                CONSUL_HTTP_AUTH. Options: ``dc``, another datacenter than that of the agents; ``namespace`` and
                ``partition`` of Consul Enterprise; ``http_path``, a path that what stands before Consul puts before
                its own.

        Raises:
            ValueError: there is no endpoint, or one cannot be read; an option cannot be.
        """
        super().__init__(endpoints, config)
        Scope(self.config)
        self._servers = Endpoints(self.endpoints, _DEFAULT_PORT, unix=True)
        self._tasks = Tasks()
        self._opened: Connection | None = None

    # -- the connection --------------------------------------------------------------------------------------

    def hosts(self) -> str:
        heard = None if self._opened is None else self._opened.heard
        return super().hosts() if heard is None else str(heard)

    async def connect(self) -> None:
        self._opened = Connection(self.config, self._servers, self)
        self._sessions = Sessions(self._opened, self._tasks)
        self._listings = Listings(self._opened)
        self._writer = Writer(self._opened)
        self._polls = Polls(self._opened, self._tasks, self.config)
        share = self.config.connection_timeout * _ENTERING_SHARE / len(self._servers)
        reason = NotReachableError()
        for _ in self.endpoints:
            try:
                async with asyncio.timeout(share):
                    await self._opened.greet(self.hidden, self.config.connection_timeout)
                return
            except NotReachableError as error:
                # The connection has moved on already.
                reason = error
            except TimeoutError:
                reason = NotReachableError(f"no answer within {share:g} s", endpoint=str(self._opened.endpoint))
                self._opened.failed(self._opened.endpoint, reason.message)
        reason.maybe_applied = False
        raise reason

    async def disconnect(self) -> None:
        await self._tasks.close()
        if self._opened is not None:
            await self._opened.close()
            self._opened = None

    @property
    def _connection(self) -> Connection:
        assert self._opened is not None, "open"
        return self._opened

    # -- reading ---------------------------------------------------------------------------------------------

    async def get(self, call: Call, path: str, *, consistent: bool) -> KVPair | None:
        for mode in _modes(consistent=consistent):
            answer = await self._connection.read(kv_target(path, f"raw&{mode}"))
            if answer.found:
                return KVPair(path, answer.body, answer.index)
        return None

    async def exists(self, call: Call, path: str, *, consistent: bool) -> bool:
        await self._connection.check_names([path])
        for mode in _modes(consistent=consistent):
            said = await self._connection.look([path], mode)
            said.raise_if_denied()
            if said.tells_of_key(0):
                return True
        return False

    async def list(self, call: Call, directory: str, *, consistent: bool) -> Listing:
        return await self._listings.pairs(directory, consistent=consistent)

    async def get_many(self, call: Call, paths: Sequence[str], *, consistent: bool) -> Sequence[KVPair | None]:
        await self._connection.check_names(paths)
        return await self._listings.get_many(paths, consistent=consistent)

    async def keys(self, call: Call, directory: str, *, consistent: bool) -> Names:
        return await self._listings.paths(directory, consistent=consistent)

    async def children(self, call: Call, directory: str, *, consistent: bool) -> Names:
        return await self._listings.children(directory, consistent=consistent)

    async def page(self, call: Call, directory: str, after: str, limit: int) -> Page:
        return await self._listings.page(directory, after, limit)

    async def is_anybody_in(self, call: Call, line: str) -> bool:
        return await self._listings.is_anything_below(line)

    async def follow(self, feed: Feed) -> None:
        await self._polls.follow(feed)

    # -- writing ---------------------------------------------------------------------------------------------

    async def commit(
        self, call: Call, steps: Sequence[Step], *, lease: ConsulLease | None = None, guard: Guard | None = None
    ) -> Sequence[int]:
        await self._connection.check_names(step.path for step in steps)
        return await self._writer.commit(call, steps, lease=lease, guard=guard)

    async def put(
        self,
        call: Call,
        path: str,
        value: bytes,
        *,
        expected: int | None,
        lease: ConsulLease | None,
        guard: Guard | None,
    ) -> int:
        await self._connection.check_names([path])
        return await self._writer.put(call, Write(path, value, expected), lease=lease, guard=guard)

    async def acquire(self, call: Call, path: str, value: bytes, lease: ConsulLease, *, line: str | None) -> Acquired:
        await self._connection.check_names([path])
        return await self._writer.acquire(call, path, value, lease)

    async def release(self, call: Call, path: str, index: int, place: str | None, lease: ConsulLease) -> None:
        await self._writer.release(call, path, index, place)

    async def delete_tree(self, call: Call, directory: str, *, guard: Guard | None) -> Removed:
        """Delete a tree in one transaction; see Driver.

        At the store's root, where the reserved subtree is to stay, it takes two requests. The first reads the
        names directly below the root. The transaction then deletes by prefixes: the shortest ones that cover these
        names and not the reserved subtree, mostly of one character each. It takes effect at one instant. Keys that
        were created meanwhile are deleted too if they have one of the prefixes; others count as created afterwards.
        """
        if directory == self.config.prefix:
            return Removed(await self._delete_root(call, guard), exists=False)
        await self._connection.check_names([directory])
        start = start_of(directory)
        deleted = await self._delete_units(call, start, [(start, True)], guard)
        if not deleted:
            call.settled()
        return Removed(deleted, not deleted and await self._listings.is_key(directory))

    async def _delete_root(self, call: Call, guard: Guard | None) -> int:
        start = start_of(self.config.prefix)
        while True:
            replaced = self._connection.tokens_replaced
            names = await self._connection.read(kv_target(start, "keys&separator=/&consistent"))
            with self._connection.understanding(names):
                below = await parse_names(names, start, folders=True)
            units = [(start + unit, whole) for unit, whole in deletion_units(below, f"{RESERVED}/")]
            if units:
                break
            await self._connection.check_access(start)
            if replaced == self._connection.tokens_replaced:
                break
        return await self._delete_units(call, start, units, guard)

    async def _delete_units(
        self, call: Call, start: str, units: Sequence[tuple[str, bool]], guard: Guard | None
    ) -> int:
        """Delete single keys and whole prefixes in one transaction; return how many keys there were.

        Args:
            call: told of the write.
            start: a prefix of all of them, by which they are read to be counted. If it is empty, each is read by
                itself, since the server takes no empty key.
            units: what is deleted; True for all keys with that prefix, False for the one key.
            guard: as for ``delete_tree``.
        """
        operations = guarding(guard)
        if units:
            operations += [Operation("get-tree", key) for key in ([start] if start else [unit for unit, _ in units])]
        operations += [Operation("delete-tree" if whole else "delete", unit) for unit, whole in units]
        if not operations:
            return 0
        if len(operations) > MAX_TXN_OPERATIONS:
            raise CallNotSupportedError(
                "the names at the root begin with too many different characters for one transaction of Consul;"
                " delete the directories one by one"
            )
        entries = await self._writer.transact(call, operations, guard)
        starts = tuple(unit for unit, whole in units if whole)
        single = {unit for unit, whole in units if not whole}
        keys = {entry.pair.key for entry in entries}
        return sum(self._is_listed(key) and (key in single or key.startswith(starts)) for key in keys)

    def _is_listed(self, path: str) -> bool:
        return is_key(path.removeprefix(start_of(self.config.prefix)))

    # -- lifetimes -------------------------------------------------------------------------------------------

    def new_lease(self, lifetime: Lifetime) -> ConsulLease:
        return new_lease(lifetime)

    async def grant(self, call: Call, lease: ConsulLease) -> None:
        await self._sessions.create(lease)

    async def renew(self, call: Call, lease: ConsulLease) -> bool:
        return await self._sessions.renew(lease)

    async def revoke(self, call: Call, lease: ConsulLease) -> None:
        await self._sessions.destroy(lease)


def _modes(*, consistent: bool) -> Sequence[str]:
    """Return the query parameters of the reads to make, one after the other until one finds the key.

    A stale read may miss what exists: a server that was just started has not read all of its log yet.
    """
    return [read_mode(consistent=mode) for mode in ([True] if consistent else [False, True])]
