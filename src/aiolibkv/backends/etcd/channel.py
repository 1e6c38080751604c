"""The seam to the RPC transport: gRPC's calls and streams of raw bytes over HTTP/2. Nothing above knows of either.

Whatever goes wrong is an RpcFailedError.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from struct import Struct
from urllib.parse import unquote_to_bytes

from aiolibkv.backends.etcd import frames
from aiolibkv.backends.etcd.frames import Fields
from aiolibkv.backends.etcd.http2 import STREAM_WINDOW, Connection, Exchange, Failure, NotConnectedError, connect
from aiolibkv.store.endpoints import Endpoint
from aiolibkv.store.resolver import Resolver
from aiolibkv.store.tasks import Tasks
from aiolibkv.store.tls import Tls

MAX_ANSWER_BYTES = 64 * 1024 * 1024
Metadata = Sequence[tuple[str, str]]

BROKEN = "BROKEN"
"""The code of a call whose connection has ended, or could not be made."""
HTTP = "HTTP "
"""How the code of an answer begins that is none of gRPC's: a web server's or a proxy's. HTTP's status follows."""
NOT_GRPC = "NOT_GRPC"
"""The code of an answer that is gRPC's in its head only."""
TOO_LARGE = "TOO_LARGE"
"""The code of an answer larger than is received."""

RESET = "RESET"
"""The code of a call that the server, or a proxy, ended without a status while its connection goes on."""

_CODES = (
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
)
_PREFIX = Struct(">BL")
"""What stands before a message: whether it is compressed, and its size."""
_PREFIX_SIZE = _PREFIX.size
_ATTEMPTS = 3
"""How often a request is sent that the server certainly did nothing of."""
_RETURNED_AT = 1 << 24
"""Bytes taken of a stream after which its window is opened again. The rest of it holds a message of any size."""
_KNOWN_BLOCKS = 64
_CLOSING_TIME = 0.5

assert STREAM_WINDOW - _RETURNED_AT >= MAX_ANSWER_BYTES + _PREFIX_SIZE


class RpcFailedError(Exception):
    """A call ended without its answer.

    Attributes:
        code: gRPC's name of the status, such as "UNAVAILABLE", or one of those above.
        details: the text beside it.
        sent: False when the server certainly did nothing.
    """

    def __init__(self, code: str, details: str, *, sent: bool = True) -> None:
        super().__init__(f"{code}: {details}")
        self.code = code
        self.details = details
        self.sent = sent

    @property
    def is_http(self) -> bool:
        """Whether it is an answer of HTTP that is none of gRPC's."""
        return self.code.startswith(HTTP)


