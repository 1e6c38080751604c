"""How a store is reached and what it may take."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from ssl import SSLContext
from types import UnionType

from aiolibkv.keys import normalize_directory

Token = str | Callable[[], str]

_FILE = (str | Path | None, "a path")
_KINDS: Mapping[str, tuple[type | UnionType, str]] = {
    "tls": (bool | SSLContext, "True, False or an SSLContext"),
    "ca_file": _FILE,
    "cert_file": _FILE,
    "key_file": _FILE,
    "username": (str | None, "a str"),
    "password": (str | None, "a str"),
    "token": (str | Callable | None, "a str or a callable that gives one"),
    "bucket": (str, "a str"),
    "options": (Mapping, "a mapping"),
}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings of a store. Secrets are kept out of its repr.

    Attributes:
        connection_timeout: seconds for entering the store.
        request_timeout: seconds for every call, all its retries included.
        tls: True to encrypt; an SSLContext where the backend can use one.
        ca_file: PEM file of the authorities to trust; the system's when not given.
        cert_file: PEM file of the client's certificate.
        key_file: PEM file of the client's key.
        username: for servers with users.
        password: of that user.
        token: for servers with tokens; a callable is asked again when the server refuses the last one.
        prefix: directory that all keys are rooted at; keys go in and come out without it.
        bucket: the table of an SQLite store.
        options: what one backend alone understands, by the names that it declares.
    """

    connection_timeout: float = 5.0
    request_timeout: float = 5.0
    tls: bool | SSLContext = False
    ca_file: str | Path | None = None
    cert_file: str | Path | None = None
    key_file: str | Path | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    token: Token | None = field(default=None, repr=False)
    prefix: str = ""
    bucket: str = "aiolibkv"
    options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, (kind, what) in _KINDS.items():
            # What is no str would be sent as its repr, and the str "false" would turn TLS on.
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} is {what}, not {type(getattr(self, name)).__name__}")
        for name in ("connection_timeout", "request_timeout"):
            seconds = getattr(self, name)
            if isinstance(seconds, bool) or not isinstance(seconds, int | float):
                raise TypeError(f"{name} is a number of seconds, not {type(seconds).__name__}")
            if not 0 < seconds < math.inf:
                raise ValueError(f"{name} is finite and above 0, not {seconds}")
        object.__setattr__(self, "prefix", normalize_directory(self.prefix))
        if (self.cert_file is None) != (self.key_file is None):
            raise ValueError("cert_file and key_file go together")
        if not self.tls and any((self.ca_file, self.cert_file)):
            raise ValueError("ca_file, cert_file and key_file need tls=True")
