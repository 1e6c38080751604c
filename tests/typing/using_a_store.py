"""Code as users write it; mypy and pyright check it, nothing runs it. ``assert_type`` says what a user is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from ssl import SSLContext
from typing import assert_type

from aiolibkv import (
    AsyncStore,
    Candidate,
    Check,
    Config,
    Delete,
    Discovery,
    Follower,
    HeldLock,
    Instance,
    KeyNotFoundError,
    KVPair,
    LockLostError,
    Mirror,
    Namespace,
    PeriodicJob,
    Put,
    ReadWriteLock,
    Semaphore,
    Snapshot,
    new_store,
    open_store,
    update,
)
from aiolibkv.events import CallEnded, Event, LockLost


def listen(event: Event) -> None:
    if isinstance(event, CallEnded):
        assert_type(event.error, BaseException | None)
    elif isinstance(event, LockLost):
        assert_type(event.reason, str)


async def secret() -> str:
    return "s"


def settings(context: SSLContext) -> Sequence[Config]:
    return [
        Config(tls=context, username="app", password="x", listener=listen),
        Config(token=secret, options={"dc": "eu"}, prefix="app"),
        Config(token=lambda: "s", request_timeout=2),
    ]


async def calls(store: AsyncStore) -> None:
    pair = await store.put("a", bytearray(b"1"), ttl=5, keep_alive=True)
    assert_type(pair, KVPair)
    assert_type(pair.value, bytes)
    try:
        assert_type(await store.get("a", consistent=False), KVPair)
    except KeyNotFoundError as error:
        assert_type(error.key, str | None)
        assert_type(error.maybe_applied, bool)
    assert_type(await store.exists("a"), bool)
    assert_type(await store.list("a"), Sequence[KVPair])
    assert_type(await store.keys("a"), Sequence[str])
    assert_type(await store.get_many(["a", "b"]), Mapping[str, KVPair])
    assert_type(await store.delete_tree("a"), int)
    assert_type(await store.atomic_put("a", b"2", None), KVPair)
    done = await store.commit(Put("a", b"1"), Delete("b", previous=pair), Check("c", previous=None))
    assert_type(done, Sequence[KVPair | None])
    assert_type(await update(store, "n", lambda value: (value or b"") + b"x"), KVPair)
    async with store.scan("a", page=10) as scan:
        async for found in scan:
            assert_type(found, KVPair)


async def watches(store: AsyncStore) -> None:
    async with store.watch("a") as watch:
        async for pair in watch:
            assert_type(pair, KVPair | None)
    async for snapshot in store.watch_tree("a"):
        assert_type(snapshot, Snapshot)
        assert_type(snapshot["a/b"], KVPair)
        assert_type(snapshot.get("a/b"), KVPair | None)
        for change in snapshot.changes:
            assert_type(change.previous, KVPair | None)


async def locks(store: AsyncStore) -> None:
    lock = store.new_lock("l", value=b"me", ttl=10)
    try:
        async with lock as held:
            assert_type(held, HeldLock)
            await store.put("a", b"", guard=held)
    except LockLostError:
        return
    assert_type(await lock.try_acquire(), HeldLock | None)
    async with Semaphore(store, "pool", permits=3) as held:
        assert_type(held.fencing_token, int)
    table = ReadWriteLock(store, "table")
    async with table.reading() as held:
        assert_type(held.is_held, bool)


async def coordination(store: AsyncStore) -> None:
    async def work(held: HeldLock) -> int:
        return held.fencing_token

    candidate = Candidate(store, "leader", "node")
    assert_type(await candidate.run(work), int)
    async for elected in candidate.run_for_election():
        assert_type(elected, bool)
    async for leader in Follower(store, "leader").follow_election():
        assert_type(leader, str | None)

    discovery = Discovery(store, "services")
    async with discovery.register("web", "10.0.0.1:80", metadata={"zone": "a"}):
        assert_type(await discovery.instances("web"), Sequence[Instance])

    async with Mirror(store, "config") as mirror:
        assert_type(mirror.get("config/a"), KVPair | None)
        assert_type(mirror.stale_for, float)

    async def report(slot: datetime, held: HeldLock) -> None:
        await store.put("report", slot.isoformat().encode(), guard=held)

    await PeriodicJob(store, "job", every=60).run(report)


async def opening() -> None:
    async with open_store("memory://") as store, Namespace(store, "app") as inner:
        assert_type(store, AsyncStore)
        await calls(inner)
    opened = await new_store("sqlite", ["app.db"]).open()
    await opened.close()
