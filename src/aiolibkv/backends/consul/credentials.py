"""Who the client is: tokens and certificates."""

from __future__ import annotations

import ssl
from pathlib import Path

from aiolibkv.config import Config, Token
from aiolibkv.errors import AccessDeniedError


class TokenSource:
    """The token that requests carry."""

    def __init__(self, token: Token | None) -> None:
        """Keep a token, or the callable that gives one; it is not called yet.

        Raises:
            ValueError: the token has characters that no token has.
        """
        self._source = token
        self._current: str | None = None
        if isinstance(token, str):
            _check(token)

    @property
    def renewable(self) -> bool:
        """Whether asking again may give another token."""
        return callable(self._source)

    def headers(self) -> dict[str, str]:
        """Return the header that carries the token, if there is one.

        Raises:
            AccessDeniedError: the callable failed.
        """
        if self._source is None:
            return {}
        if self._current is None:
            self._current = self._ask(self._source)
        return {"X-Consul-Token": self._current}

    def forget(self, headers: dict[str, str]) -> None:
        """Have the callable asked again, unless the token of these headers was replaced already."""
        if headers.get("X-Consul-Token") == self._current:
            self._current = None

    @staticmethod
    def _ask(source: Token) -> str:
        if isinstance(source, str):
            return source
        try:
            token = source()
            _check(token)
        except Exception as error:
            raise AccessDeniedError(f"no token could be had: {type(error).__name__}") from error
        return token


def _check(token: str) -> None:
    if not isinstance(token, str):
        raise TypeError(f"a token is a str, not {type(token).__name__}")
    if not token.isascii() or not token.isprintable():
        raise ValueError("a token consists of printable ASCII characters")


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
        _use("ca_file", config.ca_file)
        try:
            context.load_verify_locations(cafile=config.ca_file)
        except (OSError, ValueError) as error:
            raise ValueError(f"ca_file {str(config.ca_file)!r} cannot be used: {error}") from error
    if config.cert_file is not None and config.key_file is not None:
        _use("cert_file", config.cert_file)
        _use("key_file", config.key_file)
        try:
            # An encrypted key would have the terminal asked for its password.
            context.load_cert_chain(config.cert_file, config.key_file, password=lambda: b"")
        except (OSError, ValueError) as error:
            files = f"cert_file {str(config.cert_file)!r} and key_file {str(config.key_file)!r}"
            raise ValueError(f"{files} cannot be used: {error}") from error
    return context


def _use(field: str, file: str | Path) -> None:
    try:
        with Path(file).open("rb") as opened:
            opened.read(1)
    except OSError as error:
        raise ValueError(f"{field} {str(file)!r} cannot be read: {error.strerror}") from error
