"""Who the client is, and who may use what it creates."""

from __future__ import annotations

from typing import Any

from aiolibkv.backends.zookeeper.operations import CREATOR, WORLD
from aiolibkv.config import Config

_ACLS = {"world": WORLD, "creator": CREATOR}


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
