"""Settings: users, access control, TLS, and what is refused before anything is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from aiolibkv import AccessDeniedError, AsyncStore, Config, InvalidKeyError, NotReachableError, RequestTimeoutError
from aiolibkv.backends.zookeeper import operations as ops
from aiolibkv.testing.conformance.suite import next_of
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import Certificates, ZooKeeperServer
from stores import ZooKeeperStore
from zookeeper.conftest import MakeStore, OneShotStore, make_store

_SECRET = "s3cret"


@pytest.mark.asyncio
async def test_what_a_user_created_is_closed_to_others(make: MakeStore) -> None:
    owner: dict[str, Any] = {"username": "ann", "password": _SECRET, "options": {"acl": "creator"}}
    async with (
        make() as world,
        make(**owner) as ann,
        make(username="bob", password="x", options={"acl": "world"}) as bob,
    ):
        await world.put("open", b"")
        pair = await ann.put("dir/key", b"")
        assert await ann.get("dir/key") == pair
        for other in (world, bob):
            for call in (
                lambda other=other: other.get("dir/key"),
                lambda other=other: other.put("dir/key", b""),
                lambda other=other: other.put("dir/new", b""),
                lambda other=other: other.delete("dir/key"),
                lambda other=other: other.delete_tree("dir"),
                lambda other=other: other.list("dir"),
                lambda other=other: next_of(other.watch("dir/key")),
                lambda other=other: next_of(other.watch_tree("dir")),
            ):
                with pytest.raises(AccessDeniedError) as caught:
                    await call()
                assert caught.value.maybe_applied is False
        async with make(**owner) as again:
            assert await again.get("dir/key") == pair
            await again.delete("dir/key")
        await world.delete("open")


@pytest.mark.asyncio
async def test_a_user_is_known_again_after_the_connection_broke(server: ZooKeeperServer, prefix: str) -> None:
    async with FaultProxy(server.host, server.port, protocol="zookeeper") as proxy:
        settings: dict[str, Any] = {"username": "ann", "password": _SECRET, "options": {"acl": "creator"}}
        async with make_store([proxy.endpoint], prefix=prefix, **settings) as store:
            pair = await store.put("key", b"")
            watch = store.watch("key")
            assert await next_of(watch) == pair
            for _ in range(3):
                proxy.reset()
                assert await store.get("key") == pair
            pair = await store.put("key", b"")
            assert await next_of(watch) == pair
            await watch.aclose()
            await store.delete("key")


@pytest.mark.asyncio
async def test_a_wrong_password_is_told_on_entering() -> None:
    async with ZooKeeperServer() as server:
        make = partial(make_store, [server.endpoint], username="ann")
        for prefix in ("app", None):
            async with make(prefix=prefix, password=_SECRET) as ann:
                await ann.put("key", b"")
            for inside in (prefix, f"{prefix}/deeper"):
                for options in ({}, {"acl": "world"}):
                    with pytest.raises(AccessDeniedError, match="another password") as caught:
                        async with make(prefix=inside, password="wrong", options=options):
                            pass
                    assert _SECRET not in str(caught.value)
            async with make(prefix=prefix, password=_SECRET) as ann:
                await ann.delete("key")


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("wanted", "others"),
    [
        (None, set()),
        ("world", {("world", "anyone")}),
        ("auth::cdrwa,ip:127.0.0.1:r", {("ip", "127.0.0.1")}),
        (["auth::cdrwa", "ip:127.0.0.1:r"], {("ip", "127.0.0.1")}),
    ],
)
async def test_who_may_use_what_a_user_creates(make: MakeStore, prefix: str, wanted: Any, others: set[Any]) -> None:
    """The directories and what the library keeps for itself are the user's as well."""
    options = {} if wanted is None else {"acl": wanted}
    user: dict[str, Any] = {"username": "ann", "password": _SECRET, "options": options}
    async with make(**user) as store, make(**user, prefix=None) as above:
        async with store.new_lock("dir/lock"):
            await store.put("dir/key", b"")
            await store.put("alive", b"", keep_alive=True)
            connection = await store.driver._session.connection()
            nodes = [prefix, *(f"{prefix}/{name}" for name in ("dir", "dir/key", "dir/lock", "alive", ".aiolibkv"))]
            for node in nodes:
                permissions = await connection.ask(ops.get_acl(f"/{node}"))
                assert {each for each in permissions if each[0] != "digest"} == others
        await above.delete_tree(prefix)


