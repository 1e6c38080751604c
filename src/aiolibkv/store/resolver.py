"""Looking up the names of servers, without the event loop's executor."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from ipaddress import IPv6Address, ip_address
from threading import Thread
from typing import Any, NamedTuple

from aiolibkv.errors import NotReachableError, StoreClosedError
from aiolibkv.store.endpoints import Endpoint

_SHARE_WHEN_KNOWN = 0.25
"""Of the time for a connection, what a look-up may take when older addresses are at hand."""

_log = logging.getLogger("aiolibkv")


class Address(NamedTuple):
    """Where a socket is connected to.

    Attributes:
        family: of the socket, such as ``socket.AF_INET6``.
        sockaddr: what ``sock_connect`` takes.
    """

    family: int
    sockaddr: Any

    @property
    def host(self) -> str:
        """The IP address, or the path of a Unix socket."""
        return str(self.sockaddr if isinstance(self.sockaddr, str) else self.sockaddr[0])

    def make_socket(self) -> socket.socket:
        """Return a socket that is not connected yet, does not block, and sends what is small at once."""
        made = socket.socket(self.family, socket.SOCK_STREAM)
        try:
            made.setblocking(False)
            if self.family != socket.AF_UNIX:
                made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            made.close()
            raise
        return made


@dataclass
class _Host:
    """What is known of a name of a server.

    Attributes:
        looking_up: the look-up under way; it gives addresses or why there are none.
        addresses: those of the last look-up that succeeded.
        failed: when each of them failed last, in a count of failures.
        is_stalled: whether the look-up under way was waited for in vain already.
    """

    looking_up: asyncio.Future[Sequence[Address] | Exception] | None = None
    addresses: Sequence[Address] = ()
    failed: dict[Address, int] = field(default_factory=dict)
    is_stalled: bool = False


class Resolver:
    """The look-ups of one store.

    Each call looks the name up, in a thread that ends with the answer; calls for the same name meanwhile share it. A
    look-up that stalls delays no other name, nor close, nor the end of the process: the thread is a daemon.
    """

    def __init__(self) -> None:
        self._hosts: dict[Endpoint, _Host] = {}
        self._failures = 0

    async def addresses(self, endpoint: Endpoint, limit: float) -> Sequence[Address]:
        """Look up the addresses of a server; each should be tried, and those that failed last come last.

        While the look-up fails or takes long, the addresses of the last one that succeeded are given. A literal IP
        address and a Unix socket need no look-up.

        Args:
            endpoint: the server.
            limit: seconds that connecting may take; a quarter of it is for a look-up when there are older addresses.

        Raises:
            NotReachableError: there are no addresses.
            StoreClosedError: this was closed meanwhile.
        """
        if (literal := _literal(endpoint)) is not None:
            return (literal,)
        name = self._hosts.setdefault(endpoint, _Host())
        answer = name.looking_up or self._look_up(endpoint, name)
        patience = limit
        if name.addresses:
            patience = 0.0 if name.is_stalled else limit * _SHARE_WHEN_KNOWN
        await asyncio.wait([answer], timeout=patience)
        if answer.done():
            found = answer.result()
        else:
            name.is_stalled = True
            found = TimeoutError(f"no answer within {patience:.3g} s")
        if isinstance(found, StoreClosedError):
            raise StoreClosedError
        if isinstance(found, Exception):
            if not name.addresses:
                reason = f"{endpoint.host} could not be looked up: {found}"
                raise NotReachableError(reason, endpoint=str(endpoint)) from found
            _log.debug("%s could not be looked up, older addresses are used: %s", endpoint.host, found)
        return sorted(name.addresses, key=lambda address: name.failed.get(address, 0))

    def failed(self, endpoint: Endpoint, address: Address) -> None:
        """Note that an address failed, so that it comes after the others."""
        if (name := self._hosts.get(endpoint)) is not None and address in name.addresses:
            self._failures += 1
            name.failed[address] = self._failures

    def close(self) -> None:
        """End all waiting for look-ups. Later calls look up again, as in a store that is entered once more."""
        for name in self._hosts.values():
            if name.looking_up is not None:
                name.looking_up.set_result(StoreClosedError())
                name.looking_up = None

    def _look_up(self, endpoint: Endpoint, name: _Host) -> asyncio.Future[Sequence[Address] | Exception]:
        loop = asyncio.get_running_loop()
        answer = name.looking_up = loop.create_future()
        answered = partial(self._answered, name, answer)
        try:
            Thread(target=_resolve, args=(endpoint, loop, answered), name="aiolibkv-resolver", daemon=True).start()
        except RuntimeError as error:  # the system gives no more threads
            answered(error)
        return answer

    def _answered(
        self,
        name: _Host,
        answer: asyncio.Future[Sequence[Address] | Exception],
        found: Sequence[Address] | Exception,
    ) -> None:
        if name.looking_up is not answer:
            return  # closed meanwhile
        name.looking_up, name.is_stalled = None, False
        if not isinstance(found, Exception):
            name.addresses = found
            name.failed = {address: count for address, count in name.failed.items() if address in found}
        answer.set_result(found)


def _literal(endpoint: Endpoint) -> Address | None:
    if endpoint.is_unix:
        return Address(socket.AF_UNIX, endpoint.host)
    try:
        ip = ip_address(endpoint.host)
        if not isinstance(ip, IPv6Address):
            return Address(socket.AF_INET, (str(ip), endpoint.port))
        scope = ip.scope_id
        number = 0 if scope is None else int(scope) if scope.isdecimal() else socket.if_nametoindex(scope)
        return Address(socket.AF_INET6, (str(ip).partition("%")[0], endpoint.port, 0, number))
    except (ValueError, OSError):
        return None


def _resolve(endpoint: Endpoint, loop: asyncio.AbstractEventLoop, answered: partial[None]) -> None:
    found: Sequence[Address] | Exception
    try:
        # Whatever it raises is the answer: an encoding error of a name as well.
        answers = socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
        found = tuple(dict.fromkeys(Address(family, sockaddr) for family, _, _, _, sockaddr in answers))
        if not found:
            found = OSError("it has no address")
    except Exception as error:  # noqa: BLE001 - handed over to whoever waits
        found = error
    try:
        loop.call_soon_threadsafe(answered, found)
    except RuntimeError:
        pass  # the event loop is closed: nobody waits
