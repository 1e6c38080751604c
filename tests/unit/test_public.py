"""The package from outside: names, documentation, imports, the command line."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import distribution, version
from pathlib import Path

import pytest

import aiolibkv
from aiolibkv.store import Store

SIGNATURES = """
new_store(backend, endpoints=(), config=None)
open_store(url, config=None)
register_backend(name, factory)
update(store, key, fn, *, ttl=None, keep_alive=False, guard=None)
AsyncStore.children(self, directory, *, consistent=True)
AsyncStore.commit(self, *operations, guard=None)
AsyncStore.get_many(self, keys, *, consistent=True)
AsyncStore.keys(self, directory, *, consistent=True)
AsyncStore.open(self)
AsyncStore.scan(self, directory, *, page=1000)
Scan.aclose(self)
AsyncStore.put(self, key, value, *, ttl=None, keep_alive=False, guard=None)
AsyncStore.get(self, key, *, consistent=True)
AsyncStore.delete(self, key, *, guard=None)
AsyncStore.exists(self, key, *, consistent=True)
AsyncStore.watch(self, key)
AsyncStore.watch_tree(self, directory)
AsyncStore.new_lock(self, key, *, value=b'', ttl=15.0)
AsyncStore.list(self, directory, *, consistent=True)
AsyncStore.delete_tree(self, directory, *, guard=None)
AsyncStore.atomic_put(self, key, value, previous, *, ttl=None, keep_alive=False, guard=None)
AsyncStore.atomic_delete(self, key, previous, *, guard=None)
AsyncStore.close(self)
Watch.aclose(self)
Lock.acquire(self)
Lock.try_acquire(self)
Lock.release(self)
HeldLock.wait_lost(self)
Snapshot.get(self, key)
Candidate.run_for_election(self)
Candidate.lead(self)
Candidate.run(self, work)
Candidate.resign(self)
Candidate.stop(self)
Election.aclose(self)
Follower.follow_election(self)
Discovery.register(self, service, address, *, id=None, metadata=None, ttl=20.0)
Discovery.instances(self, service)
Discovery.services(self)
Discovery.watch(self, service)
PeriodicJob.run(self, work)
Semaphore.acquire(self)
Semaphore.try_acquire(self)
Semaphore.release(self)
Semaphore.resize(self, permits)
ReadWriteLock.reading(self)
ReadWriteLock.writing(self)
Mirror.get(self, key)
Mirror.wait_for(self, index)
Mirror.changes(self)
"""

CONSTRUCTORS = """
Candidate(store, key, node, *, ttl=15.0)
Change(key, pair, previous)
Check(key, previous=ANY)
Delete(key, previous=ANY)
Discovery(store, path)
Follower(store, key)
Instance(service, id, address, metadata=<factory>)
KVPair(key, value, last_index)
Mirror(store, directory)
Namespace(store, directory)
PeriodicJob(store, name, *, every, ttl=15.0)
Put(key, value, previous=ANY)
ReadWriteLock(store, name, *, ttl=15.0)
Semaphore(store, name, permits, *, ttl=15.0)
Snapshot(pairs=(), *, changes=(), last_index=0)
"""

CLASSES = """
AccessDeniedError BackendNotSupportedError CallNotSupportedError CannotLockError InvalidKeyError KeyExistsError
KeyModifiedError KeyNotFoundError LockLostError NotReachableError PreviousNotSpecifiedError RequestTimeoutError
StoreClosedError StoreError ValueTooLargeError
AsyncStore Candidate Capabilities Change Check Config Delete Discovery Election Follower HeldLock Instance KVPair Lock
Mirror Namespace PeriodicJob Put ReadWriteLock Registration Scan Semaphore Snapshot
Watch
"""


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize("name", aiolibkv.__all__)
def test_public_names_are_documented(name: str) -> None:
    item = getattr(aiolibkv, name)
    assert inspect.getdoc(item)
    if inspect.isclass(item):
        for member, value in vars(item).items():
            if not member.startswith("_") and inspect.isfunction(value):
                assert inspect.getdoc(value), f"{name}.{member}"


def calls() -> Iterator[tuple[str, Callable[..., object], str]]:
    """Yield the public functions and methods with their names and what is said of them."""
    for name in aiolibkv.__all__:
        item = getattr(aiolibkv, name)
        if inspect.isfunction(item):
            yield name, item, inspect.getdoc(item) or ""
        elif inspect.isclass(item) and item is not aiolibkv.Namespace:  # whose calls are AsyncStore's
            for member, value in inspect.getmembers(item, inspect.isfunction):
                if not member.startswith("_") and value.__module__.startswith("aiolibkv.") and member != "locate":
                    yield f"{name}.{member}", value, inspect.getdoc(value) or ""


def bare(call: Callable[..., object]) -> str:
    """Return a signature without annotations."""
    parameters = inspect.signature(call).parameters.values()
    return str(inspect.Signature([each.replace(annotation=each.empty) for each in parameters]))


def test_the_public_names_and_their_signatures() -> None:
    assert {f"{name}{bare(call)}" for name, call, _ in calls()} == set(SIGNATURES.split("\n")) - {""}
    made = [line for line in CONSTRUCTORS.split("\n") if line]
    assert [f"{name}{bare(getattr(aiolibkv, name))}" for name in (line.partition("(")[0] for line in made)] == made
    classes = {name for name in aiolibkv.__all__ if inspect.isclass(getattr(aiolibkv, name))}
    assert classes == set(CLASSES.split())


def test_stores_and_namespaces_have_the_signatures_of_the_protocol() -> None:
    for name, call, _ in calls():
        kind, _, member = name.partition(".")
        if kind == "AsyncStore":
            for made in (Store, aiolibkv.Namespace):
                assert bare(getattr(made, member)) == bare(call), (made, member)


def test_calls_that_reach_a_server_tell_cancellation_and_cost() -> None:
    told = {name: text for name, call, text in calls() if inspect.iscoroutinefunction(call)}
    assert {"update", "AsyncStore.put", "Lock.acquire", "Watch.aclose", "Candidate.stop"} <= told.keys()
    assert [name for name, text in told.items() if "Cancellation:" not in text or "Cost:" not in text] == []


def test_every_argument_is_told() -> None:
    for name, call, text in calls():
        if name.startswith(("AsyncStore.", "Lock.")) or "." not in name:
            for argument in inspect.signature(call).parameters.keys() - {"self"}:
                assert f"\n    {argument}: " in text.partition("Args:")[2], (name, argument)


def test_importing_is_cheap_and_starts_nothing() -> None:
    code = (
        "import asyncio, dataclasses, sys, threading; before = set(sys.modules); threads = threading.active_count(); "
        "import aiolibkv; print(threading.active_count() - threads, *(set(sys.modules) - before))"
    )
    threads, *modules = run("-W", "error", "-c", code).stdout.split()
    foreign = {name.partition(".")[0] for name in modules} - sys.stdlib_module_names
    assert (threads, foreign) == ("0", {"aiolibkv"})
    assert not {"aiolibkv.events", "aiolibkv.store", "aiolibkv.urls", "importlib.metadata", "pathlib"} & set(modules)
    # It was 25 beside asyncio's; the standard library's for distributions and e-mail alone are 50 more.
    assert len(modules) < 50, sorted(modules)


def test_the_distribution() -> None:
    """What it needs, what each extra adds, and which backends there are."""
    described = distribution("aiolibkv")
    needed: dict[str, set[str]] = {}
    for requirement in described.requires or ():
        name, _, extra = requirement.partition("; extra == ")
        needed.setdefault(extra.strip("'\""), set()).add(re.split(r"[^\w-]", name)[0])
    assert needed.pop("") == {"anyio", "sortedcontainers"}
    assert {extra: needed[extra] for extra in ("consul", "etcd", "zookeeper", "postgresql", "otel")} == {
        "consul": {"aiohttp"},
        "etcd": {"hpack"},
        "zookeeper": {"aiozk"},
        "postgresql": {"asyncpg"},
        "otel": {"opentelemetry-api"},
    }
    assert needed.keys() >= {"cli", "all", "test"}
    backends = described.entry_points.select(group="aiolibkv.backends")
    aliases = {"zk": "zookeeper", "postgres": "postgresql"}
    modules = {entry.name: entry.module.rpartition(".")[2] for entry in backends}
    names = ("memory", "sqlite", "etcd", "consul", "zookeeper", "postgresql")
    assert modules == {**{name: name for name in names}, **aliases}


def test_the_version_is_that_of_the_distribution() -> None:
    assert version("aiolibkv") == aiolibkv.__version__


def test_demo() -> None:
    done = run("-W", "error", "-c", "import sys; sys.argv = ['aiolibkv', 'demo']; import aiolibkv.cli as c; c.main()")
    assert done.returncode == 0, done.stderr
    shown = [
        "KeyNotFoundError",
        "lost: KeyModifiedError",
        "web is now b'done'",
        "LockLostError",
        "ann.run_for_election()",
    ]
    shown += ["await bob.stop()", "keys deleted"]
    assert [text for text in shown if text not in done.stdout] == []


def test_demo_of_a_user_without_a_name_and_a_directory_with_a_strange_one(tmp_path: Path) -> None:
    code = (
        "import os, pwd, sys; pwd.getpwuid = {}.__getitem__; sys.argv = ['aiolibkv', 'demo']; "
        "[os.environ.pop(name, None) for name in ('LOGNAME', 'USER', 'LNAME', 'USERNAME')]; "
        "import aiolibkv.cli as c; c.main()"
    )
    directory = tmp_path / "a#b?c=%41 @"
    directory.mkdir()
    done = run("-W", "error", "-c", code, TMPDIR=str(directory))
    assert (done.returncode, done.stderr) == (0, "")
    assert list(directory.glob("aiolibkv-demo-*.db"))


def test_demo_on_a_store_that_cannot_be_opened() -> None:
    done = run("-m", "aiolibkv", "demo", "--url", "redis://h")
    assert done.returncode == 2
    assert "no backend 'redis'" in done.stderr
    assert "Traceback" not in done.stderr
