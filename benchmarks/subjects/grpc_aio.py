"""grpc.aio with the stubs that protoc makes, nothing around them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

from subjects.base import Subject, Tell


class GrpcAio(Subject):
    """The generated stubs on grpc.aio."""

    name = "grpc.aio"
    package = "grpcio"
    note = "Raw calls with the stubs of aetcd; no deadline, no repetition, no checks. A stream for each watch."

    async def connect(self) -> None:
        import grpc
        from aetcd import rpc

        self._rpc = rpc
        channel = await self.stack.enter_async_context(grpc.aio.insecure_channel(urlsplit(self.url).netloc))
        self._stub = rpc.KVStub(channel)
        self._watches = rpc.WatchStub(channel)

    async def put(self, key: str, value: bytes) -> None:
        await self._stub.Put(self._rpc.PutRequest(key=key.encode(), value=value))

    async def get(self, key: str) -> None:
        assert (await self._stub.Range(self._rpc.RangeRequest(key=key.encode()))).kvs[0].value

    async def exists(self, key: str) -> None:
        await self._stub.Range(self._rpc.RangeRequest(key=key.encode(), count_only=True))

    async def atomic_put(self, key: str, value: bytes, previous: Any) -> Any:
        rpc, name = self._rpc, key.encode()
        compare = rpc.Compare(result=rpc.Compare.EQUAL, target=rpc.Compare.MOD, key=name, mod_revision=previous or 0)
        put = rpc.RequestOp(request_put=rpc.PutRequest(key=name, value=value))
        answer = await self._stub.Txn(rpc.TxnRequest(compare=[compare], success=[put]))
        assert answer.succeeded
        return answer.header.revision

    async def delete(self, key: str) -> None:
        await self._stub.DeleteRange(self._rpc.DeleteRangeRequest(key=key.encode()))

    async def list(self, directory: str) -> int:
        request = self._rpc.RangeRequest(key=f"{directory}/".encode(), range_end=f"{directory}0".encode())
        return len([(pair.key.decode(), pair.value) for pair in (await self._stub.Range(request)).kvs])

    async def watch(self, key: str, tell: Tell) -> None:
        create = self._rpc.WatchRequest(create_request=self._rpc.WatchCreateRequest(key=key.encode()))

        async def requests() -> AsyncIterator[Any]:
            yield create
            await asyncio.Event().wait()

        async for answer in self._watches.Watch(requests()):
            for value in [event.kv.value for event in answer.events] or [b""]:
                tell(value)
