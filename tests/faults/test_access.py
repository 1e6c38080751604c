"""Who may do what, on every backend alike; what one backend alone knows is tested with that backend."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio

from aiolibkv import (
    AccessDeniedError,
    AsyncStore,
    Candidate,
    Config,
    Discovery,
    Follower,
    HeldLock,
    KVPair,
    NotReachableError,
    RequestTimeoutError,
    new_store,
    update,
)
from aiolibkv.backends.zookeeper import ZooKeeperDriver
from aiolibkv.backends.zookeeper import operations as ops
from aiolibkv.backends.zookeeper.connection import Connection
from aiolibkv.backends.zookeeper.session import ZooKeeperSession
from aiolibkv.store import Store
from aiolibkv.store.resolver import Address
from aiolibkv.testing.conformance.suite import next_of
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import Certificates, ConsulServer, EtcdServer, ZooKeeperServer
from aiolibkv.testing.servers.base import Server
from faults.guarded import GUARDED, OTHERS, OWN, TOKEN_TTL, Guarded

pytestmark = [pytest.mark.asyncio, pytest.mark.leaves_nothing_behind]

_TLS_SERVERS: dict[str, Callable[[Certificates], Server]] = {
    "consul": lambda certificates: ConsulServer(tls=certificates),
    "etcd": lambda certificates: EtcdServer(tls=certificates, auth=("root", "x")),
    "zookeeper": lambda certificates: ZooKeeperServer(tls=certificates),
}
_NOBODY = 65534


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=sorted(GUARDED))
async def guarded(request: pytest.FixtureRequest) -> AsyncIterator[Guarded]:
    async with GUARDED[request.param]() as running:
        yield running


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"), client_name="root")


# -- what may not be done ------------------------------------------------------------------------------------------


def _denied(store: AsyncStore) -> dict[str, Callable[[], Awaitable[object]]]:
    """Return everything that can be done to a key, with a directory around it, of somebody else."""

    async def lead() -> None:
        async with Candidate(store, "key", "me").lead():
            raise AssertionError("elected")

    async def register() -> None:
        async with Discovery(store, "dir").register("below", "me", id="key"):
            raise AssertionError("registered")

    async def follow() -> None:
        async with Follower(store, "key").follow_election() as leaders:
            await next_of(leaders)

    async def look_for_instances() -> None:
        async with Discovery(store, "dir").watch("below") as instances:
            await next_of(instances)

    return {
        "get": lambda: store.get("key"),
        "stale get": lambda: store.get("key", consistent=False),
        "exists": lambda: store.exists("key"),
        "list": lambda: store.list("dir"),
        "stale list": lambda: store.list("dir", consistent=False),
        "put": lambda: store.put("key", b""),
        "put of a new key": lambda: store.put("dir/new", b""),
        "put with ttl": lambda: store.put("dir/new", b"", ttl=60),
        "put with keep_alive": lambda: store.put("dir/new", b"", keep_alive=True),
        "atomic_put": lambda: store.atomic_put("dir/new", b"", None),
        "delete": lambda: store.delete("key"),
        "delete_tree": lambda: store.delete_tree("dir"),
        "watch": lambda: next_of(store.watch("key")),
        "watch_tree": lambda: next_of(store.watch_tree("dir")),
        "try_acquire": lambda: store.new_lock("dir/new").try_acquire(),
        "acquire": lambda: store.new_lock("dir/new").acquire(),
        "update": lambda: update(store, "key", lambda _: b""),
        "lead": lead,
        "follow": follow,
        "register": register,
        "instances": lambda: Discovery(store, "dir").instances("below"),
        "watch of instances": look_for_instances,
    }


async def test_everything_that_may_not_be_done_is_denied(guarded: Guarded) -> None:
    async with (
        guarded.store(guarded.admin, prefix=OTHERS) as admin,
        guarded.store(guarded.limited, prefix=OTHERS) as store,
    ):
        there = [await admin.put(key, b"1") for key in ("dir/below/key", "key")]
        calls = _denied(store)
        calls["atomic_put of what was seen"] = lambda: store.atomic_put("key", b"", there[1])
        calls["atomic_delete"] = lambda: store.atomic_delete("key", there[1])
        for name, call in calls.items():
            with pytest.raises(AccessDeniedError) as caught:
                async with asyncio.timeout(scaled(5)):
                    await call()
                    pytest.fail(f"{name} was allowed")
            assert not caught.value.maybe_applied, name
            assert caught.value.backend == guarded.backend, name
        assert list(await admin.list("")) == there
        await admin.delete_tree("")


async def test_what_may_be_done_is_done(guarded: Guarded) -> None:
    async with guarded.store(guarded.limited, prefix=OWN) as store:
        pair = await store.put("dir/key", b"")
        async with store.watch_tree("dir") as watch, store.new_lock("lock", ttl=10) as held:
            assert await next_of(watch) == [pair]
            alive = await store.put("dir/alive", b"", keep_alive=True, guard=held)
            assert await next_of(watch) == [alive, pair]
        assert await store.delete_tree("dir") == 2


async def test_somebody_unknown(guarded: Guarded) -> None:
    """ZooKeeper takes everybody for somebody; on the others it shows on entering."""
    async with guarded.store(guarded.admin) as admin:
        await admin.put(f"{OTHERS}/key", b"")
        with pytest.raises(AccessDeniedError):
            async with guarded.store(guarded.unknown, prefix=OTHERS) as store:
                await store.get("key")
        await admin.delete(f"{OTHERS}/key")


# -- rights that are lost ------------------------------------------------------------------------------------------


async def test_watches_end_when_they_may_not_go_on(guarded: Guarded) -> None:
    """Etcd 3.4 checks a right when a watch begins: there it shows when the connection has to be made again."""
    user = await guarded.new_user()
    async with (
        FaultProxy(guarded.server.host, guarded.server.port, protocol=guarded.framing) as proxy,
        guarded.store(guarded.limited if guarded.backend == "zookeeper" else user) as world,
        guarded.store(user, proxy.endpoint) as store,
    ):
        key = f"{OWN}/shared/key"
        pair = await world.put(key, b"")
        watch, tree = store.watch(key), store.watch_tree(f"{OWN}/shared")
        following = Follower(store, key).follow_election()
        assert await next_of(watch) == pair
        assert await next_of(tree) == [pair]
        assert await next_of(following) == ""
        await guarded.forbid(user, key)
        proxy.reset()
        for each in (watch, tree, following):
            with pytest.raises(AccessDeniedError):
                await _last_of(each)
            await each.aclose()
        with pytest.raises(AccessDeniedError):
            await store.get(key)


async def _last_of(watch: Any) -> None:
    while True:
        await next_of(watch, within=20)


# -- credentials that run out --------------------------------------------------------------------------------------


async def test_work_goes_on_across_tokens_that_expire() -> None:
    """Etcd's tokens are forgotten when they are not used for a while, and all of them when it restarts."""
    async with (
        GUARDED["etcd"]() as guarded,
        guarded.store(guarded.limited, prefix=OWN) as store,
        store.watch_tree("dir") as watch,
        store.new_lock("lock", ttl=10) as held,
    ):
        assert await next_of(watch) == []
        for number in range(3):
            if number == 1:
                await guarded.server.restart()
            else:
                await asyncio.sleep(2 * TOKEN_TTL)  # nothing tells when a token has expired but using it
            pair = await _written(store, b"%d" % number, held)
            async with asyncio.timeout(scaled(20)):
                while list(await anext(watch)) != [pair]:
                    pass
        assert held.is_held


