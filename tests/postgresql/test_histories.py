"""The tables go, are emptied, or come back from a backup, while stores are open: a new history begins."""

import asyncio
import dataclasses
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from aiolibkv import AsyncStore, KeyModifiedError, KVPair, LockLostError, StoreError
from aiolibkv.backends.postgresql import schema
from aiolibkv.testing.conformance.suite import follow, next_of
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import PostgresServer
from aiolibkv.testing.servers.process import run_program
from postgresql.conftest import Make

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]


@asynccontextmanager
async def _used(store: AsyncStore, other: AsyncStore) -> AsyncIterator[tuple[KVPair, int]]:
    """Use a store in every way, and see that all of it begins anew when its data is lost in the block.

    Gives a pair that was there, and the lock's fencing token.
    """
    pair = await store.put("plain", b"1")
    async with store.watch_tree("") as tree, other.watch("plain") as single:
        await store.put("short", b"", ttl=3600)
        alive = await store.put("alive", b"", keep_alive=True, ttl=2)
        held = await store.new_lock("lock", ttl=2).acquire()
        await follow(tree, lambda snapshot: len(snapshot) == 4)
        assert await next_of(single) == pair
        yield pair, held.fencing_token
        async with asyncio.timeout(scaled(10)):
            await held.wait_lost()
        snapshots = await follow(tree, lambda snapshot: [pair.key for pair in snapshot] == ["alive"])
        assert snapshots[-1]["alive"].last_index > alive.last_index
        assert await next_of(single) is None
        with pytest.raises(LockLostError):
            await store.put("guarded", b"", guard=held)
        with pytest.raises(KeyModifiedError):
            await store.atomic_put("plain", b"2", pair)
        again = await other.put("plain", b"2")
        assert again.last_index > held.fencing_token
        assert await next_of(single) == again
        async with other.new_lock("lock", ttl=2) as later:
            assert later.fencing_token > held.fencing_token
        await follow(tree, lambda snapshot: "plain" in snapshot)


@pytest.mark.parametrize(
    "losing",
    [
        "DROP TABLE {0}, {0}_log, {0}_leases, {0}_writers; DROP TABLE {0}_state CASCADE",
        "DROP TABLE {0}",
        "TRUNCATE {0}, {0}_log, {0}_leases, {0}_writers, {0}_state",
        "DROP SCHEMA {0} CASCADE",
    ],
    ids=["all", "keys", "emptied", "schema"],
)
async def test_tables_that_are_lost_are_created_again(
    make: Make,
    server: PostgresServer,
    caplog: pytest.LogCaptureFixture,
    losing: str,
    request: pytest.FixtureRequest,
) -> None:
    name = f"lost_{request.node.callspec.id}"
    options, statement = {"schema": name, "table": name}, losing.format(name)
    async with make(options=options) as store, make(options=options) as other, _used(store, other):
        await server.sql(f"SET search_path = {name}; {statement}")
    assert any("were lost or damaged and are created again" in record.message for record in caplog.records)


async def test_tables_that_are_emptied_but_for_the_state(make: Make, server: PostgresServer) -> None:
    options = {"table": "half"}
    async with make(options=options) as store, make(options=options) as other, _used(store, other):
        await server.sql("TRUNCATE half, half_log, half_leases")


async def test_tables_that_were_restored_beside_writes(make: Make, server: PostgresServer) -> None:
    """Without a transaction: they have rows of both, and no primary keys where that makes two of one."""
    options = {"table": "doubled"}
    async with make(options=options) as store, make(options=options) as other, store.watch_tree("") as tree:
        pairs = [await store.put("key", b"1"), await store.put("other", b"", ttl=300)]
        await follow(tree, lambda snapshot: list(snapshot) == pairs)
        tables = [f"doubled{part}" for part in ("", "_log", "_leases", "_writers", "_state")]
        await server.sql(
            ";".join(
                f"ALTER TABLE {name} DROP CONSTRAINT {name}_pkey; INSERT INTO {name} TABLE {name}" for name in tables
            )
        )
        again = await other.put("key", b"2")
        assert again.last_index > pairs[-1].last_index
        await follow(tree, lambda snapshot: list(snapshot) == [again, pairs[1]])
        assert await store.list("") == [again, pairs[1]]
        keys = "SELECT count(*) FROM pg_index WHERE indrelid::regclass::text LIKE 'doubled%' AND indisprimary"
        assert await server.sql(keys) == f"{len(tables)}\n"


