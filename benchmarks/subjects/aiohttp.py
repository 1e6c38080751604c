"""Consul's HTTP interface on aiohttp, as lean as it gets."""

from __future__ import annotations

import json
from binascii import a2b_base64
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from subjects.base import Subject, Tell

if TYPE_CHECKING:
    from yarl import URL


class Aiohttp(Subject):
    """aiohttp with ready URLs, json and binascii."""

    name = "aiohttp"
    package = "aiohttp"
    note = (
        "Tuned: ready URLs, json.loads, binascii; no deadline, no repetition. Its compare-and-swap reads the new index."
    )
    most_watches = 100

    async def connect(self) -> None:
        from aiohttp import ClientSession, TCPConnector
        from yarl import URL

        self._url = partial(URL, encoded=True)
        self._server = urlsplit(self.url).netloc
        # Consul refuses more than 200 connections of one address.
        self._session = await self.stack.enter_async_context(ClientSession(connector=TCPConnector(limit=150)))

    async def put(self, key: str, value: bytes) -> None:
        async with self._session.put(self._link(key), data=value) as answer:
            assert (await answer.read()).startswith(b"true")

    async def get(self, key: str) -> None:
        async with self._session.get(self._link(f"{key}?consistent=")) as answer:
            assert a2b_base64(json.loads(await answer.read())[0]["Value"])

    async def exists(self, key: str) -> None:
        async with self._session.get(self._link(f"{key}?consistent=&keys=")) as answer:
            await answer.read()

    async def atomic_put(self, key: str, value: bytes, previous: Any) -> Any:
        async with self._session.put(self._link(f"{key}?cas={previous or 0}"), data=value) as answer:
            assert (await answer.read()).startswith(b"true")
        async with self._session.get(self._link(f"{key}?consistent=")) as answer:
            return json.loads(await answer.read())[0]["ModifyIndex"]

    async def delete(self, key: str) -> None:
        async with self._session.delete(self._link(key)) as answer:
            assert (await answer.read()).startswith(b"true")

    async def list(self, directory: str) -> int:
        async with self._session.get(self._link(f"{directory}/?recurse=&consistent=")) as answer:
            pairs = json.loads(await answer.read())
        return len([(pair["Key"], a2b_base64(pair["Value"])) for pair in pairs])

    def _link(self, path: str) -> URL:
        return self._url(f"http://{self._server}/v1/kv/{path}")

    async def watch(self, key: str, tell: Tell) -> None:
        index = "0"
        while True:
            async with self._session.get(self._link(f"{key}?consistent=&index={index}")) as answer:
                index = answer.headers["X-Consul-Index"]
                tell(a2b_base64(json.loads(await answer.read())[0]["Value"]))