@pytest.mark.asyncio
async def test_a_denial_names_the_node_that_is_refused(make: MakeStore, prefix: str) -> None:
    """It need not be that of the key: the directories above are created with it."""
    async with make(options={"acl": "world:anyone:rd"}) as store:
        with pytest.raises(AccessDeniedError, match=f"access to /{prefix} denied"):
            await store.put("key", b"")
    async with make(options={"acl": "auth::cdrwa"}) as store:
        with pytest.raises(AccessDeniedError, match="takes no such ACL"):
            await store.put("key", b"")


@pytest.mark.asyncio
async def test_a_server_that_takes_less_than_others() -> None:
    async with (
        ZooKeeperServer(extra_args=["-Djute.maxbuffer=60000"]) as server,
        make_store([server.endpoint]) as store,
    ):
        held = await store.new_lock("lock", ttl=5).acquire()
        with pytest.raises(NotReachableError, match="larger than its jute"):
            await store.put("key", bytes(100_000))
        await store.put("key", b"", guard=held)


@pytest.mark.asyncio
async def test_who_does_not_log_in_where_everybody_has_to() -> None:
    """The server closes the connection after each refusal; that is no outage, which would be waited for."""
    enforced = ("-Dzookeeper.enforce.auth.enabled=true", "-Dzookeeper.enforce.auth.schemes=digest")
    async with (
        ZooKeeperServer() as server,
        make_store([server.endpoint], username="ann", password=_SECRET) as ann,
        make_store([server.endpoint], request_timeout=scaled(2)) as nobody,
    ):
        pair = await ann.put("key", b"")
        await server.stop()
        server._extra_args = enforced
        await server.start()
        calls: list[Callable[[], Awaitable[object]]] = [
            make_store([server.endpoint]).__aenter__,
            lambda: nobody.get("key"),
            lambda: nobody.put("key", b""),
            lambda: next_of(nobody.watch("key")),
            lambda: nobody.put("alive", b"", keep_alive=True),
            lambda: nobody.new_lock("lock").acquire(),
        ]
        for call in calls:
            with pytest.raises(AccessDeniedError) as caught:
                async with asyncio.timeout(scaled(5)):
                    await call()
            assert caught.value.endpoint == server.endpoint
        assert await ann.get("key") == pair
        await server.kill()
        await eventually(partial(_is_cut_off, nobody), within=10, message="an outage is told from a refusal")


async def _is_cut_off(store: AsyncStore) -> bool:
    try:
        await store.get("key")
    except AccessDeniedError:
        return False
    except (NotReachableError, RequestTimeoutError):
        return True
    raise AssertionError("there is no server")


@pytest.mark.asyncio
async def test_a_key_is_deleted_though_its_directory_may_not_be(make: MakeStore, prefix: str) -> None:
    owner: dict[str, Any] = {"username": "ann", "password": _SECRET, "options": {"acl": "creator"}}
    async with make() as world, make(**owner) as ann:
        await ann.put("dir/keep", b"")
        connection = await ann.driver._session.connection()
        # The world may write below "sub", which the world may not delete.
        await connection.ask(ops.create(f"/{prefix}/dir/sub", None, ops.WORLD))
        for _ in range(5):
            await connection.ask(ops.set_data(f"/{prefix}/dir/sub", None))
        await world.put("dir/sub/one", b"")
        await world.put("dir/sub/two/key", b"")
        await world.delete("dir/sub/one")
        assert await world.delete_tree("dir/sub") == 1
        assert not await world.exists("dir/sub/one")
        await ann.delete_tree("")


