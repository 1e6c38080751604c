"""How a store is reached and what it may take."""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ssl import SSLContext
from typing import TYPE_CHECKING, Any

from aiolibkv.keys import normalize_directory

if TYPE_CHECKING:
    from aiolibkv.events import Event

Token = str | Callable[[], str | Awaitable[str]]
File = str | os.PathLike[str]

_FILE = (str | os.PathLike | None, "a path")
_KINDS: Mapping[str, tuple[Any, str]] = {
    "tls": (bool | SSLContext, "True, False or an SSLContext"),
    "ca_file": _FILE,
    "cert_file": _FILE,
    "key_file": _FILE,
    "username": (str | None, "a str"),
    "password": (str | None, "a str"),
    "token": (str | Callable | None, "a str or a callable that gives one"),
    "bucket": (str, "a str"),
    "options": (Mapping, "a mapping"),
    "listener": (Callable | None, "a callable"),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a store. Secrets are kept out of its repr.

    Attributes:
        connection_timeout: seconds for entering the store.
        request_timeout: seconds for every call, all its retries included.
        tls: True to encrypt, or an SSLContext, which then stands for the three files as well. Files that have changed
            are read again at the next connection, so rotated ones need no new store.
        ca_file: PEM file of the authorities to trust; the system's when not given.
        cert_file: PEM file of the client's certificate.
        key_file: PEM file of the client's key.
        username: for servers with users.
        password: of that user.
        token: Consul's ACL token, or a function or coroutine function that returns it, which is called again when the
            server refuses the last token.
        prefix: the directory at the server below which all keys of the store are kept; keys go in and come out without
            it. Slashes around it do not count, since keys have no leading slash; etcd's option ``leading_slash`` is for
            keys that others write with one.
        bucket: the table of an SQLite store.
        options: settings that only one backend has, such as ``{"durability": "normal"}`` for SQLite.
        listener: called with each event of the store, see ``aiolibkv.events``; in the event loop, so it must not block.
    """

    connection_timeout: float = 5.0
    request_timeout: float = 5.0
    tls: bool | SSLContext = False
    ca_file: File | None = None
    cert_file: File | None = None
    key_file: File | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    token: Token | None = field(default=None, repr=False)
    prefix: str = ""
    bucket: str = "aiolibkv"
    options: Mapping[str, object] = field(default_factory=dict)
    listener: Callable[[Event], object] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        for name, (kind, what) in _KINDS.items():
            # What is no str would be sent as its repr, and the str "false" would turn TLS on.
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} is {what}, not {type(getattr(self, name)).__name__}")
        for name in ("connection_timeout", "request_timeout"):
            object.__setattr__(self, name, finite_seconds(name, getattr(self, name)))
        object.__setattr__(self, "prefix", normalize_directory(self.prefix))
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        if not self.tls and any((self.ca_file, self.cert_file)):
            raise ValueError("ca_file, cert_file and key_file need tls=True")
        if isinstance(self.tls, SSLContext) and any((self.ca_file, self.cert_file)):
            raise ValueError(
                "tls is an SSLContext: load the files into it; ca_file, cert_file and key_file are for tls=True"
            )


def finite_seconds(name: str, seconds: float) -> float:
    """Return a time as a float.

    Args:
        name: what it is called, for errors.
        seconds: a number, as users give it.

    Raises:
        ValueError: it is not above 0, or not finite; an int may be too large for a float.
        TypeError: it is no number.
    """
    if isinstance(seconds, bool) or not isinstance(seconds, int | float):
        raise TypeError(f"{name} is a number of seconds, not {type(seconds).__name__}")
    try:
        converted = float(seconds)
    except OverflowError:
        converted = math.inf
    if not 0 < converted < math.inf:
        raise ValueError(f"{name} is a finite number of seconds above 0, not {converted:g}")
    return converted


def nearest_first(name: str, known: Iterable[str]) -> Sequence[str]:
    """Return names sorted, but those first that somebody may have meant who wrote another one."""
    from difflib import get_close_matches

    names = sorted(known)
    near = get_close_matches(name, names, cutoff=0.5)
    return [*near, *(each for each in names if each not in near)]
