"""The command postgresql-schema."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points

import click

from aiolibkv import Config, new_store
from aiolibkv.cli.output import Output
from aiolibkv.cli.running import run
from aiolibkv.cli.settings import Command, Settings
from aiolibkv.registry import GROUP

_NAME = "postgresql"


@click.command("postgresql-schema", cls=Command, examples=["aiolibkv postgresql-schema --role app | psql --dbname app"])
@click.option("--schema", default="public", show_default=True, help="The store's option of that name.")
@click.option("--table", default="aiolibkv", show_default=True, help="The store's option of that name.")
@click.option("--role", help="The role that uses the tables; else only who creates them may.")
@click.pass_obj
def postgresql_schema_command(settings: Settings, schema: str, table: str, role: str | None) -> int | None:
    """Print what an administrator runs where the store's role may not create its tables.

    It may be run again, over what is there.
    """
    if role == "":
        raise click.UsageError("--role is empty.")
    # Says what is wrong, if the backend is not installed or a name cannot be.
    new_store(_NAME, ["localhost"], Config(options={"schema": schema, "table": table}))
    (backend,) = entry_points(group=GROUP, name=_NAME)
    text: str = import_module(backend.module).schema(schema=schema, table=table, role=role)
    return run(settings, lambda: Output(as_json=False).write(text.encode()))