@pytest.mark.asyncio
async def test_tls_with_a_certificate_of_the_client(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    async with ZooKeeperServer(tls=certificates) as server:
        files: dict[str, Any] = {
            "ca_file": certificates.ca,
            "cert_file": certificates.client_cert,
            "key_file": certificates.client_key,
        }
        for tls in ({"tls": True, **files}, {"tls": certificates.ssl_context()}):
            async with make_store([f"localhost:{server.port}"], **tls) as store:
                pair = await store.put("dir/key", bytes(500_000))
                async with store.watch_tree("dir") as watch:
                    assert await next_of(watch) == [pair]
                    await store.put("dir/alive", b"", keep_alive=True)
                    assert len(await next_of(watch)) == 2
        for refused in ({"tls": True, "ca_file": certificates.ca}, {"tls": True}, {}):
            store = make_store([f"localhost:{server.port}"], connection_timeout=0.4, **refused)
            with pytest.raises(NotReachableError):
                await store.__aenter__()


@pytest.mark.asyncio
async def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    cases: list[tuple[dict[str, Any], str]] = [
        ({"ca_file": tmp_path / "missing.pem"}, "ca_file .*missing.pem"),
        ({"ca_file": nonsense}, "ca_file .*nonsense.pem"),
        ({"cert_file": tmp_path / "missing.pem", "key_file": certificates.client_key}, "cert_file .*missing.pem"),
        ({"cert_file": certificates.client_cert, "key_file": tmp_path / "missing.key"}, "key_file .*missing.key"),
        ({"cert_file": nonsense, "key_file": certificates.client_key}, "cert_file .*nonsense.pem"),
    ]
    for files, message in cases:
        with pytest.raises(ValueError, match=message):
            async with make_store(["localhost"], tls=True, **files):
                pass


def test_settings_that_cannot_be() -> None:
    cases: list[dict[str, Any]] = [
        {"options": {"acl": "nobody"}},
        {"options": {"acl": "creator"}},
        {"options": {"acl": []}},
        {"options": {"acl": 5}},
        {"options": {"acl": "world:anyone"}},
        {"options": {"acl": ["world:anyone:x"]}},
        {"options": {"session_timeout": 0}},
        {"options": {"session_timeout": "soon"}},
        {"options": {"session_timeout": True}},
        {"options": {"durability": "none"}},
        {"username": "ann"},
        {"username": "an:n", "password": _SECRET},
        {"token": _SECRET},
        {"prefix": "zookeeper"},
        {"prefix": "zookeeper/quota"},
    ]
    for settings in cases:
        with pytest.raises(ValueError, match=r".") as caught:
            make_store(["localhost"], **settings)
        assert _SECRET not in str(caught.value)
    for endpoints in ([], ["localhost:0"], ["localhost:2181/chroot"], ["ann@localhost"]):
        with pytest.raises(ValueError, match="endpoint"):
            make_store(endpoints)


def test_the_session_timeout_shows_in_the_capabilities() -> None:
    store = ZooKeeperStore(["localhost"], Config(options={"session_timeout": "30"}))
    assert store.capabilities.ttl_overshoot(10) >= 20
    assert ZooKeeperStore(["localhost"]).capabilities.ttl_overshoot(100) < 10


@pytest.mark.asyncio
async def test_the_servers_own_tree() -> None:
    async with (
        ZooKeeperServer() as server,
        make_store([server.endpoint]) as store,
        make_store([server.endpoint], kind=OneShotStore) as old,
    ):
        pair = await store.put("zookeeper2/zookeeper", b"")
        for reader in (store, old):
            listed = [found.key for found in await reader.list("")]
            assert pair.key in listed
            assert not any(key.split("/")[0] == "zookeeper" for key in listed)
            async with reader.watch_tree("") as watch:
                assert (await next_of(watch)).get(pair.key) == pair
            for key in ("zookeeper", "zookeeper/quota", "/zookeeper/config/"):
                for call in (
                    lambda key=key: store.get(key),
                    lambda key=key: store.exists(key),
                    lambda key=key: store.put(key, b""),
                    lambda key=key: store.delete(key),
                    lambda key=key: store.atomic_put(key, b"", None),
                    lambda key=key: store.list(key),
                    lambda key=key: store.delete_tree(key),
                    lambda key=key: next_of(store.watch(key)),
                    lambda key=key: next_of(store.watch_tree(key)),
                    lambda key=key: store.new_lock(key).try_acquire(),
                ):
                    with pytest.raises(InvalidKeyError) as caught:
                        await call()
                    assert caught.value.backend == "zookeeper"
        assert await store.delete_tree("zookeeper2") == 1


@pytest.mark.asyncio
async def test_secrets_stay_secret(server: ZooKeeperServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    store = make_store([server.endpoint], username="ann", password=_SECRET, connection_timeout=1)
    async with store:
        await store.put("secret", b"")
        await store.delete("secret")
        assert _SECRET not in repr(store.driver.config)
    await asyncio.sleep(0)
    assert _SECRET not in caplog.text
