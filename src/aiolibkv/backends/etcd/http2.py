"""A connection of HTTP/2 on asyncio: streams, flow control, and how it ends; nothing of what is said on it.

All state changes in plain functions, without waiting. What is to be sent is gathered until the event loop comes round.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import NamedTuple, cast

from aiolibkv.backends.etcd import frames
from aiolibkv.backends.etcd.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Fields,
    FrameReader,
    HeaderReader,
    WrongFrameError,
    frame,
    number_frame,
)
from aiolibkv.errors import StoreError
from aiolibkv.store.endpoints import Endpoint
from aiolibkv.store.resolver import Address, Resolver

STREAM_WINDOW = 1 << 27
"""Bytes that may arrive on a stream before its user has taken any."""
_CONNECTION_WINDOW = 1 << 30
_RETURNED_AT = 1 << 24
"""Bytes that arrived after which the connection's window is opened again."""
_SENT_AT_ONCE = 1 << 18
"""Bytes of requests held back that are handed to the socket before the event loop comes round."""
_ANSWERING_TIME = 0.005
"""Seconds that the answer to a PING waits for something else to be sent: etcd sends one with each call."""

_MOST_OWED = 1000
"""Answers that are kept for a server that asks and does not read."""


class Failure(NamedTuple):
    """Why there is no answer.

    Attributes:
        reason: in words.
        processed: False when the server certainly did nothing.
        ours: whether the connection was closed from here.
        alone: whether the connection goes on.
    """

    reason: str
    processed: bool
    ours: bool = False
    alone: bool = False


class Exchange(ABC):
    """A request and its answer, on a stream of a connection; a subclass takes what arrives.

    Attributes:
        connection: where it was begun.
        stream: the stream's number; 0 while it waits for one.
        window: bytes that the server takes on this stream.
        unsent: what flow control holds back.
        ends: whether the request ends with that.
    """

    __slots__ = ("connection", "ends", "stream", "unsent", "window")

    def __init__(self) -> None:
        self.connection: Connection | None = None
        self.stream: int = 0
        self.window: int = 0
        self.unsent: memoryview | None = None
        self.ends: bool = False

    @abstractmethod
    def take_fields(self, fields: Fields, *, ended: bool) -> None:
        """Take a header block: the head of the answer, or what stands at its end."""

    @abstractmethod
    def take_data(self, data: bytes, *, ended: bool) -> None:
        """Take a part of the answer."""

    @abstractmethod
    def take_failure(self, failure: Failure) -> None:
        """Take that there will be no answer."""

    @abstractmethod
    def drained(self) -> None:
        """Take that nothing is held back any more."""


