"""A TCP proxy between a client and a real server that counts round trips and provokes faults."""

import asyncio
import contextlib
import errno
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Self

from aiolibkv.testing.framing import SPLITTERS, Framing

_HOST = "127.0.0.1"
_CHUNK = 65536
# Closing a socket that lingers for zero seconds sends RST instead of FIN.
_LINGER_ZERO = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class Counts:
    """What passed through a proxy.

    Attributes:
        requests: requests sent by clients, whether or not they reached the server.
        round_trips: waves of requests. A request begins a new wave when a request of the wave before has
            been answered (or has lost its connection); requests sent together are one wave.
        connections: connections opened by clients.
        answered_bytes: bytes sent by the server, whether or not they reached a client.
    """

    requests: int = 0
    round_trips: int = 0
    connections: int = 0
    answered_bytes: int = 0


class FaultProxy:
    """Pass a server's connections on, counting, delaying, holding back or breaking them on demand.

    Each method acts at once, on open connections and on later ones, until `heal()`. What is received is
    buffered without a limit. To be used from the event loop that entered it.

    Args:
        host: the server's address.
        port: the server's port.
        protocol: how to find requests and answers in the bytes. "raw" needs no framing: a request is
            whatever a client sends until the server sends something. Use it for TLS too (its handshakes
            are counted).
    """

    def __init__(self, host: str, port: int, *, protocol: Framing = "raw") -> None:
        """Prepare a proxy; entering it starts it."""
        self._target = (host, port)
        self._protocol = protocol
        self._loop: asyncio.AbstractEventLoop | None = None
        self._listener: socket.socket | None = None
        self._port = 0
        self._family = 0
        self._address: tuple[object, ...] = ()
        self._links: set[_Link] = set()
        self._faults = _Faults()
        self._tally = _Tally()

    async def __aenter__(self) -> Self:
        """Resolve the server's address and listen on a free port."""
        self._loop = asyncio.get_running_loop()
        found = await self._loop.getaddrinfo(*self._target, type=socket.SOCK_STREAM)
        self._family, _, _, _, self._address = found[0]
        self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the proxy."""
        await self.close()

    async def close(self) -> None:
        """Stop listening and reset every connection; nothing stays open or scheduled."""
        self.reset()
        self._stop_listening()

    @property
    def host(self) -> str:
        """The address to connect to."""
        return _HOST

    @property
    def port(self) -> int:
        """The port to connect to, the same for the proxy's whole life."""
        return self._port

    @property
    def endpoint(self) -> str:
        """Address and port, as in "127.0.0.1:2379"."""
        return f"{_HOST}:{self._port}"

    @property
    def url_host(self) -> str:
        """What stands for the host in a URL: address and port."""
        return self.endpoint

    @property
    def requests(self) -> int:
        """Requests so far."""
        return self._tally.total.requests

    @property
    def round_trips(self) -> int:
        """Waves of requests so far; see `Counts`."""
        return self._tally.total.round_trips

    @property
    def connections_total(self) -> int:
        """Connections that clients have opened so far."""
        return self._tally.total.connections

    @property
    def connections_open(self) -> int:
        """Connections whose client has neither closed its side nor been reset."""
        return sum(link.client_open for link in self._links)

    @property
    def answers_cut(self) -> int:
        """Connections reset by `cut_answers()` so far."""
        return self._faults.answers_cut

    @contextlib.contextmanager
    def counting(self) -> Iterator[Counts]:
        """Count what passes during a `with` block; its first request begins a new wave."""
        counts = Counts()
        self._tally.add(counts)
        try:
            yield counts
        finally:
            self._tally.remove(counts)

    def delay(self, seconds: float) -> None:
        """Deliver everything later, in each direction, without slowing it down otherwise.

        Args:
            seconds: one way; a request and its answer take twice that. 0 ends the delay.
        """
        self._faults.delay = seconds
        self._flush()

    def blackhole(self, *, to_server: bool = True, to_client: bool = True) -> None:
        """Deliver nothing, as a network does that lost its route: connections stay open and mute.

        New connections are accepted and just as mute. What is sent meanwhile (closing and resetting
        included) arrives after `heal()`, as TCP would retransmit it; call `reset()` first to have it lost.

        Args:
            to_server: hold back what clients send.
            to_client: hold back what the server sends.
        """
        self._faults.held_to_server = to_server
        self._faults.held_to_client = to_client
        self._flush()

    def heal(self) -> None:
        """End every fault: deliver what was held back or delayed, and accept connections."""
        self._faults.delay = 0.0
        self._faults.held_to_server = self._faults.held_to_client = False
        self._faults.cuts = 0
        self.accept()
        self._flush()

    def reset(self) -> None:
        """Send RST on every open connection, to both sides; what was not yet delivered is lost."""
        for link in list(self._links):
            link.reset()

    def refuse(self) -> None:
        """Refuse new connections, as a host does where nothing listens; open ones stay."""
        self._stop_listening()
        # Bound but not listening: connecting is refused, and nobody else can be given the port.
        self._listener = self._bind()

    def accept(self) -> None:
        """Accept new connections again, on the same port."""
        loop = self._running
        if self._listener is None:
            self._listener = self._bind()
        self._listener.listen(1024)
        loop.add_reader(self._listener, self._accept_waiting)

    def cut_answers(self, count: int = 1, *, matching: Callable[[bytes], bool] | None = None) -> None:
        """Let the next requests reach the server, and reset their connections instead of answering.

        The reset comes when the server has begun to answer, so it has processed the request. Whatever
        else waits for an answer on the same connection is lost with it. A call replaces the one before.

        Args:
            count: how many requests to cut; 0 ends it.
            matching: count only requests whose bytes satisfy this. It is asked again whenever more of the
                request was sent. In HTTP/2, the bytes are the compressed headers and then the data of the
                stream, so that a message on a stream opened earlier can match too.
        """
        self._faults.cuts = count
        self._faults.cut_matching = matching

    @property
    def _running(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            message = "the proxy has not been entered"
            raise RuntimeError(message)
        return self._loop

    def _bind(self) -> socket.socket:
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.settimeout(0)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((_HOST, self._port))
        self._port = sock.getsockname()[1]
        return sock

    def _stop_listening(self) -> None:
        if self._listener is not None:
            self._running.remove_reader(self._listener)
            self._listener.close()
            self._listener = None

    def _accept_waiting(self) -> None:
        while self._listener is not None:
            try:
                sock, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            link = _Link(
                self._running,
                sock,
                new_socket=lambda: socket.socket(self._family, socket.SOCK_STREAM),
                address=self._address,
                protocol=self._protocol,
                faults=self._faults,
                tally=self._tally,
                on_ended=self._links.discard,
            )
            self._links.add(link)
            self._tally.connected()
            link.flush()

    def _flush(self) -> None:
        for link in list(self._links):
            link.flush()


@dataclass(slots=True)
class _Faults:
    """The faults in force, shared by all connections of a proxy."""

    delay: float = 0.0
    held_to_server: bool = False
    held_to_client: bool = False
    cuts: int = 0
    cut_matching: Callable[[bytes], bool] | None = None
    answers_cut: int = 0

    def takes_cut(self, sent: bytes, *, opens: bool) -> bool:
        """Return whether the answer to this request is to be cut, and use up a cut if so."""
        hit = opens if self.cut_matching is None else self.cut_matching(sent)
        self.cuts -= hit
        return hit


@dataclass(slots=True)
class _Tally:
    """The counts of a proxy, and the present wave of requests."""

    total: Counts = field(default_factory=Counts)
    _counters: list[Counts] = field(init=False)
    _wave: set[tuple["_Link", int]] = field(default_factory=set)
    _wave_over: bool = True

    def __post_init__(self) -> None:
        self._counters = [self.total]

    def add(self, counts: Counts) -> None:
        self._counters.append(counts)
        self._wave_over = True

    def remove(self, counts: Counts) -> None:
        # By identity: nested blocks that counted the same are equal.
        self._counters = [counter for counter in self._counters if counter is not counts]

    def connected(self) -> None:
        for counter in self._counters:
            counter.connections += 1

    def received(self, size: int) -> None:
        for counter in self._counters:
            counter.answered_bytes += size

    def requested(self, link: "_Link", request: int) -> None:
        for counter in self._counters:
            counter.requests += 1
            counter.round_trips += self._wave_over
        if self._wave_over:
            self._wave.clear()
            self._wave_over = False
        self._wave.add((link, request))

    def answered(self, link: "_Link", request: int) -> None:
        # Only an answer to the present wave ends it: a long poll of earlier says nothing about it.
        if (link, request) in self._wave:
            self._wave_over = True

    def ended(self, link: "_Link") -> None:
        if any(member is link for member, _ in self._wave):
            self._wave_over = True


class _Link:
    """One client's connection and the connection to the server that belongs to it."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        *,
        new_socket: Callable[[], socket.socket],
        address: tuple[object, ...],
        protocol: Framing,
        faults: _Faults,
        tally: _Tally,
        on_ended: Callable[["_Link"], None],
    ) -> None:
        self._loop = loop
        self._new_socket = new_socket
        self._address = address
        self._faults = faults
        self._tally = tally
        self._on_ended = on_ended
        self._splitter = SPLITTERS[protocol](self._requested, self._answered)
        self._doomed: set[int] = set()
        self._sent: dict[int, bytes] = {}
        self._answers: list[int] = []
        self._to_server = _Pipe(loop, faults, self._deliver_to_server, self.flush)
        self._to_client = _Pipe(loop, faults, self._deliver_to_client, self.flush)
        self._server: _End | None = None
        self._client = _End(loop, sock, self._client_sent, self._client_lost, self._closed)

    @property
    def client_open(self) -> bool:
        return self._client.sending

    def flush(self) -> None:
        """Deliver what nothing holds back."""
        if not self._faults.held_to_server:
            if self._server is None:
                self._connect()
            self._to_server.flush()
        if not self._faults.held_to_client:
            self._to_client.flush()

    def reset(self) -> None:
        self._to_server.clear()
        self._to_client.clear()
        self._client.reset()
        if self._server is not None:
            self._server.reset()
        self._ended()

    def _connect(self) -> None:
        sock = self._new_socket()
        sock.settimeout(0)
        # Most failures show later, when the socket becomes readable, as those of an open connection do.
        failure = sock.connect_ex(self._address)
        self._server = _End(self._loop, sock, self._server_sent, self._server_lost, self._closed)
        if failure not in {0, errno.EINPROGRESS}:
            self.reset()

    def _client_sent(self, data: bytes) -> None:
        self._splitter.client_sent(data)
        self._to_server.put(data)
        self.flush()

    def _server_sent(self, data: bytes) -> None:
        self._tally.received(len(data))
        self._splitter.server_sent(data)
        answers, self._answers = self._answers, []
        if self._doomed.intersection(answers):
            self._faults.answers_cut += 1
            self.reset()
            return
        self._to_client.put(data, answers)
        self.flush()

    def _requested(self, request: int, data: bytes, *, opens: bool) -> None:
        if opens:
            self._tally.requested(self, request)
            self._sent.pop(request, None)
        if self._faults.cuts and request not in self._doomed:
            sent = self._sent[request] = self._sent.get(request, b"") + data
            if self._faults.takes_cut(sent, opens=opens):
                self._doomed.add(request)

    def _answered(self, request: int) -> None:
        self._answers.append(request)

    def _client_lost(self) -> None:
        self._to_server.put(None)

    def _server_lost(self) -> None:
        self._to_client.put(None)

    def _closed(self) -> None:
        self.flush()
        if self._client.closed and self._server is not None and self._server.closed:
            self._ended()

    def _ended(self) -> None:
        self._tally.ended(self)
        self._on_ended(self)

    def _deliver_to_server(self, data: bytes | None, _: Sequence[int]) -> None:
        if data is None:
            self.reset()
        elif self._server is not None:
            self._server.send(data)

    def _deliver_to_client(self, data: bytes | None, answers: Sequence[int]) -> None:
        if data is None:
            self.reset()
            return
        self._client.send(data)
        for answer in answers:
            self._tally.answered(self, answer)


class _Pipe:
    """One direction of a connection: what was received and not yet delivered, in order."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        faults: _Faults,
        deliver: Callable[[bytes | None, Sequence[int]], None],
        on_due: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._faults = faults
        self._deliver = deliver
        self._on_due = on_due
        self._queue: deque[tuple[float, bytes | None, Sequence[int]]] = deque()
        self._timer: asyncio.TimerHandle | None = None

    def put(self, data: bytes | None, answers: Sequence[int] = ()) -> None:
        """Queue bytes and the requests they answer; b"" is the end of the stream and None a reset."""
        self._queue.append((self._loop.time(), data, answers))

    def flush(self) -> None:
        """Deliver what is due, and have `on_due` called for the rest."""
        self._cancel_timer()
        while self._queue:
            received, data, answers = self._queue[0]
            wait = received + self._faults.delay - self._loop.time()
            if wait > 0:
                self._timer = self._loop.call_later(wait, self._on_due)
                return
            self._queue.popleft()
            self._deliver(data, answers)

    def clear(self) -> None:
        """Drop everything."""
        self._cancel_timer()
        self._queue.clear()

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _End:
    """One socket. All its state changes without an await: no task can be left over or cancelled."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        on_data: Callable[[bytes], None],
        on_lost: Callable[[], None],
        on_closed: Callable[[], None],
    ) -> None:
        self._loop = loop
        self._sock = sock
        self._on_data = on_data
        self._on_lost = on_lost
        self._on_closed = on_closed
        self._unsent = bytearray()
        self._finishing = False
        self._finished = False
        self.sending = True
        self.closed = False
        sock.settimeout(0)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop.add_reader(sock, self._readable)

    def send(self, data: bytes) -> None:
        """Send bytes when the socket takes them; b"" ends this direction after them."""
        if self.closed:
            return
        self._unsent += data
        self._finishing = self._finishing or not data
        self._loop.add_writer(self._sock, self._writable)

    def reset(self) -> None:
        """Send RST and close."""
        if not self.closed:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_ZERO)
            self._close()

    def _readable(self) -> None:
        try:
            data = self._sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            self._lost()
            return
        if not data:
            self.sending = False
            self._loop.remove_reader(self._sock)
        self._on_data(data)
        self._close_if_done()

    def _writable(self) -> None:
        if self._unsent:
            try:
                sent = self._sock.send(self._unsent)
            except BlockingIOError:
                return
            except OSError:
                self._lost()
                return
            del self._unsent[:sent]
        if self._unsent:
            return
        self._loop.remove_writer(self._sock)
        if self._finishing and not self._finished:
            self._finished = True
            try:
                self._sock.shutdown(socket.SHUT_WR)
            except OSError:
                self._lost()
                return
            self._close_if_done()

    def _close_if_done(self) -> None:
        if self._finished and not self.sending and not self.closed:
            self._close()
            self._on_closed()

    def _lost(self) -> None:
        self._on_lost()
        self._close()
        self._on_closed()

    def _close(self) -> None:
        self.closed = True
        self.sending = False
        self._loop.remove_reader(self._sock)
        self._loop.remove_writer(self._sock)
        self._sock.close()
