"""Commands between a store and a file: export and import."""

from __future__ import annotations

import base64
import json
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO

import click

from aiolibkv import AsyncStore, KVPair, ValueTooLargeError
from aiolibkv.cli.changes import Step, Tally, batches, steps_to, steps_to_clear
from aiolibkv.cli.failures import MODIFIED, OTHER, CommandError
from aiolibkv.cli.output import Output, standard_input, tell
from aiolibkv.cli.running import run_with_store
from aiolibkv.cli.settings import Command, Settings, complete_key
from aiolibkv.cli.text import pair_fields


@click.command(
    "export",
    cls=Command,
    examples=["aiolibkv export config --output config.jsonl", "aiolibkv export | gzip > all.jsonl.gz"],
)
@click.argument("directory", default="", shell_complete=complete_key)
@click.option(
    "--output",
    "-o",
    "file",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write to this file, whole or not at all; a new file can be read by its owner only.",
)
@click.pass_obj
def export_command(settings: Settings, directory: str, *, file: Path | None) -> int | None:
    """Write all keys below DIRECTORY, by default all: a line with a JSON object for each."""
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
    """Write a file that takes its name when it is complete and on the disk; a pipe or a device is just written."""
    if file.exists() and not file.is_file():
        with file.open("w", encoding="ascii") as device:
            yield device
        return
    file = file.resolve()  # what a link leads to is replaced, not the link
    try:
        descriptor, name = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    except OSError as error:
        raise CommandError(f"{file} cannot be written: {error.strerror}", OTHER) from error
    try:
        with open(descriptor, "w", encoding="ascii") as written:  # noqa: PTH123 - it is a descriptor
            yield written
            written.flush()
            os.fsync(written.fileno())
        if file.exists():
            shutil.copymode(file, name)
        Path(name).replace(file)
    except BaseException:
        Path(name).unlink()
        raise


@click.command(
    "import",
    cls=Command,
    examples=["aiolibkv import config.jsonl --dry-run", "aiolibkv import config.jsonl --into test"],
)
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--into", default="", metavar="DIRECTORY", help="Put the keys below this directory.")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@click.option("--delete", is_flag=True, help="Delete what is below the directory and not in the file.")
@click.option("--create-only", is_flag=True, help="Do not change keys that exist.")
@click.pass_obj
def import_command(
    settings: Settings, file: Path | None, *, into: str, dry_run: bool, delete: bool, create_only: bool
) -> int | None:
    """Write the lines of an export, from FILE or else from standard input, to the store.

    What changes is shown: create, change or delete, and the key. What somebody else changes at the same time is left
    alone and told; the exit code is 5 then. Nothing is written when a line cannot be read, or when the store cannot
    have a key or a value.
    """
    if delete and create_only:
        raise click.UsageError("--delete and --create-only do not go together.")
    output = Output(as_json=settings.as_json)
    root = into.strip("/")

    with _opened(file) as opened, _twice_readable(opened) as lines:

        async def import_(store: AsyncStore) -> int | None:
            tally = Tally()

            async def carry_out(steps: Sequence[Step]) -> None:
                for step in steps:
                    await step.show(output)
                if not dry_run:
                    await tally.carry_out(steps, store)

            keys = _checked(store, _read(lines, root))
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
            for reason in tally.refused.values():
                tell(reason)
            return OTHER if tally.refused else MODIFIED if tally.modified else None

        return run_with_store(settings, import_)


def _checked(store: AsyncStore, pairs: Iterator[KVPair]) -> set[str]:
    """Return the keys of pairs, all of which a store can have.

    Raises:
        StoreError: it cannot.
        ValueError: a line is none.
    """
    most = store.capabilities.max_value_bytes
    keys = set()
    for pair in pairs:
        store.watch(pair.key)  # nothing is sent; what is no key is refused
        if len(pair.value) > most:
            raise ValueTooLargeError(f"a value has at most {most} bytes, not {len(pair.value)}", key=pair.key)
        keys.add(pair.key)
    return keys


def _opened(file: Path | None) -> AbstractContextManager[IO[bytes]]:
    return nullcontext(standard_input()) if file is None or str(file) == "-" else file.open("rb")


@contextmanager
def _twice_readable(file: IO[bytes]) -> Iterator[IO[bytes]]:
    """Have what can be read once only in a file, before an event loop runs that reading would keep."""
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
        CommandError: a key is empty.
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
        if not key:
            raise CommandError(f"line {number}: the key is empty", OTHER)
        if key in known:
            raise ValueError(f"line {number}: the key {key!r} stands twice")
        known.add(key)
        yield KVPair(f"{root}/{key}" if root else key, value, 0)
