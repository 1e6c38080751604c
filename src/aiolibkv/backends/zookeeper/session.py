"""A session with the servers: connected again whenever its connection ends, lost only when a server says so."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from random import uniform

from aiolibkv.backends.zookeeper.connection import Connection, NotWelcomeError
from aiolibkv.backends.zookeeper.operations import Event, close_session, hello
from aiolibkv.errors import AccessDeniedError, NotReachableError, StoreError
from aiolibkv.store.endpoints import Endpoint, Endpoints
from aiolibkv.store.tasks import Tasks

_LONGEST_ATTEMPT = 1.5
"""Seconds that one of several servers has to let itself be connected to."""
_ONLY_SERVERS_ATTEMPT = 3.0
_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 0.5
_CLOSING_TIME = 0.5

_log = logging.getLogger("aiolibkv")


class SessionLostError(StoreError):
    """The server does not know the session any more; its ephemeral nodes are gone."""

    meaning = "the session was lost"


class Reach:
    """How servers are reached: the same for all sessions of a store.

    Attributes:
        tls: None for plain TCP; set when the store connects.
    """

    def __init__(self, endpoints: Endpoints, *, credentials: bytes | None, connection_timeout: float) -> None:
        """Keep the settings.

        Args:
            endpoints: the servers; all sessions move on together.
            credentials: of a user.
            connection_timeout: seconds, of which each server gets its share.
        """
        self.endpoints = endpoints
        self.tls: ssl.SSLContext | None = None
        self.credentials = credentials
        if len(endpoints) > 1:
            self.attempt = min(_LONGEST_ATTEMPT, connection_timeout / (len(endpoints) + 1))
        else:
            self.attempt = min(_ONLY_SERVERS_ATTEMPT, connection_timeout)


class ZooKeeperSession:
    """A session.

    Attributes:
        timeout: seconds from its last sign of life to its end, as agreed with the server; before, as wanted.
        is_lost: whether the server said that it does not know the session any more, or it was closed.
    """

    def __init__(
        self,
        reach: Reach,
        timeout: float,
        *,
        is_replaced: bool,
        on_event: Callable[[Event], None] = lambda _: None,
    ) -> None:
        """Make a session that has not begun.

        Args:
            reach: how servers are reached.
            timeout: seconds, as wanted.
            is_replaced: whether a lost session is followed by a new one, or that is the end.
            on_event: called with what its watches say.
        """
        self.timeout = timeout
        self.is_lost = False
        self._wanted = timeout
        self._reach = reach
        self._is_replaced = is_replaced
        self._on_event = on_event
        self._id = 0
        self._password = b""
        self._zxid = 0
        self._refused_since: float | None = None
        self._refusals = 0
        self._refusal: NotReachableError | None = None
        self._connection: Connection | None = None
        self._failure: StoreError | None = None
        self._waiting: set[asyncio.Future[None]] = set()
        self._tasks = Tasks()
        self._keeper: asyncio.Task[None] | None = None
        self._is_closing = False

    def begin(self) -> None:
        """Begin to connect."""
        if self._keeper is None:
            self._keeper = self._tasks.start(self._keep_connected())

    @property
    def connection_now(self) -> Connection | None:
        """The connection, if there is one at this moment."""
        connection = self._connection
        return None if connection is None or connection.closed.done() else connection

    async def connection(self, *, is_patient: bool = True) -> Connection:
        """Return the connection, waiting for it as long as it takes.

        Args:
            is_patient: wait also when every server has refused to be connected to, one after the other.

        Raises:
            NotReachableError: they have.
            SessionLostError: there will be none.
            AccessDeniedError: the server refuses the user.
        """
        while (connection := self.connection_now) is None:
            if self.is_lost:
                raise SessionLostError
            if self._failure is not None:
                raise AccessDeniedError(self._failure.message, endpoint=self._failure.endpoint)
            if self._refusal is not None and not is_patient:
                raise self._refusal
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(waiting)
            try:
                await waiting
            finally:
                self._waiting.discard(waiting)
        return connection

    async def close(self) -> None:
        """Have the server end the session, with its ephemeral nodes, and drop the connection.

        A session that the servers cannot be told about is waited for, also one that is just being asked for; cancelled,
        it is left to expire.
        """
        self._is_closing = True
        try:
            while self._keeper is not None and not self.is_lost:
                try:
                    await (await self.connection()).ask(close_session())
                    break
                except NotReachableError as error:
                    _log.debug("zookeeper: a session is to be closed again: %s", error)
                    await asyncio.sleep(0)
        except StoreError as error:
            _log.debug("zookeeper: a session was not closed: %s", error)
        finally:
            await self.drop()

    async def close_now(self) -> None:
        """Have the server end the session if it can be reached now, and drop the connection."""
        connection = self.connection_now
        try:
            if connection is not None:
                async with asyncio.timeout(_CLOSING_TIME):
                    await connection.ask(close_session())
        except (StoreError, TimeoutError) as error:
            _log.debug("zookeeper: a session was not closed: %s", error)
        finally:
            await self.drop()

    async def drop(self) -> None:
        """End the connection and all attempts at one; the session is left to expire."""
        self.is_lost = True
        if self._connection is not None:
            self._connection.abort(NotReachableError("the session was closed"))
        self._wake()
        await self._tasks.close()
        if self._connection is not None:
            await self._connection.drop(NotReachableError("the session was closed"))

    async def _keep_connected(self) -> None:
        pause = 0.0
        while not self.is_lost:
            if pause:
                await asyncio.sleep(pause * uniform(0.5, 1.0))
            if self._is_closing and not self._id:
                self.is_lost = True
                self._wake()
                return
            connection = await self._try_to_connect()
            if connection is None:
                pause = min(max(2 * pause, _FIRST_PAUSE), _LONGEST_PAUSE)
                continue
            began = asyncio.get_running_loop().time()
            try:
                reason = await asyncio.shield(connection.closed)
            finally:
                await connection.drop(NotReachableError("the session was closed"))
            self._zxid = max(self._zxid, connection.zxid)
            self._reach.endpoints.failed(connection.endpoint)
            _log.debug("zookeeper: %s", reason)
            lived = asyncio.get_running_loop().time() - began
            pause = _FIRST_PAUSE if lived > _LONGEST_PAUSE else min(max(2 * pause, _FIRST_PAUSE), _LONGEST_PAUSE)
            self._note(reason)

    async def _try_to_connect(self) -> Connection | None:
        reach = self._reach
        endpoint = reach.endpoints.current
        try:
            async with asyncio.timeout(reach.attempt):
                connection = await self._connect_to(endpoint)
        except (StoreError, TimeoutError) as error:
            _log.debug("zookeeper: %s did not connect: %s", endpoint, error)
            reach.endpoints.failed(endpoint)
            self._note(error)
            self._count_refusal(error)
            if isinstance(error, NotWelcomeError) and self._refused_since is None:
                self._refused_since = asyncio.get_running_loop().time()
            return None
        self._refused_since = None
        if not connection.welcome.session:
            await connection.drop(SessionLostError())
            self._expired()
            return None
        self._id, self._password = connection.welcome.session, connection.welcome.password
        self.timeout = connection.welcome.timeout
        self._connection, self._failure = connection, None
        self._wake()
        return connection

    async def _connect_to(self, endpoint: Endpoint) -> Connection:
        """Connect, and have the server prove that most of the others follow the leader that it knows.

        A leader that was paused answers pings, syncs and reads when it continues, though others have elected another
        meanwhile. A new session is itself agreed on by most servers; to go on with an old one, a transaction is.
        """
        connection = await Connection.open(
            endpoint,
            hello(self._wanted, self._id, self._password, self._known_zxid()),
            tls=self._reach.tls,
            credentials=self._reach.credentials,
            on_event=self._on_event,
        )
        if self._id and connection.welcome.session:
            try:
                await connection.agree()
            except BaseException:
                connection.abort(NotReachableError("the servers do not agree"))
                raise
        return connection

    def _known_zxid(self) -> int:
        """Return the last transaction that a server has to know.

        No server will ever know one of data that was wiped: whoever was turned away for longer than the session can
        have lived asks for it no more. Consistent reads sync first, so they do not become stale by that.
        """
        if self._refused_since is not None:
            refused = asyncio.get_running_loop().time() - self._refused_since
            if refused > self.timeout:
                self._zxid = 0
        return self._zxid

    def _expired(self) -> None:
        _log.warning("zookeeper: a session was lost, with its ephemeral nodes")
        self._id, self._password = 0, b""
        if not self._is_replaced:
            self.is_lost = True
            self._wake()

    def _note(self, error: Exception) -> None:
        """Have calls fail as long as the server refuses the user, and wait when it is an outage."""
        self._failure = error if isinstance(error, AccessDeniedError) else None
        if self._failure is not None:
            self._wake()

    def _count_refusal(self, error: Exception) -> None:
        if not isinstance(error, NotReachableError) or not isinstance(error.__cause__, OSError):
            self._refusals = 0
            return
        self._refusals += 1
        if self._refusals == len(self._reach.endpoints):
            self._refusal = error
            self._wake()

    def _wake(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)
