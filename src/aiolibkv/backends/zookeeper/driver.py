"""The ZooKeeper driver: it hands each call to the part that carries it out."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from contextlib import ExitStack
from typing import ClassVar

from aiolibkv.backends.zookeeper.committing import Committer
from aiolibkv.backends.zookeeper.connection import Connection
from aiolibkv.backends.zookeeper.credentials import User, acl, credentials
from aiolibkv.backends.zookeeper.epochs import Epochs
from aiolibkv.backends.zookeeper.failures import NoNodeError
from aiolibkv.backends.zookeeper.leases import Lifespans, SharedSession, ZooKeeperLease
from aiolibkv.backends.zookeeper.locking import Locker
from aiolibkv.backends.zookeeper.operations import CREATOR, exists, get
from aiolibkv.backends.zookeeper.sasl import Sasl
from aiolibkv.backends.zookeeper.scanning import read_children, read_many, read_page
from aiolibkv.backends.zookeeper.session import Reach, SessionLostError, ZooKeeperSession
from aiolibkv.backends.zookeeper.tree import Reader, is_servers_own, pair, znode
from aiolibkv.backends.zookeeper.watching import Watching
from aiolibkv.backends.zookeeper.writing import Writer
from aiolibkv.config import Config
from aiolibkv.errors import InvalidKeyError, KeyModifiedError, StoreError
from aiolibkv.store import (
    Acquired,
    Call,
    Condition,
    Driver,
    Endpoints,
    Feed,
    Guard,
    LeaseLostError,
    Lifetime,
    Listing,
    Names,
    Page,
    Removed,
    Step,
)
from aiolibkv.store.resolver import Resolver
from aiolibkv.store.tasks import Tasks
from aiolibkv.store.tls import Tls
from aiolibkv.types import Capabilities, KVPair

_PORT = 2181
_MAX_VALUE_BYTES = 1_000_000
"""A request of more than 1 MB (jute.maxbuffer) has the server drop the connection; this leaves room for the rest."""
_MAX_OPERATIONS = 100
_MAX_COMMIT_BYTES = 850_000
"""With a hundred keys of 512 bytes, each sent up to three times, a commit of this size fits into the same 1 MB."""
_TICK = 2.0
"""Seconds, as in ZooKeeper's sample configuration; clients are not told the server's own."""
_SHORTEST_SESSION = 2 * _TICK
_SESSION_TIMEOUT = 10.0
_MARKING_TIME = 0.2
"""Seconds that close waits for the node that tells who the user is."""

_log = logging.getLogger("aiolibkv")


class ZooKeeperDriver(Driver[ZooKeeperLease]):
    """A store in ZooKeeper 3.5 or later; from 3.6 on watches cost less.

    A key with null data, as zkCli creates them without a value, is not seen: null marks the directories of other
    keys, which are pruned when they have none left. ``min_ttl`` and ``ttl_overshoot`` suppose that the server's
    tickTime is at most 2 s. A key with ttl or keep_alive, and a lock, is an ephemeral node; those of keep_alive and
    of locks have a session, and so a connection, for each ttl.

    Options: ``acl``, who may use the nodes that are created: ``"creator"`` (those who log in as the same user), which
    is meant when there is a username, else ``"world"``, or entries as zkCli has them, separated by commas or in a list;
    ``auth``, how a user logs in: ``"digest"``, or ``"sasl"`` for SASL's DIGEST-MD5, where the servers' JAAS
    configuration names the user; ``session_timeout``, seconds after which the keys with a ttl of a store that died are
    gone, 10 if not given.
    """

    name: ClassVar[str] = "zookeeper"
    option_names: ClassVar[frozenset[str]] = frozenset({"acl", "auth", "session_timeout"})
    uses_operations_of_3_6: ClassVar[bool] = True
    """Whether to try what ZooKeeper knows since 3.6: recursive watches that stay, and reads in bundles."""

    def __init__(self, endpoints: Sequence[str] = (), config: Config | None = None) -> None:
        """Make a driver.

        Args:
            endpoints: "host:port" of one or more servers; the port is 2181 when not given.
            config: settings.

        Raises:
            ValueError: an endpoint cannot be read, a file cannot be used, or a setting is none that ZooKeeper has.
        """
        super().__init__(endpoints, config)
        if self.config.token is not None:
            raise ValueError("zookeeper: there is no token; give username and password")
        if is_servers_own(self.config.prefix):
            raise InvalidKeyError("the prefix is in the server's own tree", key=self.config.prefix)
        self._session_timeout = _session_timeout(self.config)
        self._acl = acl(self.config)
        self._user: User | None = None
        user = credentials(self.config)
        if self.config.username is not None and not isinstance(user, Sasl):
            password = self.config.password or ""
            self._user = User(self.config.username, password, prefix=self.config.prefix, hidden=f"{self.hidden}/")
        self._marking = Tasks()
        self._reach = Reach(
            Endpoints(self.endpoints, _PORT),
            tls=Tls(self.config),
            credentials=user,
            connection_timeout=self.config.connection_timeout,
        )
        self.capabilities: Capabilities = Capabilities(
            distributed=True,
            durable=True,
            survives_failover=True,
            linearizable_reads=False,
            exact_compare=False,
            atomic_list=False,
            every_change=False,
            lifetime_with_children=False,
            ttl_survives_client=False,
            min_ttl=_SHORTEST_SESSION,
            max_value_bytes=_MAX_VALUE_BYTES,
            max_operations=_MAX_OPERATIONS,
            max_commit_bytes=_MAX_COMMIT_BYTES,
            ttl_overshoot=self._ttl_overshoot,
        )
        self._reader = Reader(self.hidden, bundles=self.uses_operations_of_3_6)
        self._prepare()

    def _prepare(self) -> None:
        self._watches = Watching(self._reader, are_persistent=self.uses_operations_of_3_6)
        self._session = ZooKeeperSession(
            self._reach,
            self._session_timeout,
            is_replaced=True,
            on_event=self._watches.dispatch,
            on_connected=self.connected,
            on_disconnected=self.disconnected,
        )
        hidden = f"{self.hidden}/"
        epochs = Epochs(hidden, self.config.prefix)
        self._writer = Writer(self._reader, epochs, self._acl)
        self._committer = Committer(epochs, self._acl)
        self._locker = Locker(self._writer, epochs, self._acl)
        self._lifespans = Lifespans(
            self._session, self._writer, self._locker, hidden=hidden, new_session=self._new_session
        )

    def _new_session(self, shared: SharedSession, timeout: float) -> ZooKeeperSession:
        return ZooKeeperSession(
            self._reach,
            timeout,
            is_replaced=False,
            on_event=shared.watching.dispatch,
            on_agreed=shared.agreed,
        )

    def _ttl_overshoot(self, ttl: float) -> float:
        return max(0.0, self._session_timeout - ttl, _SHORTEST_SESSION - ttl) + _TICK

    def hosts(self) -> str:
        connection = self._session.connection_now
        return super().hosts() if connection is None else str(connection.endpoint)

    def check_path(self, path: str) -> None:
        if is_servers_own(path):
            raise InvalidKeyError("the key is in the server's own tree", key=path)

    async def connect(self) -> None:
        self._reach.tls.context()
        self._reach.resolver = Resolver()
        self._prepare()
        self._session.begin()
        await self._session.connect()
        connection = await self._session.connection()
        if self._user is None:
            # A server that lets nobody in without a name says so in answer to the first request.
            await connection.ask(exists("/"))
        else:
            await self._user.check(connection)

    async def disconnect(self) -> None:
        try:
            await self._marking.settle(_MARKING_TIME)
            await self._lifespans.close()
        finally:
            await self._marking.close()
            await self._session.close_now()
            self._reach.resolver.close()

    async def get(self, call: Call, path: str, *, consistent: bool) -> KVPair | None:
        connection = await self._session.connection()
        try:
            node = await connection.ask(get(znode(path)), consistent=consistent)
        except NoNodeError:
            return None
        return None if node.data is None else pair(path, node)

    async def list(self, call: Call, directory: str, *, consistent: bool) -> Listing:
        connection = await self._session.connection()
        tree = await self._reader.read_tree(connection, directory, consistent=consistent, page_read=call.extend)
        return Listing(tree.pairs(), exists=tree.node is not None and tree.node.data is not None)

    async def put(
        self,
        call: Call,
        path: str,
        value: bytes,
        *,
        expected: int | None,
        lease: ZooKeeperLease | None,
        guard: Guard | None,
    ) -> int:
        if lease is None:
            connection = await self._session.connection()
            with self._lifespans.ending(path):
                stat = await self._writer.put(call, connection, path, value, expected=expected, guard=guard)
            self._created(connection)
            return stat.index
        connection = await self._connection_of(lease)
        with self._lifespans.in_doubt(call, path, lease):
            stat = await self._writer.put(
                call,
                connection,
                path,
                value,
                expected=expected,
                guard=guard,
                owner=connection.welcome.session,
                version=self._lifespans.version(path, connection.welcome.session),
            )
        self._lifespans.note(path, lease, connection.welcome.session, stat)
        self._created(connection)
        return stat.index

    async def delete(self, call: Call, path: str, *, expected: int | None, guard: Guard | None) -> None:
        connection = await self._session.connection()
        with self._lifespans.ending(path):
            await self._writer.delete(call, connection, path, expected=expected, guard=guard)

    async def delete_tree(self, call: Call, directory: str, *, guard: Guard | None) -> Removed:
        connection = await self._session.connection()
        with self._lifespans.ending(directory, below=True):
            return await self._writer.delete_tree(call, connection, directory, guard=guard)

    async def commit(
        self, call: Call, steps: Sequence[Step], *, lease: ZooKeeperLease | None = None, guard: Guard | None = None
    ) -> Sequence[int]:
        connection = await (self._session.connection() if lease is None else self._connection_of(lease))
        owner = 0 if lease is None else connection.welcome.session
        with ExitStack() as ending:
            for step in steps:
                if not isinstance(step, Condition):
                    ending.enter_context(self._lifespans.ending(step.path))
            indices = await self._committer.commit(call, connection, steps, owner=owner, guard=guard)
        self._created(connection)
        return indices

    async def get_many(self, call: Call, paths: Sequence[str], *, consistent: bool) -> Sequence[KVPair | None]:
        return await read_many(self._reader, await self._session.connection(), paths, consistent=consistent)

    async def children(self, call: Call, directory: str, *, consistent: bool) -> Names:
        return await read_children(self._reader, await self._session.connection(), directory, consistent=consistent)

    async def page(self, call: Call, directory: str, after: str, limit: int) -> Page:
        return await read_page(self._reader, await self._session.connection(), directory, after, limit)

    async def follow(self, feed: Feed) -> None:
        await self._watches.follow(await self._session.connection(), feed)

    def new_lease(self, lifetime: Lifetime) -> ZooKeeperLease:
        if not lifetime.keep_alive:
            # The key is deleted on time from here: the session is everybody's, and does not end with one key.
            return ZooKeeperLease(math.inf, lifetime=lifetime.ttl, is_plain=True)
        return ZooKeeperLease(lifetime.ttl, _TICK, lifetime=lifetime.ttl)

    async def grant(self, call: Call, lease: ZooKeeperLease) -> None:
        if not lease.is_plain:
            session = self._lifespans.lend(lease)
            try:
                await session.connection()
            except SessionLostError as error:
                raise LeaseLostError from error

    async def renew(self, call: Call, lease: ZooKeeperLease) -> bool:
        try:
            # A ping renews nothing while the server is cut off from the leader, who ends the session.
            await (await self._connection_of(lease, wait=True)).agree()
        except LeaseLostError:
            return False
        return True

    async def revoke(self, call: Call, lease: ZooKeeperLease) -> None:
        await self._lifespans.end(lease)

    async def acquire(
        self, call: Call, path: str, value: bytes, lease: ZooKeeperLease, *, line: str | None
    ) -> Acquired:
        connection = await self._connection_of(lease)
        holder = lease.acquiring(path)
        try:
            stat, token = await self._locker.acquire(call, connection, path, value, holder)
        except StoreError:
            if not call.maybe_applied:
                del lease.acquisitions[holder]
                raise
            # The number is nobody else's. A request that is still under way is not carried out once the session has
            # moved to another connection.
            connection = await self._connection_of(lease, wait=True)
            found = await self._locker.find_acquired(connection, path, holder)
            if found is None:
                call.settled()
                del lease.acquisitions[holder]
                raise
            stat, token = found
        lease.acquisitions[holder] = path, token
        self._lifespans.note(path, lease, connection.welcome.session, stat)
        self._created(connection)
        return Acquired(stat.index, token)

    async def release(self, call: Call, path: str, index: int, place: str | None, lease: ZooKeeperLease) -> None:
        connection = await self._connection_of(lease)
        call.writing()
        if not await self._lifespans.release(connection, path, place, lease):
            call.settled()
            raise KeyModifiedError(key=path)

    async def follow_under(self, lease: ZooKeeperLease, feed: Feed) -> None:
        connection = await self._connection_of(lease)
        assert lease.shared is not None, "granted"
        await lease.shared.watching.follow(connection, feed)

    def _created(self, connection: Connection) -> None:
        """After a write, leave the node that tells who the user is, if it is not there yet."""
        if self._user is not None and self._acl == CREATOR and self._user.wants_mark():
            self._marking.start(self._user.leave_mark(connection))

    async def _connection_of(self, lease: ZooKeeperLease, *, wait: bool = False) -> Connection:
        session = self._session
        if not lease.is_plain:
            if lease.shared is None:
                raise LeaseLostError
            session = lease.shared.session
        try:
            return await (session.reconnected() if wait else session.connection())
        except SessionLostError as error:
            raise LeaseLostError from error


def _session_timeout(config: Config) -> float:
    wanted = config.options.get("session_timeout", _SESSION_TIMEOUT)
    seconds = math.nan
    if isinstance(wanted, int | float | str) and not isinstance(wanted, bool):
        try:
            seconds = float(wanted)
        except ValueError:
            pass
    if not 0 < seconds < math.inf:
        raise ValueError(f"zookeeper: option session_timeout is a number of seconds above 0, not {wanted!r}")
    return seconds
