"""Commands between a store and a file: export and import."""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import click

from aiolibkv import AsyncStore, KVPair
from aiolibkv.cli.changes import Step, Tally, batches, steps_to, steps_to_clear
from aiolibkv.cli.failures import MODIFIED
from aiolibkv.cli.output import Output, tell
from aiolibkv.cli.running import run_with_store
from aiolibkv.cli.settings import Command, Settings, complete_key
from aiolibkv.cli.text import pair_fields


@click.command("export", cls=Command)
@click.argument("directory", default="", shell_complete=complete_key)
@click.option(
    "--output",
    "-o",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write it here, whole or not at all.",
)
@click.pass_obj
def export_command(settings: Settings, directory: str, *, file: Path | None) -> int | None:
    """Write what is below DIRECTORY, by default everything: a JSON object in a line for each key."""
    output = Output(as_json=True)

    async def export(store: AsyncStore) -> None:
        async with store.scan(directory) as scan:
            if file is None:
                async for pair in scan:
                    await output.item("", pair_fields(pair))
                return
            with _written_whole(file) as written:
                async for pair in scan:
                    written.write(json.dumps(pair_fields(pair)) + "\n")

    return run_with_store(settings, export)


@contextmanager
def _written_whole(file: Path) -> Iterator[IO[str]]:
    """Write a file that takes its name when it is complete and on the disk."""
    descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with open(descriptor, "w", encoding="ascii") as written:  # noqa: PTH123 - it is a descriptor
            yield written
            written.flush()
            os.fsync(written.fileno())
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink()
        raise


@click.command("import", cls=Command)
@click.argument("file", type=click.File("rb"), default="-")
@click.option("--into", default="", metavar="DIRECTORY", help="Put the keys below here.")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@click.option("--delete", is_flag=True, help="Delete what is below the directory and not in the file.")
@click.option("--create-only", is_flag=True, help="Leave keys alone that are there.")
@click.pass_obj
def import_command(
    settings: Settings, file: IO[bytes], *, into: str, dry_run: bool, delete: bool, create_only: bool
) -> int | None:
    """Write the lines of an export, from FILE or else from standard input, to the store.

    What changes is shown: create, change or delete, and the key. What somebody else changes at the same time is left
    alone and told; the exit code is 5 then. Nothing is written when a line cannot be read.
    """
    if delete and create_only:
        raise click.UsageError("--delete and --create-only do not go together.")
    output = Output(as_json=settings.as_json)
    root = into.strip("/")

    async def import_(store: AsyncStore) -> int | None:
        tally = Tally()

        async def carry_out(steps: Sequence[Step]) -> None:
            for step in steps:
                await step.show(output)
            if not dry_run:
                await tally.carry_out(steps, store)

        with _twice_readable(file) as lines:
            keys = {pair.key for pair in _read(lines, root)}
            lines.seek(0)
            async for batch in batches(_each(_read(lines, root))):
                steps = await steps_to(store, batch)
                await carry_out([step for step in steps if not (create_only and step.previous is not None)])
        if delete:

            async def staying(_: Sequence[str]) -> set[str]:
                return keys

            async for surplus in steps_to_clear(store, root, staying):
                await carry_out(surplus)
        for key in tally.modified:
            tell(f"the key {key!r} was modified meanwhile, and is left alone")
        return MODIFIED if tally.modified else None

    return run_with_store(settings, import_)


@contextmanager
def _twice_readable(file: IO[bytes]) -> Iterator[IO[bytes]]:
    if file.seekable():
        yield file
        return
    with tempfile.TemporaryFile() as copy:
        shutil.copyfileobj(file, copy)
        copy.seek(0)
        yield copy


async def _each(pairs: Iterator[KVPair]) -> AsyncIterator[KVPair]:
    for pair in pairs:
        yield pair


def _read(lines: IO[bytes], root: str) -> Iterator[KVPair]:
    """Read the lines of an export.

    Raises:
        ValueError: a line is none, or a key stands twice.
    """
    known = set()
    for number, line in enumerate(lines, 1):
        try:
            fields = json.loads(line)
            key = fields["key"].strip("/")
            encoded = fields.get("value_base64")
            value = fields["value"].encode() if encoded is None else base64.b64decode(encoded, validate=True)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"line {number} is no pair of an export") from error
        if key in known:
            raise ValueError(f"line {number}: the key {key!r} stands twice")
        known.add(key)
        yield KVPair(f"{root}/{key}" if root else key, value, 0)
