"""A session with the servers: connected again whenever its connection ends, lost only when a server says so."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from copy import copy
from random import uniform

from aiolibkv.backends.zookeeper.connection import Connection, NotWelcomeError
from aiolibkv.backends.zookeeper.operations import Event, close_session, hello
from aiolibkv.backends.zookeeper.sasl import Sasl
from aiolibkv.errors import AccessDeniedError, NotReachableError, StoreError
from aiolibkv.store.endpoints import Endpoint, Endpoints
from aiolibkv.store.leases import clock as lease_clock
from aiolibkv.store.resolver import Address, Resolver
from aiolibkv.store.tasks import Tasks
from aiolibkv.store.tls import Tls

_FIRST_ATTEMPT = 1.5
"""Seconds that a server has to let itself be connected to, at first, if connection_timeout is that long."""
_GROWTH = 2
_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 0.5
_PAUSE_AFTER_REFUSAL = 3.0
"""Seconds, at most, before a new session is asked for again: a server that has too many connections is left alone."""
_SHORT_OUTAGE = 1.0
_PATIENCE = 0.2
"""Seconds that a call waits in an outage before it is told the reason; it is repeated as long as it has time."""
_CLOSING_TIME = 0.5

_log = logging.getLogger("aiolibkv")


class SessionLostError(StoreError):
    """The server does not know the session any more; its ephemeral nodes are gone."""

    meaning = "the session was lost"


class Reach:
    """How servers are reached: the same for all sessions of a store.

    Attributes:
        endpoints: the servers; all sessions move on together.
        credentials: of a user.
        tls: what connections are encrypted with.
        resolver: looks up where servers are.
        returning: the sessions whose connections servers refuse; new ones wait until these are continued.
    """

    def __init__(
        self,
        endpoints: Endpoints,
        *,
        tls: Tls,
        credentials: bytes | Sasl | None,
        connection_timeout: float,
    ) -> None:
        """Keep the settings.

        Args:
            endpoints: the servers.
            tls: what connections are encrypted with.
            credentials: of a user, who logs in by them at once, or by SASL.
            connection_timeout: seconds that no attempt takes longer than.
        """
        self.endpoints = endpoints
        self.credentials = credentials
        self.tls = tls
        self.resolver: Resolver = Resolver()
        self.returning: set[ZooKeeperSession] = set()
        self._longest_attempt = connection_timeout
        self._attempt = self._first_attempt = min(_FIRST_ATTEMPT, connection_timeout / (len(endpoints) + 1))
        self._late = 0
        self._refused_since: float | None = None
        self._is_refusal_told = False

    @property
    def attempt(self) -> float:
        """Seconds that a server has now to let itself be connected to."""
        return self._attempt

    def came_late(self) -> None:
        """Take note that a server did not let itself be connected to in time: the next round gives them more."""
        self._late += 1
        if self._late >= len(self.endpoints):
            self._late = 0
            self._attempt = min(self._attempt * _GROWTH, self._longest_attempt)

    def came(self, seconds: float) -> None:
        """Take note of how long it took to be connected to."""
        self._late = 0
        self._refused_since, self._is_refusal_told = None, False
        self._attempt = min(max(self._first_attempt, _GROWTH * seconds), self._longest_attempt)

    def refused(self, error: NotWelcomeError) -> None:
        """Tell once, until a server lets itself be connected to again, that they do not, if it is no short outage."""
        now = asyncio.get_running_loop().time()
        if self._refused_since is None:
            self._refused_since = now
        elif not self._is_refusal_told and now - self._refused_since > _SHORT_OUTAGE:
            self._is_refusal_told = True
            _log.warning("zookeeper: %s", error)


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
        on_agreed: Callable[[float, float], None] = lambda _timeout, _sent: None,
        on_connected: Callable[[str], None] = lambda _: None,
        on_disconnected: Callable[[str, str], None] = lambda _endpoint, _reason: None,
    ) -> None:
        """Make a session that has not begun.

        Args:
            reach: how servers are reached.
            timeout: seconds, as wanted.
            is_replaced: whether a lost session is followed by a new one, or that is the end.
            on_event: called with what its watches say.
            on_agreed: called with the timeout whenever a server has agreed to one, and when it was asked for; it may be
                another each time.
            on_connected: called with the endpoint of each connection.
            on_disconnected: called with the endpoint of each connection that has ended, and why.
        """
        self.timeout: float = timeout
        self.is_lost: bool = False
        self._wanted = timeout
        self._reach = reach
        self._is_replaced = is_replaced
        self._on_event = on_event
        self._on_agreed = on_agreed
        self._on_connected = on_connected
        self._on_disconnected = on_disconnected
        self._id = 0
        self._password = b""
        self._zxid = 0
        self._refused_since: float | None = None
        self._failures = 0
        self._outage: StoreError | None = None
        self._connection: Connection | None = None
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

    async def connect(self) -> None:
        """Wait until the session has begun.

        Raises:
            NotReachableError: no server let itself be connected to; each was tried.
            AccessDeniedError: the server refuses the user.
        """
        while True:
            try:
                await self.connection()
            except NotReachableError:
                if self._failures >= len(self._reach.endpoints):
                    raise
            else:
                return

    async def connection(self) -> Connection:
        """Return the connection, waiting for it a little.

        Raises:
            NotReachableError: there is none now; the reason is that of the last attempt.
            SessionLostError: there will be none.
            AccessDeniedError: the server refuses the user.
        """
        is_first = True
        while (connection := self.connection_now) is None:
            if self.is_lost:
                raise SessionLostError
            if self._outage is not None and (not is_first or isinstance(self._outage, AccessDeniedError)):
                raise _copy(self._outage)
            is_first = False
            waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.add(waiting)
            try:
                await asyncio.wait([waiting], timeout=None if self._outage is None else _PATIENCE)
            finally:
                self._waiting.discard(waiting)
        return connection

    async def reconnected(self) -> Connection:
        """Return the connection, waiting for it as long as it takes.

        Raises:
            SessionLostError: there will be none.
            AccessDeniedError: the server refuses the user.
        """
        while True:
            try:
                return await self.connection()
            except NotReachableError as error:
                _log.debug("zookeeper: a session is waited for: %s", error)

    async def close(self) -> None:
        """Have the server end the session, with its ephemeral nodes, and drop the connection.

        A session that the servers cannot be told about is waited for, also one that is just being asked for; cancelled,
        it is left to expire.
        """
        self._is_closing = True
        try:
            while self._keeper is not None and not self.is_lost:
                try:
                    await (await self.reconnected()).ask(close_session())
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
        self._reach.returning.discard(self)
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
            if not self._id and self._reach.returning:
                pause = _LONGEST_PAUSE
                continue
            connection = await self._try_to_connect()
            if connection is None:
                is_refused = isinstance(self._outage, NotWelcomeError) and not self._id
                pause = min(max(2 * pause, _FIRST_PAUSE), _PAUSE_AFTER_REFUSAL if is_refused else _LONGEST_PAUSE)
                continue
            began = asyncio.get_running_loop().time()
            try:
                reason = await asyncio.shield(connection.closed)
            finally:
                await connection.drop(NotReachableError("the session was closed"))
                self._on_disconnected(str(connection.endpoint), connection.closed.result().message)
            self._zxid = max(self._zxid, connection.zxid)
            self._reach.endpoints.failed(connection.endpoint)
            _log.debug("zookeeper: %s", reason)
            lived = asyncio.get_running_loop().time() - began
            pause = _FIRST_PAUSE if lived > _LONGEST_PAUSE else min(max(2 * pause, _FIRST_PAUSE), _LONGEST_PAUSE)
            self._note(reason)

    async def _try_to_connect(self) -> Connection | None:
        reach, clock = self._reach, asyncio.get_running_loop().time
        endpoint = reach.endpoints.current
        began, sent = clock(), lease_clock()
        try:
            connection = await self._connect_to(endpoint)
        except StoreError as error:
            _log.debug("zookeeper: %s did not connect: %s", endpoint, error)
            reach.endpoints.failed(endpoint)
            self._failures += 1
            if isinstance(error, NotWelcomeError):
                reach.refused(error)
                if self._refused_since is None:
                    self._refused_since = clock()
            if isinstance(error, NotWelcomeError) and self._id:
                reach.returning.add(self)
            else:
                reach.returning.discard(self)
            self._note(error)
            return None
        reach.came(clock() - began)
        reach.returning.discard(self)
        self._refused_since = None
        if not connection.welcome.session:
            await connection.drop(SessionLostError())
            self._expired()
            return None
        self._id, self._password = connection.welcome.session, connection.welcome.password
        self.timeout = connection.welcome.timeout
        self._connection, self._outage, self._failures = connection, None, 0
        self._on_agreed(self.timeout, sent)
        self._on_connected(str(endpoint))
        self._wake()
        return connection

    async def _connect_to(self, endpoint: Endpoint) -> Connection:
        """Connect to the first address of a server that lets itself be connected to.

        Raises:
            NotReachableError: none does; for the reason of the last one.
        """
        reach = self._reach
        addresses = await reach.resolver.addresses(endpoint, reach.attempt)
        share = reach.attempt / len(addresses)
        failure: StoreError = NotReachableError(endpoint=str(endpoint))
        for address in addresses:
            try:
                async with asyncio.timeout(share):
                    return await self._connect_to_address(endpoint, address)
            except TimeoutError as error:
                reach.came_late()
                failure = NotReachableError(f"no connection within {share:.3g} s", endpoint=str(endpoint))
                failure.__cause__ = error
            except StoreError as error:
                failure = error
            reach.resolver.failed(endpoint, address)
        raise failure

    async def _connect_to_address(self, endpoint: Endpoint, address: Address) -> Connection:
        """Connect, and have the server prove that most of the others follow the leader that it knows.

        A leader that was paused answers pings, syncs and reads when it continues, though others have elected another
        meanwhile. A new session is itself agreed on by most servers; to go on with an old one, a transaction is.
        """
        credentials = self._reach.credentials
        connection = await Connection.open(
            endpoint,
            address,
            hello(self._wanted, self._id, self._password, self._known_zxid()),
            tls=self._reach.tls.context(),
            credentials=None if isinstance(credentials, Sasl) else credentials,
            on_event=self._on_event,
        )
        if connection.welcome.session:
            try:
                if isinstance(credentials, Sasl):
                    await credentials.log_in(connection)
                if self._id:
                    await connection.agree()
            except BaseException:
                connection.abort(NotReachableError("the servers do not agree, or refuse the user"))
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

    def _note(self, outage: StoreError) -> None:
        """Have calls told why there is no connection."""
        self._outage = outage
        self._wake()

    def _wake(self) -> None:
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(None)


def _copy(error: StoreError) -> StoreError:
    """Return an error for one more caller."""
    one_more = copy(error).with_traceback(None)
    one_more.__cause__ = error.__cause__
    return one_more