async def test_an_emptied_log_is_one_new_history(make: Make, server: PostgresServer) -> None:
    """Also when nothing is written at first."""
    async with make(options={"table": "still"}) as store:
        await store.put("key", b"")
        await server.sql("TRUNCATE still, still_log")
        revisions = []
        for _ in range(2):
            await store.driver._writer.sweep()
            revisions.append(await server.sql("SELECT rev FROM still_state"))
        assert revisions[0] == revisions[1]


async def test_what_is_not_lost_stays(make: Make, server: PostgresServer) -> None:
    """Keys do, when leases are lost, or what is known of the log."""
    options = {"table": "partly"}
    async with make(options=options) as store, store.watch_tree("") as tree:
        plain = await store.put("plain", b"")
        alive = await store.put("alive", b"", keep_alive=True, ttl=2)
        held = await store.new_lock("lock", ttl=2).acquire()
        await follow(tree, lambda snapshot: len(snapshot) == 3)
        await server.sql("DROP TABLE partly_state CASCADE")
        again = await store.put("again", b"", guard=held)
        assert again.last_index > held.fencing_token
        await follow(tree, lambda snapshot: again in snapshot)
        await server.sql("DROP TABLE partly_leases")
        snapshots = await follow(tree, lambda snapshot: snapshot.get("alive") not in (None, alive))
        assert plain in snapshots[-1]
        assert again in snapshots[-1]
        async with asyncio.timeout(scaled(10)):
            await held.wait_lost()


async def test_a_server_that_is_wiped(make: Make) -> None:
    async with (
        PostgresServer() as wiped,
        make(wiped.endpoint) as store,
        make(wiped.endpoint) as other,
        _used(store, other),
    ):
        await wiped.wipe()


async def test_a_database_that_is_restored(make: Make, server: PostgresServer) -> None:
    """What was written since the backup is gone for watches; its indexes are not given again."""
    options = {"schema": "restored"}
    async with make(options=options) as store, make(options=options) as other:
        kept = await store.put("kept", b"1")
        lock = store.new_lock("early", ttl=30)
        early = await lock.acquire()
        backup = await server.dump("--schema=restored")
        async with store.watch_tree("") as tree:
            held = await other.new_lock("late", ttl=30).acquire()
            lost = await store.put("lost", b"1")
            changed = await store.put("kept", b"2")
            await follow(tree, lambda snapshot: snapshot.get("kept") == changed)
            await server.restore(backup)
            await follow(tree, lambda snapshot: snapshot.get("kept") == kept and "lost" not in snapshot)
            async with asyncio.timeout(scaled(10)):
                await held.wait_lost()
            # Its key is as it was, and its lease may still be renewed.
            assert early.is_held
            await store.put("guarded", b"", guard=early)
            with pytest.raises(KeyModifiedError):
                await other.atomic_put("kept", b"3", changed)
            again = await other.atomic_put("kept", b"3", kept)
            assert again.last_index > max(changed.last_index, lost.last_index, held.fencing_token)
            await follow(tree, lambda snapshot: snapshot.get("kept") == again)
        await lock.release()