class Channel:
    """A connection to one server, opened by its first call.

    When the server asks for it, as proxies do now and then, another connection takes its place for what begins later.
    One that broke is not replaced.
    """

    def __init__(self, endpoint: Endpoint, resolver: Resolver, tls: Tls, limit: float) -> None:
        """Make a channel; nothing is sent.

        Args:
            endpoint: the server.
            resolver: looks up its name.
            tls: what to encrypt with.
            limit: seconds that connecting may take.
        """
        self._endpoint = endpoint
        self._resolver = resolver
        self._tls = tls
        self._limit = limit
        self._loop = asyncio.get_running_loop()
        self._tasks = Tasks()
        self._connecting: asyncio.Task[Connection | RpcFailedError] | None = None
        self._connection: Connection | None = None
        self._connections: set[Connection] = set()
        self._blocks: dict[tuple[str, tuple[tuple[str, str], ...]], bytes] = {}
        self._is_secure = False
        self._dropped: str | None = None

    async def connect(self) -> None:
        """Connect, unless there is a connection; what begins something does so as well.

        Raises:
            RpcFailedError: there is none in the time that connecting may take.
        """
        await self._connected()

    async def call(self, method: str, request: bytes, metadata: Metadata) -> bytes:
        """Send a request and wait for its answer.

        Raises:
            RpcFailedError: there is none.
        """
        data = _with_prefix(request)
        attempts = _ATTEMPTS
        while True:
            connection = self._connection
            if connection is None or not connection.is_usable:
                connection = await self._connected()
            answer = _Answer(self._loop.create_future())
            connection.begin(answer, self._block(method, metadata), data, ends=True)
            try:
                return await answer.future
            except asyncio.CancelledError:
                connection.cancel(answer)
                raise
            except RpcFailedError as failure:
                attempts -= 1
                is_alive = connection.is_leaving or connection.failure is None
                if failure.sent or not is_alive or not attempts or self._dropped is not None:
                    raise

    @property
    def progress(self) -> int:
        """A number that changes when the server sends data, or takes some."""
        return sum(connection.progress for connection in self._connections)

    def stream(self, method: str, metadata: Metadata) -> Stream:
        """Open a stream of messages in both directions.

        Raises:
            RpcFailedError: the channel was dropped.
        """
        self._check()
        return Stream(self, method, metadata)

    def drop(self, reason: str) -> None:
        """Let everything under way fail now, with this as the details."""
        if self._dropped is None:
            self._dropped = reason
            self._tasks.cancel()
            for connection in self._connections:
                connection.close(reason)

    async def close(self) -> None:
        """Drop the channel and close its connection."""
        self.drop("the connection was closed")
        await self._tasks.close()
        closing = [connection.closed for connection in self._connections if not connection.closed.done()]
        if closing:
            await asyncio.wait(closing, timeout=_CLOSING_TIME)

    async def begin(self, stream: Stream, method: str, metadata: Metadata, message: bytes) -> None:
        """Begin a stream with its first message.

        Raises:
            RpcFailedError: there is no connection.
        """
        connection = await self._connected()
        if stream.is_over:
            return
        connection.begin(stream, self._block(method, metadata), _with_prefix(message), ends=False)

    async def _connected(self) -> Connection:
        self._check()
        connection = self._connection
        if connection is not None:
            if connection.is_usable:
                return connection
            if not connection.is_leaving:
                raise RpcFailedError(BROKEN, connection.failure or "", sent=False)
        if self._connecting is None:
            self._connecting = self._tasks.start(self._connect())
        connecting = self._connecting
        await asyncio.wait({connecting})
        self._check()
        found = connecting.result()
        if isinstance(found, Connection):
            return found
        raise RpcFailedError(found.code, found.details, sent=False) from found.__cause__

    async def _connect(self) -> Connection | RpcFailedError:
        try:
            context = self._tls.context()
            self._is_secure = context is not None
            connection = await connect(self._endpoint, self._resolver, context, self._limit)
        except NotConnectedError as error:
            failure = RpcFailedError(BROKEN, str(error), sent=False)
            failure.__cause__ = error.__cause__
            return failure
        finally:
            self._connecting = None
        self._connections.add(connection)
        connection.closed.add_done_callback(lambda _: self._connections.discard(connection))
        self._connection = connection
        return connection

    def _check(self) -> None:
        if self._dropped is not None:
            raise RpcFailedError("CANCELLED", self._dropped, sent=False)

    def _block(self, method: str, metadata: Metadata) -> bytes:
        known = (method, tuple(metadata))
        block = self._blocks.get(known)
        if block is None:
            fields = [(b"content-type", b"application/grpc"), (b"te", b"trailers")]
            fields += [(name.encode(), value.encode()) for name, value in metadata]
            authority = str(self._endpoint).encode()
            block = frames.request_block(authority, method.encode(), fields, secure=self._is_secure)
            if len(self._blocks) >= _KNOWN_BLOCKS:
                # Tokens change now and then.
                self._blocks.clear()
            self._blocks[known] = block
        return block


