"""What servers say of themselves to who asks without this library: version and time.

Only over connections without TLS; who gives no answer is not asked again.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime

_PATIENCE = 2.0


@dataclass(frozen=True)
class About:
    """What a server says.

    Attributes:
        version: its version.
        time: its wall clock, to the second; None when it does not say.
    """

    version: str
    time: datetime | None


async def ask(backend: str, endpoint: str) -> About | None:
    """Ask a server; None when it does not say."""
    question = _QUESTIONS.get(backend)
    host, _, port = endpoint.rpartition(":")
    if question is None or not port.isdecimal():
        return None
    try:
        async with asyncio.timeout(_PATIENCE):
            return await question(host.strip("[]"), int(port))
    except (OSError, ValueError, KeyError, TypeError):
        return None


async def _answer(host: str, port: int, question: str) -> str:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        writer.write(question.encode())
        return (await reader.read()).decode(errors="replace")
    finally:
        writer.close()


async def _http(host: str, port: int, path: str) -> tuple[str, datetime | None]:
    request = f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n"
    head, _, body = (await _answer(host, port, request)).partition("\r\n\r\n")
    date = re.search(r"(?im)^date: (.*)$", head)
    return body, None if date is None else parsedate_to_datetime(date[1].strip())


async def _etcd(host: str, port: int) -> About:
    body, time = await _http(host, port, "/version")
    return About(json.loads(body)["etcdserver"], time)


async def _consul(host: str, port: int) -> About:
    body, time = await _http(host, port, "/v1/agent/self")
    return About(json.loads(body)["Config"]["Version"], time)


async def _zookeeper(host: str, port: int) -> About | None:
    found = re.search(r"version: ([^,\s]*)", await _answer(host, port, "srvr\n"))
    return None if found is None else About(found[1], None)


_QUESTIONS: dict[str, Callable[[str, int], Awaitable[About | None]]] = {
    "etcd": _etcd,
    "consul": _consul,
    "zookeeper": _zookeeper,
    "zk": _zookeeper,
}
