"""The commands; each one's work is in a module of its own."""

from __future__ import annotations

import asyncio

import click

import aiolibkv as library
from aiolibkv.cli.demo import run_demo


@click.group()
@click.version_option(library.__version__)
def aiolibkv() -> None:
    """One key/value interface over etcd, Consul, ZooKeeper and embedded stores."""


@aiolibkv.command()
@click.option("--url", default="memory://", show_default=True, help="The store to show it on.")
def demo(url: str) -> None:
    """Show put, get, compare-and-swap, a watch, expiry, lock and election, each step explained."""
    try:
        asyncio.run(run_demo(url))
    except (library.StoreError, ValueError) as error:
        raise click.ClickException(str(error)) from error
