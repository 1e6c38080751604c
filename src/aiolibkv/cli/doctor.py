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
from aiolibkv.cli.backends import as_fields, shown
from aiolibkv.cli.failures import DENIED, NO_SERVER, OTHER, exit_code
from aiolibkv.cli.output import BAD, GOOD, Output
from aiolibkv.cli.probing import Server, examine, servers_of, speaks_tls
from aiolibkv.cli.running import run
from aiolibkv.cli.settings import Command, Settings
from aiolibkv.cli.text import escaped, hosts, masked_url
from aiolibkv.cli.versions import ask
from aiolibkv.events import Connected, Event

_TIMES = 50
_SLOW = 0.5
"""Seconds of a call from which on locks and leases of a few seconds suffer."""
_MOST_SKEW = 2.0
"""Seconds by which a clock may be off; servers tell whole seconds."""

_LIMITS = {
    "consul": "200 connections from one address by default (limits.http_max_conns_per_client)",
    "zookeeper": "60 connections from one address by default (maxClientCnxns); each ttl takes one",
    "zk": "60 connections from one address by default (maxClientCnxns); each ttl takes one",
    "etcd": "2048 MiB of data by default (--quota-backend-bytes)",
}
"""What is so when the server does not say."""
_ADVICE = {
    NO_SERVER: "is that the right kind of server, and does it serve?",
    DENIED: "are user, password, token or certificates right, and may they read and write below the prefix?",
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
        if advice:
            fields["advice"] = advice
        if self._output.is_terminal:
            mark = self._output.styled("ok   ", GOOD) if code == 0 else self._output.styled("WRONG", BAD)
            text = f"{mark}  {what:<22}  {escaped(shown(detail))}"
            advice = advice and f"\n{'':31}{advice}"
        else:
            text = f"{'ok' if code == 0 else 'WRONG'}\t{what}\t{escaped(shown(detail))}"
            advice = advice and f"\t{advice}"
        await self._output.item(text + advice, fields)


@click.command("doctor", cls=Command, examples=["aiolibkv doctor --url 'etcd://user:password@host:2379/?tls=true'"])
@click.pass_obj
def doctor_command(settings: Settings) -> int | None:
    """Examine the store: can it be reached, how fast is it, what can it do, what is wrong and what to do about it.

    It writes and deletes a key of its own. The exit code is 0 only when all is well.
    """
    report = _Report(Output(as_json=settings.as_json))
    url = settings.resolved_url()
    connected: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, Connected):
            connected.append(event.endpoint)

    async def doctor() -> int:
        store = settings.store(url, note)
        await report.tell("store", masked_url(url))
        servers = servers_of(url)
        for server in servers:
            found = await examine(server)
            detail = f"{server}: {found.detail}"
            await report.tell("server", detail, code=NO_SERVER if found.advice else 0, advice=found.advice)
        try:
            async with store:
                await report.tell("reachable", ", ".join(dict.fromkeys(connected)) or hosts(url) or "yes")
                await _examine_server(report, next((each for each in servers if str(each) in connected), None))
                await _examine_speed(report, store)
        except StoreError as error:
            code = exit_code(error)
            # What is wrong on the way to the server was told.
            advice = "" if report.code else _ADVICE.get(code, "")
            await report.tell("usable", str(error), code=code, advice=advice)
            for server in servers:
                if await speaks_tls(server):
                    await report.tell("tls", f"{server} speaks TLS", code=code, advice="add tls=true to the URL")
        for name, value in as_fields(store.capabilities).items():
            await report.tell(name, value)
        return report.code

    return run(settings, doctor)


async def _examine_server(report: _Report, server: Server | None) -> None:
    """Tell what the server says that is spoken to."""
    if server is None:
        return
    await report.tell("tls", "yes" if server.is_secure else "no")
    about = await ask(server)
    limit = _LIMITS.get(server.backend)
    if about is not None:
        await report.tell("version", about.version)
        if about.time is not None:
            await _examine_clock(report, about.time)
        limit = about.limit or limit
    if limit is not None:
        advice = "" if about is None else about.advice
        await report.tell("limit", limit, code=OTHER if advice else 0, advice=advice)


async def _examine_clock(report: _Report, time: datetime) -> None:
    skew = abs((datetime.now(UTC) - time).total_seconds())
    is_off = skew > _MOST_SKEW
    await report.tell(
        "clock",
        f"differs from the server's by {f'{skew:.0f} s' if is_off else f'less than {_MOST_SKEW:g} s'}",
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
