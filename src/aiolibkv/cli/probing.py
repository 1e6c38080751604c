"""The way to the servers that a URL names: are they known, does anybody listen there, do they speak TLS."""

from __future__ import annotations

import asyncio
import socket
import ssl
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import parse_qsl, urlsplit

from aiolibkv.cli.text import hosts

_PATIENCE = 2.0
_PORTS = {"etcd": 2379, "consul": 8500, "zookeeper": 2181, "zk": 2181, "postgresql": 5432, "postgres": 5432}
_NEGOTIATES_TLS = ("postgresql", "postgres")
"""Backends that begin without TLS and agree on it then."""
_TRUE = ("true", "1", "yes")


@dataclass(frozen=True)
class Server:
    """A server that a URL names.

    Attributes:
        backend: its kind.
        host: its name or address.
        port: its port.
        options: parameters of the URL.
    """

    backend: str
    host: str
    port: int
    options: dict[str, str] = field(repr=False)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_secure(self) -> bool:
        """Tell whether it is spoken to over TLS."""
        return self.options.get("tls", "").lower() in _TRUE

    def context(self) -> ssl.SSLContext | None:
        """Return what it is spoken to with, None without TLS.

        Raises:
            OSError: a certificate cannot be used.
        """
        if not self.is_secure:
            return None
        context = ssl.create_default_context(cafile=self.options.get("ca_file"))
        if "cert_file" in self.options:
            context.load_cert_chain(self.options["cert_file"], self.options.get("key_file"), password=lambda: b"")
        return context


@dataclass(frozen=True)
class Finding:
    """What was found on the way to a server.

    Attributes:
        detail: what it is.
        advice: what to do about it; empty when all is well.
    """

    detail: str
    advice: str = ""


def servers_of(url: str) -> list[Server]:
    """Return the servers that a URL names; none for an embedded store."""
    backend = url.partition("://")[0].lower()
    if backend not in _PORTS:
        return []
    options = dict(parse_qsl(urlsplit(url).query))
    found = []
    for each in hosts(url).split(","):
        parts = urlsplit(f"//{each}")
        if parts.hostname and "%" not in parts.hostname:  # else it is a Unix socket
            found.append(Server(backend, parts.hostname, parts.port or _PORTS[backend], options))
    return found


async def examine(server: Server) -> Finding:
    """Look a server up and connect to it, with TLS where that is wanted."""
    try:
        await asyncio.get_running_loop().getaddrinfo(server.host, server.port, type=socket.SOCK_STREAM)
    except OSError as error:
        return Finding(f"the name is not known: {error.strerror}", "is it spelled right, and does the DNS know it?")
    negotiates = server.backend in _NEGOTIATES_TLS
    try:
        async with asyncio.timeout(_PATIENCE):
            context = None if negotiates else server.context()
            _, writer = await asyncio.open_connection(server.host, server.port, ssl=context)
    except TimeoutError:
        return Finding(
            f"no answer within {_PATIENCE:g} s", "is the address right, and is there no firewall on the way?"
        )
    except ConnectionRefusedError:
        return Finding("nobody listens there", "is the server running, and on this port?")
    except ssl.SSLCertVerificationError as error:
        return Finding(
            f"its certificate is not trusted: {error.verify_message}",
            "is its authority in ca_file, and is the host's name in the certificate?",
        )
    except (ssl.SSLError, ConnectionResetError) as error:
        if not server.is_secure:
            return Finding("the connection broke", "what listens there?")
        return Finding(
            f"the TLS handshake failed: {getattr(error, 'reason', None) or 'the connection broke'}",
            "does it speak TLS on this port (tls=false if not), and does it want cert_file and key_file?",
        )
    except OSError as error:
        return Finding(f"it cannot be connected to: {error.strerror}", "are host, port and the files right?")
    secure = writer.get_extra_info("ssl_object")
    writer.close()
    if secure is None:
        return Finding("listens")
    ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(secure.getpeercert()["notAfter"]), UTC)
    return Finding(f"listens, {secure.version()}, certificate until {ends:%Y-%m-%d}")


async def speaks_tls(server: Server) -> bool:
    """Tell whether a server, that is spoken to without TLS, speaks it."""
    if server.is_secure or server.backend in _NEGOTIATES_TLS:
        return False
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is told to it
    try:
        async with asyncio.timeout(_PATIENCE):
            _, writer = await asyncio.open_connection(server.host, server.port, ssl=context)
    except OSError:
        return False
    writer.close()
    return True
