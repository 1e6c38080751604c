"""The command watch."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncGenerator
from contextlib import aclosing, nullcontext
from typing import Any

import click

from aiolibkv import AsyncStore, KVPair
from aiolibkv.cli.child import Child
from aiolibkv.cli.output import Output, tell
from aiolibkv.cli.running import received, run_with_store
from aiolibkv.cli.settings import Command, Settings, complete_key
from aiolibkv.cli.text import escaped, escaped_value, pair_fields

Item = tuple[str, KVPair | None]


@click.command(
    "watch",
    cls=Command,
    examples=["aiolibkv watch config/limit", "aiolibkv watch --tree config --exec './reload \"$AIOLIBKV_KEY\"'"],
)
@click.argument("key", shell_complete=complete_key)
@click.option("--tree", "-t", is_flag=True, help="Watch what is below the directory KEY.")
@click.option("--count", type=click.IntRange(min=1), metavar="N", help="End after N items.")
@click.option("--exec", "command", metavar="COMMAND", help="Run a shell command for each item instead of writing it.")
@click.pass_obj
def watch_command(settings: Settings, key: str, *, tree: bool, count: int | None, command: str | None) -> int | None:
    """Write a line for the present state of KEY, and for each later one: key, index and value.

    A key that is absent has the index "-" and no value; in JSON both are null. With --tree there is a line for each key
    that is there in the beginning, then for each change. States that follow each other faster than they are read may be
    skipped, never the last one.

    The command of --exec has AIOLIBKV_KEY, AIOLIBKV_INDEX and AIOLIBKV_EVENT ("put" or "delete") in its environment and
    the value on its standard input; the next one runs when it has ended.
    """
    output = Output(as_json=settings.as_json)

    async def watch(store: AsyncStore) -> None:
        number = 0
        with output.while_read() if command is None else nullcontext():
            async with aclosing(_items(store, key, tree=tree)) as items:
                async for name, pair in items:
                    if command is not None:
                        await _run(command, name, pair)
                    else:
                        await output.item(_text(name, pair), _fields(name, pair))
                    number += 1
                    if number == count:
                        return

    return run_with_store(settings, watch)


async def _items(store: AsyncStore, key: str, *, tree: bool) -> AsyncGenerator[Item, None]:
    if tree:
        async with store.watch_tree(key) as snapshots:
            async for snapshot in snapshots:
                for change in snapshot.changes:
                    yield change.key, change.pair
    else:
        async with store.watch(key) as pairs:
            async for pair in pairs:
                yield key.strip("/"), pair


def _text(key: str, pair: KVPair | None) -> str:
    if pair is None:
        return f"{escaped(key)}\t-"
    return f"{escaped(key)}\t{pair.last_index}\t{escaped_value(pair.value)}"


def _fields(key: str, pair: KVPair | None) -> dict[str, Any]:
    return {"key": key, "value": None, "last_index": None} if pair is None else pair_fields(pair)


async def _run(command: str, key: str, pair: KVPair | None) -> None:
    environment = {
        "AIOLIBKV_KEY": key,
        "AIOLIBKV_INDEX": "" if pair is None else str(pair.last_index),
        "AIOLIBKV_EVENT": "delete" if pair is None else "put",
    }
    with tempfile.TemporaryFile() as value:
        value.write(b"" if pair is None else pair.value)
        value.seek(0)
        code = await Child(["/bin/sh", "-c", command], environment, standard_input=value).run()
    if code and received.ending is None:
        tell(f"the command for {key!r} has ended with {code}")
