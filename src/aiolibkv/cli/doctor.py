"""The command doctor."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from statistics import median
from typing import Any
from uuid import uuid4

import click

from aiolibkv import AsyncStore, KeyNotFoundError, StoreError
from aiolibkv.cli.backends import as_fields
from aiolibkv.cli.failures import OTHER, exit_code
from aiolibkv.cli.output import Output
from aiolibkv.cli.running import run
from aiolibkv.cli.settings import Command, Settings
from aiolibkv.cli.text import escaped, masked
from aiolibkv.cli.versions import About, ask
from aiolibkv.events import Connected, Event

_TIMES = 50
_SLOW = 0.5
"""Seconds of a call from which on locks and leases of a few seconds suffer."""
_MOST_SKEW = 2.0
"""Seconds by which a clock may be off; servers tell whole seconds."""

_LIMITS = {
    "consul": "an agent takes 200 connections from one address by default (limits.http_max_conns_per_client)",
    "zookeeper": "a server takes 60 connections from one address by default (maxClientCnxns); each ttl takes one",
    "zk": "a server takes 60 connections from one address by default (maxClientCnxns); each ttl takes one",
    "etcd": "a server stops taking writes at 2 GiB of data by default (--quota-backend-bytes)",
}
_ADVICE = {
    3: "is the server running, and are host, port and tls right?",
    4: "are user, password, token or certificates right, and may they read and write below the prefix?",
}


class _Report:
    """What was found; each finding is written at once.

    Attributes:
        code: the exit code.
    """

    def __init__(self, output: Output) -> None:
        self.code = 0
        self._output = output

    async def tell(self, what: str, detail: object, *, code: int = 0, advice: str = "") -> None:
        """Tell a finding; a code other than 0 tells that it is wrong."""
        self.code = self.code or code
        fields: dict[str, Any] = {"check": what, "ok": code == 0, "detail": detail}
        mark = "ok" if code == 0 else "WRONG"
        text = f"{mark}\t{what}\t{escaped(str(detail))}"
        if advice:
            fields["advice"] = advice
            text += f"\t{advice}"
        await self._output.item(text, fields)


@click.command("doctor", cls=Command)
@click.pass_obj
def doctor_command(settings: Settings) -> int | None:
    """Examine the store: can it be reached, how fast is it, what can it do, what is wrong.

    It writes and deletes a key of its own. The exit code is 0 only when all is well.
    """
    report = _Report(Output(as_json=settings.as_json))
    url = settings.resolved_url()
    backend = url.partition("://")[0].lower()
    endpoints: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, Connected):
            endpoints.append(event.endpoint)

    async def doctor() -> int:
        await report.tell("store", masked(url))
        store = settings.store(url, note)
        try:
            async with store:
                reached = list(dict.fromkeys(endpoints)) or _hosts(url)
                await report.tell("reachable", ", ".join(reached) or "yes")
                await _examine_server(report, backend, reached, is_secure="tls=true" in url.lower())
                await _examine_speed(report, store)
        except StoreError as error:
            code = exit_code(error)
            await report.tell("usable", str(error), code=code, advice=_ADVICE.get(code, ""))
        for name, value in as_fields(store.capabilities).items():
            await report.tell(name, value)
        if backend in _LIMITS:
            await report.tell("limit", _LIMITS[backend])
        return report.code

    return run(settings, doctor)


def _hosts(url: str) -> list[str]:
    """Return the servers that a URL names."""
    authority = url.partition("://")[2].partition("/")[0].partition("?")[0]
    return [host for host in authority.rpartition("@")[2].split(",") if host]


async def _examine_server(report: _Report, backend: str, endpoints: list[str], *, is_secure: bool) -> None:
    await report.tell("tls", "yes" if is_secure else "no")
    about: About | None = None
    if endpoints and not is_secure:
        about = await ask(backend, endpoints[0])
    if about is None:
        await report.tell("version", "not told")
        return
    await report.tell("version", about.version)
    if about.time is not None:
        skew = abs((datetime.now(UTC) - about.time).total_seconds())
        is_off = skew > _MOST_SKEW
        await report.tell(
            "clock",
            f"differs from the server's by {'more' if is_off else 'less'} than {_MOST_SKEW:g} s",
            code=OTHER if is_off else 0,
            advice="set the clocks by NTP; the library does not depend on them, certificates and tokens do"
            if is_off
            else "",
        )


async def _examine_speed(report: _Report, store: AsyncStore) -> None:
    key = f"aiolibkv-doctor-{uuid4().hex}"
    try:
        await _measure(report, "put", lambda: store.put(key, b"doctor"))
        await _measure(report, "get", lambda: store.get(key))
    finally:
        try:
            await store.delete(key)
        except KeyNotFoundError:
            pass


async def _measure(report: _Report, what: str, call: Callable[[], Awaitable[object]]) -> None:
    seconds = []
    for _ in range(_TIMES):
        began = time.perf_counter()
        await call()
        seconds.append(time.perf_counter() - began)
    middle, slow = median(seconds), sorted(seconds)[math.ceil(0.99 * _TIMES) - 1]
    is_slow = middle > _SLOW
    await report.tell(
        what,
        f"{1000 * middle:.2f} ms median, {1000 * slow:.2f} ms 99th percentile of {_TIMES}",
        code=OTHER if is_slow else 0,
        advice="the server, its disk or the network is slow: give locks and keys a longer ttl" if is_slow else "",
    )
