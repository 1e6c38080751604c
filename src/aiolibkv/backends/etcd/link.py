"""One connection to one server, and the watch over its muteness.

A server that is paused or cut off keeps its TCP connections open and says nothing. While something waits for the
server (a call for long, or a stream that is silent) it is asked to read the empty key. A live server refuses that at
once, and a proxy asks the server behind it. No answer means that the link is lost, unless data comes or is taken: then
the question may be queued behind it. Nothing is asked while nobody waits.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

from aiolibkv.backends.etcd.channel import Channel, Metadata, RpcFailedError, Stream
from aiolibkv.backends.etcd.failures import explain
from aiolibkv.store.endpoints import Endpoint
from aiolibkv.store.tasks import Tasks

RANGE = "/etcdserverpb.KV/Range"
EMPTY_KEY = b""
"""The request to read it: etcd refuses that whoever asks, and no other service knows it."""
NEEDS_LEADER = ("hasleader", "true")
"""Metadata by which a server that knows no leader refuses a call, or ends a stream, instead of letting it wait."""

_PATIENCE = 1.0
"""Seconds that a call may wait before the server is asked."""
_SILENCE = 1.5
"""Seconds that open streams may be silent before the server is asked."""
_ANSWERING_STEP = 0.5
"""Seconds, in steps: a stall of this process itself then costs one step, and is not taken for one of the server's."""
_PAUSES_BETWEEN_QUESTIONS = (0.0, 0.2, 0.2, 0.2)
"""Seconds before each question that is asked while a proxy answers that there is no server."""
_MOST_DOUBTS = 4
"""How often the server is asked because of such failures, and no other call is answered, until the link is lost."""
_LONGEST_QUEUE = 3
"""How many times the time for an answer may pass, while data comes: a proxy's other servers might send it."""


