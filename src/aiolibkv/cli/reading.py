"""Commands that read: get and ls."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import click

from aiolibkv import AsyncStore, KVPair
from aiolibkv.cli.output import DIRECTORY, Output, table
from aiolibkv.cli.running import run_with_store
from aiolibkv.cli.settings import Command, Settings, complete_key
from aiolibkv.cli.text import beginning, escaped, pair_fields

_MOST_VALUES = 10
"""Values, each as large as may be, that are in memory at once."""


@click.command(
    "get", cls=Command, examples=["aiolibkv get config/limit", "aiolibkv get config/limit --json | jq -r .last_index"]
)
@click.argument("key", shell_complete=complete_key)
@click.pass_obj
def get_command(settings: Settings, key: str) -> int | None:
    """Write the value of KEY, as it is."""
    output = Output(as_json=settings.as_json)

    async def get(store: AsyncStore) -> None:
        pair = await store.get(key)
        if settings.as_json:
            await output.item("", pair_fields(pair))
        else:
            await output.write(pair.value + b"\n" if output.is_terminal else pair.value)

    return run_with_store(settings, get)


@click.command(
    "ls", cls=Command, examples=["aiolibkv ls", "aiolibkv ls --long config", "aiolibkv ls -R --json | jq -r .key"]
)
@click.argument("directory", default="", shell_complete=complete_key)
@click.option("--recursive", "-R", is_flag=True, help="All keys below, in full.")
@click.option("--long", "-l", "is_long", is_flag=True, help="With index, size and the beginning of the value.")
@click.option("--tree", is_flag=True, help="Draw all that is below as a tree.")
@click.pass_obj
def ls_command(settings: Settings, directory: str, *, recursive: bool, is_long: bool, tree: bool) -> int | None:
    """List what is below DIRECTORY, by default the root: one level, one name in a line.

    What has keys below it ends with a slash; a key that has a value and keys below it is listed as both.
    """
    if tree and (recursive or is_long or settings.as_json):
        raise click.UsageError("--tree goes with neither --recursive, --long nor --json.")
    output = Output(as_json=settings.as_json)

    async def ls(store: AsyncStore) -> None:
        if tree:
            root = directory.strip("/")
            keys = await store.keys(directory)
            for line in drawn(key[len(root) + 1 :] if root else key for key in keys):
                await output.line(line)
        elif is_long:
            await _list_long(store, directory, output, recursive=recursive)
        elif recursive:
            for key in await store.keys(directory):
                await output.item(escaped(key), {"key": key})
        else:
            for name in await store.children(directory):
                await output.item(_named(output, name), {"name": name})

    return run_with_store(settings, ls)


async def _list_long(store: AsyncStore, directory: str, output: Output, *, recursive: bool) -> None:
    if recursive:
        async with store.scan(directory) as scan:
            async for pair in scan:
                await output.item("\t".join(_described(pair, pair.key)), pair_fields(pair))
        return
    root = directory.strip("/")
    names = await store.children(directory)
    rows = []
    for at in range(0, len(names), _MOST_VALUES):
        paths = {name: f"{root}/{name}" if root else name for name in names[at : at + _MOST_VALUES]}
        pairs: Mapping[str, KVPair] = {}  # those before are forgotten first
        pairs = await store.get_many(path for path in paths.values() if not path.endswith("/"))
        for name, path in paths.items():
            found = pairs.get(path)
            if found is None and not name.endswith("/"):
                continue  # it has gone meanwhile
            if output.as_json:
                await output.item("", {"name": name} if found is None else {"name": name, **pair_fields(found)})
            else:
                rows.append(("-", "-", _named(output, name), "") if found is None else _described(found, name))
    for line in table(output, rows, ("INDEX", "SIZE", "NAME", "VALUE")):
        await output.line(line)


def _named(output: Output, name: str) -> str:
    """Return a name as it is shown, a directory in its colour."""
    return output.styled(escaped(name), DIRECTORY) if name.endswith("/") else escaped(name)


def _described(pair: KVPair, name: str) -> tuple[str, ...]:
    return str(pair.last_index), str(len(pair.value)), escaped(name), beginning(pair.value)


def drawn(keys: Iterable[str]) -> Iterator[str]:
    """Draw keys as a tree; what is no key itself, but a directory, ends with a slash."""
    root = _Node()
    for key in keys:
        node = root
        for segment in key.split("/"):
            node = node.below.setdefault(segment, _Node())
        node.is_key = True
    return root.lines("")


class _Node:
    """A key or a directory in a tree that is drawn."""

    def __init__(self) -> None:
        self.is_key = False
        self.below: dict[str, _Node] = {}

    def lines(self, indent: str) -> Iterator[str]:
        """Draw what is below."""
        for at, (name, node) in enumerate(self.below.items(), 1):
            is_last = at == len(self.below)
            yield f"{indent}{'└── ' if is_last else '├── '}{escaped(name)}{'' if node.is_key else '/'}"
            yield from node.lines(indent + ("    " if is_last else "│   "))