class _Answer(Exchange):
    """The answer to a call."""

    __slots__ = ("_body", "_has_head", "_size", "future")

    def __init__(self, future: asyncio.Future[bytes]) -> None:
        super().__init__()
        self.future = future
        self._has_head = False
        self._body: bytes | bytearray = b""
        self._size: int | None = None

    def take_fields(self, fields: Fields, *, ended: bool) -> None:
        if ended:
            failure = _failure_at_end(fields)
            if failure is None and self._size == len(self._body) - _PREFIX_SIZE:
                if not self.future.done():
                    self.future.set_result(bytes(memoryview(self._body)[_PREFIX_SIZE:]))
            else:
                self._fail(failure or RpcFailedError("INTERNAL", "an answer without a whole message"))
        elif not self._has_head:
            if not _is_interim(fields):
                self._has_head = True
                self._fail(_failure_at_head(fields))
        else:
            self._fail(RpcFailedError("INTERNAL", "an answer with two heads"))

    def take_data(self, data: bytes, *, ended: bool) -> None:
        body = self._body
        if not body:
            self._body = body = data
        else:
            if isinstance(body, bytes):
                self._body = body = bytearray(body)
            body += data
        if self._size is None and len(body) >= _PREFIX_SIZE:
            self._size, failure = _read_prefix(body, 0)
            self._fail(failure)
        if self._size is not None and len(body) - _PREFIX_SIZE > self._size:
            self._fail(RpcFailedError("INTERNAL", "an answer with more than one message"))
        elif not self._has_head:
            self._fail(RpcFailedError(NOT_GRPC, "an answer without a head"))
        elif ended:
            self._fail(RpcFailedError(RESET, "an answer that ended without a status"))

    def drained(self) -> None:
        pass

    def take_failure(self, failure: Failure) -> None:
        if not self.future.done():
            self.future.set_exception(_failed(failure))

    def _fail(self, failure: RpcFailedError | None) -> None:
        if failure is not None and not self.future.done():
            assert self.connection is not None
            self.connection.cancel(self)
            self.future.set_exception(failure)


