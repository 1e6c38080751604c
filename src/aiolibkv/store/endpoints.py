"""The servers of a store, and which of them is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

_LARGEST_PORT = 65535


class Endpoint(NamedTuple):
    """Address of one server."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Endpoints:
    """The configured servers in their order; one is current until it is reported as failed."""

    def __init__(self, addresses: Sequence[str], default_port: int) -> None:
        """Read the addresses.

        Args:
            addresses: "host", "host:port" or "[ipv6]:port" each.
            default_port: for an address without one.

        Raises:
            ValueError: there is none, or one cannot be read.
        """
        self._all = tuple(dict.fromkeys(parse_endpoint(address, default_port) for address in addresses))
        if not self._all:
            raise ValueError("at least one endpoint, host:port, is needed")
        self.current = self._all[0]

    def __len__(self) -> int:
        return len(self._all)

    def failed(self, endpoint: Endpoint) -> None:
        """Move on from an endpoint, unless somebody did already."""
        if endpoint == self.current:
            self.current = self._all[(self._all.index(endpoint) + 1) % len(self._all)]


def parse_endpoint(address: str, default_port: int) -> Endpoint:
    """Read one address.

    Raises:
        ValueError: it names no host, or a port that cannot be. What stands for the port is not repeated: of a URL that
            was not encoded as it should be, that may be a password.
    """
    if "@" in address:
        raise ValueError("an endpoint is host:port; username and password are settings of their own")
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


def _is_host(name: str) -> bool:
    """Tell whether a name may be looked up, for which it is encoded by the rules for names of hosts."""
    if not name or not name.isprintable() or any(character in name for character in "/?#, "):
        return False
    try:
        name.encode("idna")
    except UnicodeError:
        return False
    return True
