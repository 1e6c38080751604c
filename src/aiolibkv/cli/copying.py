"""The command cp."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Container, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import NamedTuple, Protocol
from urllib.parse import parse_qsl, unquote, urlsplit

import click

from aiolibkv import (
    AsyncStore,
    CallNotSupportedError,
    Change,
    KeyNotFoundError,
    KVPair,
    NotReachableError,
    RequestTimeoutError,
    ValueTooLargeError,
)
from aiolibkv.cli.changes import Step, Tally, batches, everything, steps_to, steps_to_clear
from aiolibkv.cli.failures import MODIFIED, OTHER, CommandError
from aiolibkv.cli.output import Output, tell
from aiolibkv.cli.probing import servers_of
from aiolibkv.cli.running import run
from aiolibkv.cli.settings import Command, Settings
from aiolibkv.registry import GROUP

_MOST_PASSES = 10
"""Of which each but the last has found differences: who writes at the same time is faster."""
_PAUSE = 1.0
"""Seconds between two attempts to go on."""


@click.command(
    "cp",
    cls=Command,
    examples=[
        "aiolibkv cp zookeeper://old:2181/app etcd://new:2379/app --dry-run",
        "aiolibkv cp zookeeper://old:2181/app etcd://new:2379/app --delete --follow",
    ],
)
@click.argument("source", metavar="SOURCE_URL")
@click.argument("destination", metavar="DESTINATION_URL")
@click.option("--delete", is_flag=True, help="Delete what the destination has and the source has not.")
@click.option("--dry-run", is_flag=True, help="Only show what would change.")
@click.option("--follow", "-f", is_flag=True, help="Go on with each change of the source until interrupted.")
@click.pass_obj
def cp_command(
    settings: Settings, source: str, destination: str, *, delete: bool, dry_run: bool, follow: bool
) -> int | None:
    """Copy everything from one store to another, each with its prefix.

    What is equal already is not written again, so that a copy which was interrupted can be completed. In the end all is
    compared: what the source has is equal in the destination, and with --delete the destination has nothing else.
    Lifetimes are not copied: what goes by itself in the source, locks and registrations among it, stays in the
    destination. A key that the destination cannot have, as its value is too large there, is told and left
    out; the exit code is 8 then. With --follow deletions are carried out too.
    """
    if dry_run and follow:
        raise click.UsageError("--dry-run and --follow do not go together.")
    output = Output(as_json=settings.as_json)

    async def cp() -> None:
        from_store, to_store = settings.store(source), settings.store(destination)  # says what is wrong with a URL
        if _is_nested(source, destination):
            raise click.UsageError("one of the two is a part of the other, which would be copied into itself.")
        async with from_store, to_store:
            copy = _Copy(from_store, to_store, delete=delete)
            if dry_run:
                async for steps in copy.steps():
                    for step in steps:
                        await step.show(output)
                return

            async def complete() -> None:
                await copy.complete(settings)
                if output.as_json:
                    await output.item("", {"keys": copy.keys, "written": copy.written, "refused": len(copy.refused)})
                elif not settings.is_quiet:
                    equal = copy.keys - len(copy.refused)
                    tell(f"equal keys: {equal}; changes made: {copy.written}")

            if follow:
                await copy.follow(complete)
            else:
                await complete()
            if copy.refused:
                raise CommandError(f"keys that the destination cannot have: {len(copy.refused)}", OTHER)

    return run(settings, cp)


def _is_nested(first: str, second: str) -> bool:
    """Tell whether one of two URLs names a directory in what the other one names, as far as URLs show it."""
    one, other = _place(first), _place(second)
    if one.area != other.area or one.servers.isdisjoint(other.servers) or one.prefix == other.prefix:
        return False
    return f"{one.prefix}/".startswith(f"{other.prefix}/") or f"{other.prefix}/".startswith(f"{one.prefix}/")


class _Place(NamedTuple):
    area: tuple[object, ...]
    servers: frozenset[str]
    prefix: str


def _place(url: str) -> _Place:
    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    servers = frozenset(map(str, servers_of(url))) or frozenset(parts.netloc.rpartition("@")[2].split(","))
    backend = next(iter(entry_points(group=GROUP, name=parts.scheme)))  # it may have several names
    tables = tuple(options.get(name) for name in ("bucket", "schema", "table"))
    prefix = "/".join(part for part in (unquote(parts.path).strip("/"), options.get("prefix", "").strip("/")) if part)
    return _Place((backend.value, tables), servers, f"/{prefix}" if prefix else "")


class _Copy:
    """A copy from a store to another one.

    Attributes:
        keys: how many the source had when they were last compared.
        written: how many were written or deleted.
        refused: those that the destination cannot have; each was told.
    """

    def __init__(self, source: AsyncStore, destination: AsyncStore, *, delete: bool) -> None:
        self.keys = 0
        self.written = 0
        self.refused: set[str] = set()
        self._source = source
        self._destination = destination
        self._delete = delete

    async def steps(self, progress: _Progress | None = None) -> AsyncIterator[Sequence[Step]]:
        """Compare everything, and find what is to be done."""
        self.keys = 0
        async for batch in batches(everything(self._source)):
            yield await steps_to(self._destination, [pair for pair in batch if pair.key not in self.refused])
            self.keys += len(batch)
            if progress is not None:
                progress.advance(len(batch))
        if self._delete:
            async for steps in steps_to_clear(self._destination, "", self._there):
                yield steps

    async def complete(self, settings: Settings) -> None:
        """Copy until a comparison finds no difference.

        Raises:
            CommandError: there is always another one.
        """
        for _ in range(_MOST_PASSES):
            tally = Tally()
            with _progress(await self._number(), is_shown=not settings.is_quiet) as progress:
                async for steps in self.steps(progress):
                    await tally.carry_out(steps, self._destination)
            self.written += tally.done
            for key in tally.refused:
                tell(tally.refused[key])
            self.refused |= tally.refused.keys()
            if not tally.done and not tally.modified:
                return
        raise CommandError("source and destination are not equal: others change them all the time", MODIFIED)

    async def follow(self, complete: Callable[[], Awaitable[None]]) -> None:
        """Copy, then carry out each change of the source that came since it began, through outages."""
        async with self._source.watch_tree("") as watch:
            await anext(watch)  # what goes from here on is heard of
            await complete()
            async for snapshot in watch:
                for change in snapshot.changes:
                    await self._apply_through_outages(change)

    async def _apply_through_outages(self, change: Change) -> None:
        while True:
            try:
                return await self._apply(change.key, change.pair)
            except (NotReachableError, RequestTimeoutError) as error:
                tell(f"tries again: {error}")
            await asyncio.sleep(_PAUSE)

    async def _apply(self, key: str, pair: KVPair | None) -> None:
        try:
            if pair is not None:
                await self._destination.put(key, pair.value)
            else:
                await self._destination.delete(key)
        except KeyNotFoundError:
            pass
        except (ValueTooLargeError, CallNotSupportedError) as error:
            tell(str(error))

    async def _there(self, keys: Sequence[str]) -> Container[str]:
        return await self._source.get_many(keys)

    async def _number(self) -> int | None:
        """Return how many keys there are to copy, where somebody wants to know how long it takes."""
        if not sys.stderr.isatty():
            return None
        try:
            return len(await self._source.keys(""))
        except KeyNotFoundError:
            return 0


class _Progress(Protocol):
    def advance(self, number: int) -> None: ...


class _Unseen:
    def advance(self, number: int) -> None:
        """Show nothing."""


@contextmanager
def _progress(total: int | None, *, is_shown: bool) -> Iterator[_Progress]:
    """Show progress, with rate and time left, at a terminal."""
    if total is None or not is_shown:
        yield _Unseen()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task("", total=total, rate="")

        class _Shown:
            def advance(self, number: int) -> None:
                speed = shown.tasks[0].speed
                shown.update(task, advance=number, rate=f"{speed or 0:.0f} keys/s")

        yield _Shown()
