"""Commands that write: put and rm."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from aiolibkv import AsyncStore, KeyNotFoundError, KVPair
from aiolibkv.cli.failures import OTHER, CommandError, exit_code, message
from aiolibkv.cli.output import Output, standard_input, tell
from aiolibkv.cli.running import run, run_with_store
from aiolibkv.cli.settings import Command, Settings, complete_key
from aiolibkv.cli.text import escaped, pair_fields

_DEFAULT_TTL = 15.0


@click.command(
    "put",
    cls=Command,
    examples=[
        "aiolibkv put config/limit 10",
        "aiolibkv put certificates/web --file web.pem",
        "aiolibkv put config/limit 11 --if-index 4711",
    ],
)
@click.argument("key", shell_complete=complete_key)
@click.argument("value", required=False)
@click.option(
    "--file", "-f", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Read the value from this file."
)
@click.option("--ttl", type=float, metavar="SECONDS", help="The key disappears after this time.")
@click.option("--keep-alive", is_flag=True, help="Stay and renew the key until interrupted; then remove it.")
@click.option("--create", is_flag=True, help="Only when there is no such key.")
@click.option("--if-index", type=int, metavar="INDEX", help="Only when the key is at this index.")
@click.pass_obj
def put_command(
    settings: Settings,
    key: str,
    value: str | None,
    *,
    file: Path | None,
    ttl: float | None,
    keep_alive: bool,
    create: bool,
    if_index: int | None,
) -> int | None:
    """Write VALUE, or what a file or else standard input holds, to KEY."""
    if value is not None and file is not None:
        raise click.UsageError("VALUE and --file do not go together.")
    if create and if_index is not None:
        raise click.UsageError("--create and --if-index do not go together.")
    output = Output(as_json=settings.as_json)
    store = settings.store()
    if ttl is not None and not keep_alive and not store.capabilities.ttl_survives_client:
        raise CommandError(
            "here a key with a ttl goes as soon as its writer ends, which would be now: use --keep-alive", OTHER
        )
    content = os.fsencode(value) if value is not None else _read(file, store.capabilities.max_value_bytes)

    async def put() -> None:
        async with store:
            if create or if_index is not None:
                previous = None if if_index is None else KVPair(key.strip("/"), b"", if_index)
                pair = await store.atomic_put(key, content, previous, ttl=ttl, keep_alive=keep_alive)
            else:
                pair = await store.put(key, content, ttl=ttl, keep_alive=keep_alive)
            if output.as_json:
                await output.item("", pair_fields(pair))
            if keep_alive:
                await asyncio.Event().wait()

    return run(settings, put)


def _read(file: Path | None, most: int) -> bytes:
    """Read a value; of one that is too large no more than shows that it is."""
    if file is None:
        return standard_input().read(most + 1)
    with file.open("rb") as opened:
        return opened.read(most + 1)


@click.command("rm", cls=Command, examples=["aiolibkv rm config/limit", "aiolibkv rm --recursive config"])
@click.argument("keys", nargs=-1, required=True, metavar="KEY...", shell_complete=complete_key)
@click.option("--recursive", "-r", is_flag=True, help="Delete each KEY and all below it; show how many keys that were.")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--if-index", type=int, metavar="INDEX", help="Only when the key is at this index.")
@click.pass_obj
def rm_command(
    settings: Settings, keys: Sequence[str], *, recursive: bool, yes: bool, if_index: int | None
) -> int | None:
    """Delete keys. A key that cannot be deleted is reported; the others are deleted all the same."""
    if if_index is not None and (recursive or len(keys) > 1):
        raise click.UsageError("--if-index is for one key, without --recursive.")
    if recursive and "" in keys:
        raise click.UsageError("KEY is empty; everything is /.")
    if recursive and not yes and sys.stdin is not None and sys.stdin.isatty():
        names = ", ".join(escaped(key) if key.strip("/") else "everything" for key in keys)
        click.confirm(f"Delete {names} and all that is below?", abort=True, err=True)
    output = Output(as_json=settings.as_json)

    async def rm(store: AsyncStore) -> int | None:
        code = None
        for key in keys:
            try:
                if recursive:
                    number = await _delete_tree(store, key)
                    await output.item(str(number), {"key": key, "deleted": number})
                elif if_index is not None:
                    await store.atomic_delete(key, KVPair(key.strip("/"), b"", if_index))
                else:
                    await store.delete(key)
            except BrokenPipeError:
                raise
            except Exception as error:
                if len(keys) == 1:
                    raise
                tell(message(error))
                code = code or exit_code(error)
        return code

    return run_with_store(settings, rm)


async def _delete_tree(store: AsyncStore, directory: str) -> int:
    """Delete what is below a directory, and the key of its name if there is one."""
    number = await store.delete_tree(directory)
    if directory.strip("/"):
        try:
            await store.delete(directory)
        except KeyNotFoundError:
            return number
        number += 1
    return number
