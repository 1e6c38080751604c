"""Find requests and answers in the bytes of a connection, as they come."""

import re
from collections.abc import Generator
from typing import Literal, Protocol

Framing = Literal["raw", "http1", "http2", "zookeeper"]


class OnRequest(Protocol):
    """Called for each piece of a request; the first one opens it."""

    def __call__(self, request: int, data: bytes, *, opens: bool) -> None:
        """Take a piece of a request whose number is unique among the unanswered ones of its connection."""


class OnAnswer(Protocol):
    """Called when an answer begins, and in streams for every message."""

    def __call__(self, request: int) -> None:
        """Take the number of the request that is answered."""


class _Inbox:
    """Bytes of one direction; its methods are generators that yield whenever more bytes are needed."""

    def __init__(self) -> None:
        self.data = bytearray()

    def some(self) -> Generator[None, None, bytes]:
        while not self.data:
            yield
        return self._take(len(self.data))

    def exactly(self, size: int) -> Generator[None, None, bytes]:
        while len(self.data) < size:
            yield
        return self._take(size)

    def until(self, mark: bytes) -> Generator[None, None, bytes]:
        while (end := self.data.find(mark)) < 0:
            yield
        return self._take(end + len(mark))

    def _take(self, size: int) -> bytes:
        taken = bytes(self.data[:size])
        del self.data[:size]
        return taken


class Splitter:
    """Find requests and answers in the bytes of one connection; this one knows no framing."""

    def __init__(self, on_request: OnRequest, on_answer: OnAnswer) -> None:
        self._on_request = on_request
        self._on_answer = on_answer
        self._latest = 0
        self._waiting = False
        self._from_client = _Inbox()
        self._from_server = _Inbox()
        self._request_reader = self._read_requests(self._from_client)
        self._answer_reader = self._read_answers(self._from_server)

    def client_sent(self, data: bytes) -> None:
        self._from_client.data += data
        next(self._request_reader)

    def server_sent(self, data: bytes) -> None:
        self._from_server.data += data
        next(self._answer_reader)

    def _read_requests(self, inbox: _Inbox) -> Generator[None, None, None]:
        while True:
            data = yield from inbox.some()
            opens = not self._waiting
            self._latest += opens
            self._waiting = True
            self._on_request(self._latest, data, opens=opens)

    def _read_answers(self, inbox: _Inbox) -> Generator[None, None, None]:
        while True:
            yield from inbox.some()
            if self._waiting:
                self._waiting = False
                self._on_answer(self._latest)


class Http1Splitter(Splitter):
    """HTTP/1.1: the n-th final response answers the n-th request."""

    _LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)", re.IGNORECASE)
    _CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r]*chunked", re.IGNORECASE)
    _STATUS_SIZE = len(b"HTTP/1.1 200")
    _BODILESS = (b"204", b"304")

    def __init__(self, on_request: OnRequest, on_answer: OnAnswer) -> None:
        super().__init__(on_request, on_answer)
        self._methods: dict[int, bytes] = {}

    def _read_requests(self, inbox: _Inbox) -> Generator[None, None, None]:
        number = 0
        while True:
            head = yield from inbox.until(b"\r\n\r\n")
            number += 1
            self._methods[number] = head.split(b" ", 1)[0]
            self._on_request(number, head, opens=True)
            body = yield from self._read_body(inbox, head)
            if body:
                self._on_request(number, body, opens=False)

    def _read_answers(self, inbox: _Inbox) -> Generator[None, None, None]:
        number = 1
        while True:
            status = (yield from inbox.exactly(self._STATUS_SIZE))[-3:]
            if status.startswith(b"1"):
                yield from inbox.until(b"\r\n\r\n")
                continue
            self._on_answer(number)
            head = yield from inbox.until(b"\r\n\r\n")
            if self._methods.pop(number, b"") != b"HEAD" and status not in self._BODILESS:
                if not self._LENGTH.search(head) and not self._CHUNKED.search(head):
                    while True:  # the body ends with the connection
                        yield from inbox.some()
                yield from self._read_body(inbox, head)
            number += 1

    def _read_body(self, inbox: _Inbox, head: bytes) -> Generator[None, None, bytes]:
        if not self._CHUNKED.search(head):
            length = self._LENGTH.search(head)
            return (yield from inbox.exactly(int(length[1]))) if length else b""
        body = b""
        while size := int((yield from inbox.until(b"\r\n")).partition(b";")[0], 16):
            body += (yield from inbox.exactly(size + 2))[:-2]
        while (yield from inbox.until(b"\r\n")) != b"\r\n":
            pass  # trailers
        return body


class Http2Splitter(Splitter):
    """HTTP/2: a request is a stream that the client opens; its answers are HEADERS and DATA frames."""

    _PREFACE_SIZE = len(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    _HEADER_SIZE = 9
    _DATA, _HEADERS = 0, 1

    def _read_requests(self, inbox: _Inbox) -> Generator[None, None, None]:
        newest = 0
        yield from inbox.exactly(self._PREFACE_SIZE)
        while True:
            size, kind, stream = self._parse((yield from inbox.exactly(self._HEADER_SIZE)))
            payload = yield from inbox.exactly(size)
            if kind in {self._DATA, self._HEADERS}:
                # Stream numbers only grow; HEADERS on an older stream are trailers.
                self._on_request(stream, payload, opens=stream > newest)
                newest = max(newest, stream)

    def _read_answers(self, inbox: _Inbox) -> Generator[None, None, None]:
        while True:
            size, kind, stream = self._parse((yield from inbox.exactly(self._HEADER_SIZE)))
            if kind in {self._DATA, self._HEADERS}:
                self._on_answer(stream)
            yield from inbox.exactly(size)

    @staticmethod
    def _parse(header: bytes) -> tuple[int, int, int]:
        return int.from_bytes(header[:3]), header[3], int.from_bytes(header[5:]) & 0x7FFFFFFF


class ZooKeeperSplitter(Splitter):
    """ZooKeeper: length-prefixed frames that begin with an xid; each side's first sets up the session."""

    _PING = -2

    def _read_requests(self, inbox: _Inbox) -> Generator[None, None, None]:
        yield from inbox.exactly(int.from_bytes((yield from inbox.exactly(4))))
        while True:
            frame = yield from inbox.exactly(int.from_bytes((yield from inbox.exactly(4))))
            xid = int.from_bytes(frame[:4], signed=True)
            if xid != self._PING:
                self._on_request(xid, frame, opens=True)

    def _read_answers(self, inbox: _Inbox) -> Generator[None, None, None]:
        yield from inbox.exactly(int.from_bytes((yield from inbox.exactly(4))))
        while True:
            head = yield from inbox.exactly(8)
            # Pings and watch events bear numbers that no request has.
            self._on_answer(int.from_bytes(head[4:], signed=True))
            yield from inbox.exactly(int.from_bytes(head[:4]) - 4)


SPLITTERS: dict[Framing, type[Splitter]] = {
    "raw": Splitter,
    "http1": Http1Splitter,
    "http2": Http2Splitter,
    "zookeeper": ZooKeeperSplitter,
}