class Link:
    """A channel to an endpoint that reports when the server has become mute."""

    def __init__(
        self, endpoint: Endpoint, channel: Channel, lost: Callable[[Link, str], None], answering_time: float
    ) -> None:
        """Make a link; nothing is sent.

        Args:
            endpoint: the server.
            channel: to that server.
            lost: called with the link and a reason when the server does not answer any more.
            answering_time: seconds within which a server that lives answers.
        """
        self._answering_steps = math.ceil(answering_time / _ANSWERING_STEP)
        self.endpoint = endpoint
        self._channel = channel
        self._lost = lost
        self._loop = asyncio.get_running_loop()
        self._tasks = Tasks()
        self._waiting: dict[object, float] = {}
        self._streams: set[LinkStream] = set()
        self._doubts = 0
        self._heard = 0.0
        self._vouched = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._asking = False
        self._dropped = False

    async def connect(self) -> None:
        """Connect to the server.

        Raises:
            RpcFailedError: there is no connection in the time that it may take.
        """
        await self._channel.connect()

    async def call(self, method: str, request: bytes, metadata: Metadata) -> bytes:
        """Send a request and wait for its answer.

        Raises:
            RpcFailedError: there is none.
        """
        waiting = self.expect()
        try:
            answer = await self._channel.call(method, request, metadata)
            self._doubts = 0
            self._hear()
            return answer
        finally:
            self.expect_no_more(waiting)

    async def ask(self, method: str, request: bytes, metadata: Metadata) -> bytes:
        """Send a request on a stream and wait for its answer.

        The stream stays open until then: a proxy may give up a call that nobody sends on any more.

        Raises:
            RpcFailedError: there is none.
        """
        waiting = self.expect()
        stream = self._channel.stream(method, metadata)
        try:
            await stream.write(request)
            answer = await stream.read()
            self._doubts = 0
            self._hear()
            return answer
        finally:
            stream.cancel()
            self.expect_no_more(waiting)

    def expect(self) -> object:
        """Note that a request waits for its answer, also when it was sent on a stream.

        Returns:
            What to give to expect_no_more, when it was answered or does not matter any more.
        """
        waiting = object()
        now = self._loop.time()
        self._waiting[waiting] = now
        self._ask_by(now + _PATIENCE)
        return waiting

    def expect_no_more(self, waiting: object) -> None:
        """Note that a request was answered, or that its answer does not matter any more."""
        self._waiting.pop(waiting, None)

    def stream(self, method: str, metadata: Metadata) -> LinkStream:
        """Open a stream.

        Raises:
            RpcFailedError: the link was dropped.
        """
        stream = LinkStream(self._channel.stream(method, metadata), self._hear, self._forget)
        self._streams.add(stream)
        self._hear()
        self._ask_by(self._heard + _SILENCE)
        return stream

    def doubt(self, reason: str) -> None:
        """Ask the server now, because a call's failure leaves it open whether there is one.

        When no call is answered otherwise the link is lost though the question is. Failures meanwhile, which many calls
        meet at once, count as one.
        """
        if self._asking or self._dropped:
            return
        self._doubts += 1
        if self._doubts < _MOST_DOUBTS:
            self._begin_to_ask()
        else:
            self._lost(self, reason)

    def drop(self, reason: str) -> None:
        """Let everything under way fail now."""
        self._dropped = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._channel.drop(reason)

    async def close(self) -> None:
        """Drop the link and close its connection."""
        self.drop("the connection was closed")
        await self._tasks.close()
        await self._channel.close()

    def _hear(self) -> None:
        self._heard = self._loop.time()

    def _forget(self, stream: LinkStream) -> None:
        self._streams.discard(stream)

    def _ask_by(self, when: float) -> None:
        if self._asking or self._dropped or (self._timer is not None and self._timer.when() <= when):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._consider)

    def _consider(self) -> None:
        self._timer = None
        due = []
        if self._waiting:
            oldest = next(iter(self._waiting.values()))
            due.append(max(oldest, self._vouched) + _PATIENCE)
        if self._streams:
            due.append(self._heard + _SILENCE)
        if due and min(due) > self._loop.time():
            self._ask_by(min(due))
        elif due:
            self._begin_to_ask()

    def _begin_to_ask(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._asking = True
        self._tasks.start(self._ask())

    async def _ask(self) -> None:
        asked = self._tasks.start(self._answers())
        progress, silent = self._channel.progress, 0
        for _ in range(_LONGEST_QUEUE * self._answering_steps):
            await asyncio.wait({asked}, timeout=_ANSWERING_STEP)
            before, progress = progress, self._channel.progress
            silent = silent + 1 if progress == before else 0
            if asked.done() or silent == self._answering_steps:
                break
        self._asking = False
        failure = asked.result() if asked.done() else "the server does not answer"
        asked.cancel()
        if failure is not None:
            self._lost(self, failure)
        else:
            self._heard = self._vouched = self._loop.time()
            self._consider()

    async def _answers(self) -> str | None:
        """Return None when a server that has a leader answered, else what is wrong.

        A proxy that has nobody behind it is asked some times: it may find another server.
        """
        failure = None
        for pause in _PAUSES_BETWEEN_QUESTIONS:
            await asyncio.sleep(pause)
            try:
                await self._channel.call(RANGE, EMPTY_KEY, (NEEDS_LEADER,))
            except RpcFailedError as failed:
                meaning = explain(failed)
                if meaning.breaks:
                    return failed.details
                if not meaning.doubtful:
                    return None
                failure = failed.details
            else:
                return None
        return failure


class LinkStream:
    """A stream of messages over a link; made by ``Link.stream``."""

    def __init__(self, stream: Stream, heard: Callable[[], None], ended: Callable[[LinkStream], None]) -> None:
        self._stream = stream
        self._heard = heard
        self._ended = ended

    async def write(self, message: bytes) -> None:
        """Send a message.

        Raises:
            RpcFailedError: the stream is broken.
        """
        await self._stream.write(message)

    async def read(self) -> bytes:
        """Receive a message.

        Raises:
            RpcFailedError: the stream has ended.
        """
        message = await self._stream.read()
        self._heard()
        return message

    def cancel(self) -> None:
        """End the stream; the server forgets what belongs to it."""
        self._ended(self)
        self._stream.cancel()
