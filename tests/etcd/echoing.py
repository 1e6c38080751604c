"""A server, on the package h2, that says what it is told, in all the ways that HTTP/2 allows."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from random import Random

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, Event, RequestReceived, StreamEnded, StreamReset
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings

from aiolibkv.backends.etcd import frames

_HEAD = [(":status", "200"), ("content-type", "application/grpc")]
_TRAILERS = [("grpc-status", "0"), ("grpc-message", "")]


@dataclass
class Manners:
    """How a server behaves.

    Attributes:
        settings: what it allows.
        padding: the most bytes of it in a frame.
        extra: bytes in a field of every tenth head.
        refuses: which of the requests it refuses: every so manieth.
        leaves: after how many requests of a connection it asks for another, as proxies do.
    """

    settings: Mapping[int, int] = field(default_factory=dict)
    padding: int = 0
    extra: int = 0
    refuses: int = 0
    leaves: int = 0


class EchoServer:
    """Answers each request with the request.

    Attributes:
        connections: how many there were.
        most: how many streams were open at once.
        cancelled: how many streams were reset.
    """

    def __init__(self, manners: Manners) -> None:
        self.manners = manners
        self.connections = 0
        self.most = 0
        self.cancelled = 0
        self.open: set[_Connection] = set()

    def accept(self) -> asyncio.Protocol:
        self.connections += 1
        return _Connection(self)


class _Connection(asyncio.Protocol):
    def __init__(self, server: EchoServer) -> None:
        self._server = server
        self._random = Random(server.connections)
        self._h2 = H2Connection(H2Configuration(client_side=False))
        self._h2.local_settings = Settings(
            client=False, initial_values={SettingCodes(code): value for code, value in server.manners.settings.items()}
        )
        # What follows from settings that are there from the beginning.
        self._h2.max_inbound_frame_size = self._h2.local_settings.max_frame_size
        self._h2.decoder.max_allowed_table_size = self._h2.local_settings.header_table_size
        self._requests: dict[int, bytes] = {}
        self._answers: dict[int, bytes] = {}
        self._count = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._server.open.add(self)
        self._h2.initiate_connection()
        transport.write(self._h2.data_to_send())

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.open.discard(self)

    def data_received(self, data: bytes) -> None:
        for event in self._h2.receive_data(data):
            # A stream may have been reset already when its end is looked at.
            with contextlib.suppress(ProtocolError):
                self._take(event)
        self._say()
        self.transport.write(self._h2.data_to_send())

    def _take(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            self._requests[event.stream_id] = b""
            self._server.most = max(self._server.most, len(self._requests) + len(self._answers))
        elif isinstance(event, DataReceived):
            if event.stream_id in self._requests:
                self._requests[event.stream_id] += event.data
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        elif isinstance(event, StreamEnded):
            self._answer(event.stream_id, self._requests.pop(event.stream_id))
        elif isinstance(event, StreamReset):
            self._server.cancelled += 1
            self._requests.pop(event.stream_id, None)
            self._answers.pop(event.stream_id, None)

    def _answer(self, stream: int, request: bytes) -> None:
        manners = self._server.manners
        self._count += 1
        if manners.refuses and self._count % manners.refuses == 0:
            self._h2.reset_stream(stream, frames.REFUSED_STREAM)
            return
        if manners.leaves and self._count == manners.leaves:
            # Past the package, which would not let what is under way be answered after it.
            goaway = frames.LAST_STREAM.to_bytes(4) + bytes(4)
            self.transport.write(self._h2.data_to_send() + frames.frame(frames.GOAWAY, 0, 0, goaway))
            goaway = stream.to_bytes(4) + bytes(4)
            self.transport.write(frames.frame(frames.GOAWAY, 0, 0, goaway))
        if manners.leaves and self._count > manners.leaves:
            # It was said that this is not looked at.
            return
        extra = [("x-extra", "~" * manners.extra)] if self._count % 10 == 0 else []
        self._h2.send_headers(stream, [*_HEAD, ("x-count", str(self._count)), *extra])
        self._answers[stream] = request

    def _say(self) -> None:
        for stream, rest in list(self._answers.items()):
            padding = self._random.randrange(self._server.manners.padding + 1) if self._server.manners.padding else None
            taken = 0
            while taken < len(rest):
                size = min(
                    len(rest) - taken,
                    self._h2.local_flow_control_window(stream) - (padding or 0) - 1,
                    self._h2.max_outbound_frame_size - (padding or 0) - 1,
                )
                if size <= 0:
                    break
                self._h2.send_data(stream, rest[taken : taken + size], pad_length=padding)
                taken += size
            self._answers[stream] = rest[taken:]
            if taken == len(rest):
                del self._answers[stream]
                self._h2.send_headers(stream, _TRAILERS, end_stream=True)


@contextlib.asynccontextmanager
async def echo_server(manners: Manners) -> AsyncIterator[tuple[str, EchoServer]]:
    """Run a server.

    Yields:
        Its address, and what it has seen.
    """
    echo = EchoServer(manners)
    server = await asyncio.get_running_loop().create_server(echo.accept, "127.0.0.1", 0)
    try:
        host, port = server.sockets[0].getsockname()
        yield f"{host}:{port}", echo
    finally:
        server.close()
        for connection in echo.open:
            connection.transport.abort()
