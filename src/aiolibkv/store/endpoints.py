"""The servers of a store, and which of them is used."""

from __future__ import annotations

import random
from collections.abc import Callable, MutableSequence, Sequence
from ipaddress import IPv6Address
from typing import NamedTuple

_LARGEST_PORT = 65535
_UNIX = "unix:"

shuffle: Callable[[MutableSequence[Endpoint]], None] = random.shuffle
"""Orders the endpoints of a store; tests that need an order of their own replace it."""


class Endpoint(NamedTuple):
    """Address of one server.

    Attributes:
        host: its name or IP address, or the path of a Unix socket.
        port: 0 for a Unix socket.
    """

    host: str
    port: int

    @property
    def is_unix(self) -> bool:
        """Whether it is a Unix socket."""
        return self.port == 0

    def __str__(self) -> str:
        if self.is_unix:
            return f"{_UNIX}{self.host}"
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Endpoints:
    """The configured servers in random order; one is current until it is reported as failed."""

    def __init__(self, addresses: Sequence[str], default_port: int, *, unix: bool = False) -> None:
        """Read the addresses.

        Args:
            addresses: "host", "host:port" or "[ipv6]:port" each, or "unix:/path/of/socket".
            default_port: for an address without one.
            unix: whether the backend can use Unix sockets.

        Raises:
            ValueError: there is none, or one cannot be read.
        """
        found = list(dict.fromkeys(parse_endpoint(address, default_port, unix=unix) for address in addresses))
        if not found:
            raise ValueError(f"at least one endpoint, such as localhost:{default_port}, is needed")
        shuffle(found)
        self._all = tuple(found)
        self.current: Endpoint = self._all[0]

    def __len__(self) -> int:
        return len(self._all)

    def failed(self, endpoint: Endpoint) -> None:
        """Move on from an endpoint, unless somebody did already."""
        if endpoint == self.current:
            self.current = self._all[(self._all.index(endpoint) + 1) % len(self._all)]


def parse_endpoint(address: str, default_port: int, *, unix: bool = False) -> Endpoint:
    """Read one address.

    Raises:
        ValueError: it has no valid host or port; the message says what to write instead. It does not repeat the port,
            which may be a part of a password in a URL that is not encoded.
    """
    if "@" in address:
        raise ValueError("an endpoint is host:port; username and password are settings of their own")
    if address.startswith(_UNIX):
        return _unix_endpoint(address, default_port, allowed=unix)
    scheme, is_url, rest = address.partition("://")
    if is_url:
        _refuse_url(scheme, rest, default_port)
    if _is_ipv6(address):
        raise ValueError(f"an endpoint is host:port; an IPv6 address stands in brackets: [{address}]:{default_port}")
    if address.startswith("["):
        host, _, port = address[1:].partition("]")
        port = port.removeprefix(":")
    else:
        host, _, port = address.partition(":")
    if not _is_host(host):
        raise ValueError(f"an endpoint is host:port, and no host is called {host!r}")
    number = int(port) if port.isdecimal() else 0 if port else default_port
    if not 0 < number <= _LARGEST_PORT:
        raise ValueError(
            f"an endpoint is host:port, and the port of {host!r} is not a number from 1 to {_LARGEST_PORT}"
        )
    return Endpoint(host, number)


def _unix_endpoint(address: str, default_port: int, *, allowed: bool) -> Endpoint:
    path = address.removeprefix(_UNIX)
    if not allowed:
        raise ValueError(f"an endpoint of this backend is host:port, such as localhost:{default_port}, no Unix socket")
    if not path.startswith("/") or "\0" in path:
        raise ValueError("the endpoint of a Unix socket is unix:/path/of/socket, in a URL unix:%2Fpath%2Fof%2Fsocket")
    return Endpoint(f"/{path.lstrip('/')}", 0)


def _refuse_url(scheme: str, rest: str, default_port: int) -> None:
    host, colon, port = rest.partition("/")[0].partition(":")
    if not _is_host(host):
        host, colon, port = "localhost", "", ""
    port = port if colon and port.isdecimal() else str(default_port)
    secure = ", and the setting tls=True" if scheme.lower() == "https" else ""
    raise ValueError(f"an endpoint is host:port, no URL: {host}:{port}{secure}")


def _is_ipv6(text: str) -> bool:
    try:
        IPv6Address(text)
    except ValueError:
        return False
    return True


def _is_host(name: str) -> bool:
    """Tell whether a name may be looked up, for which it is encoded by the rules for names of hosts."""
    if not name or not name.isprintable() or any(character in name for character in "/?#, "):
        return False
    try:
        name.encode("idna")
    except UnicodeError:
        return False
    return True
