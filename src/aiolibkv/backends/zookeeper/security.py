"""Who the client is, and who may use what it creates."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any

from aiolibkv.backends.zookeeper.operations import CREATOR, WORLD
from aiolibkv.config import Config

_ACLS = {"world": WORLD, "creator": CREATOR}


def ssl_context(config: Config) -> ssl.SSLContext | None:
    """Return what TLS needs, None for plain TCP.

    Raises:
        ValueError: a file cannot be read or used; names the field and the file.
    """
    if isinstance(config.tls, ssl.SSLContext):
        context = config.tls
    elif config.tls:
        context = ssl.create_default_context()
    else:
        return None
    if config.ca_file is not None:
        _check_readable("ca_file", config.ca_file)
        try:
            context.load_verify_locations(cafile=config.ca_file)
        except (OSError, ValueError) as error:
            raise ValueError(f"ca_file {str(config.ca_file)!r} cannot be used: {error}") from error
    if config.cert_file is not None and config.key_file is not None:
        _check_readable("cert_file", config.cert_file)
        _check_readable("key_file", config.key_file)
        try:
            # Without a password here, an encrypted key would have the terminal asked for one.
            context.load_cert_chain(config.cert_file, config.key_file, password=lambda: b"")
        except (OSError, ValueError) as error:
            files = f"cert_file {str(config.cert_file)!r} and key_file {str(config.key_file)!r}"
            raise ValueError(f"{files} cannot be used: {error}") from error
    return context


def _check_readable(field: str, file: str | Path) -> None:
    try:
        with Path(file).open("rb") as opened:
            opened.read(1)
    except OSError as error:
        raise ValueError(f"{field} {str(file)!r} cannot be read: {error.strerror}") from error


def credentials(config: Config) -> bytes | None:
    """Return what the server makes an identity of, None for nobody.

    Raises:
        ValueError: half of it is missing, or the user's name cannot be one.
    """
    if (config.username is None) != (config.password is None):
        raise ValueError("zookeeper: username and password go together")
    if config.username is None:
        return None
    if not config.username or ":" in config.username:
        raise ValueError("zookeeper: a username is not empty and has no colon")
    return f"{config.username}:{config.password}".encode()


def acl(config: Config) -> Any:
    """Return who may use the nodes that are created.

    Raises:
        ValueError: the option is not known, or there is nobody whom "creator" would mean.
    """
    name = config.options.get("acl", "world")
    if name not in _ACLS:
        raise ValueError(f"zookeeper: option acl is 'world' or 'creator', not {name!r}")
    if name == "creator" and config.username is None and not config.tls:
        raise ValueError("zookeeper: acl=creator needs a username, or TLS with a client's certificate")
    return _ACLS[name]
