"""Commands that run another command while a lock is held: lock and elect."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping, Sequence
from datetime import datetime

import click

from aiolibkv import AsyncStore, Candidate, HeldLock, Lock, LockLostError, PeriodicJob
from aiolibkv.cli.child import Child
from aiolibkv.cli.failures import NOT_LOCKED, CommandError
from aiolibkv.cli.output import tell
from aiolibkv.cli.running import received, run_with_store
from aiolibkv.cli.settings import Command, Settings, complete_key
from aiolibkv.events import Event, LockLost

DEFAULT_TTL = 15.0

_ttl_option = click.option(
    "--ttl",
    type=float,
    default=DEFAULT_TTL,
    metavar="SECONDS",
    help="If this process dies, the lock is free after this time (15).",
)
_command_argument = click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="-- COMMAND...")


def this_process() -> str:
    """Return the name of this process among those of all machines."""
    return f"{socket.gethostname()}:{os.getpid()}"


async def run_while_held(command: Sequence[str], held: HeldLock, more: Mapping[str, str] | None = None) -> int:
    """Run a command that must not outlive a lock, with more in its environment, and return its exit code."""
    environment = {**(more or {}), "AIOLIBKV_FENCING_TOKEN": str(held.fencing_token), "AIOLIBKV_LOCK_KEY": held.key}
    return await Child(command, environment, held=held).run()


@click.command(
    "lock",
    cls=Command,
    examples=[
        "aiolibkv lock jobs/backup -- ./backup.sh",
        "aiolibkv lock jobs/backup --wait 0 -- ./backup.sh || echo busy",
    ],
)
@click.argument("key", shell_complete=complete_key)
@_command_argument
@click.option(
    "--wait", type=click.FloatRange(min=0), metavar="SECONDS", help="Give up after this time; 0: do not wait."
)
@_ttl_option
@click.pass_obj
def lock_command(settings: Settings, key: str, command: Sequence[str], *, wait: float | None, ttl: float) -> int | None:
    """Wait for the lock KEY, and run COMMAND while it is held; the exit code is the command's.

    The command has AIOLIBKV_LOCK_KEY and AIOLIBKV_FENCING_TOKEN in its environment. When the lock is lost, its process
    group gets SIGTERM, and SIGKILL before anybody else can have the lock; the exit code is 7.
    """
    reasons: list[str] = []

    def note(event: Event) -> None:
        if isinstance(event, LockLost):
            reasons.append(event.reason)

    async def lock(store: AsyncStore) -> int:
        lock = store.new_lock(key, value=this_process().encode(), ttl=ttl)
        held = await _acquire(lock, key, wait)
        settings.leave_standard_error_to_a_command()
        try:
            return await run_while_held(command, held)
        except LockLostError as error:
            why = ": ".join(("the lock was lost while the command ran", *reasons))
            raise LockLostError(why, key=error.key) from error
        finally:
            await lock.release()

    return run_with_store(settings, lock, note)


async def _acquire(lock: Lock, key: str, seconds: float | None) -> HeldLock:
    """Acquire a lock within a time.

    Raises:
        CommandError: it was not had in time.
    """
    if seconds == 0:
        held = await lock.try_acquire()
    else:
        held = None
        try:
            async with asyncio.timeout(seconds) as limit:
                held = await lock.acquire()
        except TimeoutError:
            if not limit.expired():
                raise
    if held is None:
        raise CommandError(f"the lock {key!r} was not free in time", NOT_LOCKED)
    return held


@click.command("elect", cls=Command, examples=['aiolibkv elect service/leader --node "$HOSTNAME" -- ./serve'])
@click.argument("key", shell_complete=complete_key)
@_command_argument
@click.option("--node", metavar="NAME", help="This node's name, which followers see; host and process when not given.")
@_ttl_option
@click.pass_obj
def elect_command(settings: Settings, key: str, command: Sequence[str], *, node: str | None, ttl: float) -> int | None:
    """Be a candidate in the election KEY, and run COMMAND while elected, until it ends by itself.

    The command has AIOLIBKV_LOCK_KEY and AIOLIBKV_FENCING_TOKEN in its environment. When the leadership is lost, its
    process group gets SIGTERM, and SIGKILL before anybody else can lead; it is run again when this node is elected
    again. The exit code is the command's.
    """

    async def elect(store: AsyncStore) -> int:
        candidate = Candidate(store, key, node or this_process(), ttl=ttl)
        return await candidate.run(lambda held: run_while_held(command, held))

    return run_with_store(settings, elect)


@click.command("every", cls=Command, examples=["aiolibkv every 300 jobs/report -- ./report.sh"])
@click.argument("seconds", type=float)
@click.argument("key", shell_complete=complete_key)
@_command_argument
@_ttl_option
@click.pass_obj
def every_command(settings: Settings, seconds: float, key: str, command: Sequence[str], *, ttl: float) -> int | None:
    """Run COMMAND every so many SECONDS, in one of all processes that do this for KEY, until interrupted.

    Slots are multiples of SECONDS since 1970 in UTC; none begins twice. The slot that is due now runs at once, unless
    it has run; older ones that were missed are not made up for. The command has AIOLIBKV_SLOT, AIOLIBKV_LOCK_KEY and
    AIOLIBKV_FENCING_TOKEN in its environment. When it fails, that is reported, and the next slot runs as usual. When
    the lock is lost, its process group gets SIGTERM, and SIGKILL before anybody else can have the lock.
    """

    async def every(store: AsyncStore) -> None:
        async def work(slot: datetime, held: HeldLock) -> None:
            code = await run_while_held(command, held, {"AIOLIBKV_SLOT": slot.isoformat()})
            if code and received.ending is None:
                tell(f"the command for {slot.isoformat()} has ended with {code}")

        await PeriodicJob(store, key, every=seconds, ttl=ttl).run(work)

    return run_with_store(settings, every)
