"""Users, tokens that expire, and what users may not do, on real servers."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from aiolibkv import AccessDeniedError, Config
from aiolibkv.backends.etcd.channel import RpcFailedError
from aiolibkv.testing.scale import scaled
from aiolibkv.testing.servers import EtcdServer
from etcd.channels import channel_to
from stores import EtcdStore

pytestmark = [pytest.mark.asyncio(loop_scope="function"), pytest.mark.leaves_nothing_behind]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[EtcdServer]:
    async with EtcdServer(auth=("root", "secret"), extra_args=["--auth-token-ttl=1"]) as running:
        await running.add_user("reader", "reading", prefix="open/", access="read")
        yield running


def user(name: str, password: str, **others: object) -> Config:
    return Config(username=name, password=password, **others)  # type: ignore[arg-type]


async def test_a_user_with_a_password(server: EtcdServer) -> None:
    async with EtcdStore([server.endpoint], user("root", "secret")) as store:
        pair = await store.put("open/key", b"value")
        assert await store.get("open/key") == pair


@pytest.mark.parametrize(("name", "password"), [("root", "wrong"), ("nobody", "secret")])
async def test_a_wrong_password(server: EtcdServer, name: str, password: str) -> None:
    with pytest.raises(AccessDeniedError) as caught:
        async with EtcdStore([server.endpoint], user(name, password)):
            pass
    assert password not in str(caught.value)


async def test_no_user_where_one_is_needed(server: EtcdServer) -> None:
    async with EtcdStore([server.endpoint]) as store:
        with pytest.raises(AccessDeniedError):
            await store.get("open/key")
        with pytest.raises(AccessDeniedError):
            await anext(store.watch("open/key"))


async def test_what_a_user_may_not_do(server: EtcdServer) -> None:
    async with (
        EtcdStore([server.endpoint], user("root", "secret")) as root,
        EtcdStore([server.endpoint], user("reader", "reading")) as reader,
    ):
        pair = await root.put("open/key", b"value")
        hidden = await root.put("hidden/key", b"value")
        assert await reader.get("open/key") == pair
        assert [each.key for each in await reader.list("open")] == ["open/key"]
        assert await anext(reader.watch("open/key")) == pair
        for call in (
            lambda: reader.get("hidden/key"),
            lambda: reader.exists("hidden/key"),
            lambda: reader.list("hidden"),
            lambda: reader.list(""),
            lambda: anext(reader.watch("hidden/key")),
            lambda: anext(reader.watch_tree("hidden")),
            lambda: reader.put("open/key", b""),
            lambda: reader.put("hidden/key", b"", ttl=10),
            lambda: reader.atomic_put("open/key", b"", pair),
            lambda: reader.atomic_delete("open/key", pair),
            lambda: reader.delete("open/key"),
            lambda: reader.delete_tree("open"),
        ):
            with pytest.raises(AccessDeniedError) as caught:
                await call()
            assert caught.value.maybe_applied is False
        assert await root.get("open/key") == pair
        assert await root.get("hidden/key") == hidden


async def test_an_expired_token_is_renewed(server: EtcdServer) -> None:
    async with EtcdStore([server.endpoint], user("root", "secret")) as store:
        pair = await store.put("open/key", b"value")
        token = store.driver._connection.token
        await _until_refused(server, token)
        # All of them find the token refused, and one of them renews it.
        assert await asyncio.gather(*(store.get("open/key") for _ in range(20))) == [pair] * 20
        assert store.driver._connection.token != token


async def test_a_watch_outlives_its_token_and_others_can_be_added(server: EtcdServer) -> None:
    async with EtcdStore([server.endpoint], user("root", "secret")) as store:
        first = store.watch("open/first")
        await anext(first)
        await _until_refused(server, store.driver._connection.token)
        second, third = store.watch("open/second"), store.watch_tree("open")
        await anext(second)
        await anext(third)
        # More than once: a watch that only reads again and again would see the first change too.
        for value in (b"1", b"2", b"3"):
            for name, watch in (("open/first", first), ("open/second", second)):
                pair = await store.put(name, value)
                async with asyncio.timeout(scaled(5)):
                    while await anext(watch) != pair:
                        pass
            async with asyncio.timeout(scaled(5)):
                while (await anext(third)).get("open/second") != pair:
                    pass
        assert not first.is_stale


async def test_authentication_is_switched_on_and_off_under_open_stores() -> None:
    async with (
        EtcdServer() as own,
        EtcdStore([own.endpoint], user("root", "secret")) as store,
        EtcdStore([own.endpoint]) as nobody,
        store.watch("key") as watch,
        store.new_lock("lock", ttl=4) as held,
    ):
        await anext(watch)
        await own.ctl("user", "add", "root:secret")
        await own.ctl("user", "grant-role", "root", "root")
        for is_on in (True, False, True):
            await own.ctl("auth", "enable" if is_on else "disable", user=None if is_on else ("root", "secret"))
            pairs = await asyncio.gather(*(store.put("key", b"%d" % number, guard=held) for number in range(10)))
            async with asyncio.timeout(scaled(5)):
                while await anext(watch) != max(pairs, key=lambda pair: pair.last_index):
                    pass
            assert await anext(store.watch("key")) == await store.get("key")
            if is_on:
                with pytest.raises(AccessDeniedError):
                    await nobody.get("key")
            else:
                await nobody.get("key")
        assert held.is_held


async def _until_refused(server: EtcdServer, token: str | None) -> None:
    """Wait until a token has expired, which using it would prevent."""
    await asyncio.sleep(2.5)
    async with channel_to(server.endpoint) as channel:
        with pytest.raises(RpcFailedError, match="invalid auth token"):
            await channel.call("/etcdserverpb.KV/Range", b"\n\x01a", (("token", token or ""),))
