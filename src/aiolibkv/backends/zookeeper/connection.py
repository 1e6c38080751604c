"""One connection to one server: frames, answers in the order of their requests, and the watch over its silence.

A request is answered by a future; when the connection ends, all that is pending fails at once. Nothing is ever sent
again here. While answers are awaited, what is to be sent is gathered until other tasks have had their turn, and then
leaves together.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import struct
from collections import deque
from collections.abc import Callable, Sequence
from copy import copy
from typing import Any, NamedTuple, TypeVar, cast

from aiolibkv.backends.zookeeper.failures import SESSION_CODES, TransactionRefusedError, refusal
from aiolibkv.backends.zookeeper.operations import (
    AUTH_XID,
    EVENT_XID,
    PING_XID,
    Event,
    MalformedError,
    Operation,
    Welcome,
    authenticate,
    check,
    parse_event,
    parse_welcome,
    ping,
    sync,
    transaction,
)
from aiolibkv.errors import NotReachableError, StoreError
from aiolibkv.store.endpoints import Endpoint
from aiolibkv.store.resolver import Address

T = TypeVar("T")

_LENGTH = struct.Struct("!i")
_HEADER = struct.Struct("!iqi")
_LARGEST_FRAME = 128 * 1024 * 1024
"""Bytes; what is longer is no answer that was asked for."""
_LARGEST_WELCOME = 1024
_LAST_XID = 2**31 - 1
_SILENCE = 2.0
"""Seconds after which a connection without a sign of life is given up. Servers count as dead to each other after
syncLimit ticks (10 s with ZooKeeper's sample configuration), and only then elect another leader."""
_SILENCE_OF_TIMEOUT = 2 / 3
_PINGS_PER_SILENCE = 4
_CLOSING_OF_TLS = 0.2
_PIECE = 32 * 1024
_SEND_BUFFER = 64 * 1024
"""Bytes that the system takes at once: what it takes says that what was before has left. On a slow link a large value
holds up the answer to a ping; as long as its pieces leave, the server is not silent."""
_SLOWEST = 200_000
"""Bytes a second that a large value arrives with after it has left: a proxy in between may hold all of it. Only writes
are large, and a server answers no read before a write that the same session sent earlier is agreed on: none is stale
though the server is given more time. With the largest value that is less than other servers wait, too."""

_log = logging.getLogger("aiolibkv")


class NotWelcomeError(NotReachableError):
    """The server closed the connection instead of answering the first request."""

    meaning = (
        "the server closed the connection without a word: it does not serve now, it lags behind, it wants TLS (the "
        "setting tls=True), or it has as many connections from this address as it allows (maxClientCnxns, 60 if not "
        "set)"
    )


class Answer(NamedTuple):
    """What a server answers.

    Attributes:
        code: 0, or what is wrong.
        zxid: the last transaction that the server knew.
        frame: the whole answer.
    """

    code: int
    zxid: int
    frame: bytes


class Results(NamedTuple):
    """The results of several operations.

    Attributes:
        values: each operation's, or what is wrong with it.
        zxid: the last transaction that the server knew when it answered the last of them.
    """

    values: Sequence[Any]
    zxid: int


class Connection(asyncio.Protocol):
    """A connection that continues or begins a session.

    Attributes:
        endpoint: the server.
        welcome: what the server said of the session; session is 0 when it does not know it.
        zxid: the last transaction that the server has told of.
        closed: done when the connection has ended; its result is why.
        when_closed: called then.
    """

    welcome: Welcome

    def __init__(self, endpoint: Endpoint, on_event: Callable[[Event], None]) -> None:
        loop = asyncio.get_running_loop()
        self.endpoint = endpoint
        self.zxid: int = 0
        self.closed: asyncio.Future[StoreError] = loop.create_future()
        self.when_closed: set[Callable[[], None]] = set()
        self._gone: asyncio.Future[None] = loop.create_future()
        self._loop = loop
        self._on_event = on_event
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self._greeted: asyncio.Future[bytes | None] = loop.create_future()
        self._xid = 0
        self._pending: deque[tuple[int, int, asyncio.Future[Answer | None]]] = deque()
        self._gathered = bytearray()
        self._is_flushing = False
        self._synced: asyncio.Future[Answer | None] | None = None
        self._backlog = bytearray()
        self._is_paused = False
        self._before_ping = 0
        self._is_pinging = False
        self._least_silence = _SILENCE
        self._pinged = 0.0
        self._heard = 0.0
        self._watchdog: asyncio.TimerHandle | None = None

    @classmethod
    async def open(
        cls,
        endpoint: Endpoint,
        address: Address,
        hello: bytes,
        *,
        tls: ssl.SSLContext | None,
        credentials: bytes | None,
        on_event: Callable[[Event], None],
    ) -> Connection:
        """Connect and continue or begin a session.

        Args:
            endpoint: the server.
            address: one of its.
            hello: the first request.
            tls: None for plain TCP.
            credentials: of a user, sent before anything else that needs a session.
            on_event: called with what the session's watches say.

        Raises:
            NotReachableError: there is no server, or it does not serve.
        """
        loop = asyncio.get_running_loop()
        connection = cls(endpoint, on_event)
        try:
            await loop.create_connection(
                lambda: connection,
                sock=await _connected_socket(address),
                ssl=tls,
                server_hostname=None if tls is None else endpoint.host,
                ssl_shutdown_timeout=None if tls is None else _CLOSING_OF_TLS,
            )
            connection._write_frame(hello)
            welcome = await connection._greeted
        except (BrokenPipeError, ConnectionResetError) as error:
            raise NotWelcomeError(endpoint=str(endpoint)) from error
        except OSError as error:
            raise NotReachableError(f"no connection: {error}", endpoint=str(endpoint)) from error
        except BaseException:
            connection.abort(NotReachableError("connecting was given up"))
            raise
        if welcome is None:
            raise connection._failure()
        try:
            connection._welcomed(parse_welcome(welcome), credentials)
        except MalformedError as error:
            connection._nonsense(error)
            raise connection._failure() from error
        return connection

    def send(
        self, operations: Sequence[Operation[Any]], *, consistent: bool = False
    ) -> Sequence[asyncio.Future[Answer | None]]:
        """Send operations; each future gives the answer, or None when the connection ended before.

        Args:
            operations: what to send.
            consistent: have the server catch up with the leader first. What leaves together catches up once. Its future
                comes before the others, is done before them, and is not to be awaited, since others may have it too.

        Raises:
            NotReachableError: the connection has ended; nothing was sent.
        """
        self.check_open()
        is_idle = not self._pending
        futures = []
        if consistent:
            if self._synced is None:
                self._synced = self._gather(sync())
            futures.append(self._synced)
        futures += [self._gather(operation) for operation in operations]
        if is_idle:
            self._flush()
        elif not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)
        return futures

    def check_open(self) -> None:
        """Raise NotReachableError when the connection has ended, and nothing can be sent.

        It ends here when the event loop stood still for so long that it has not looked for signs of life: others may
        have elected another leader meanwhile, and a server that stood still, too, does not know.
        """
        self._end_if_silent()
        if self.closed.done():
            raise self._failure()

    async def ask(self, operation: Operation[T], *, consistent: bool = False) -> T:
        """Carry out an operation; ``consistent`` as for ``send``.

        Raises:
            NotReachableError: the connection ended before the answer.
            StoreError: the server refused.
        """
        *synced, future = self.send((operation,), consistent=consistent)
        answer = await future
        _check_synced(synced)
        return self.read(operation, answer)

    async def ask_all(self, operations: Sequence[Operation[Any]], *, consistent: bool = False) -> Results:
        """Carry out operations in one round trip; ``consistent`` as for ``send``.

        Raises:
            NotReachableError: the connection ended before the last answer.
            StoreError: the server refused to catch up.
        """
        futures = self.send(operations, consistent=consistent)
        synced, futures = futures[:consistent], futures[consistent:]
        values: list[Any] = []
        answer: Answer | None = None
        for operation, future in zip(operations, futures, strict=True):
            answer = await future
            try:
                values.append(self.read(operation, answer))
            except NotReachableError:
                raise
            except StoreError as error:
                values.append(error)
        _check_synced(synced)
        return Results(values, 0 if answer is None else answer.zxid)

    async def agree(self) -> None:
        """Have most servers agree on a transaction that changes nothing.

        A server answers pings for a while though the others count it as dead, a leader even reads: it has been paused,
        or the network between them is severed.

        Raises:
            NotReachableError: the connection ended before the answer.
            AccessDeniedError: the server refuses the user.
        """
        try:
            await self.ask(transaction([check("/")]))
        except TransactionRefusedError as error:
            _log.debug("zookeeper: the root cannot be read, but the servers agree: %s", error)

    def abort(self, reason: StoreError) -> None:
        """End the connection without a word; what is pending fails."""
        self._end(reason)
        if self._transport is not None:
            self._transport.abort()

    async def drop(self, reason: StoreError) -> None:
        """End the connection without a word, and wait until its socket is closed."""
        self.abort(reason)
        if self._transport is not None:
            await asyncio.wait([self._gone])

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        # Other event loops' transports need not be of asyncio's class.
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=_PIECE, low=0)
        if self.closed.done():
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is pending."""
        words = f"the connection broke: {exc or 'closed by the server'}"
        largest = max((size for _, size, _ in self._pending), default=0)
        if largest > _PIECE:
            words += f", as a server does with requests larger than its jute.maxbuffer; one had {largest} bytes"
        reason = NotReachableError(words)
        if not self._greeted.done():
            reason = NotWelcomeError()
        reason.__cause__ = exc
        self._end(reason)
        if not self._gone.done():
            self._gone.set_result(None)

    def data_received(self, data: bytes) -> None:
        """Take what has arrived, and hand out the frames that are complete."""
        self._buffer += data
        start = 0
        try:
            while len(self._buffer) - start >= _LENGTH.size and not self.closed.done():
                length = _LENGTH.unpack_from(self._buffer, start)[0]
                if not 0 <= length <= (_LARGEST_FRAME if self._greeted.done() else _LARGEST_WELCOME):
                    raise ValueError(f"a frame of {length} bytes")
                end = start + _LENGTH.size + length
                if len(self._buffer) < end:
                    break
                self._take(bytes(memoryview(self._buffer)[start + _LENGTH.size : end]))
                start = end
        except (struct.error, ValueError) as error:
            self._nonsense(error)
        if self.closed.done():
            self._buffer.clear()
        else:
            del self._buffer[:start]
            if self._buffer:
                self._hear()  # a large answer takes its time

    def pause_writing(self) -> None:
        """Keep what is to be sent until the transport has room."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """Go on: what the transport had has left, which is a sign of life while the answer to a ping waits for it."""
        self._is_paused = False
        if self._before_ping > 0:
            self._hear()
        self._send_backlog()

    def _gather(self, operation: Operation[Any]) -> asyncio.Future[Answer | None]:
        self._xid = self._xid % _LAST_XID + 1
        request = operation.encode(self._xid)
        self._gathered += _LENGTH.pack(len(request)) + request
        future: asyncio.Future[Answer | None] = self._loop.create_future()
        self._pending.append((self._xid, len(request), future))
        return future

    def _write_frame(self, request: bytes) -> None:
        self._gathered += _LENGTH.pack(len(request)) + request
        self._flush()

    def _flush(self) -> None:
        self._is_flushing, self._synced = False, None
        data, self._gathered = self._gathered, bytearray()
        if not data or self.closed.done():
            return
        assert self._transport is not None, "connected"
        if self._is_paused or len(data) > _PIECE:
            self._backlog += data
            self._send_backlog()
        else:
            self._transport.write(data)

    def _send_backlog(self) -> None:
        assert self._transport is not None, "connected"
        while self._backlog and not self._is_paused and not self.closed.done():
            piece = bytes(self._backlog[:_PIECE])
            del self._backlog[:_PIECE]
            self._before_ping -= len(piece)
            self._transport.write(piece)

    def _welcomed(self, welcome: Welcome, credentials: bytes | None) -> None:
        self.welcome = welcome
        if not welcome.session or self.closed.done():
            return
        if credentials is not None:
            self._write_frame(authenticate(credentials))
        self._least_silence = min(_SILENCE, welcome.timeout * _SILENCE_OF_TIMEOUT)
        self._heard = self._loop.time()
        self._keep_alive(self._least_silence / _PINGS_PER_SILENCE)

    @property
    def _silence(self) -> float:
        """Seconds that the server may be silent now."""
        return self._least_silence + (self._pending[0][1] / _SLOWEST if self._pending else 0.0)

    def _is_silent(self) -> bool:
        return self._loop.time() - self._heard > self._silence

    def _end_if_silent(self) -> None:
        if not self.closed.done() and self._is_silent():
            self.abort(NotReachableError(f"no sign of life for {self._loop.time() - self._heard:.1f} s"))

    def _hear(self) -> None:
        # What was already there when the event loop went on does not say that the server still lives.
        if not self._is_silent():
            self._heard = self._loop.time()

    def _keep_alive(self, interval: float) -> None:
        self._end_if_silent()
        if self.closed.done():
            return
        now = self._loop.time()
        if not self._is_pinging:
            self._is_pinging = True
            self._pinged = now
            self._write_frame(ping())
            self._before_ping = len(self._backlog)
        elif now - max(self._pinged, self._heard) >= self._silence - interval:
            self.abort(NotReachableError(f"no sign of life for {now - self._heard:.1f} s"))
            return
        self._watchdog = self._loop.call_later(interval, self._keep_alive, interval)

    def _take(self, frame: bytes) -> None:
        if not self._greeted.done():
            self._greeted.set_result(frame)
            return
        xid, zxid, code = _HEADER.unpack_from(frame)
        if xid == EVENT_XID:
            # No sign of life: a server tells of changes also while what is sent to it is lost.
            self._on_event(parse_event(frame, _HEADER.size))
            return
        self._hear()
        self.zxid = max(self.zxid, zxid)
        if xid in {PING_XID, AUTH_XID} and code:
            # A user whom the server does not let in is told so in answer to whatever is sent first.
            self.abort(refusal(code))
        elif xid == PING_XID and self._is_pinging:
            self._is_pinging = False
        elif xid != AUTH_XID:
            if not self._pending or xid != self._pending[0][0]:
                raise ValueError(f"an answer to request {xid}, which is not the next one")
            _, _, future = self._pending.popleft()
            if not future.done():
                future.set_result(Answer(code, zxid, frame))
            if code in SESSION_CODES:
                self.abort(refusal(code))

    def read(self, operation: Operation[T], answer: Answer | None) -> T:
        """Read what a future of ``send`` gave.

        Raises:
            NotReachableError: the connection ended before the answer.
            StoreError: the server refused.
        """
        if answer is None:
            raise self._failure()
        if answer.code:
            raise refusal(answer.code, operation.path)
        try:
            return operation.read(answer.frame, _HEADER.size)
        except MalformedError as error:
            self._nonsense(error)
            raise self._failure() from error

    def _nonsense(self, error: Exception) -> None:
        self.abort(NotReachableError(f"what the server sent is no answer of ZooKeeper's: {error}"))

    def _failure(self) -> StoreError:
        reason = self.closed.result()
        failure = copy(reason).with_traceback(None)
        failure.endpoint = str(self.endpoint)
        failure.__cause__ = reason.__cause__
        return failure

    def _end(self, reason: StoreError) -> None:
        if self.closed.done():
            return
        reason.endpoint = str(self.endpoint)
        self.closed.set_result(reason)
        if self._watchdog is not None:
            self._watchdog.cancel()
        if not self._greeted.done():
            self._greeted.set_result(None)
        for told in tuple(self.when_closed):
            told()
        pending, self._pending = self._pending, deque()
        for _, _, future in pending:
            if not future.done():
                future.set_result(None)


def _check_synced(synced: Sequence[asyncio.Future[Answer | None]]) -> None:
    """Raise what a server says that did not catch up: what was read behind that may be old."""
    for future in synced:
        answer = future.result()
        if answer is not None and answer.code:
            raise refusal(answer.code)


async def _connected_socket(address: Address) -> socket.socket:
    connecting = address.make_socket()
    try:
        connecting.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        await asyncio.get_running_loop().sock_connect(connecting, address.sockaddr)
    except BaseException:
        connecting.close()
        raise
    return connecting
