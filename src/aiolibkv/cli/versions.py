"""What servers say of themselves to who asks without this library: version, time and limits.

Who gives no answer is not asked again.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime

from aiolibkv.cli.probing import Server

_PATIENCE = 2.0
_MEBIBYTE = 1024 * 1024
_NEARLY_FULL = 0.8


@dataclass(frozen=True)
class About:
    """What a server says.

    Attributes:
        version: its version.
        time: its wall clock, to the second; None when it does not say.
        limit: what it allows; None when it does not say.
        advice: what to do about the limit when it is near.
    """

    version: str
    time: datetime | None = None
    limit: str | None = None
    advice: str = ""


async def ask(server: Server) -> About | None:
    """Ask a server; None when it does not say."""
    question = _QUESTIONS.get(server.backend)
    if question is None:
        return None
    try:
        async with asyncio.timeout(_PATIENCE):
            return await question(server)
    except (OSError, ValueError, KeyError, TypeError):
        return None


async def _answer(server: Server, question: str) -> str:
    reader, writer = await asyncio.open_connection(server.host, server.port, ssl=server.context())
    try:
        writer.write(question.encode())
        return (await reader.read()).decode(errors="replace")
    finally:
        writer.close()


async def _http(server: Server, path: str, header: str = "") -> tuple[str, datetime | None]:
    request = f"GET {path} HTTP/1.0\r\nHost: {server}\r\n{header}\r\n"
    head, _, body = (await _answer(server, request)).partition("\r\n\r\n")
    date = re.search(r"(?im)^date: (.*)$", head)
    return body, None if date is None else parsedate_to_datetime(date[1].strip())


async def _etcd(server: Server) -> About:
    body, time = await _http(server, "/version")
    version = json.loads(body)["etcdserver"]
    metrics, _ = await _http(server, "/metrics")
    size, quota = (
        re.search(rf"(?m)^{name} (\S+)$", metrics)
        for name in ("etcd_mvcc_db_total_size_in_bytes", "etcd_server_quota_backend_bytes")
    )
    if size is None or quota is None:
        return About(version, time)
    used, most = float(size[1]), float(quota[1])
    is_near = used > _NEARLY_FULL * most
    advice = "compact and defragment it, or raise --quota-backend-bytes: a full server takes no writes"
    return About(
        version,
        time,
        f"{used / _MEBIBYTE:.0f} of {most / _MEBIBYTE:.0f} MiB are used (--quota-backend-bytes)",
        advice if is_near else "",
    )


async def _consul(server: Server) -> About:
    token = server.options.get("token")
    body, time = await _http(server, "/v1/agent/self", "" if token is None else f"X-Consul-Token: {token}\r\n")
    about = json.loads(body)
    most = about.get("DebugConfig", {}).get("HTTPMaxConnsPerClient")
    limit = None if most is None else f"{most} connections from one address (limits.http_max_conns_per_client)"
    return About(about["Config"]["Version"], time, limit)


async def _zookeeper(server: Server) -> About | None:
    found = re.search(r"version: ([^,\s]*)", await _answer(server, "srvr\n"))
    if found is None:
        return None
    most = re.search(r"(?m)^maxClientCnxns=(\d+)$", await _answer(server, "conf\n"))
    if most is None:
        return About(found[1])
    number = "any number of" if most[1] == "0" else most[1]
    return About(found[1], None, f"{number} connections from one address (maxClientCnxns); each ttl takes one")


_QUESTIONS: dict[str, Callable[[Server], Awaitable[About | None]]] = {
    "etcd": _etcd,
    "consul": _consul,
    "zookeeper": _zookeeper,
    "zk": _zookeeper,
}
