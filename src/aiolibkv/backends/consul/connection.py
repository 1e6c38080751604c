"""HTTP requests to Consul's servers.

One client session with one pool serves calls and polls alike, since a session cannot have two pools. The pool
itself has no limit, so nobody ever waits in it (its queue is not fair: with 500 tasks on aiohttp 3.14 the
slowest were five times slower than with a FIFO in front); calls are limited here, polls by whoever makes
them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from types import SimpleNamespace
from typing import NamedTuple
from urllib.parse import unquote

import aiohttp
from yarl import URL

from aiolibkv.backends.consul.credentials import TokenSource, user_headers
from aiolibkv.backends.consul.encoding import (
    Answer,
    MalformedError,
    denies,
    kv_target,
    parse_index,
    read_mode,
    start_of,
)
from aiolibkv.backends.consul.failures import TxnFailedError, failure_of, lacks_right
from aiolibkv.backends.consul.transactions import MAX_TXN_OPERATIONS, Transaction, looking
from aiolibkv.config import Config
from aiolibkv.errors import NotReachableError, StoreError
from aiolibkv.keys import RESERVED
from aiolibkv.store import Endpoint, Endpoints
from aiolibkv.store.tls import ssl_context

CALLS_AT_ONCE = 32
"""Connections for calls. A server allows 200 to a client by default, and another store may share them."""

CONNECTING_TIME = 1.0
"""Seconds for TCP and TLS to one server."""

PATIENCE = 1.5
"""Seconds without an answer after which a server counts as mute, at first."""

LARGEST_ANSWER = 128 * 1024 * 1024
"""Bytes; what goes on beyond that is not read to its end."""


class MuteError(NotReachableError):
    """The server took the request and said nothing for so long."""


class _LostError(Exception):
    """The connection broke; no error after which aiohttp would send the request again."""


class _Request(NamedTuple):
    """What ``Connection.request`` is given."""

    method: str
    target: str
    body: bytes | None
    patience: float | None
    on_sending: Callable[[], None] | None

    @property
    def subject(self) -> str:
        """What it is about, for errors."""
        name = self.target.partition("?")[0]
        return repr(unquote(name.removeprefix("kv/"))) if name.startswith("kv/") else name

    def has_index(self, status: int) -> bool:
        """Tell whether an answer of this status tells an index, as all reads of keys do, found or not."""
        return (
            self.method == "GET" and self.target.startswith("kv/") and status in {HTTPStatus.OK, HTTPStatus.NOT_FOUND}
        )


@dataclass(slots=True)
class _Attempt:
    """One sending of a request.

    Attributes:
        on_sending: called when a connection was found and the request may leave.
        sent: whether that happened.
    """

    on_sending: Callable[[], None] | None
    sent: bool = False


async def _on_sending(_: aiohttp.ClientSession, context: SimpleNamespace, __: object) -> None:
    attempt: _Attempt = context.trace_request_ctx
    attempt.sent = True
    if attempt.on_sending is not None:
        attempt.on_sending()


async def _send_once(request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
    """Keep aiohttp from sending a PUT or GET again when a reused connection broke before the answer.

    It does so on its own after ClientOSError and ServerDisconnectedError (3.14); a write would be applied
    twice.
    """
    try:
        return await handler(request)
    except aiohttp.ClientConnectorError:
        raise
    except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
        raise _LostError from error


class Connection:
    """The way to the servers; one of them is in use until it fails.

    Attributes:
        leader: who leads the servers, as last heard by whoever listens to them.
    """

    def __init__(self, config: Config, endpoints: Endpoints) -> None:
        """Prepare; no I/O.

        Raises:
            ValueError: a file of a certificate cannot be read, or the token or the user cannot be one.
        """
        self.leader: str | None = None
        self._endpoints = endpoints
        self._token = TokenSource(config.token)
        self._ssl = ssl_context(config)
        self._calls = asyncio.Semaphore(CALLS_AT_ONCE)
        self._scheme = "http" if self._ssl is None else "https"
        tracing = aiohttp.TraceConfig()
        tracing.on_connection_create_end.append(_on_sending)
        tracing.on_connection_reuseconn.append(_on_sending)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=True if self._ssl is None else self._ssl),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=user_headers(config),
            middlewares=(_send_once,),
            trace_configs=[tracing],
            # Consul compresses for those who accept it, which makes reads of 100 KB nearly three times
            # slower.
            skip_auto_headers=("Accept-Encoding", "User-Agent", "Content-Type"),
            auto_decompress=False,
            trust_env=False,
        )

    @property
    def endpoint(self) -> Endpoint:
        """The server in use."""
        return self._endpoints.current

    @property
    def has_alternatives(self) -> bool:
        """Whether there is more than one server."""
        return len(self._endpoints) > 1

    @property
    def tokens_replaced(self) -> int:
        """How often the token was replaced; what two requests tell belongs together as long as it was not."""
        return self._token.replaced

    def failed(self, endpoint: Endpoint) -> None:
        """Move on from a server."""
        self._endpoints.failed(endpoint)

    async def close(self) -> None:
        """Drop all connections."""
        await self._session.close()

    async def read(self, target: str) -> Answer:
        """Make a request that changes nothing by GET; see ``repeatable``."""
        return await self.repeatable("GET", target)

    async def repeatable(self, method: str, target: str, body: bytes | None = None) -> Answer:
        """Make a request that may be sent any number of times; a mute server is given up for the next one.

        Its patience doubles, so that an answer which takes long gets its time.

        Args:
            method: of HTTP.
            target: what follows /v1/ in the URL.
            body: if there is one.

        Raises:
            NotReachableError: the connection broke, or the server cannot serve now.
            StoreError: the server refused.
        """
        for patience in _growing_patience():
            try:
                return await self.request(method, target, body, patience=patience)
            except MuteError:
                continue
        raise AssertionError("patience has no end")

    async def check_access(self, *paths: str) -> None:
        """Make sure that keys may be read, where the server would leave them out without a word.

        Raises:
            AccessDeniedError: one of them may not.
        """
        for first in range(0, len(paths), MAX_TXN_OPERATIONS):
            # The empty key, for all there is, is refused; what the library keeps for itself stands in for it.
            checked = [path or start_of(RESERVED) for path in paths[first : first + MAX_TXN_OPERATIONS]]
            (await self.look(checked, read_mode(consistent=True))).raise_if_denied()

    async def look(self, paths: Sequence[str], mode: str) -> TxnFailedError:
        """Ask whether there are keys, and whether they may be read.

        Args:
            paths: the keys.
            mode: as a query parameter.

        Returns:
            What the server says of each; of the others nothing when some may not be read.
        """
        transaction = Transaction([looking(path) for path in paths])
        answer = await self.repeatable("PUT", f"txn?{mode}", transaction.body)
        with self.understanding(answer):
            try:
                transaction.parse(answer)
            except TxnFailedError as failed:
                return failed
            raise MalformedError("there is a key at index 0")

    @contextmanager
    def understanding(self, answer: Answer) -> Iterator[None]:
        """Move on from a server whose answer, read in the block, is not Consul's.

        Raises:
            NotReachableError: it is not.
        """
        try:
            yield
        except MalformedError as error:
            raise self._misunderstood(answer.endpoint, error) from error

    def _misunderstood(self, endpoint: Endpoint, error: MalformedError) -> NotReachableError:
        self.failed(endpoint)
        return NotReachableError(f"the answer is not Consul's: {error}", endpoint=str(endpoint), maybe_applied=True)

    async def request(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        *,
        patience: float | None = None,
        on_sending: Callable[[], None] | None = None,
        counted: bool = True,
    ) -> Answer:
        """Make a request once, or once more when the token was refused and there is a new one.

        Args:
            method: of HTTP.
            target: what follows /v1/ in the URL.
            body: if there is one.
            patience: seconds without anything from the server after which it counts as mute; None for ever.
            on_sending: called before the request may leave.
            counted: whether it is a call, of which only so many are made at once.

        Raises:
            NotReachableError: ``maybe_applied`` is False when the request did not leave or was not carried
            out. StoreError: the server refused; nothing was done.
        """
        request = _Request(method, target, body, patience, on_sending)
        headers = await self._token.headers()
        answer = await self._admit(request, headers, counted=counted)
        if self._token.renewable:
            with self.understanding(answer):
                denied = denies(answer)
            if denied and (renewed := await self._token.renewed(headers)) != headers:
                answer = await self._admit(request, renewed, counted=counted)
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
        answer = await self._admit(request, await self._token.headers(), counted=True)
        if answer.status == HTTPStatus.FORBIDDEN and lacks_right(answer.text):
            return
        if self._token.renewable and denies(answer):
            answer = await self.request(request.method, request.target, patience=patience)
        self._checked(request, answer)

    def _checked(self, request: _Request, answer: Answer) -> Answer:
        failure = failure_of(answer.status, answer.text, request.subject)
        if failure is None:
            return answer
        if isinstance(failure, NotReachableError):
            self.failed(answer.endpoint)
        failure.endpoint = str(answer.endpoint)
        raise failure

    async def _admit(self, request: _Request, headers: dict[str, str], *, counted: bool) -> Answer:
        if not counted:
            return await self._send(request, headers)
        async with self._calls:
            return await self._send(request, headers)

    async def _send(self, request: _Request, headers: dict[str, str]) -> Answer:
        endpoint = self.endpoint
        attempt = _Attempt(request.on_sending)
        try:
            async with self._session.request(
                request.method,
                URL(f"{self._scheme}://{endpoint}/v1/{request.target}", encoded=True),
                data=request.body,
                headers=headers,
                allow_redirects=False,
                trace_request_ctx=attempt,
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECTING_TIME, sock_read=request.patience),
            ) as response:
                needed = request.has_index(response.status)
                index = parse_index(response.headers.get("X-Consul-Index"), needed=needed)
                return Answer(response.status, index, await _body_of(response), endpoint)
        except MalformedError as error:
            raise self._misunderstood(endpoint, error) from error
        except (_LostError, aiohttp.ClientError, TimeoutError) as error:
            cause = error.__cause__ if isinstance(error, _LostError) else error
        self.failed(endpoint)
        mute = attempt.sent and isinstance(cause, TimeoutError)
        reason = f"no answer within {request.patience:g} s" if mute else f"the connection failed: {cause}"
        failure = (MuteError if mute else NotReachableError)(reason, endpoint=str(endpoint), maybe_applied=attempt.sent)
        # An error about a response holds the request's headers, and so the token.
        raise failure from None if isinstance(cause, aiohttp.ClientResponseError) else cause


async def _body_of(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for part in response.content.iter_any():
        body += part
        if len(body) > LARGEST_ANSWER:
            raise StoreError(f"an answer of more than {LARGEST_ANSWER} bytes", maybe_applied=True)
    return bytes(body)


def _growing_patience() -> Iterator[float]:
    patience = PATIENCE
    while True:
        yield patience
        patience *= 2
