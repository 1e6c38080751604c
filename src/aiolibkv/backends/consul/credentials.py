"""Who the client is: tokens, and users of what stands before Consul."""

from __future__ import annotations

import asyncio
import math
from base64 import b64encode
from inspect import isawaitable

from aiolibkv.config import Config, Token
from aiolibkv.errors import AccessDeniedError

_HEADER = "X-Consul-Token"
_ASKING_INTERVAL = 5.0
"""Seconds after which it is asked again whether there is another token in place of one that is still refused."""


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
        self.replaced: int = 0
        self._source = token
        self._headers: dict[str, str] | None = {} if token is None else None
        self._asking = asyncio.Lock()
        self._asked_again = dict.fromkeys((True, False), -math.inf)
        if isinstance(token, str):
            _check(token)
            self._headers = {_HEADER: token}

    @property
    def renewable(self) -> bool:
        """Whether asking again may give another token."""
        return callable(self._source)

    async def headers(self) -> dict[str, str]:
        """Return the header that carries the token, if there is one.

        Raises:
            AccessDeniedError: the callable failed.
        """
        while self._headers is None:
            async with self._asking:
                if self._headers is None:
                    self._headers = await self._ask()
        return self._headers

    async def renewed(self, refused: dict[str, str], *, is_known: bool) -> dict[str, str]:
        """Return the header with another token, or the refused one when there is no other now.

        The callable is asked once for all requests that were refused with the same token, and not again soon: a token
        may be refused for one key and do for all others. That it is not known any more is a reason of its own.

        Args:
            refused: the header.
            is_known: whether the server knows the token, which lacks a right.

        Raises:
            AccessDeniedError: the callable failed. The token stays, since it may do for everything else.
        """
        async with self._asking:
            clock = asyncio.get_running_loop().time
            if refused == self._headers and clock() >= self._asked_again[is_known] + _ASKING_INTERVAL:
                self._asked_again[is_known] = clock()
                headers = await self._ask()
                if headers != refused:
                    self.replaced += 1
                    self._headers = headers
                    self._asked_again = dict.fromkeys((True, False), -math.inf)
        return self._headers or refused

    async def _ask(self) -> dict[str, str]:
        assert callable(self._source), "else the token is known"
        try:
            token = self._source()
            if isawaitable(token):
                token = await token
            _check(token)
        except Exception as error:
            raise AccessDeniedError(f"no token could be had: {type(error).__name__}") from error
        return {_HEADER: token}


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