async def _written(store: AsyncStore, value: bytes, held: HeldLock) -> KVPair:
    while True:
        try:
            return await store.put("dir/key", value, guard=held)
        except (NotReachableError, RequestTimeoutError):
            continue


async def test_a_user_who_is_removed() -> None:
    async with GUARDED["etcd"]() as guarded, guarded.store(guarded.limited, prefix=OWN) as store:
        assert isinstance(guarded.server, EtcdServer)
        await store.put("key", b"")
        await guarded.server.ctl("user", "delete", guarded.limited["username"])
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: store.get("key"),
            lambda: store.put("key", b""),
            lambda: next_of(store.watch("key")),
        ]
        for call in calls:
            with pytest.raises(AccessDeniedError) as caught:
                await call()
            assert not caught.value.maybe_applied
            assert guarded.limited["password"] not in str(caught.value)


async def test_a_token_is_replaced_under_a_lock_and_keys_kept_alive() -> None:
    async with GUARDED["consul"]() as guarded:
        users = [await guarded.new_user(), await guarded.new_user()]
        tokens = [user["token"] for user in users]
        async with guarded.store({"token": lambda: tokens[0]}, prefix=OWN) as store:
            async with store.new_lock("lock", ttl=10) as held, store.watch("alive") as watch:
                await store.put("alive", b"1", keep_alive=True)
                while await next_of(watch) is None:
                    pass
                old = users.pop(0)
                del tokens[0]
                await guarded.forbid(old, "")
                pair = await store.put("alive", b"2", keep_alive=True, guard=held)
                assert await next_of(watch) == pair
                assert held.is_held
            # The session is ended with the new token too.
            assert not await store.exists("lock")


async def _end(welcome: ops.Welcome, session: ZooKeeperSession) -> bool:
    """End a session, as whoever knows its password may; its owner may take it back before that is done."""
    endpoint = (await session.connection()).endpoint
    ending = await Connection.open(
        endpoint,
        Address(socket.AF_INET, (endpoint.host, endpoint.port)),
        ops.hello(4.0, welcome.session, welcome.password, 0),
        tls=None,
        credentials=None,
        on_event=lambda _: None,
    )
    try:
        if ending.welcome.session:
            await ending.ask(ops.close_session())
    except NotReachableError:
        return False
    finally:
        await ending.drop(NotReachableError())
    return True


