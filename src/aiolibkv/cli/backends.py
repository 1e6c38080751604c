"""The command backends, and capabilities as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from importlib.metadata import entry_points
from typing import Any

import click

from aiolibkv import BackendNotSupportedError, Capabilities, new_store
from aiolibkv.cli.output import Output, table
from aiolibkv.cli.running import run
from aiolibkv.cli.settings import Command, Settings
from aiolibkv.cli.text import escaped

_EXAMPLE_TTL = 15.0
_EXAMPLE_ENDPOINTS = ((), ("localhost",))
"""Endpoints that a backend may take; nobody connects to them."""


@click.command("backends", cls=Command, examples=["aiolibkv backends"])
@click.pass_obj
def backends_command(settings: Settings) -> int | None:
    """List the backends: which are installed, how to install the others, what each can do."""
    output = Output(as_json=settings.as_json)

    async def backends() -> None:
        found: dict[str, Mapping[str, Any]] = {}
        missing: dict[str, str] = {}
        # Of the names of one backend it is the longest that is told.
        points = sorted(entry_points(group="aiolibkv.backends"), key=lambda point: len(point.name))
        for name in sorted({point.value: point.name for point in points}.values()):
            try:
                found[name] = capabilities_of(name)
            except BackendNotSupportedError as error:
                missing[name] = str(error)
        if output.as_json:
            for name, capabilities in found.items():
                await output.item("", {"backend": name, "installed": True, **capabilities})
            for name, reason in missing.items():
                await output.item("", {"backend": name, "installed": False, "reason": reason})
            return
        names = next(iter(found.values()), {})
        rows = [(name, *(shown(capabilities[name]) for capabilities in found.values())) for name in names]
        for line in table(output, [("", *found), *rows]):
            await output.line(line)
        for name, reason in missing.items():
            await output.line(f"{name} is missing: {escaped(reason)}")

    return run(settings, backends)


def capabilities_of(backend: str) -> Mapping[str, Any]:
    """Return what a backend can do.

    Raises:
        BackendNotSupportedError: it is not installed.
    """
    for endpoints in _EXAMPLE_ENDPOINTS:
        try:
            return as_fields(new_store(backend, endpoints).capabilities)
        except ValueError:
            continue
    return {}


def as_fields(capabilities: Capabilities) -> dict[str, Any]:
    """Return capabilities as JSON has them; what depends on a ttl is told for one."""
    found = {field.name: getattr(capabilities, field.name) for field in fields(capabilities)}
    overshoot = found.pop("ttl_overshoot")
    return {**found, f"ttl_overshoot_of_{_EXAMPLE_TTL:g}_s": overshoot(_EXAMPLE_TTL)}


def shown(value: object) -> str:
    """Return what is found as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else str(value)
