"""Who the client is, and who may use what it creates."""

from __future__ import annotations

import logging
from base64 import b64encode
from collections.abc import Sequence
from hashlib import blake2b, sha1

from aiolibkv.backends.zookeeper.connection import Connection
from aiolibkv.backends.zookeeper.failures import NodeExistsError, NoNodeError, TransactionRefusedError
from aiolibkv.backends.zookeeper.operations import (
    ALL_PERMISSIONS,
    CREATOR,
    PERMISSIONS,
    WORLD,
    Permission,
    encode_acl,
    get_acl,
    transaction,
)
from aiolibkv.backends.zookeeper.sasl import Sasl
from aiolibkv.backends.zookeeper.tree import ancestors, make_parent, make_parents, read_place, znode
from aiolibkv.config import Config
from aiolibkv.errors import AccessDeniedError, StoreError
from aiolibkv.keys import RESERVED

_ACLS = {"world": WORLD, "creator": CREATOR}
_KNOWN_TO_ALL = encode_acl(
    [Permission(ALL_PERMISSIONS, "auth", ""), Permission(PERMISSIONS["r"], "world", "anyone")],
)

_log = logging.getLogger("aiolibkv")


def credentials(config: Config) -> bytes | Sasl | None:
    """Return what the server makes an identity of, None for nobody.

    Raises:
        ValueError: half of it is missing, the user's name cannot be one, or there is no such way to log in.
    """
    way = config.options.get("auth", "digest")
    if way not in {"digest", "sasl"}:
        raise ValueError(f"zookeeper: option auth is 'digest' or 'sasl', not {way!r}")
    if (config.username is None) != (config.password is None):
        raise ValueError("zookeeper: username and password go together")
    if config.username is None:
        if way == "sasl":
            raise ValueError("zookeeper: auth=sasl needs a username and password")
        return None
    if way == "sasl":
        return Sasl(config.username, config.password or "")
    if not config.username or ":" in config.username:
        raise ValueError("zookeeper: a username is not empty and has no colon")
    return f"{config.username}:{config.password}".encode()


def acl(config: Config) -> bytes:
    """Return who may use the nodes that are created.

    Raises:
        ValueError: the option cannot be read, or there is nobody whom "creator" would mean.
    """
    wanted = config.options.get("acl", "world" if config.username is None else "creator")
    if wanted == "creator" and config.username is None and not config.tls:
        raise ValueError("zookeeper: acl=creator needs a username, or TLS with a client's certificate")
    if isinstance(wanted, str) and wanted in _ACLS:
        return _ACLS[wanted]
    entries = wanted.split(",") if isinstance(wanted, str) else wanted
    if not isinstance(entries, Sequence) or not entries:
        raise _unreadable(wanted)
    return encode_acl([_permission(entry) for entry in entries])


def _permission(entry: object) -> Permission:
    """Read one entry as zkCli spells it: scheme:identity:letters."""
    scheme, _, rest = entry.partition(":") if isinstance(entry, str) else ("", "", "")
    identity, colon, letters = rest.rpartition(":")
    if not scheme or not colon or not letters or any(letter not in PERMISSIONS for letter in letters):
        raise _unreadable(entry)
    return Permission(sum(PERMISSIONS[letter] for letter in set(letters)), scheme, identity)


def _unreadable(wanted: object) -> ValueError:
    return ValueError(
        "zookeeper: option acl is 'world', 'creator', or entries scheme:identity:permissions as zkCli has them, "
        f"such as 'auth::cdrwa,world:anyone:r', not {wanted!r}"
    )


class User:
    """A user of the digest scheme, whom the server takes with any password.

    With a wrong one he is somebody else, whom nothing belongs to.

    So a node that everybody may read says who the user is, as soon as he has created something of his own.
    """

    def __init__(self, name: str, password: str, *, prefix: str, hidden: str) -> None:
        """Keep who it is.

        Args:
            name: of the user.
            password: of the user.
            prefix: of the store.
            hidden: where the library keeps what is its own, with a slash at the end.
        """
        self._name = name
        # The server knows a user of the digest scheme by this.
        secret = sha1(f"{name}:{password}".encode(), usedforsecurity=False).digest()
        self._identity = f"{name}:{b64encode(secret).decode()}"
        mark = f"users/{blake2b(name.encode(), digest_size=16).hexdigest()}"
        self._mark = hidden + mark
        self._directories = [prefix, *ancestors(prefix)] if prefix else []
        above = [*self._directories[1:], ""] if prefix else []
        self._others = [f"{directory}/{RESERVED}/{mark}".lstrip("/") for directory in above]
        self._is_marked = False

    async def check(self, connection: Connection) -> None:
        """Find out whether the password is the one that the user had before.

        Raises:
            AccessDeniedError: it is another.
            NotReachableError: the connection ended.
        """
        paths = [self._mark, *self._others, *self._directories]
        found = (await connection.ask_all([get_acl(znode(path)) for path in paths])).values
        for permissions in found:
            if not isinstance(permissions, StoreError):
                known = [each for scheme, each in permissions if scheme == "digest"]
                if self._identity not in known and any(each.startswith(f"{self._name}:") for each in known):
                    raise AccessDeniedError(f"the user {self._name!r} has another password")
        self._is_marked = not isinstance(found[0], NoNodeError)

    def wants_mark(self) -> bool:
        """Tell, once, whether nothing says yet who the user is."""
        wants, self._is_marked = not self._is_marked, True
        return wants

    async def leave_mark(self, connection: Connection) -> None:
        """Leave the node that says who the user is."""
        try:
            while True:
                place = await read_place(connection, self._mark)
                if place.node is not None:
                    return
                parents = [*make_parents(place, CREATOR), make_parent(self._mark, _KNOWN_TO_ALL)]
                try:
                    await connection.ask(transaction([step for parent in parents for step in parent]))
                except TransactionRefusedError as error:
                    if not isinstance(error.reason, NoNodeError | NodeExistsError):
                        raise
        except StoreError as error:
            _log.debug("zookeeper: nothing says who the user is: %s", error)
