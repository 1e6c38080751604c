"""Commands of service discovery: register, services and instances."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import click

from aiolibkv import AsyncStore, Discovery, Instance
from aiolibkv.cli.output import Output, table
from aiolibkv.cli.running import run_with_store
from aiolibkv.cli.settings import Command, Settings
from aiolibkv.cli.text import escaped

DIRECTORY = "services"


@click.command("register", cls=Command, examples=["aiolibkv register web 10.0.0.1:8080 --metadata zone=a -- ./serve"])
@click.argument("service")
@click.argument("address")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
@click.option("--id", "identifier", metavar="ID", help="Unique in the service; a random one when not given.")
@click.option("--metadata", multiple=True, metavar="NAME=VALUE", help="What others should know; may be repeated.")
@click.option(
    "--ttl", type=float, default=20.0, metavar="SECONDS", help="If this process dies, it is gone after this time (20)."
)
@click.pass_obj
def register_command(
    settings: Settings,
    service: str,
    address: str,
    command: Sequence[str],
    *,
    identifier: str | None,
    metadata: Sequence[str],
    ttl: float,
) -> int | None:
    """Register an instance of SERVICE at ADDRESS until interrupted, or while COMMAND runs."""
    fields = {}
    for field in metadata:
        name, found, value = field.partition("=")
        if not found:
            raise click.UsageError(f"--metadata is NAME=VALUE, not {field!r}.")
        fields[name] = value

    async def register(store: AsyncStore) -> int | None:
        discovery = Discovery(store, DIRECTORY)
        async with discovery.register(service, address, id=identifier, metadata=fields, ttl=ttl):
            if command:
                from aiolibkv.cli.child import Child

                return await Child(command, {}).run()
            await asyncio.Event().wait()
        return None

    return run_with_store(settings, register)


@click.command("services", cls=Command, examples=["aiolibkv services"])
@click.option("--follow", "-f", is_flag=True, help="Then write each change, until interrupted.")
@click.pass_obj
def services_command(settings: Settings, *, follow: bool) -> int | None:
    """List the services that have instances.

    With --follow each line begins with "+" for what is there or comes, and "-" for what goes; JSON objects have an
    "event": "put" or "delete".
    """
    output = Output(as_json=settings.as_json)

    async def services(store: AsyncStore) -> None:
        discovery = Discovery(store, DIRECTORY)
        if not follow:
            for name in await discovery.services():
                await output.item(escaped(name), {"service": name})
            return
        known: dict[str, Any] = {}
        with output.while_read():
            async with discovery:
                assert discovery.mirror is not None, "entered"
                async for _ in discovery.mirror.changes():
                    present = {name: {"service": name} for name in await discovery.services()}
                    await _tell_changes(output, known, present)
                    known = present

    return run_with_store(settings, services)


@click.command(
    "instances", cls=Command, examples=["aiolibkv instances web", "aiolibkv instances web --json | jq -r .address"]
)
@click.argument("service")
@click.option("--follow", "-f", is_flag=True, help="Then write each change, until interrupted.")
@click.pass_obj
def instances_command(settings: Settings, service: str, *, follow: bool) -> int | None:
    """List the instances of SERVICE: id, address and metadata.

    With --follow each line begins with "+" for what is there, comes or changes, and "-" for what goes; JSON objects
    have an "event": "put" or "delete".
    """
    output = Output(as_json=settings.as_json)

    async def instances(store: AsyncStore) -> None:
        discovery = Discovery(store, DIRECTORY)
        if not follow:
            await _list(output, await discovery.instances(service))
            return
        known: dict[str, Any] = {}
        with output.while_read():
            async with discovery.watch(service) as watch:
                async for found in watch:
                    present = {instance.id: asdict(instance) for instance in found}
                    await _tell_changes(output, known, present)
                    known = present

    return run_with_store(settings, instances)


async def _list(output: Output, instances: Iterable[Instance]) -> None:
    if output.as_json:
        for instance in instances:
            await output.item("", asdict(instance))
        return
    rows = [_row(asdict(instance)) for instance in instances]
    for line in table(output, rows, ("ID", "ADDRESS", "METADATA")):
        await output.line(line)


async def _tell_changes(output: Output, known: dict[str, Any], present: dict[str, Any]) -> None:
    for name in sorted(known.keys() | present.keys()):
        if name not in present:
            await output.item("\t".join(("-", *_row(known[name]))), {"event": "delete", **known[name]})
        elif known.get(name) != present[name]:
            await output.item("\t".join(("+", *_row(present[name]))), {"event": "put", **present[name]})


def _row(fields: dict[str, Any]) -> tuple[str, ...]:
    """Return what is shown of an instance, or of a service."""
    if "id" not in fields:
        return (escaped(fields["service"]),)
    metadata = " ".join(f"{escaped(str(name))}={escaped(str(value))}" for name, value in fields["metadata"].items())
    return escaped(fields["id"]), escaped(fields["address"]), metadata
