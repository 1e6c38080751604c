"""The connection, against servers that say anything."""

import asyncio

from hypothesis import given
from hypothesis import strategies as st

from aiolibkv.backends.etcd import frames
from aiolibkv.backends.etcd.channel import _Answer
from aiolibkv.backends.etcd.frames import frame
from aiolibkv.backends.etcd.http2 import Connection

HEAD = b"\x88\x5f\x10application/grpc"
STATUS_0 = b"\x00\x0bgrpc-status\x010"
SMALL = st.sampled_from([0, 1, 2, 3, 5, 7, 99])
PAYLOADS = st.one_of(
    st.binary(max_size=12),
    st.sampled_from([HEAD, STATUS_0, HEAD + STATUS_0, b"\0\0\0\0\1a", bytes(4), b"\x7f\xff\xff\xff", bytes(8)]),
    st.builds(lambda name, value: name.to_bytes(2) + value.to_bytes(4), st.integers(0, 7), st.integers(0, 2**32 - 1)),
)
FRAMES = st.builds(frame, st.integers(0, 10), st.sampled_from([0, 1, 4, 5, 8, 13, 32, 45]), SMALL, PAYLOADS)


class Transport(asyncio.Transport):
    """Takes what is written, and is closed at once."""

    def __init__(self, protocol: Connection) -> None:
        super().__init__()
        self.protocol = protocol
        self.is_open = True

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert self.is_open

    def abort(self) -> None:
        if self.is_open:
            self.is_open = False
            self.protocol.connection_lost(None)


@given(st.lists(FRAMES | st.binary(max_size=30), max_size=12), st.integers(0, 5))
def test_whatever_a_server_says_each_call_ends_once_and_nothing_is_kept(said: list[bytes], cancelled: int) -> None:
    async def listen() -> None:
        connection = Connection(secure=False)
        connection.connection_made(transport := Transport(connection))
        connection.data_received(frames.settings_frame([(frames.MAX_CONCURRENT_STREAMS, 4)]))
        calls = [_Answer(asyncio.get_running_loop().create_future()) for _ in range(5)]
        for call in calls:
            connection.begin(call, b"\x83", bytes(70_000), ends=True)
        for number, part in enumerate(said):
            if transport.is_open:
                connection.data_received(part)
            if number == cancelled:
                connection.cancel(calls[number % 5])
                calls[number % 5].future.cancel()
            await asyncio.sleep(0)
        transport.abort()
        for call in calls:
            assert call.future.done()
            if not call.future.cancelled():
                call.future.exception()
        assert not connection._open
        assert not connection._waiting
        assert not connection._held_back
        assert connection.closed.done()
        await asyncio.sleep(0)

    asyncio.run(listen())