async def test_a_user_is_known_again_when_the_session_has_expired() -> None:
    async with (
        GUARDED["zookeeper"]() as guarded,
        guarded.store(guarded.admin, prefix="session") as store,
        guarded.store(guarded.admin, prefix="session") as other,
    ):
        assert isinstance(store, Store)
        assert isinstance(store.driver, ZooKeeperDriver)
        pair = await store.put("key", b"1")
        await store.put("timed", b"", ttl=1000)
        watch = store.watch("key")
        assert await next_of(watch) == pair
        session = store.driver._session
        before = (await session.connection()).welcome
        await eventually(partial(_end, before, session), within=10, message="the session is ended")
        pair = await other.put("key", b"2")
        assert await next_of(watch) == pair
        assert (await session.connection()).welcome.session != before.session
        # The nodes are the user's alone, so a session without it could do none of this.
        await store.put("key", b"3")
        assert not await store.exists("timed")
        await watch.aclose()
        await store.delete_tree("")


# -- TLS -----------------------------------------------------------------------------------------------------------


def _tls(certificates: Certificates, **others: Any) -> Config:
    files = {"ca_file": certificates.ca, "cert_file": certificates.client_cert, "key_file": certificates.client_key}
    return Config(**{"tls": True, "connection_timeout": scaled(0.5), **files, **others})


@pytest.mark.parametrize("backend", sorted(_TLS_SERVERS))
async def test_certificates(backend: str, certificates: Certificates, tmp_path: Path) -> None:
    stranger = Certificates(tmp_path)
    expired = certificates.client("expired", expired=True)
    async with _TLS_SERVERS[backend](certificates) as server:
        user = {"username": "root", "password": "x"} if backend == "etcd" else {}
        generous = _tls(certificates, connection_timeout=scaled(5), **user)
        async with new_store(backend, [f"localhost:{server.port}"], generous) as store:
            pair = await store.put("key", b"")
            assert await next_of(store.watch("key")) == pair
        for name, config in {
            "a server of another authority": _tls(certificates, ca_file=stranger.ca),
            "a server of an authority that is not the system's": _tls(certificates, ca_file=None),
            "no certificate": _tls(certificates, cert_file=None, key_file=None),
            "a certificate of another authority": _tls(
                certificates, cert_file=stranger.client_cert, key_file=stranger.client_key
            ),
            "an expired certificate": _tls(certificates, cert_file=expired[0], key_file=expired[1]),
            "no TLS": Config(connection_timeout=scaled(0.5)),
        }.items():
            began = time.monotonic()
            with pytest.raises(NotReachableError) as caught:
                async with new_store(backend, [f"localhost:{server.port}"], config):
                    pytest.fail(name)
            assert time.monotonic() - began < config.connection_timeout + scaled(2), name
            assert caught.value.backend == backend


@pytest.mark.parametrize("backend", sorted(_TLS_SERVERS))
async def test_a_server_whose_certificate_has_expired(backend: str, certificates: Certificates) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(*certificates.expired_server())
    accepted = []

    def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=context, ssl_shutdown_timeout=0.1)
    loop = asyncio.get_running_loop()
    # The server's side of each handshake fails as well, of which asyncio tells.
    loop.set_exception_handler(lambda _, __: None)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(NotReachableError):
            async with new_store(backend, [f"127.0.0.1:{port}"], _tls(certificates)):
                pass
    assert not accepted


@contextmanager
def _as_nobody() -> Iterator[None]:
    """Be somebody whom file permissions mean something to."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("backend", sorted(_TLS_SERVERS))
async def test_a_key_that_may_not_be_read(backend: str) -> None:
    with TemporaryDirectory() as directory:
        certificates = Certificates(Path(directory))
        for path, mode in ((Path(directory), 0o755), (certificates.client_key, 0)):
            path.chmod(mode)
        store = new_store(backend, ["localhost:1"], _tls(certificates))
        with _as_nobody(), pytest.raises(ValueError, match=r"key_file .*client.key' cannot be read: Permission denied"):
            async with store:
                pass


async def test_a_certificate_whose_user_may_not_do_it(tmp_path: Path) -> None:
    """Etcd takes the common name of a certificate for the name of a user."""
    certificates = Certificates(tmp_path, client_name="root")
    cert, key = certificates.client("reader")
    async with EtcdServer(tls=certificates, auth=("root", uuid4().hex)) as server:
        await server.add_user("reader", None, prefix="open/", access="read")
        async with (
            new_store("etcd", [f"localhost:{server.port}"], _tls(certificates, connection_timeout=scaled(5))) as root,
            new_store(
                "etcd",
                [f"localhost:{server.port}"],
                _tls(certificates, cert_file=cert, key_file=key, connection_timeout=scaled(5)),
            ) as reader,
        ):
            pair = await root.put("open/key", b"")
            assert await reader.get("open/key") == pair
            assert await next_of(reader.watch("open/key")) == pair
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: reader.put("open/key", b""),
                lambda: reader.get("closed/key"),
                lambda: next_of(reader.watch("closed/key")),
            ]
            for call in calls:
                with pytest.raises(AccessDeniedError):
                    await call()
