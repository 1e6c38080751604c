"""The few connections of a store: three for calls and one that listens, all to the server that takes writes.

A server that is paused or cut off keeps its connections open and says nothing. While a call waits for long, a new
connection is tried: when the server does not answer that either, it is given up, with all that waits for it. When it
does, it is asked whether it still works on the call: if not, and nothing arrives, the connection is dead, as those are
that a firewall has forgotten.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import asyncpg

from aiolibkv.backends.postgresql.failures import DAMAGED, OUTDATED, READ_ONLY, is_refusal, meaning, sqlstate
from aiolibkv.backends.postgresql.statements import Statement
from aiolibkv.config import Config
from aiolibkv.errors import NotReachableError, StoreClosedError, StoreError
from aiolibkv.store import Endpoint, Endpoints, Tasks
from aiolibkv.store.resolver import Address, Resolver
from aiolibkv.store.tls import Tls

T = TypeVar("T")

_FOR_CALLS = 3
"""Batches and sweeps take one, renewals one, so that reads have one whatever those wait for."""
_PATIENCE = 1.0
"""Seconds that a call may wait before the server is tried."""
_ANSWERING_TIME = 1.5
"""Seconds that a server may take to answer a new connection meanwhile."""
_SOON = 0.05
"""Seconds that a call waits for a connection that is in use before it has another one made."""
_SHARE = 0.9
"""Of connection_timeout, for all endpoints together."""
_CLOSING_TIME = 0.2
_SOCKET = ".s.PGSQL.5432"
"""Where only its directory is given, as libpq's host is."""

_TCP_INFO = 11
_RECEIVED = slice(128, 136)
"""Where Linux has the number of bytes that arrived in its struct tcp_info."""

_WORKING = Statement(
    "SELECT pid::bigint FROM pg_stat_activity WHERE pid = ANY ($1::integer[]) AND state IS DISTINCT FROM 'idle'", "i"
)
_HELLO = Statement(
    """SELECT pg_backend_pid()::bigint,
    (pg_is_in_recovery() OR current_setting('default_transaction_read_only') = 'on')::integer::bigint,
    current_setting('server_encoding'), current_setting('synchronous_standby_names'),
    current_setting('synchronous_commit'),
    CASE pg_backend_pid() WHEN $1 THEN set_config('default_transaction_isolation', 'read committed', false)
    ELSE current_setting('default_transaction_isolation') END""",
    "iitttt",
)
"""What a server is; in a session that is the store's own, transactions are what writes need."""


_FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""What asyncpg raises of a server or a connection; a TimeoutError is an OSError."""


class Server(NamedTuple):
    """What is known of a server.

    Attributes:
        endpoint: where it is.
        address: the same, looked up.
        is_pooled: whether somebody stands between who gives each transaction another connection.
        is_replicated: whether a commit waits for a standby.
        isolation: of transactions that do not say which.
    """

    endpoint: Endpoint
    address: Address
    is_pooled: bool
    is_replicated: bool
    isolation: str


class Link:
    """One connection to the server."""

    def __init__(self, connection: Any, dialer: _Dialer, server: Server, connections: Connections) -> None:
        self.connection = connection
        self.server = server
        self.pid: int = connection.get_server_pid()
        self._dialer = dialer
        self._connections = connections
        self._silent_at: int | None = None
        self._prepared: dict[Statement, Any] = {}
        self._numbers = count()

    @property
    def is_good(self) -> bool:
        """Tell whether it can be used again."""
        return not self.connection.is_closed()

    async def rows(self, statement: Statement, *arguments: object) -> Sequence[Any]:
        """Carry out a statement, in one round trip once it is prepared, and return its rows.

        Raises:
            StoreError: see ``meaning``; ``is_refusal`` of its cause tells whether the server did nothing.
        """
        self._silent_at = None
        waiting = _Waiting(lambda: self._connections.suspect(self))
        try:
            with self._failures_told():
                if self.server.is_pooled:
                    async with self._read_committed():
                        return await _copy(self.connection, statement, arguments)
                prepared = self._prepared.get(statement) or await self._prepare(statement)
                rows: Sequence[Any] = await prepared.fetch(*arguments)
                return rows
        finally:
            waiting.end()

    def is_dead(self, *, is_worked_for: bool) -> bool:
        """Tell whether nothing has arrived since this was asked before, and the server will send nothing."""
        received = self._dialer.received
        is_dead = not is_worked_for and self._silent_at == received
        self._silent_at = None if is_worked_for else received
        return is_dead

    async def prepare(self, statement: Statement) -> None:
        """Have the server ready for a statement; only on new links.

        Raises:
            StoreError: as for ``rows``.
        """
        if not self.server.is_pooled:
            with self._failures_told():
                await self._prepare(statement)

    async def _prepare(self, statement: Statement) -> Any:
        # Without a name the server would be sent the text, and make a plan, at each use.
        name = f"aiolibkv_{next(self._numbers)}"
        prepared = self._prepared[statement] = await self.connection.prepare(statement.text, name=name)
        return prepared

    async def listen(self, channel: str, notified: Callable[[str], None]) -> None:
        """Have something called with each notification, and with nothing when the connection ends.

        Raises:
            StoreError: as for ``rows``.
        """
        with self._failures_told():
            await self.connection.add_listener(channel, lambda _, __, ___, payload: notified(payload))
            self.connection.add_termination_listener(lambda _: notified(""))

    async def script(self, statements: str) -> None:
        """Carry out several statements as one transaction.

        Raises:
            StoreError: as for ``rows``.
        """
        with self._failures_told():
            await self.connection.execute(statements)

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[None]:
        """Have all statements of a block see the same instant."""
        with self._failures_told():
            async with self.connection.transaction(isolation="repeatable_read", readonly=True):
                yield

    @asynccontextmanager
    async def _read_committed(self) -> AsyncIterator[None]:
        """Have the statement of a block see what was committed before it got its locks."""
        if self.server.isolation == "read committed" or self.connection.is_in_transaction():
            yield
        else:
            async with self.connection.transaction(isolation="read_committed"):
                yield

    @contextmanager
    def _failures_told(self) -> Iterator[None]:
        """Have the errors of a block taken note of, and raise what they mean."""
        try:
            yield
        except StoreError:
            raise
        except _FAILURES as error:
            raise self._connections.failed(self, error) from error
        except AttributeError as error:
            # What asyncpg does next with a connection that was given up since the last answer fails as a bug would.
            if not self.connection.is_closed():
                raise
            raise self._connections.failed(self, ConnectionAbortedError("it was given up")) from error


async def _copy(connection: Any, statement: Statement, arguments: Sequence[object]) -> Sequence[Any]:
    """Carry out a statement without preparing it, in one round trip."""
    data = bytearray()

    async def take(piece: bytes) -> None:
        data.extend(piece)

    query = statement.with_arguments(arguments)
    await connection.copy_from_query(query, output=take, format="binary")
    return statement.rows(bytes(data))


class _Waiting:
    """The wait for an answer; something is called again and again until it ends."""

    def __init__(self, suspect: Callable[[], None]) -> None:
        self._suspect = suspect
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(_PATIENCE, self._is_long)

    def end(self) -> None:
        """Take note of the answer."""
        self._timer.cancel()

    def _is_long(self) -> None:
        self._timer = self._loop.call_later(_PATIENCE, self._is_long)
        self._suspect()


class _Dialer:
    """The event loop as asyncpg is to see it: whatever it connects to is an address that was looked up already."""

    def __init__(self, address: Address) -> None:
        self._loop = asyncio.get_running_loop()
        self._address = address
        self._socket: socket.socket | None = None

    @property
    def received(self) -> int:
        """How many bytes have arrived; always 0 where the system does not count."""
        try:
            assert self._socket is not None, "connected"
            info = self._socket.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _RECEIVED.stop)
        except OSError:
            return 0
        return int.from_bytes(info[_RECEIVED], sys.byteorder)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def create_future(self) -> asyncio.Future[Any]:
        """Make a future for a request; asyncpg awaits none whose request it finds that it cannot send."""
        future: asyncio.Future[Any] = self._loop.create_future()
        future.add_done_callback(_take_exception)
        return future

    async def create_connection(self, factory: Callable[[], asyncio.Protocol], *_: object) -> Any:
        """Connect to the address; the host that is given is only for TLS."""
        self._socket = connected = self._address.make_socket()
        try:
            await self._loop.sock_connect(connected, _target(self._address))
            return await self._loop.create_connection(factory, sock=connected)
        except BaseException:
            connected.close()
            raise

    create_unix_connection = create_connection


def _target(address: Address) -> Any:
    if address.family == socket.AF_UNIX and Path(address.sockaddr).is_dir():
        return str(Path(address.sockaddr, _SOCKET))
    return address.sockaddr


def _take_exception(future: asyncio.Future[Any]) -> None:
    """Keep the event loop from telling that nobody has asked for it."""
    if not future.cancelled():
        future.exception()


class Connections:
    """The connections of one store."""

    def __init__(
        self,
        config: Config,
        endpoints: Endpoints,
        database: str | None,
        begin: Callable[[Link], Awaitable[None]],
        missing: Callable[[], None],
        connected: Callable[[str], None],
        disconnected: Callable[[str, str], None],
    ) -> None:
        """Make it; no I/O.

        Args:
            config: settings.
            endpoints: the servers.
            database: its name; the user's when not given.
            begin: called with each new link.
            missing: told when the store's tables are lost or damaged, before the next link is begun.
            connected: told of the server that is used.
            disconnected: told of its end, and why.
        """
        self._config = config
        self._endpoints = endpoints
        self._database = database
        self._begin = begin
        self._missing = missing
        self._connected = connected
        self._disconnected = disconnected
        self._tls = Tls(config)
        self._resolver = Resolver()
        self._tasks = Tasks()
        self._places = asyncio.Semaphore(_FOR_CALLS)
        self._returned = asyncio.Event()
        self._lent = 0
        self._idle: list[Link] = []
        self._links: set[Link] = set()
        self._suspects: set[Link] = set()
        self._trying: asyncio.Task[None] | None = None
        self._is_connected = False
        self._is_closed = False

    @property
    def server(self) -> str:
        """The endpoint that is used."""
        return str(self._endpoints.current)

    async def open(self) -> Link:
        """Make a new connection, at one endpoint after the other.

        Raises:
            NotReachableError: none can be reached, or takes writes.
            AccessDeniedError: a server refuses the credentials, or its certificate is refused.
            StoreError: what cannot heal.
        """
        limit = self._config.connection_timeout * _SHARE / len(self._endpoints)
        for attempt in range(1, len(self._endpoints) + 1):
            endpoint = self._endpoints.current
            try:
                return await self._open_at(endpoint, limit)
            except NotReachableError as error:
                error.endpoint = error.endpoint or str(endpoint)
                self._endpoints.failed(endpoint)
                if attempt == len(self._endpoints):
                    raise
        raise NotReachableError

    async def run(self, work: Callable[[Link], Awaitable[T]]) -> T:
        """Do something with one of the connections for calls. It goes on to its end when the caller is cancelled."""

        async def borrow_and_work() -> T:
            async with self.borrow() as link:
                return await work(link)

        return await asyncio.shield(self._tasks.start(borrow_and_work()))

    @asynccontextmanager
    async def borrow(self) -> AsyncIterator[Link]:
        """Give one of the connections for calls to a task that is not cancelled while the store is open."""
        async with self._places:
            if not self._idle and self._lent:
                # One that is given back soon saves a connection.
                self._returned.clear()
                try:
                    async with asyncio.timeout(_SOON):
                        await self._returned.wait()
                except TimeoutError:
                    pass
            link = self._take_idle() or await self.open()
            self._lent += 1
            try:
                yield link
            finally:
                self._lent -= 1
                self._returned.set()
                if link.is_good and link in self._links:
                    self._idle.append(link)

    def _take_idle(self) -> Link | None:
        """Return a link that nobody uses; one that has ended meanwhile would leave a write in doubt."""
        while self._idle:
            link = self._idle.pop()
            if link.is_good:
                return link
            self._drop(link, NotReachableError("the server has ended the connection"))
        return None

    def suspect(self, link: Link) -> None:
        """Try a server, since an answer takes long."""
        self._suspects.add(link)
        if self._trying is None and not self._is_closed:
            self._trying = self._tasks.start(self._try(link.server))

    def failed(self, link: Link, error: BaseException) -> StoreError:
        """Take note of an error on a link, and return what it means."""
        if self._is_closed:
            return StoreClosedError()
        failure = meaning(error)
        if sqlstate(error) in DAMAGED:
            self._lose_tables(link, failure)
        elif sqlstate(error) == READ_ONLY:
            self._give_up(link.server.endpoint, failure)
        elif not is_refusal(error) or sqlstate(error) in OUTDATED:
            self._drop(link, failure)
        return failure

    def emptied(self, link: Link) -> NotReachableError:
        """Take note that the row of the state is not there, and return what that means."""
        failure = NotReachableError("the store's tables are empty, which they never are")
        self._lose_tables(link, failure)
        return failure

    def retire(self, link: Link) -> None:
        """End a link that is not needed any more."""
        if link in self._links and not self._is_closed:
            self._forget(link, "it is not needed any more")
            self._tasks.start(self._say_goodbye(link))

    def give(self, link: Link) -> None:
        """Keep a link for calls."""
        self._idle.append(link)

    async def close(self) -> None:
        """End all connections, in good order when the server answers at once."""
        self._is_closed = True
        self._resolver.close()
        idle, self._idle = self._idle, []
        for link in self._links - set(idle):
            link.connection.terminate()
        await asyncio.gather(*(self._say_goodbye(link) for link in idle))
        await self._tasks.close()
        for link in tuple(self._links):
            self._forget(link, "the store is closed")

    async def _say_goodbye(self, link: Link) -> None:
        try:
            async with asyncio.timeout(_CLOSING_TIME):
                await link.connection.close()
        except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
            link.connection.terminate()

    async def _open_at(self, endpoint: Endpoint, limit: float) -> Link:
        addresses = await self._resolver.addresses(endpoint, limit)
        for number, address in enumerate(addresses, 1):
            try:
                return await self._open_address(endpoint, address, limit / len(addresses))
            except NotReachableError:
                self._resolver.failed(endpoint, address)
                if number == len(addresses):
                    raise
        raise NotReachableError

    async def _open_address(self, endpoint: Endpoint, address: Address, limit: float) -> Link:
        connection: Any = None
        try:
            async with asyncio.timeout(limit):
                dialer = _Dialer(address)
                connection = await self._connect(endpoint, dialer)
                link = Link(connection, dialer, await self._greet(connection, endpoint, address), self)
                self._links.add(link)
                await self._begin(link)
        except BaseException as error:
            if connection is not None:
                connection.terminate()
                for link in [link for link in self._links if link.connection is connection]:
                    self._forget(link, str(error))
            if not isinstance(error, Exception):
                raise
            if self._is_closed:
                raise StoreClosedError from error
            # A certificate that is not accepted is a ValueError, too.
            if isinstance(error, StoreError | ValueError) and not isinstance(error, ssl.SSLError):
                raise
            raise meaning(error) from error
        if not self._is_connected:
            self._is_connected = True
            self._connected(str(endpoint))
        return link

    async def _connect(self, endpoint: Endpoint, dialer: _Dialer) -> Any:
        config = self._config
        return await asyncpg.connect(
            host=endpoint.host,
            port=endpoint.port,
            user=config.username,
            password=config.password,
            database=self._database,
            ssl=self._tls.context() or False,
            loop=dialer,
            timeout=config.connection_timeout,
            statement_cache_size=0,
            server_settings={"application_name": "aiolibkv"},
            # What is not given would be taken from the environment, whoever it was meant for.
            target_session_attrs="any",
            direct_tls=False,
            krbsrvname="postgres",
            gsslib="gssapi",
        )

    async def _greet(self, connection: Any, endpoint: Endpoint, address: Address) -> Server:
        own = connection.get_server_pid()
        ((pid, is_read_only, encoding, standbys, waits, isolation),) = await _copy(connection, _HELLO, (own,))
        if is_read_only:
            raise NotReachableError("the server takes no writes")
        if encoding != "UTF8":
            raise StoreError(f"the database's encoding is {encoding}; a store needs UTF8")
        if is_pooled := pid != own:
            async with connection.transaction():
                pass  # Not every pooler lets one begin.
        return Server(
            endpoint,
            address,
            is_pooled=is_pooled,
            is_replicated=bool(standbys) and waits != "local",
            isolation=isolation,
        )

    async def _try(self, server: Server) -> None:
        """Find out whether a server still answers, and works for those who wait for it."""
        suspects = [link for link in self._suspects & self._links if link.server == server]
        self._suspects.clear()
        try:
            async with asyncio.timeout(_ANSWERING_TIME):
                connection = await self._connect(server.endpoint, _Dialer(server.address))
                try:
                    rows = await _copy(connection, _WORKING, [[link.pid for link in suspects]])
                finally:
                    connection.terminate()
            working = {pid for (pid,) in rows}
            dead = [link for link in suspects if link.is_dead(is_worked_for=server.is_pooled or link.pid in working)]
            # Those that nobody uses have met the same fate, as far as one knows.
            for link in (*dead, *self._idle) if dead else ():
                self._drop(link, NotReachableError("the connection is dead, though the server answers"))
        except (asyncpg.PostgresError, ValueError):
            pass  # It did answer.
        except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError, StoreError):
            self._give_up(server.endpoint, NotReachableError("the server does not answer"))
        finally:
            self._trying = None

    def _give_up(self, endpoint: Endpoint, failure: StoreError) -> None:
        self._endpoints.failed(endpoint)
        for link in tuple(self._links):
            if link.server.endpoint == endpoint:
                self._drop(link, failure)

    def _lose_tables(self, link: Link, failure: StoreError) -> None:
        self._missing()
        self._drop(link, failure)

    def _drop(self, link: Link, failure: StoreError) -> None:
        if link not in self._links:
            return
        if link in self._idle:
            self._idle.remove(link)
        link.connection.terminate()
        self._forget(link, failure.message)

    def _forget(self, link: Link, reason: str) -> None:
        self._links.discard(link)
        if self._is_connected and not self._links:
            self._is_connected = False
            self._disconnected(str(link.server.endpoint), reason)
