"""The dashboard over HTTP: live, by compare-and-swap, for this machine only."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from aiolibkv import KVPair, open_store
from aiolibkv.testing.scale import scaled
from aiolibkv.testing.servers.process import exchange, http
from examples.dashboards import dashboard

HOSTILE = "<script>alert(1)</script>"
JSON = {"Content-Type": "application/json"}


async def next_state(reader: asyncio.StreamReader) -> dict[str, Any]:
    async with asyncio.timeout(scaled(10)):
        while not (line := await reader.readline()).startswith(b"data: "):
            assert line, "the stream has ended"
    state = json.loads(line.removeprefix(b"data: "))
    assert isinstance(state, dict)
    return state


async def put(port: int, key: str, value: str | None, index: int | None) -> int:
    body = json.dumps({"key": key, "value": value, "index": index})
    return (await http(port, "PUT", "/pairs", body=body, headers=JSON))[0]


@pytest.mark.asyncio
async def test_the_dashboard_is_live_and_overwrites_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    async with open_store(url) as store, AsyncExitStack() as listening:
        first = await store.put(f"config/{HOSTILE}", HOSTILE.encode())
        await store.put("binary", b"\xff")
        async with dashboard(url) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            # It ends though somebody still listens.
            listening.callback(writer.close)
            writer.write(b"GET /events HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
            state = await next_state(reader)
            assert state["leader"] is None
            assert [(pair["key"], pair["value"]) for pair in state["pairs"]] == [
                ("binary", None),
                (first.key, HOSTILE),
            ]

            async with store.new_lock("leader", value=b"node-1"):
                while (state := await next_state(reader))["leader"] != "node-1":
                    pass

            assert await put(port, first.key, "mine", first.last_index) == 204
            assert await put(port, first.key, "late", first.last_index) == 409
            assert await put(port, first.key, None, first.last_index) == 409
            assert await put(port, first.key, "new", None) == 409
            assert await put(port, "gone", "late", first.last_index) == 409
            changed = await store.get(first.key)
            assert changed.value == b"mine"
            assert await put(port, first.key, None, changed.last_index) == 204
            assert await put(port, "made", "here", None) == 204
            assert await put(port, "", "here", None) == 400
            pairs: dict[str, KVPair] = {pair.key: pair for pair in await store.list("")}
            assert first.key not in pairs
            assert pairs["made"].value == b"here"

            foreign = b"PUT /pairs HTTP/1.0\r\nHost: evil.example\r\nContent-Type: application/json\r\n\r\n"
            assert b" 403 " in (await exchange(port, foreign)).splitlines()[0]
            assert (await http(port, "PUT", "/pairs", body="{}", headers={"Content-Type": "text/plain"}))[0] == 415
            answer = await exchange(port, b"GET / HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
            assert b"Content-Security-Policy: default-src 'none'" in answer
            assert HOSTILE.encode() not in answer
