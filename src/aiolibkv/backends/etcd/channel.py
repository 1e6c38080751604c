"""The seam to the RPC transport: raw bytes over ``grpc.aio``. Nothing outside this module knows grpc.

Whatever goes wrong is an RpcFailedError, also for calls that were under way when the channel was dropped: grpc would
show those as cancellations, which nobody asked for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import grpc.aio

MAX_ANSWER_BYTES = 64 * 1024 * 1024
Metadata = Sequence[tuple[str, str]]

_OPTIONS = (
    # One TCP connection per store, never one that another store or a dropped channel shares.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", MAX_ANSWER_BYTES),
    ("grpc.max_send_message_length", -1),
    # What may be sent again is decided above, where it is known which calls write.
    ("grpc.enable_retries", 0),
    # The addresses are given; neither a lookup of TXT records nor the environment's web proxy has a say.
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.enable_http_proxy", 0),
)

# No connection was there to send on; seen with grpcio 1.85.
_NOT_CONNECTED = "failed to connect to all addresses"


@dataclass(frozen=True)
class Credentials:
    """Contents of PEM files.

    Attributes:
        authorities: whom to trust; grpc's own list when None.
        certificate: the client's, with its chain.
        key: the client's.
    """

    authorities: bytes | None
    certificate: bytes | None
    key: bytes | None

    def __repr__(self) -> str:
        return "Credentials()"


class RpcFailedError(Exception):
    """A call ended without its answer.

    Attributes:
        code: grpc's name of the status, such as "UNAVAILABLE".
        details: the text beside it.
        sent: False when the request certainly did not leave.
    """

    def __init__(self, code: str, details: str, *, sent: bool = True) -> None:
        super().__init__(f"{code}: {details}")
        self.code = code
        self.details = details
        self.sent = sent


class Channel:
    """A connection to one server, opened by its first call."""

    def __init__(self, target: str, credentials: Credentials | None) -> None:
        """Make a channel; nothing is sent.

        Args:
            target: "host:port".
            credentials: for TLS; plain TCP when None.
        """
        self._channel: grpc.aio.Channel | None
        if credentials is None:
            self._channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
        else:
            tls = grpc.ssl_channel_credentials(credentials.authorities, credentials.key, credentials.certificate)
            self._channel = grpc.aio.secure_channel(target, tls, options=_OPTIONS)
        self._methods: dict[str, Any] = {}
        self._calls: set[Any] = set()
        self._dropped: str | None = None

    async def call(self, method: str, request: bytes, metadata: Metadata) -> bytes:
        """Send a request and wait for its answer.

        Raises:
            RpcFailedError: there is none.
        """
        rpc = self._method(method)(request, metadata=metadata)
        self._calls.add(rpc)
        cancellations = _cancellations()
        try:
            answer: bytes | None = await rpc
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            failure = self.failure(error, cancellations)
        else:
            if answer is not None:
                return answer
            # grpc takes a status of success without a message for an answer.
            failure = RpcFailedError("INTERNAL", "an answer without a message")
        finally:
            self._calls.discard(rpc)
            # Who keeps the error keeps its frames, which must not keep grpc's objects, and so the connection, alive.
            del rpc
        try:
            raise failure
        finally:
            del failure

    def stream(self, method: str, metadata: Metadata) -> Stream:
        """Open a stream of messages in both directions.

        Raises:
            RpcFailedError: the channel was dropped.
        """
        open_stream: Any = self._open_channel().stream_stream(method, None, None)
        rpc = open_stream(None, metadata=metadata)
        self._calls.add(rpc)
        return Stream(self, rpc)

    def drop(self, reason: str) -> None:
        """Let everything under way fail now, with this as the details."""
        if self._dropped is None:
            self._dropped = reason
            for rpc in self._calls:
                rpc.cancel()

    async def close(self) -> None:
        """Drop the channel and close its connection."""
        self.drop("the connection was closed")
        channel, self._channel = self._channel, None
        if channel is not None:
            self._methods.clear()
            self._calls.clear()
            await channel.close(None)

    def forget(self, rpc: object) -> None:
        """Leave alone a call that its user has ended."""
        self._calls.discard(rpc)

    def failure(
        self, error: grpc.aio.AioRpcError | asyncio.CancelledError, cancellations: int, *, ended: bool = False
    ) -> BaseException:
        """Return what to raise of a call, without what grpc raised.

        Args:
            error: that.
            cancellations: how often the user's task had been asked to cancel when the call began.
            ended: whether the call was ended from here, as all are when the channel is dropped.
        """
        if isinstance(error, grpc.aio.AioRpcError):
            details = error.details() or ""
            return RpcFailedError(error.code().name, details, sent=not details.startswith(_NOT_CONNECTED))
        # A task that was asked to cancel before the call began, but has not heard of it, hears of it in the call.
        if not (ended or self._dropped is not None) or _cancellations() > cancellations:
            return error.with_traceback(None)
        # Not the status of the reason: another call's refusal says nothing of this one, which may have been applied.
        return RpcFailedError("CANCELLED", self._dropped or "the stream was ended")

    def _method(self, name: str) -> Any:
        channel = self._open_channel()
        if name not in self._methods:
            self._methods[name] = channel.unary_unary(name, None, None)
        return self._methods[name]

    def _open_channel(self) -> grpc.aio.Channel:
        if self._channel is None or self._dropped is not None:
            raise RpcFailedError("UNAVAILABLE", self._dropped or "", sent=False)
        return self._channel


class Stream:
    """A call that goes on; made by ``Channel.stream``."""

    def __init__(self, channel: Channel, rpc: Any) -> None:
        self._channel = channel
        self._rpc: Any = rpc

    async def write(self, message: bytes) -> None:
        """Send a message.

        Raises:
            RpcFailedError: the stream is broken.
        """
        cancellations = _cancellations()
        try:
            await self._running().write(message)
        except asyncio.InvalidStateError:
            failure: BaseException = RpcFailedError("UNAVAILABLE", "the stream has ended")
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            failure = self._channel.failure(error, cancellations, ended=self._rpc is None)
        else:
            return
        try:
            raise failure
        finally:
            del failure

    async def read(self) -> bytes:
        """Receive a message.

        Raises:
            RpcFailedError: the stream has ended.
        """
        cancellations = _cancellations()
        try:
            message = await self._running().read()
        except (grpc.aio.AioRpcError, asyncio.CancelledError) as error:
            failure = self._channel.failure(error, cancellations, ended=self._rpc is None)
        else:
            if isinstance(message, bytes):
                return message
            failure = RpcFailedError("UNAVAILABLE", "the server ended the stream")
        try:
            raise failure
        finally:
            del failure

    def cancel(self) -> None:
        """End the stream; the server forgets what belongs to it."""
        rpc, self._rpc = self._rpc, None
        if rpc is not None:
            self._channel.forget(rpc)
            rpc.cancel()

    def _running(self) -> Any:
        if self._rpc is None:
            raise RpcFailedError("UNAVAILABLE", "the stream was ended")
        return self._rpc


def _cancellations() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()
