"""The command leader."""

from __future__ import annotations

import click

from aiolibkv import AsyncStore, Follower
from aiolibkv.cli.failures import NOT_FOUND, CommandError
from aiolibkv.cli.output import Output
from aiolibkv.cli.running import run_with_store
from aiolibkv.cli.settings import Command, Settings, complete_key
from aiolibkv.cli.text import escaped


@click.command(
    "leader", cls=Command, examples=["aiolibkv leader service/leader", "aiolibkv leader service/leader --follow"]
)
@click.argument("key", shell_complete=complete_key)
@click.option("--follow", "-f", is_flag=True, help="Write each change, until interrupted.")
@click.pass_obj
def leader_command(settings: Settings, key: str, *, follow: bool) -> int | None:
    """Write who leads in the election KEY; exit with 1 when nobody does.

    With --follow a line without a name, in JSON null, means that nobody leads.
    """
    output = Output(as_json=settings.as_json)

    async def leader(store: AsyncStore) -> None:
        with output.while_read():
            async with Follower(store, key).follow_election() as leaders:
                async for name in leaders:
                    if name is None and not follow:
                        raise CommandError(f"nobody leads in the election {key!r}", NOT_FOUND)
                    await output.item(escaped(name or ""), {"key": key, "leader": name})
                    if not follow:
                        return

    return run_with_store(settings, leader)
