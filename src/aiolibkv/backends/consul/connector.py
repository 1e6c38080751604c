"""Connections to Consul's servers, for aiohttp's pool."""

from __future__ import annotations

import asyncio
import math
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection as PooledConnection
from aiohttp.tracing import Trace
from yarl import URL

from aiolibkv.errors import NotReachableError
from aiolibkv.store import Endpoint
from aiolibkv.store.resolver import Address, Resolver
from aiolibkv.store.tls import Tls

_SHARE_OF_ONE_OF_SEVERAL = 0.2
"""Of connection_timeout, what connecting to one of several servers may take at first."""

_NO_TIMEOUT = aiohttp.ClientTimeout(total=None)
_LONGEST_IDLE = 1.0
"""Seconds after which a connection that was not used is not used for a write. Servers and proxies close idle ones, some
after two seconds, and a write that is on its way just then is in doubt; a read is made again."""


class UnconnectedError(Exception):
    """There is no connection; no OSError, of which aiohttp would make another one.

    Attributes:
        reason: the error that it stands for.
    """

    def __init__(self, reason: NotReachableError) -> None:
        super().__init__(reason.message)
        self.reason = reason


@dataclass(slots=True)
class Attempt:
    """One sending of a request.

    Attributes:
        endpoint: the server that it is sent to.
        on_sending: called when a connection was found and the request may leave.
        sent: whether that happened.
    """

    endpoint: Endpoint
    on_sending: Callable[[], None] | None
    sent: bool = False


class _Handler(ResponseHandler):
    """A connection that knows when it was used.

    Attributes:
        heard: when something last came; None before that.
    """

    heard: float | None = None
    _is_abandoned = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, unless nobody waits for it any more."""
        super().connection_made(transport)
        if self._is_abandoned:
            self.abandon()

    def abandon(self) -> None:
        """End it now, or as soon as it begins."""
        self._is_abandoned = True
        if self.transport is not None:
            self.transport.abort()

    def has_unread(self) -> bool:
        """Tell whether something has come that the event loop has not taken yet, such as the connection's end."""
        assert self.transport is not None, "connected"
        poll = select.poll()
        poll.register(self.transport.get_extra_info("socket"), select.POLLIN)
        return bool(poll.poll(0))

    def data_received(self, data: bytes) -> None:
        """Take what has come."""
        self.heard = self._loop.time()
        super().data_received(data)


class Request(aiohttp.ClientRequest):
    """A request without what aiohttp adds by itself, which takes longer to leave out than to send.

    Consul compresses for those who accept it, which makes reads of 100 KB nearly three times slower.

    Attributes:
        attempt: what it is sent for.
    """

    def __init__(self, method: str, url: URL, headers: dict[str, str], body: bytes | None, attempt: Attempt) -> None:
        super().__init__(method, url, headers=headers, data=body, loop=asyncio.get_running_loop())
        self.attempt = attempt

    def update_auto_headers(self, skip_auto_headers: object) -> None:
        """Add nothing."""


class Connector(aiohttp.BaseConnector):
    """Connects over TCP, with TLS or without, or through Unix sockets.

    Every address of a server is tried; certificates are read for each new connection. Nobody ever waits for a place in
    the pool.
    """

    def __init__(self, resolver: Resolver, tls: Tls, timeout: float, *, has_alternatives: bool) -> None:
        """Make an empty pool.

        Args:
            resolver: looks up where servers are.
            tls: what connections are encrypted with.
            timeout: seconds that connecting to a server may take at most.
            has_alternatives: whether there are several servers. Then less than that is waited for one that takes long,
                and more the next time, up to all of it.
        """
        super().__init__(limit=0)
        self._resolver = resolver
        self._tls = tls
        self._timeout = timeout
        self._first_patience = timeout * _SHARE_OF_ONE_OF_SEVERAL if has_alternatives else timeout
        self._patience: dict[Endpoint, float] = {}
        self._broke = -math.inf

    async def send(self, request: Request, patience: float | None) -> aiohttp.ClientResponse:
        """Send a request, once, over a connection of the pool or a new one, and wait for the head of its answer.

        A ClientSession would do the same and much besides: redirects, cookies, traces, and to send a request again when
        its connection breaks. To have that left out takes a third of the time of a call.

        Args:
            request: its attempt is told.
            patience: seconds without anything from the server that are waited; None for ever.
        """
        attempt = request.attempt
        connection = await self.connect(request, [], _NO_TIMEOUT)
        while not self._is_good(connection, is_for_write=attempt.on_sending is not None):
            connection.close()
            connection = await self.connect(request, [], _NO_TIMEOUT)
        attempt.sent = True
        if attempt.on_sending is not None:
            attempt.on_sending()
        response = None
        try:
            assert connection.protocol is not None, "connected"
            connection.protocol.set_response_params(read_until_eof=True, read_timeout=patience)
            response = await request.send(connection)
            return await response.start(connection)
        except BaseException:
            if response is not None:
                response.close()
            connection.close()
            raise

    def broke(self) -> None:
        """Take note that a connection was found broken: those that are idle now may be as well, and are not used."""
        self._broke = self._loop.time()

    def _is_good(self, connection: PooledConnection, *, is_for_write: bool) -> bool:
        handler = connection.protocol
        assert isinstance(handler, _Handler), "made here"
        if handler.should_close:
            # Something came unasked, such as that the server has waited for too long. It would be taken for the answer.
            return False
        if handler.heard is None:
            return True
        longest_idle = _LONGEST_IDLE if is_for_write else math.inf
        if handler.heard <= max(self._broke, self._loop.time() - longest_idle):
            return False
        return not (is_for_write and handler.has_unread())

    async def _create_connection(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's
    ) -> ResponseHandler:
        """Connect; what BaseConnector asks its subclasses for.

        Raises:
            UnconnectedError: it was not possible in time.
            ValueError: a certificate cannot be read, and none ever could.
        """
        assert isinstance(req, Request), "made by send"
        endpoint = req.attempt.endpoint
        patience = self._patience.get(endpoint, self._first_patience)
        clock = self._loop.time
        deadline = clock() + patience
        try:
            addresses = await self._resolver.addresses(endpoint, patience)
        except NotReachableError as error:
            raise UnconnectedError(error) from error.__cause__
        for number, address in enumerate(addresses):
            share = (deadline - clock()) / (len(addresses) - number)
            try:
                async with asyncio.timeout(share):
                    return await self._connect_to(address, endpoint)
            except TimeoutError as error:
                reason: OSError = TimeoutError(f"no connection within {share:.3g} s") if not error.args else error
                self._patience[endpoint] = min(patience * 2, self._timeout)
            except OSError as error:
                reason = error
            self._resolver.failed(endpoint, address)
        raise UnconnectedError(NotReachableError(f"the connection failed: {reason}")) from reason

    async def _connect_to(self, address: Address, endpoint: Endpoint) -> ResponseHandler:
        context = self._tls.context()
        connected = socket.socket(address.family, socket.SOCK_STREAM)
        try:
            connected.setblocking(False)
            await self._loop.sock_connect(connected, address.sockaddr)
        except BaseException:
            connected.close()
            raise
        handler = _Handler(self._loop)
        try:
            await self._loop.create_connection(
                lambda: handler,
                sock=connected,
                ssl=context,
                server_hostname=None if context is None else "localhost" if endpoint.is_unix else endpoint.host,
                ssl_handshake_timeout=None if context is None else self._timeout,
            )
        except BaseException:
            # The socket is its transport's, which may still have to tell the other side. Closed here, its number might
            # be that of another one before the event loop knows.
            handler.abandon()
            raise
        return handler
