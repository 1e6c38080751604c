"""Connections to Consul's servers, for aiohttp's pool."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.connector import Connection as PooledConnection
from aiohttp.tracing import Trace

from aiolibkv.errors import NotReachableError
from aiolibkv.store import Endpoint
from aiolibkv.store.resolver import Address, Resolver
from aiolibkv.store.tls import Tls

_SHARE_OF_ONE_OF_SEVERAL = 0.2
"""Of connection_timeout, what connecting to one of several servers may take at first."""


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


attempt_under_way: ContextVar[Attempt] = ContextVar("attempt_under_way")
"""What a connection is looked for."""


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

    async def connect(
        self,
        req: aiohttp.ClientRequest,
        traces: list[Trace],
        timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109 - aiohttp's
    ) -> PooledConnection:
        """Take a connection from the pool, or make one, and tell the attempt."""
        connection = await super().connect(req, traces, timeout)
        attempt = attempt_under_way.get()
        attempt.sent = True
        if attempt.on_sending is not None:
            attempt.on_sending()
        return connection

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
        endpoint = attempt_under_way.get().endpoint
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
            _, protocol = await self._loop.create_connection(
                self._factory,
                sock=connected,
                ssl=context,
                server_hostname=None if context is None else "localhost" if endpoint.is_unix else endpoint.host,
            )
        except BaseException:
            connected.close()
            raise
        return protocol
