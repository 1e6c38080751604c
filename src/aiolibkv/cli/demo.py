"""What the library does, shown on a store."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from getpass import getuser
from pathlib import Path
from tempfile import gettempdir
from urllib.parse import quote

import click

from aiolibkv import AsyncStore, Candidate, Discovery, KeyModifiedError, KeyNotFoundError, LockLostError, open_store
from aiolibkv.cli.running import run
from aiolibkv.cli.settings import Command, Settings

_TTL = 2.0


@click.command("demo", cls=Command, examples=["aiolibkv demo", "aiolibkv demo --url etcd://localhost:2379"])
@click.pass_obj
def demo_command(settings: Settings) -> int | None:
    """Show put, get, compare-and-swap, a watch, expiry, lock, election and discovery, each step explained.

    It uses a database in the directory for temporary files when no URL is given.
    """
    url = _own_database() if settings.is_own_database else settings.resolved_url()
    return run(settings, lambda: run_demo(url))


def _own_database() -> str:
    """Return the URL of a database of this user's, who has a name only where there is no number."""
    user = os.getuid() if hasattr(os, "getuid") else getuser()
    return f"sqlite:///{quote(str(Path(gettempdir()) / f'aiolibkv-demo-{user}.db'))}"


async def run_demo(url: str) -> None:
    """Run every step on the store of a URL, in a directory of its own that is removed at the end."""
    directory = f"demo-{uuid.uuid4().hex[:6]}"
    async with open_store(url) as store:
        click.secho(f"Connected to {url.partition(':')[0]}; everything happens below {directory}/", bold=True)
        await store.put(directory, b"a demonstration")
        discovery = Discovery(store, "demo-services")
        try:
            async with discovery.register("demo", f"process {os.getpid()}", id=directory):
                await _put_and_get(store, directory)
                await _compare_and_swap(store, directory)
                await _watch(store, directory)
                await _expiry(store, directory)
                await _lock(store, directory)
                await _election(store, directory)
                await _discovery(discovery)
        finally:
            await _clean_up(store, directory)


def _step(title: str, explanation: str) -> None:
    click.secho(f"\n{title}", fg="cyan", bold=True)
    click.echo(f"  {explanation}")


def _show(call: str, result: object) -> None:
    click.echo(f"  {call:<52} -> {result}")


async def _put_and_get(store: AsyncStore, directory: str) -> None:
    _step("Put and get", "Keys are paths, values are bytes; last_index tells one modification from the next.")
    key = f"{directory}/greeting"
    _show("await store.put('greeting', b'hello')", await store.put(key, b"hello"))
    _show("await store.get('greeting')", await store.get(key))
    try:
        await store.get(f"{directory}/nobody")
    except KeyNotFoundError as error:
        _show("await store.get('nobody')", f"KeyNotFoundError: {error}")


async def _compare_and_swap(store: AsyncStore, directory: str) -> None:
    _step("Compare and swap", "Two writers start from the same pair. One wins; the other is told, and reads again.")
    key = f"{directory}/counter"
    previous = await store.put(key, b"0")

    async def add_one(writer: str) -> str:
        try:
            return f"{writer} wrote {await store.atomic_put(key, b'1', previous)}"
        except KeyModifiedError as error:
            return f"{writer} lost: KeyModifiedError: {error}"

    for outcome in await asyncio.gather(add_one("ann"), add_one("bob")):
        _show("await store.atomic_put('counter', b'1', previous)", outcome)


async def _watch(store: AsyncStore, directory: str) -> None:
    _step("Watch", "A watch gives the current state first, then every later one; it survives outages and failovers.")
    states = f"{directory}/deploy"
    ready = asyncio.Event()

    async def follow() -> None:
        async with store.watch_tree(states) as watch:
            async for snapshot in watch:
                for change in snapshot.changes:
                    what = "deleted" if change.pair is None else f"is now {change.pair.value!r}"
                    _show("async for snapshot in store.watch_tree('deploy')", f"{change.key.rpartition('/')[2]} {what}")
                ready.set()
                if len(snapshot) == 1 and snapshot[0].value == b"done":
                    return

    follower = asyncio.create_task(follow())
    try:
        await ready.wait()
        await store.put(f"{states}/web", b"running")
        await store.put(f"{states}/db", b"running")
        await store.delete(f"{states}/db")
        await store.put(f"{states}/web", b"done")
        await follower
    finally:
        follower.cancel()
        await asyncio.wait({follower})


async def _expiry(store: AsyncStore, directory: str) -> None:
    _step("Expiry", f"A key with ttl={_TTL:g} goes by itself, as a deletion that watches see.")
    key = f"{directory}/session"
    began = time.monotonic()
    _show(f"await store.put('session', b'ann', ttl={_TTL:g})", await store.put(key, b"ann", ttl=_TTL))
    async with store.watch(key) as watch:
        async for pair in watch:
            _show("async for pair in store.watch('session')", f"after {time.monotonic() - began:.1f} s {pair}")
            if pair is None:
                return


async def _lock(store: AsyncStore, directory: str) -> None:
    _step("Lock", "One holder at a time. A write guarded by a lock is refused by the server once the lock is lost.")
    key, report = f"{directory}/lock", f"{directory}/report"
    async with store.new_lock(key, value=b"ann") as held:
        _show("async with store.new_lock('lock') as held", f"fencing token {held.fencing_token}")
        _show("await store.new_lock('lock').try_acquire()", await store.new_lock(key).try_acquire())
        _show("await store.put('report', b'1', guard=held)", await store.put(report, b"1", guard=held))
    try:
        await store.put(report, b"2", guard=held)
    except LockLostError as error:
        _show("await store.put('report', b'2', guard=held)", f"LockLostError: {error}")


async def _election(store: AsyncStore, directory: str) -> None:
    _step("Election", "The leader is who holds a key; the next candidate is elected when it stops or dies.")
    key = f"{directory}/leader"
    ann, bob = Candidate(store, key, "ann"), Candidate(store, key, "bob")
    try:
        for candidate in (ann, bob):
            async for elected in candidate.run_for_election():
                _show(f"async for elected in {candidate.node}.run_for_election()", elected)
                if elected:
                    break
            await candidate.stop()
            _show(f"await {candidate.node}.stop()", "no leader")
    finally:
        await ann.stop()
        await bob.stop()


async def _discovery(discovery: Discovery) -> None:
    _step(
        "Discovery", "An instance is registered while it lives. Run this in two terminals at once to see two of them."
    )
    for instance in await discovery.instances("demo"):
        _show("await discovery.instances('demo')", f"{instance.id} at {instance.address}")


async def _clean_up(store: AsyncStore, directory: str) -> None:
    _step("Clean up", "delete_tree removes what is below a directory, and nothing else.")
    _show(f"await store.delete_tree('{directory}')", f"{await store.delete_tree(directory)} keys deleted")
    await store.delete(directory)