class Connection(asyncio.Protocol):
    """A client's connection; made by ``connect``.

    Attributes:
        is_usable: whether requests can be begun.
        is_leaving: whether no more can be begun, while those under way go on: the server said so, or the numbers of
            streams are used up.
        failure: why it ended, None as long as it has not.
        progress: grows when the server sends data, or takes some.
        cause: the error that ended it, if there was one.
        greeted: done when the server has said what it allows, or the connection has ended.
        closed: done when the socket is closed.
    """

    def __init__(self, *, secure: bool) -> None:
        """Make a protocol.

        Args:
            secure: whether the transport is of TLS.
        """
        self._loop = asyncio.get_running_loop()
        self._secure = secure
        self.is_usable: bool = True
        self.is_leaving: bool = False
        self.failure: str | None = None
        self.progress: int = 0
        self.cause: Exception | None = None
        self.greeted: asyncio.Future[None] = self._loop.create_future()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        self._transport: asyncio.Transport | None = None
        self._frames = FrameReader()
        self._headers = HeaderReader()
        self._out: list[bytes] = []
        self._is_flushing = False
        self._flushing_later: asyncio.TimerHandle | None = None
        self._is_paused = False
        self._owed = 0
        self._is_first = True
        self._next = 1
        self._flushed = 1
        self._open: dict[int, Exchange] = {}
        self._waiting: dict[Exchange, tuple[bytes, bytes]] = {}
        self._held_back: dict[Exchange, None] = {}
        self._most_streams = 0
        self._window = frames.DEFAULT_WINDOW
        self._stream_window = frames.DEFAULT_WINDOW
        self._frame_limit = frames.SMALLEST_FRAME_LIMIT
        self._received = 0
        self._takers: dict[int, Callable[[int, int, bytes], None]] = {
            DATA: self._take_data,
            HEADERS: self._take_block,
            RST_STREAM: self._take_reset,
            SETTINGS: self._take_settings,
            frames.PING: self._take_ping,
            frames.GOAWAY: self._take_goaway,
            WINDOW_UPDATE: self._take_window,
        }

    # -- requests ------------------------------------------------------------------------------------------------------

    def begin(self, exchange: Exchange, block: bytes, data: bytes, *, ends: bool) -> None:
        """Send a request as soon as the server allows one more stream.

        Args:
            exchange: takes the answer.
            block: the header block.
            data: what follows, or its beginning.
            ends: whether the request ends with it.
        """
        exchange.connection = self
        exchange.ends = ends
        if self._waiting or len(self._open) >= self._most_streams:
            self._waiting[exchange] = (block, data)
        else:
            self._start(exchange, block, data)

    def send(self, exchange: Exchange, data: bytes) -> None:
        """Send more of a request of which nothing is held back."""
        if exchange.stream:
            self._send_data(exchange, data)
        else:
            block, before = self._waiting[exchange]
            self._waiting[exchange] = (block, before + data)

    def cancel(self, exchange: Exchange) -> None:
        """End an exchange that is not over; nothing more is told of it."""
        if self._waiting.pop(exchange, None) is None and self._open.pop(exchange.stream, None) is not None:
            self._held_back.pop(exchange, None)
            self._send(number_frame(RST_STREAM, exchange.stream, frames.CANCEL))
            self._proceed()

    def taken(self, exchange: Exchange, size: int) -> None:
        """Have the server send as many bytes more on a stream."""
        if exchange.stream in self._open:
            self._send(number_frame(WINDOW_UPDATE, exchange.stream, size))

    def close(self, reason: str) -> None:
        """End the connection now; what is under way fails."""
        self._end(reason, ours=True)

    @property
    def is_idle(self) -> bool:
        """Whether nothing is under way."""
        return not self._open

    def _start(self, exchange: Exchange, block: bytes, data: bytes) -> None:
        stream = exchange.stream = self._next
        self._next = stream + 2
        if self._next > frames.LAST_STREAM:
            self._leave("the numbers of streams are used up")
        self._open[stream] = exchange
        exchange.window = self._stream_window
        if self._is_first:
            self._is_first = False
            block = frames.first_block(block)
        if len(block) <= self._frame_limit:
            self._send(frame(HEADERS, END_HEADERS, stream, block))
        else:
            self._send(frames.header_frames(stream, block, self._frame_limit))
        if data or exchange.ends:
            self._send_data(exchange, data)

    def _send_data(self, exchange: Exchange, data: bytes) -> None:
        size = len(data)
        if size > self._window or size > exchange.window or size > self._frame_limit or self._is_paused:
            exchange.unsent = memoryview(data)
            self._held_back[exchange] = None
            self._flush_soon()
        else:
            self._window -= size
            exchange.window -= size
            self._send(frame(DATA, END_STREAM if exchange.ends else 0, exchange.stream, data))

    def _send_held_back(self) -> bool:
        """Send what flow control allows, a frame of each stream in turn, and tell whether more could be sent."""
        room = _SENT_AT_ONCE
        going = list(self._held_back)
        while going and room > 0 and not self._is_paused:
            still = []
            for exchange in going:
                unsent = exchange.unsent
                assert unsent is not None
                size = min(len(unsent), exchange.window, self._window, self._frame_limit)
                if size <= 0:
                    continue
                self._window -= size
                exchange.window -= size
                room -= size
                is_last = size == len(unsent)
                flags = END_STREAM if is_last and exchange.ends else 0
                self._send(frame(DATA, flags, exchange.stream, unsent[:size]))
                if is_last:
                    exchange.unsent = None
                    del self._held_back[exchange]
                    exchange.drained()
                else:
                    exchange.unsent = unsent[size:]
                    still.append(exchange)
            going = still
        return bool(going)

    def _send(self, data: bytes) -> None:
        self._out.append(data)
        if not self._is_flushing:
            self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._is_flushing:
            self._is_flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flushing = False
        self._flush_no_more_later()
        has_more = bool(self._held_back) and self._send_held_back()
        out, self._out = self._out, []
        if not out or self._transport is None:
            return
        self._transport.write(b"".join(out))
        self._flushed = self._next
        if has_more and not self._is_paused:
            self._flush_soon()

    def _proceed(self) -> None:
        """Go on after a stream has ended."""
        while self._waiting and len(self._open) < self._most_streams and self.is_usable:
            exchange = next(iter(self._waiting))
            self._start(exchange, *self._waiting.pop(exchange))
        if self.is_leaving and not self._open:
            self._end("the server has left")

    def _flush_no_more_later(self) -> None:
        if self._flushing_later is not None:
            self._flushing_later.cancel()
            self._flushing_later = None

    # -- the transport -------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say what is allowed to the server."""
        # Not every event loop's transport is of asyncio's class.
        self._transport = cast("asyncio.Transport", transport)
        settings = frames.settings_frame(
            (
                (frames.ENABLE_PUSH, 0),
                (frames.INITIAL_WINDOW_SIZE, STREAM_WINDOW),
                (frames.MAX_HEADER_LIST_SIZE, frames.MAX_HEADER_BYTES),
            )
        )
        window = number_frame(WINDOW_UPDATE, 0, _CONNECTION_WINDOW - frames.DEFAULT_WINDOW)
        self._transport.write(frames.PREFACE + settings + window)

    def connection_lost(self, exc: Exception | None) -> None:
        """Take that the socket is closed."""
        reason = "the server closed the connection" if exc is None else f"the connection broke: {described(exc)}"
        if not self.greeted.done() and self._secure:
            # With TLS 1.3 a client learns only after its handshake that its certificate was not accepted.
            reason = f"the TLS handshake failed, or a client certificate: {reason}"
        elif not self.greeted.done():
            reason += " before it said anything; perhaps it wants TLS (the setting tls=True)"
        self.cause = exc
        self._end(reason)
        self._transport = None
        self.closed.set_result(None)

    def pause_writing(self) -> None:
        """Hold back requests that are begun."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """Send what was held back."""
        self._is_paused = False
        self._owed = 0
        self._flush()

    def data_received(self, data: bytes) -> None:
        """Take what the server says."""
        try:
            for kind, flags, stream, payload in self._frames.read(data):
                if not self.greeted.done() and kind != SETTINGS:
                    raise WrongFrameError(frames.PROTOCOL_ERROR, f"it begins with a frame of kind {kind}")
                take = self._takers.get(kind)
                if take is not None:
                    take(flags, stream, payload)
                    if self.failure is not None:
                        return
        except WrongFrameError as error:
            self._send(frames.goaway_frame(error.code))
            self._flush()
            self._end(f"what the server says is not HTTP/2: {error}")

    # -- frames --------------------------------------------------------------------------------------------------------

    def _take_data(self, flags: int, stream: int, payload: bytes) -> None:
        size = len(payload)
        self.progress += 1
        self._received += size
        if self._received >= _RETURNED_AT:
            self._send(number_frame(WINDOW_UPDATE, 0, self._received))
            self._received = 0
        exchange = self._of(stream)
        if flags & PADDED:
            payload = frames.unpadded(payload)
            if exchange is not None and not flags & END_STREAM:
                self._answer(number_frame(WINDOW_UPDATE, stream, size - len(payload)))
        if exchange is not None:
            ended = flags & END_STREAM != 0
            if ended:
                self._forget(exchange)
            exchange.take_data(payload, ended=ended)

    def _take_block(self, flags: int, stream: int, payload: bytes) -> None:
        fields = self._headers.read(payload)
        exchange = self._of(stream)
        if exchange is not None:
            ended = flags & END_STREAM != 0
            if ended:
                self._forget(exchange)
            exchange.take_fields(fields, ended=ended)

    def _take_reset(self, _flags: int, stream: int, payload: bytes) -> None:
        exchange = self._of(stream)
        if exchange is not None:
            code = frames.read_number(payload)
            processed = code != frames.REFUSED_STREAM and exchange.unsent is None
            self._held_back.pop(exchange, None)
            del self._open[stream]
            reason = f"the server reset the stream, with reason {code}"
            exchange.take_failure(Failure(reason, processed, alone=True))
            self._proceed()

    def _take_settings(self, flags: int, _stream: int, payload: bytes) -> None:
        if flags & frames.ACK:
            return
        if not self.greeted.done():
            self._most_streams = frames.LAST_STREAM
            self.greeted.set_result(None)
        for name, value in frames.read_settings(payload):
            if name == frames.MAX_CONCURRENT_STREAMS:
                self._most_streams = value
            elif name == frames.MAX_FRAME_SIZE:
                self._frame_limit = value
            elif name == frames.INITIAL_WINDOW_SIZE:
                change, self._stream_window = value - self._stream_window, value
                for exchange in self._open.values():
                    exchange.window += change
                    _check_window(exchange.window)
        # This has whatever is held back sent as well.
        self._answer(frame(SETTINGS, frames.ACK, 0))
        self._proceed()

    def _take_ping(self, flags: int, _stream: int, payload: bytes) -> None:
        if not flags & frames.ACK:
            self._answer(frame(frames.PING, frames.ACK, 0, payload), is_urgent=False)

    def _take_window(self, _flags: int, stream: int, payload: bytes) -> None:
        more = frames.read_number(payload) & frames.LARGEST_WINDOW
        if not more:
            raise WrongFrameError(frames.PROTOCOL_ERROR, "a window opened by nothing")
        self.progress += 1
        if not stream:
            self._window += more
            _check_window(self._window)
        elif (exchange := self._of(stream)) is not None:
            exchange.window += more
            _check_window(exchange.window)
        if self._held_back:
            self._flush_soon()

    def _take_goaway(self, _flags: int, _stream: int, payload: bytes) -> None:
        last, code, text = frames.read_goaway(payload)
        reason = f"the server is leaving, with reason {code}{text and ': '}{text}"
        for stream in [each for each in self._open if each > last]:
            exchange = self._open.pop(stream)
            self._held_back.pop(exchange, None)
            exchange.take_failure(Failure(reason, processed=False))
        self._leave(reason)
        if code != frames.NO_ERROR:
            self._end(reason)
        self._proceed()

    def _of(self, stream: int) -> Exchange | None:
        """Return the exchange on a stream, None when it is over."""
        exchange = self._open.get(stream)
        if exchange is None and (stream >= self._next or not stream & 1):
            raise WrongFrameError(frames.PROTOCOL_ERROR, f"stream {stream} was never begun")
        return exchange

    def _forget(self, exchange: Exchange) -> None:
        """Take that the answer is complete."""
        del self._open[exchange.stream]
        if exchange.unsent is not None or not exchange.ends:
            self._held_back.pop(exchange, None)
            self._send(number_frame(RST_STREAM, exchange.stream, frames.CANCEL))
        if self._waiting or self.is_leaving:
            # The exchange is told first.
            self._loop.call_soon(self._proceed)

    def _answer(self, data: bytes, *, is_urgent: bool = True) -> None:
        """Send what the server has asked for; what is not urgent with whatever is sent soon."""
        if self._is_paused:
            self._owed += 1
            if self._owed > _MOST_OWED:
                raise WrongFrameError(frames.ENHANCE_YOUR_CALM, "it asks, and does not read the answers")
        if is_urgent or self._is_flushing:
            self._send(data)
            return
        self._out.append(data)
        if self._flushing_later is None:
            self._flushing_later = self._loop.call_later(_ANSWERING_TIME, self._flush)

    def _leave(self, reason: str) -> None:
        self.is_usable = False
        self.is_leaving = True
        waiting, self._waiting = self._waiting, {}
        for exchange in waiting:
            exchange.take_failure(Failure(reason, processed=False))

    def _end(self, reason: str, *, ours: bool = False) -> None:
        if self.failure is not None:
            return
        self.failure = reason
        self.is_usable = False
        waiting, self._waiting = self._waiting, {}
        under_way, self._open = self._open, {}
        self._held_back.clear()
        for exchange in waiting:
            exchange.take_failure(Failure(reason, processed=False, ours=ours))
        for stream, exchange in under_way.items():
            # What the server has not received whole it cannot carry out.
            processed = stream < self._flushed and exchange.unsent is None
            exchange.take_failure(Failure(reason, processed, ours))
        if not self.greeted.done():
            self.greeted.set_result(None)
        self._flush_no_more_later()
        if self._transport is not None:
            self._transport.abort()


class NotConnectedError(Exception):
    """A server cannot be connected to; the cause may tell more."""


async def connect(endpoint: Endpoint, resolver: Resolver, tls: ssl.SSLContext | None, limit: float) -> Connection:
    """Connect to a server, at whichever of its addresses speaks HTTP/2.

    Args:
        endpoint: the server.
        resolver: looks up its name.
        tls: for TLS; plain TCP when None.
        limit: seconds for all of its addresses, which have equal shares.

    Raises:
        NotConnectedError: none does.
    """
    clock = asyncio.get_running_loop().time
    end = clock() + limit
    try:
        addresses = await resolver.addresses(endpoint, limit)
    except StoreError as error:
        raise NotConnectedError(str(error.message)) from error
    failure = NotConnectedError("there was no time to connect")
    for left, address in zip(range(len(addresses), 0, -1), addresses, strict=True):
        share = (end - clock()) / left
        try:
            async with asyncio.timeout(share):
                return await _connect(endpoint.host, address, tls)
        except NotConnectedError as error:
            failure = error
        except TimeoutError:
            failure = NotConnectedError(f"{address.host} does not answer within {share:.3g} s")
        resolver.failed(endpoint, address)
    raise failure


async def _connect(host: str, address: Address, tls: ssl.SSLContext | None) -> Connection:
    loop = asyncio.get_running_loop()
    sock = address.make_socket()
    try:
        await loop.sock_connect(sock, address.sockaddr)
    except OSError as error:
        sock.close()
        raise NotConnectedError(f"cannot connect to {address.host}: {described(error)}") from error
    except BaseException:
        sock.close()
        raise
    connection = Connection(secure=tls is not None)
    try:
        await loop.create_connection(
            lambda: connection, sock=sock, ssl=tls, server_hostname=host if tls is not None else None
        )
        await connection.greeted
    except OSError as error:
        raise NotConnectedError(f"the TLS handshake failed: {described(error)}") from error
    except BaseException:
        connection.close("it took too long to connect")
        raise
    if connection.failure is not None:
        raise NotConnectedError(connection.failure) from connection.cause
    return connection


def _check_window(window: int) -> None:
    if window > frames.LARGEST_WINDOW:
        raise WrongFrameError(frames.FLOW_CONTROL_ERROR, "a window opened too wide")


def described(error: Exception) -> str:
    """Return the words of an error of the network; those that event loops put there name the address only."""
    if isinstance(error, ssl.SSLError):
        return str(error)
    if isinstance(error, socket.gaierror) or not isinstance(error, OSError) or error.errno is None:
        return str(error) or type(error).__name__
    return os.strerror(error.errno)
