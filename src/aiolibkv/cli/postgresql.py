"""The command postgresql-schema."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

import click

from aiolibkv import Config, new_store
from aiolibkv.cli.settings import Command
from aiolibkv.registry import GROUP

_NAME = "postgresql"


@click.command("postgresql-schema", cls=Command, examples=["aiolibkv postgresql-schema --role app | psql --dbname app"])
@click.option("--schema", default="public", show_default=True, help="The store's option of that name.")
@click.option("--table", default="aiolibkv", show_default=True, help="The store's option of that name.")
@click.option("--role", help="Who is to use the tables; without it only who creates them may.")
def postgresql_schema_command(schema: str, table: str, role: str | None) -> None:
    """Print what an administrator runs where the store's role may not create its tables.

    It may be run again, over what is there.
    """
    # Says what is wrong, if the backend is not installed or a name cannot be.
    new_store(_NAME, ["localhost"], Config(options={"schema": schema, "table": table}))
    (backend,) = entry_points(group=GROUP, name=_NAME)
    click.echo(import_module(backend.module).schema(schema=schema, table=table, role=role), nl=False)
