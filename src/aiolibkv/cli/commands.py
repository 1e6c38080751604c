"""The commands; each one's work is in a module of its own."""

from __future__ import annotations

import asyncio
import os
from getpass import getuser
from pathlib import Path
from tempfile import gettempdir
from urllib.parse import quote

import click

import aiolibkv as library
from aiolibkv.cli.demo import run_demo


@click.group()
@click.version_option(library.__version__)
def aiolibkv() -> None:
    """One key/value interface over etcd, Consul, ZooKeeper and embedded stores."""


@aiolibkv.command()
@click.option("--url", help="The store to show it on; a database in the directory for temporary files when not given.")
def demo(url: str | None) -> None:
    """Show put, get, compare-and-swap, a watch, expiry, lock, election and discovery, each step explained."""
    try:
        asyncio.run(run_demo(url or _own_database()))
    except (library.StoreError, ValueError) as error:
        raise click.ClickException(str(error)) from error


def _own_database() -> str:
    """Return the URL of a database of this user's, who has a name only where there is no number."""
    user = os.getuid() if hasattr(os, "getuid") else getuser()
    return f"sqlite:///{quote(str(Path(gettempdir()) / f'aiolibkv-demo-{user}.db'))}"
