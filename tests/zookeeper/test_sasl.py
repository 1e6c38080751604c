"""Users who log in by SASL, at a server whose JAAS configuration names them."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio

from aiolibkv import AccessDeniedError, Config
from aiolibkv.backends.zookeeper.connection import Connection
from aiolibkv.backends.zookeeper.operations import get_acl
from aiolibkv.backends.zookeeper.sasl import Answer, Sasl
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import scaled
from aiolibkv.testing.servers import ZooKeeperServer
from stores import ZooKeeperStore

pytestmark = [pytest.mark.asyncio(loop_scope="function"), pytest.mark.leaves_nothing_behind]

PASSWORD = 's3cr,e=t "quoted"'
JAAS = r"""
Server {
  org.apache.zookeeper.server.auth.DigestLoginModule required
  user_ann="s3cr,e=t \"quoted\""
  user_bob="other";
};
"""


@pytest.fixture(scope="module")
def jaas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("jaas") / "jaas.conf"
    file.write_text(JAAS)
    return file


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(jaas: Path) -> AsyncIterator[ZooKeeperServer]:
    provider = "org.apache.zookeeper.server.auth.SASLAuthenticationProvider"
    settings = [f"-Djava.security.auth.login.config={jaas}", f"-Dzookeeper.authProvider.1={provider}"]
    async with ZooKeeperServer(extra_args=settings) as running:
        yield running


def user(name: str, password: str, **settings: Any) -> Config:
    return Config(username=name, password=password, options={"auth": "sasl"}, **settings)


async def test_a_user_is_known_at_each_connection_and_session(server: ZooKeeperServer) -> None:
    async with (
        FaultProxy(server.host, server.port, protocol="zookeeper") as proxy,
        ZooKeeperStore([proxy.endpoint], user("ann", PASSWORD, request_timeout=scaled(5))) as ann,
        ZooKeeperStore([server.endpoint], user("bob", "other")) as bob,
        ZooKeeperStore([server.endpoint]) as nobody,
    ):
        pair = await ann.put("key", b"1")
        watch = ann.watch("key")
        assert await anext(watch) == pair
        connection = await ann.driver._session.connection()
        assert await connection.ask(get_acl("/key")) == [("sasl", "ann")]
        for other in (bob, nobody):
            with pytest.raises(AccessDeniedError):
                await other.get("key")
        held = await ann.new_lock("lock").acquire()
        proxy.reset()
        assert await ann.get("key") == pair
        pair = await ann.put("key", b"2", guard=held)
        assert await anext(watch) == pair
        await watch.aclose()
        await ann.delete("key")
        assert held.is_held


@pytest.mark.parametrize(("name", "password"), [("ann", "wrong"), ("carl", "wrong"), ("ann", "")])
async def test_who_cannot_prove_to_be_the_user(server: ZooKeeperServer, name: str, password: str) -> None:
    with pytest.raises(AccessDeniedError, match="does not know the user") as caught:
        await ZooKeeperStore([server.endpoint], user(name, password)).open()
    assert caught.value.endpoint == server.endpoint
    assert PASSWORD not in str(caught.value)


async def test_a_server_that_knows_no_sasl() -> None:
    async with ZooKeeperServer() as server:
        with pytest.raises(AccessDeniedError, match="SASL"):
            await ZooKeeperStore([server.endpoint], user("ann", PASSWORD)).open()


async def test_a_server_that_cannot_prove_that_it_knows_the_password() -> None:
    class Impostor:
        tokens = (b'realm="zk-sasl-md5",nonce="n",qop="auth",charset=utf-8,algorithm=md5-sess', b"rspauth=0")

        def __init__(self) -> None:
            self._say = iter(self.tokens)

        async def ask(self, _: object) -> bytes:
            return next(self._say)

    with pytest.raises(AccessDeniedError, match="prove"):
        await Sasl("ann", PASSWORD).log_in(cast("Connection", Impostor()))


async def test_the_standards_own_example() -> None:
    challenge = {"realm": "elwood.innosoft.com", "nonce": "OA6MG9tEQGm2hh"}
    answer = Answer("chris", "secret", challenge, "OA6MHXh6VqTrRk", "imap/elwood.innosoft.com")
    assert answer.digest("AUTHENTICATE") == "d388dad90d4bbd760a152321f2143af7"
    assert answer.digest("") == "ea40f60335c427b5527b84dbabcdfffd"


@pytest.mark.parametrize("config", [Config(options={"auth": "sasl"}), Config(options={"auth": "kerberos"})])
async def test_settings_that_cannot_be(config: Config) -> None:
    with pytest.raises(ValueError, match="auth"):
        ZooKeeperStore(["host"], config)