class Stream(Exchange):
    """A call that goes on; made by ``Channel.stream``. One task may write to it, and one read from it."""

    __slots__ = (
        "_begun",
        "_buffer",
        "_call",
        "_channel",
        "_failure",
        "_has_head",
        "_held",
        "_messages",
        "_taken",
        "_waiter",
        "_writer",
    )

    def __init__(self, channel: Channel, method: str, metadata: Metadata) -> None:
        super().__init__()
        self._channel = channel
        self._call = (method, metadata)
        self._begun = False
        self._has_head = False
        self._buffer = bytearray()
        self._messages: deque[bytes] = deque()
        self._held = 0
        self._taken = 0
        self._failure: RpcFailedError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing more can be written."""
        return self._failure is not None

    async def write(self, message: bytes) -> None:
        """Send a message.

        Raises:
            RpcFailedError: the stream is broken.
        """
        self._check()
        if not self._begun:
            self._begun = True
            try:
                await self._channel.begin(self, *self._call, message)
            except RpcFailedError as failure:
                self._end(failure)
        elif self.connection is not None:
            self.connection.send(self, _with_prefix(message))
        while self.unsent is not None and self._failure is None:
            self._writer = asyncio.get_running_loop().create_future()
            await self._writer
        self._check()

    async def read(self) -> bytes:
        """Receive a message.

        Raises:
            RpcFailedError: the stream has ended.
        """
        while not self._messages:
            self._check()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        message = self._messages.popleft()
        self._held -= len(message)
        self._taken += len(message) + _PREFIX_SIZE
        if self._taken >= _RETURNED_AT and self.connection is not None:
            self.connection.taken(self, self._taken)
            self._taken = 0
        return message

    def cancel(self) -> None:
        """End the stream; the server forgets what belongs to it."""
        self._end(RpcFailedError("CANCELLED", "the stream was ended"))

    def take_fields(self, fields: Fields, *, ended: bool) -> None:
        """Take the head, or the end."""
        if ended:
            self._end(_failure_at_end(fields) or RpcFailedError("UNAVAILABLE", "the server ended the stream"))
        elif not self._has_head and not _is_interim(fields):
            self._has_head = True
            if (failure := _failure_at_head(fields)) is not None:
                self._end(failure)

    def take_data(self, data: bytes, *, ended: bool) -> None:
        """Take parts of messages."""
        buffer = self._buffer
        buffer += data
        at = 0
        while len(buffer) - at >= _PREFIX_SIZE:
            size, failure = _read_prefix(buffer, at)
            if failure is not None:
                self._end(failure)
                return
            stop = at + _PREFIX_SIZE + size
            if stop > len(buffer):
                break
            self._messages.append(bytes(memoryview(buffer)[at + _PREFIX_SIZE : stop]))
            self._held += size
            at = stop
        del buffer[:at]
        if self._held + len(buffer) > STREAM_WINDOW:
            self._end(RpcFailedError("INTERNAL", "the server sends more than it may"))
        if not self._has_head:
            self._end(RpcFailedError(NOT_GRPC, "a stream without a head"))
        elif ended:
            self._end(RpcFailedError(RESET, "a stream that ended without a status"))
        if self._messages:
            _wake(self._waiter)

    def take_failure(self, failure: Failure) -> None:
        """Take that the stream is broken."""
        self._end(_failed(failure))

    def drained(self) -> None:
        """Let who writes go on."""
        _wake(self._writer)

    def _check(self) -> None:
        if self._failure is not None:
            raise RpcFailedError(self._failure.code, self._failure.details, sent=self._failure.sent)

    def _end(self, failure: RpcFailedError) -> None:
        if self._failure is None:
            self._failure = failure
            if self.connection is not None:
                self.connection.cancel(self)
            _wake(self._waiter)
            _wake(self._writer)


def _with_prefix(message: bytes) -> bytes:
    return b"%b%b" % (_PREFIX.pack(0, len(message)), message)


def _read_prefix(data: bytes | bytearray, at: int) -> tuple[int, RpcFailedError | None]:
    """Return the size of the message that begins somewhere, and why it is not received, if so."""
    compressed, size = _PREFIX.unpack_from(data, at)
    if compressed:
        return size, RpcFailedError("INTERNAL", "a compressed message, which was not asked for")
    if size > MAX_ANSWER_BYTES:
        return size, RpcFailedError(TOO_LARGE, f"an answer of {size} bytes, of which {MAX_ANSWER_BYTES} are received")
    return size, None


def _is_interim(fields: Fields) -> bool:
    return fields.get(b":status", b"").startswith(b"1")


def _failure_at_head(fields: Fields) -> RpcFailedError | None:
    status, content = _text(fields.get(b":status", b"")), _text(fields.get(b"content-type", b""))
    if status == "200" and content.startswith("application/grpc"):
        return None
    return RpcFailedError(HTTP + status, f"an answer of HTTP with status {status} and content {content}")


def _failure_at_end(fields: Fields) -> RpcFailedError | None:
    status = fields.get(b"grpc-status")
    if status == b"0":
        return None
    if status is None:
        return _failure_at_head(fields) or RpcFailedError(NOT_GRPC, "an answer without a status")
    number = int(status) if status.isdigit() and len(status) <= len(b"16") else len(_CODES)
    code = _CODES[number] if 0 < number < len(_CODES) else "UNKNOWN"
    return RpcFailedError(code, _text(unquote_to_bytes(fields.get(b"grpc-message", b""))))


def _failed(failure: Failure) -> RpcFailedError:
    # Not the status of what closed the connection: another call's refusal says nothing of this one.
    code = "CANCELLED" if failure.ours else RESET if failure.alone else BROKEN
    return RpcFailedError(code, failure.reason, sent=failure.processed)


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _wake(waiter: asyncio.Future[None] | None) -> None:
    if waiter is not None and not waiter.done():
        waiter.set_result(None)
