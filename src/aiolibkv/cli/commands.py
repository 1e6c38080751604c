"""The commands; each is in a module that is imported when it is used."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module

import click

import aiolibkv as library
from aiolibkv.cli import failures
from aiolibkv.cli.output import tell
from aiolibkv.cli.settings import Settings, common_options
from aiolibkv.cli.text import masked

MODULES = {
    "get": "reading",
    "put": "writing",
    "rm": "writing",
    "ls": "reading",
    "watch": "watching",
    "lock": "locking",
    "elect": "locking",
    "leader": "leading",
    "register": "registering",
    "services": "registering",
    "instances": "registering",
    "every": "locking",
    "export": "transferring",
    "import": "transferring",
    "cp": "copying",
    "doctor": "doctor",
    "backends": "backends",
    "postgresql-schema": "postgresql",
    "demo": "demo",
    "completion": "completion",
}
"""Where each command is, in the order in which --help shows them."""


class Commands(click.Group):
    """A group that imports a command when it is used."""

    def list_commands(self, context: click.Context) -> list[str]:  # noqa: D102
        return list(MODULES)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:  # noqa: D102
        if name not in MODULES:
            return None
        module = import_module(f"aiolibkv.cli.{MODULES[name]}")
        command: click.Command = getattr(module, f"{name.replace('-', '_')}_command")
        return command


@click.group(cls=Commands, params=common_options(), epilog=failures.EXIT_CODES)
@click.version_option(library.__version__)
def aiolibkv() -> None:
    """One tool for every store: SQLite, PostgreSQL, etcd, Consul, ZooKeeper and memory.

    A store is scheme://user:password@host:port,host:port/prefix?name=value, as in etcd://localhost:2379 or
    sqlite:///file.db. The options below may stand before or after the command's name.
    """


def run(arguments: list[str]) -> int:
    """Run the command line.

    Returns:
        The exit code.
    """
    settings = Settings()
    try:
        # Without any it is help that is wanted, which click would call wrong usage.
        return aiolibkv.main(arguments or ["--help"], prog_name="aiolibkv", standalone_mode=False, obj=settings) or 0
    except click.UsageError as error:
        command = "aiolibkv" if error.ctx is None else error.ctx.command_path
        tell(f"{error.format_message().rstrip('.')}; see {command} --help")
        return failures.USAGE
    except (click.Abort, KeyboardInterrupt):
        return failures.INTERRUPTED
    except Exception as error:  # noqa: BLE001 - everything is told, and ends the process
        if settings.is_verbose and sys.stderr is not None:
            sys.stderr.write(masked("".join(traceback.format_exception(error))))
        tell(failures.message(error))
        return failures.exit_code(error)
