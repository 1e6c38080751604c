"""HTTP requests to Consul's servers.

One pool serves calls and polls alike. It has no limit, so nobody ever waits in it (its queue is not fair: with 500
tasks on aiohttp 3.14 the slowest were five times slower than with a FIFO in front); calls are limited here, polls by
whoever makes them.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractContextManager
from http import HTTPStatus
from types import TracebackType
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote

import aiohttp
from yarl import URL

from aiolibkv.backends.consul.connector import Attempt, Connector, Request, UnconnectedError
from aiolibkv.backends.consul.credentials import TokenSource, user_headers
from aiolibkv.backends.consul.encoding import (
    Answer,
    MalformedError,
    denies,
    kv_target,
    read_mode,
    start_of,
)
from aiolibkv.backends.consul.failures import TxnFailedError, failure_of, knows_no_token, lacks_right
from aiolibkv.backends.consul.scope import Scope
from aiolibkv.backends.consul.transactions import MAX_TXN_OPERATIONS, Transaction, looking
from aiolibkv.config import Config
from aiolibkv.errors import InvalidKeyError, NotReachableError, StoreError
from aiolibkv.keys import RESERVED
from aiolibkv.store import Endpoint, Endpoints
from aiolibkv.store.driver import Observer
from aiolibkv.store.resolver import Resolver
from aiolibkv.store.tls import Tls

T = TypeVar("T")

CALLS_AT_ONCE = 32
"""Connections for calls. A server allows 200 to a client by default, and another store may share them."""

_SHARE_OF_ONE_OF_SEVERAL = 0.3
"""Of request_timeout, after which one of several servers that has not answered counts as mute, at first."""

_INDEX = "X-Consul-Index"

_CONNECTING_SHARE = 0.8
"""Of connection_timeout, what connecting may take; then entering can tell what was waited for, as a look-up."""

LARGEST_ANSWER = 128 * 1024 * 1024
"""Bytes; what goes on beyond that is not read to its end."""


_UNUSUAL = re.compile(r"[^a-zA-Z0-9,_./?&=-]")
"""What 1.21.5 refuses in the names of keys in URLs, though not in those of transactions."""
_SUSPICIOUS = re.compile(r"^ | $|\.\.|%2e", re.IGNORECASE)
"""What later versions may refuse: spaces at the ends, and what looks like a way out of a directory."""

_READ = frozenset({HTTPStatus.OK, HTTPStatus.NOT_FOUND})


class MuteError(NotReachableError):
    """The server took the request and said nothing for so long."""


class _Request(NamedTuple):
    """What ``Connection.request`` is given."""

    method: str
    target: str
    body: bytes | None
    patience: float | None
    on_sending: Callable[[], None] | None
    is_call: bool = True

    @property
    def subject(self) -> str:
        """What it is about, for errors."""
        name = self.target.partition("?")[0]
        return repr(unquote(name.removeprefix("kv/"))) if name.startswith("kv/") else name

    def has_index(self, status: int) -> bool:
        """Tell whether an answer of this status tells an index, as all reads of keys do, found or not."""
        return status in _READ and self.method == "GET" and self.target.startswith("kv/")


class Connection:
    """The way to the servers; one of them is in use until it fails.

    Attributes:
        heard: the server that answered last; None after a failure.
        leader: who leads the servers, as last heard by whoever listens to them.
        scope: what is added to each request.
        timeout: seconds for a call.
        patience: seconds without an answer after which a server counts as mute, at first; None when there is no other
            one to be asked instead.
    """

    def __init__(self, config: Config, endpoints: Endpoints, observer: Observer) -> None:
        """Prepare; no I/O.

        Args:
            config: the store's.
            endpoints: its servers.
            observer: told which server is heard, and why it is no more.

        Raises:
            ValueError: a file of a certificate cannot be read, or the token or the user cannot be one.
        """
        self.leader: str | None = None
        self._endpoints = endpoints
        self._observer = observer
        self.heard: Endpoint | None = None
        self._token = TokenSource(config.token)
        self._calls = asyncio.Semaphore(CALLS_AT_ONCE)
        self._resolver = Resolver()
        tls = Tls(config)
        self._scheme = "http" if tls.context() is None else "https"
        self._bases: dict[Endpoint, str] = {}
        self.scope: Scope = Scope(config)
        self.timeout: float = config.request_timeout
        self.patience: float | None = config.request_timeout * _SHARE_OF_ONE_OF_SEVERAL if len(endpoints) > 1 else None
        self._connector = Connector(
            self._resolver,
            tls,
            config.connection_timeout * _CONNECTING_SHARE,
            has_alternatives=self.patience is not None,
        )
        self._user = user_headers(config)
        self._start = start_of(config.prefix)
        self._takes_unusual_names = False

    @property
    def endpoint(self) -> Endpoint:
        """The server in use."""
        return self._endpoints.current

    @property
    def tokens_replaced(self) -> int:
        """How often the token was replaced; what two requests tell belongs together as long as it was not."""
        return self._token.replaced

    def failed(self, endpoint: Endpoint, reason: str) -> None:
        """Move on from a server, and tell why."""
        self._endpoints.failed(endpoint)
        if endpoint == self.heard:
            self.heard = None
            self._takes_unusual_names = False
            self._observer.disconnected(str(endpoint), reason)

    def _hear(self, endpoint: Endpoint) -> None:
        """Take note that a server answered as Consul does."""
        if endpoint != self.heard and endpoint == self.endpoint:
            if self.heard is not None:
                self._observer.disconnected(str(self.heard), f"{endpoint} is used instead")
            self.heard = endpoint
            self._observer.connected(str(endpoint))

    async def close(self) -> None:
        """Drop all connections."""
        if self.heard is not None:
            self.failed(self.heard, "the store is closed")
        self._resolver.close()
        await self._connector.close()

    async def read(self, target: str) -> Answer:
        """Make a request that changes nothing by GET; see ``repeatable``."""
        return await self.repeatable("GET", target)

    async def repeatable(self, method: str, target: str, body: bytes | None = None) -> Answer:
        """Make a request that may be sent any number of times; a mute server is given up for the next one.

        The patience doubles, so that an answer which takes long gets its time.

        Args:
            method: of HTTP.
            target: what follows /v1/ in the URL.
            body: if there is one.

        Raises:
            NotReachableError: the connection broke, or the server cannot serve now.
            StoreError: the server refused.
        """
        patience = self.patience
        while True:
            try:
                return await self.request(method, target, body, patience=patience)
            except MuteError:
                patience = patience and patience * 2

    async def check_access(self, *paths: str) -> None:
        """Make sure that keys may be read, where the server would leave them out without a word.

        Raises:
            AccessDeniedError: one of them may not.
        """
        for first in range(0, len(paths), MAX_TXN_OPERATIONS):
            # The empty key, for all there is, is refused; what the library keeps for itself stands in for it.
            checked = [path or start_of(RESERVED) for path in paths[first : first + MAX_TXN_OPERATIONS]]
            (await self.look(checked, read_mode(consistent=True))).raise_if_denied()

    async def check_names(self, paths: Iterable[str]) -> None:
        """Make sure that keys which transactions name can be read by URLs, in which some servers refuse names.

        Where one unusual name is taken, others are. Of the prefix it is known since the server was greeted.

        Raises:
            InvalidKeyError: the server refuses one.
        """
        for path in paths:
            name = path.removeprefix(self._start)
            is_unusual = _UNUSUAL.search(name) is not None
            if (is_unusual and not self._takes_unusual_names) or _SUSPICIOUS.search(name):
                try:
                    await self.read(kv_target(path, "raw&stale"))
                except InvalidKeyError as error:
                    error.key = path
                    raise
                self._takes_unusual_names = self._takes_unusual_names or is_unusual

    async def look(self, paths: Sequence[str], mode: str) -> TxnFailedError:
        """Ask whether there are keys, and whether they may be read.

        Args:
            paths: the keys.
            mode: as a query parameter.

        Returns:
            What the server says of each; of the others nothing when some may not be read.
        """
        transaction = Transaction([looking(path) for path in paths], self.scope.fields)
        answer = await self.repeatable("PUT", f"txn?{mode}", transaction.body)
        with self.understanding(answer):
            try:
                transaction.parse(answer)
            except TxnFailedError as failed:
                return failed
            raise MalformedError("there is a key at index 0")

    def understanding(self, answer: Answer) -> AbstractContextManager[None]:
        """Move on from a server whose answer, read in the block, is not Consul's.

        Raises:
            NotReachableError: it is not.
        """
        return _Understanding(self, answer)

    def misunderstood(self, endpoint: Endpoint, error: MalformedError) -> NotReachableError:
        """Move on from a server whose answer is not Consul's; return the error that says so."""
        failure = NotReachableError(f"the answer is not Consul's: {error}", endpoint=str(endpoint), maybe_applied=True)
        self.failed(endpoint, failure.message)
        return failure

    async def request(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        *,
        patience: float | None = None,
        on_sending: Callable[[], None] | None = None,
        is_call: bool = True,
    ) -> Answer:
        """Make a request once, or once more when the token was refused and there is a new one.

        Args:
            method: of HTTP.
            target: what follows /v1/ in the URL.
            body: if there is one.
            patience: seconds without anything from the server after which it counts as mute; None for ever.
            on_sending: called before the request may leave.
            is_call: whether it is one of the calls, of which only so many are made at once. When one fails, the next
                server is used; that a blocking query ends early may be the doing of a proxy without patience.

        Raises:
            NotReachableError: ``maybe_applied`` is False when the request did not leave or was not carried
            out. StoreError: the server refused; nothing was done.
        """
        request = _Request(method, target, body, patience, on_sending, is_call)
        headers = await self._token.headers()
        answer = await self._admit(request, headers)
        if self._token.renewable:
            with self.understanding(answer):
                denied = denies(answer)
            if (
                denied
                and (renewed := await self._token.renewed(headers, is_known=not knows_no_token(answer.text))) != headers
            ):
                answer = await self._admit(request, renewed)
        return self._checked(request, answer)

    async def greet(self, path: str, patience: float) -> None:
        """Have a server answer that has a leader and does not say that the token is unknown.

        Args:
            path: of the key that is read; whether the token may read it does not matter.
            patience: as for ``request``.

        Raises:
            NotReachableError, AccessDeniedError, StoreError: as for ``request``.
        """
        request = _Request("GET", kv_target(path, "raw&consistent"), None, patience, None)
        answer = await self._admit(request, await self._token.headers())
        if answer.status == HTTPStatus.FORBIDDEN and lacks_right(answer.text):
            self._hear(answer.endpoint)
            return
        if self._token.renewable and denies(answer):
            answer = await self.request(request.method, request.target, patience=patience)
        self._checked(request, answer)

    def _checked(self, request: _Request, answer: Answer) -> Answer:
        failure = failure_of(answer.status, answer.text, request.subject)
        if not isinstance(failure, NotReachableError):
            self._hear(answer.endpoint)
        elif request.is_call:
            self.failed(answer.endpoint, failure.message)
        if failure is None:
            return answer
        failure.endpoint = str(answer.endpoint)
        raise failure

    async def _admit(self, request: _Request, headers: dict[str, str]) -> Answer:
        if not request.is_call:
            return await self._send(request, headers)
        async with self._calls:
            return await self._send(request, headers)

    async def _send(self, request: _Request, headers: dict[str, str]) -> Answer:
        endpoint = self.endpoint
        attempt = Attempt(endpoint, request.on_sending)
        url = URL(self._url(endpoint, request.target), encoded=True)
        try:
            answer = await self._exchange(
                Request(request.method, url, {**self._user, **headers}, request.body, attempt), request.patience
            )
            if request.has_index(answer.status):
                answer.check_index()
            return answer
        except MalformedError as error:
            raise self.misunderstood(endpoint, error) from error
        except UnconnectedError as error:
            self.failed(endpoint, error.reason.message)
            error.reason.endpoint = str(endpoint)
            raise error.reason from error.__cause__
        except (aiohttp.ClientError, OSError) as error:
            cause = error
        self._connector.broke()
        mute = attempt.sent and isinstance(cause, TimeoutError)
        reason = f"no answer within {request.patience:g} s" if mute else f"the connection failed: {cause}"
        if request.is_call or mute:
            self.failed(endpoint, reason)
        failure = (MuteError if mute else NotReachableError)(reason, endpoint=str(endpoint), maybe_applied=attempt.sent)
        # An error about a response holds the request's headers, and so the token.
        raise failure from None if isinstance(cause, aiohttp.ClientResponseError) else cause

    async def _exchange(self, request: Request, patience: float | None) -> Answer:
        response = await self._connector.send(request, patience)
        try:
            body = await _body_of(response)
        except BaseException:
            response.close()
            raise
        if not response.closed:
            response.release()
        return Answer(response.status, response.headers.get(_INDEX), body, request.attempt.endpoint)

    def _url(self, endpoint: Endpoint, target: str) -> str:
        base = self._bases.get(endpoint)
        if base is None:
            # aiohttp keeps connections by host, so that each Unix socket needs a name of its own.
            host = f"{len(self._bases)}.localhost" if endpoint.is_unix else str(endpoint)
            base = self._bases[endpoint] = f"{self._scheme}://{host}{self.scope.root}"
        query = self.scope.node_query if target.startswith("catalog/") else self.scope.query
        return f"{base}{target}{query if '?' in target else query.replace('&', '?', 1)}" if query else base + target


class _Understanding:
    """What ``Connection.understanding`` gives; each call needs one or two, so it is no generator."""

    __slots__ = ("_answer", "_connection")

    def __init__(self, connection: Connection, answer: Answer) -> None:
        self._connection = connection
        self._answer = answer

    def __enter__(self) -> None:
        """Begin to read the answer."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, MalformedError):
            raise self._connection.misunderstood(self._answer.endpoint, error) from error


async def _body_of(response: aiohttp.ClientResponse) -> bytes:
    # Nobody asked for compression; a proxy may compress all the same.
    if (response.content_length or math.inf) <= LARGEST_ANSWER and "Content-Encoding" not in response.headers:
        return await response.read()
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) > LARGEST_ANSWER:
            raise StoreError(f"an answer of more than {LARGEST_ANSWER} bytes", maybe_applied=True)
    return bytes(body)


async def together(parts: Sequence[Coroutine[Any, Any, T]]) -> Sequence[T]:
    """Make requests at once, and return their answers in order; none is left under way when one fails."""
    if len(parts) == 1:
        return [await parts[0]]
    tasks = [asyncio.get_running_loop().create_task(part) for part in parts]
    try:
        return [await task for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
