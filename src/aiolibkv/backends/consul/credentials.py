"""Who the client is: tokens, and users of what stands before Consul."""

from __future__ import annotations

from base64 import b64encode

from aiolibkv.config import Config, Token
from aiolibkv.errors import AccessDeniedError


class TokenSource:
    """The token that requests carry.

    Attributes:
        replaced: how often there was another one; what it may do may differ.
    """

    def __init__(self, token: Token | None) -> None:
        """Keep a token, or the callable that gives one; it is not called yet.

        Raises:
            ValueError: the token has characters that no token has.
        """
        self.replaced = 0
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

    def renewed(self, refused: dict[str, str]) -> dict[str, str]:
        """Return the header with another token, asking the callable unless the refused one was replaced already.

        Raises:
            AccessDeniedError: the callable failed. The token stays, since it may do for everything else.
        """
        if self._source is not None and refused.get("X-Consul-Token") == self._current:
            token = self._ask(self._source)
            self.replaced += token != self._current
            self._current = token
        return self.headers()

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


def user_headers(config: Config) -> dict[str, str]:
    """Return the header that carries user and password, if there are any.

    Consul knows no users and passes over it; a proxy before it may ask for them.

    Raises:
        ValueError: the user's name cannot be told from the password.
    """
    if config.username is None and config.password is None:
        return {}
    user, password = config.username or "", config.password or ""
    if ":" in user:
        raise ValueError("consul: a username has no colon")
    return {"Authorization": f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"}


def _check(token: str) -> None:
    if not isinstance(token, str):
        raise TypeError(f"a token is a str, not {type(token).__name__}")
    if not token.isascii() or not token.isprintable():
        raise ValueError("a token consists of printable ASCII characters")