@pytest.mark.parametrize("running", [False, True], ids=["copy", "base_backup"])
async def test_a_disk_that_is_restored(make: Make, *, running: bool) -> None:
    """A snapshot of it has the same timeline, and its row of the state was written by the transaction it names."""
    async with PostgresServer() as server, make(server.endpoint) as store, make(server.endpoint) as other:
        kept = await store.put("kept", b"1")
        early = await store.new_lock("early", ttl=30).acquire()
        cluster, snapshot = server.data_directory / "cluster", server.directory / "snapshot"
        if running:
            place = ["--host", str(server.directory), "--port", str(server.port), "--username", "postgres"]
            await server._run_as_owner("pg_basebackup", *place, "--pgdata", str(snapshot), "--checkpoint=fast")
        else:
            await server.stop()
            await run_program(["cp", "-a", str(cluster), str(snapshot)], os.environ)
            await server.start()
        async with store.watch_tree("") as tree:
            late = await other.new_lock("late", ttl=30).acquire()
            lost = [await other.put("lost", b"%d" % number) for number in range(10)]
            await follow(tree, lambda state: lost[-1] in state)
            await server.kill()
            shutil.rmtree(cluster)
            snapshot.rename(cluster)
            await server.start()
            # At once as many writes as were lost: that the revision went back does not show.
            again = [await other.put("again", b"%d" % number) for number in range(20)]
            assert again[0].last_index > lost[-1].last_index
            await follow(tree, lambda state: [pair.key for pair in state] == ["again", "early", "kept"])
            for key in ("again", "kept", "lost"):
                with pytest.raises(KeyModifiedError):
                    await store.atomic_put(key, b"", dataclasses.replace(lost[-1], key=key))
            with pytest.raises(LockLostError):
                await other.put("guarded", b"", guard=late)
            assert await store.atomic_put("kept", b"2", kept, guard=early)
            assert early.is_held


async def test_a_copy_of_the_database_takes_its_place(make: Make, server: PostgresServer) -> None:
    """Its row of the state was not written again, and the timeline is the same."""

    async def administrate(*statements: str) -> None:
        for statement in statements:
            await server.sql(statement, database="postgres")

    owner, _ = server.user
    options = {"database": "original", "schema": "kv"}
    await administrate(f"CREATE DATABASE original OWNER {owner}")
    async with make(options=options) as store:
        await store.put("key", b"1")
    await administrate(f"CREATE DATABASE backup TEMPLATE original OWNER {owner}")
    async with make(options=options) as store:
        lost = await store.put("key", b"lost")
    await administrate("DROP DATABASE original WITH (FORCE)", "ALTER DATABASE backup RENAME TO original")
    async with make(options=options) as store:
        again = await store.put("key", b"another's")
        assert again.last_index > lost.last_index
        with pytest.raises(KeyModifiedError):
            await store.atomic_put("key", b"2", lost)


async def test_a_role_that_may_not_create_waits_for_somebody_who_may(make: Make, server: PostgresServer) -> None:
    await server.sql("CREATE ROLE waiting LOGIN PASSWORD 'waiting-password'")
    await server.sql(schema(schema="waiting", table="kv", role="waiting"))
    options = {"database": server.database, "schema": "waiting", "table": "kv"}
    settings = {"username": "waiting", "password": "waiting-password", "options": options}
    async with make(**settings) as store, store.watch("key") as watch:
        pair = await store.put("key", b"1")
        while await next_of(watch) != pair:
            pass
        await server.sql("DROP SCHEMA waiting CASCADE")
        with pytest.raises(StoreError, match="an administrator has to run"):
            await store.get("key")
        await eventually(lambda: watch.is_stale, within=10, message="the watch waits")
        await server.sql(schema(schema="waiting", table="kv", role="waiting"))
        assert await next_of(watch) is None
        pair = await store.put("key", b"2")
        assert await next_of(watch) == pair


async def test_what_a_lost_history_has_left_in_the_log_is_trimmed(make: Make, server: PostgresServer) -> None:
    """However much it is."""
    async with make(options={"table": "left"}) as store:
        await store.put("key", b"")
        await server.sql(
            "INSERT INTO left_log (rev, key) SELECT rev, number::text"
            " FROM left_state, generate_series(1, 45000) AS number;"
            " UPDATE left_state SET version = version"
        )
        last = await store.put("key", b"")

        async def is_trimmed() -> bool:
            await store.driver._writer.sweep()
            return await server.sql("SELECT rev FROM left_log") == f"{last.last_index}\n"

        await eventually(is_trimmed, within=20, message="only the last write is left")
