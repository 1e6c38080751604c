import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import uuid
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import pytest

from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import (
    Certificates,
    Cluster,
    ConsulCluster,
    ConsulServer,
    EtcdCluster,
    EtcdGateway,
    EtcdGrpcProxy,
    EtcdServer,
    Haproxy,
    Member,
    Nginx,
    PostgresServer,
    ReverseProxy,
    Server,
    ServerCommandError,
    ServerMissingError,
    ServerStartError,
    ZooKeeperCluster,
    ZooKeeperServer,
)
from aiolibkv.testing.servers.process import exchange, http, run_program

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

KINDS = [EtcdServer, ConsulServer, ZooKeeperServer]
NEWER = [
    partial(EtcdServer, version="3.5"),
    partial(ZooKeeperServer, version="3.9"),
    partial(PostgresServer, version="18"),
]
CLUSTERS = [EtcdCluster, ConsulCluster, ZooKeeperCluster]


async def store(server: Server, value: str) -> None:
    """Store a value in the way of each kind of server."""
    if isinstance(server, EtcdServer):
        await server.ctl("put", "kept", value)
    elif isinstance(server, ConsulServer):
        await server.api("PUT", "/v1/kv/kept", value)
    elif isinstance(server, PostgresServer):
        await server.sql(f"CREATE TABLE IF NOT EXISTS kept (value text); INSERT INTO kept VALUES ('{value}')")
    else:
        create = 1
        assert value.encode() in await zookeeper(server, create, zookeeper_node(f"/{value}", 0))


async def stored(server: Server, value: str) -> bool:
    """Return whether that value is there."""
    if isinstance(server, EtcdServer):
        return await server.ctl("get", "kept", "--print-value-only") == f"{value}\n"
    if isinstance(server, ConsulServer):
        try:
            return await server.api("GET", "/v1/kv/kept?raw") == value
        except ServerCommandError:
            return False
    if isinstance(server, PostgresServer):
        try:
            return await server.sql("SELECT value FROM kept") == f"{value}\n"
        except ServerCommandError:
            return False
    get_children = 8
    return value.encode() in await zookeeper(server, get_children, (1).to_bytes(4) + b"/" + bytes(1))


async def zookeeper(server: Server, operation: int, payload: bytes) -> bytes:
    """Do one operation in a session of its own and return all that the server sent."""
    connect = bytes(12) + (4000).to_bytes(4) + bytes(8) + (16).to_bytes(4) + bytes(16)
    request = (1).to_bytes(4) + operation.to_bytes(4) + payload
    close = (2).to_bytes(4) + (-11).to_bytes(4, signed=True)
    return await exchange(server.port, b"".join(len(body).to_bytes(4) + body for body in (connect, request, close)))


def zookeeper_node(path: str, flags: int) -> bytes:
    acl = (1).to_bytes(4) + (31).to_bytes(4) + b"\0\0\0\5world\0\0\0\6anyone"
    return len(path).to_bytes(4) + path.encode() + bytes(4) + acl + flags.to_bytes(4)


async def answers(server: Member) -> bool:
    """Return whether the server answers within a moment."""
    try:
        async with asyncio.timeout(scaled(0.3)):
            await server.is_leader()
    except TimeoutError:
        return False
    return True


@pytest.mark.parametrize("kind", [*KINDS, PostgresServer, *NEWER])
@pytest.mark.asyncio
async def test_one_server(kind: Callable[[], Member]) -> None:
    async with kind() as server:
        endpoint, directory = server.endpoint, server.directory
        assert endpoint == f"{server.host}:{server.port}"
        assert await server.is_leader()
        await store(server, "kept-1")

        await server.restart()
        assert await stored(server, "kept-1")

        first_pid = server.pid
        await server.kill()
        assert not server.running
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(server.host, server.port)
        await server.start()
        assert server.pid != first_pid
        assert await stored(server, "kept-1")

        server.pause()
        assert not await answers(server)
        server.resume()
        await eventually(lambda: answers(server), within=10, message="it stayed frozen")

        await server.wipe()
        assert not await stored(server, "kept-1")
        assert server.endpoint == endpoint

        server.pause()
        await server.stop()
        assert not server.running
    assert not directory.exists()


@pytest.mark.parametrize("kind", CLUSTERS)
@pytest.mark.asyncio
async def test_cluster(kind: Callable[[], Cluster[Member]]) -> None:
    async with kind() as cluster:
        assert len(set(cluster.endpoints)) == 3
        leader = await cluster.leader()
        followers = [server for server in cluster.servers if server is not leader]
        assert [await server.is_leader() for server in followers] == [False, False]
        await store(followers[0], "kept-2")

        await leader.kill()
        assert await cluster.leader() in followers
        await eventually(lambda: stored(followers[1], "kept-2"), within=10, message="the value is lost")
        await cluster.start()
        await eventually(lambda: stored(leader, "kept-2"), within=10, message="it did not catch up")


async def status(server: Server, path: str = "/v1/status/leader", *, within: float = 10) -> int:
    """Return the status of an answer that has to come in time."""
    async with asyncio.timeout(scaled(within)):
        return (await http(server.port, "GET", path))[0]


async def check_reverse_proxy(proxy: ReverseProxy, hands_on: Callable[[], Awaitable[None]]) -> None:
    async with proxy:
        endpoint = proxy.endpoint
        await hands_on()
        proxy.pause()
        with pytest.raises(TimeoutError):
            await status(proxy, within=0.3)
        proxy.resume()
        await proxy.kill()
        with pytest.raises(ConnectionRefusedError):
            await status(proxy)
        await proxy.start()
        assert proxy.endpoint == endpoint
        await hands_on()


@pytest.mark.asyncio
async def test_reverse_proxies_of_etcd() -> None:
    async with EtcdServer() as one, EtcdServer() as two:
        for proxy in (
            EtcdGateway([one.endpoint, two.endpoint]),
            EtcdGrpcProxy([one.endpoint]),
            Haproxy([one.endpoint, two.endpoint]),
            Nginx([one.endpoint, two.endpoint], grpc=True),
        ):

            async def hands_on(endpoint: str = proxy.endpoint) -> None:
                ctl = ["etcdctl", f"--endpoints={endpoint}", "put", "handed-on", "1"]
                await run_program(ctl, {**os.environ, "ETCDCTL_API": "3"})

            await check_reverse_proxy(proxy, hands_on)
        assert await one.ctl("get", "handed-on", "--print-value-only") == "1\n"


@pytest.mark.asyncio
async def test_reverse_proxies_of_consul() -> None:
    async with ConsulServer(dev=True) as server:
        for proxy, path in (
            (Haproxy([server.endpoint]), "/v1/status/leader"),
            (Nginx([server.endpoint]), "/v1/status/leader"),
            (Nginx([server.endpoint], path="/consul/"), "/consul/v1/status/leader"),
        ):

            async def hands_on(proxy: ReverseProxy = proxy, path: str = path) -> None:
                assert await status(proxy, path) == 200

            await check_reverse_proxy(proxy, hands_on)


@pytest.mark.asyncio
async def test_reverse_proxies_give_up_what_is_idle() -> None:
    async with ConsulServer(dev=True) as server:
        index = json.loads(await server.api("GET", "/v1/agent/self"))["Stats"]["raft"]["commit_index"]
        path = f"/v1/catalog/services?index={int(index) + 1000}&wait=30s"
        async with Nginx([server.endpoint], read_timeout=0.2) as nginx:
            assert await status(nginx, path) == 504
        async with Haproxy([server.endpoint], idle_timeout=0.2) as haproxy:
            with pytest.raises(EOFError):
                await status(haproxy, path)


def test_a_server_outlives_the_event_loop_that_started_it() -> None:
    server = EtcdServer()
    try:
        asyncio.run(server.start())
        assert asyncio.run(server.is_leader())
    finally:
        asyncio.run(server.close())


def without_client_certificate(certificates: Certificates) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=certificates.ca)


@pytest.mark.asyncio
async def test_etcd_with_tls_and_users(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    async with EtcdServer(tls=certificates, auth=("root", "secret")) as server:
        await server.ctl("put", "app/a", "1")
        await server.ctl("put", "other", "1")
        await server.add_user("bob", "pw", prefix="app/", access="read")
        await server.restart()

        bob = ("bob", "pw")
        assert await server.ctl("get", "app/a", "--print-value-only", user=bob) == "1\n"
        with pytest.raises(ServerCommandError, match="permission denied"):
            await server.ctl("get", "other", user=bob)
        with pytest.raises(ServerCommandError, match="permission denied"):
            await server.ctl("put", "app/a", "2", user=bob)
        assert "etcd_debugging_mvcc_watcher_total" in await server.metrics()
        with pytest.raises((OSError, EOFError)):
            await http(server.port, "GET", "/health", tls=without_client_certificate(certificates))


@pytest.mark.asyncio
async def test_etcd_user_by_certificate_in_a_cluster(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    cert, key = certificates.client("carol")
    async with EtcdCluster(size=3, tls=certificates, auth=("root", "secret")) as cluster:
        first, *_, last = cluster.servers
        await first.add_user("carol", None, prefix="hers/")
        as_carol = [
            "etcdctl",
            f"--endpoints=https://{last.endpoint}",
            f"--cacert={certificates.ca}",
            f"--cert={cert}",
            f"--key={key}",
        ]
        environment = {**os.environ, "ETCDCTL_API": "3"}
        await run_program([*as_carol, "put", "hers/a", "1"], environment)
        with pytest.raises(ServerCommandError, match="permission denied"):
            await run_program([*as_carol, "put", "theirs/a", "1"], environment)
        assert await first.ctl("get", "hers/a", "--print-value-only") == "1\n"


@pytest.mark.asyncio
async def test_etcd_compaction_and_metrics() -> None:
    async with EtcdServer() as server:
        for value in "123":
            await server.ctl("put", "a", value)
        assert (await server.metrics())["etcd_debugging_mvcc_watcher_total"] == 0
        assert await server.compact() == 4
        with pytest.raises(ServerCommandError, match="compacted"):
            await server.ctl("get", "--rev=2", "a")
        assert await server.ctl("get", "a", "--print-value-only") == "3\n"


@pytest.mark.asyncio
async def test_consul_with_tls_and_tokens(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    async with ConsulServer(tls=certificates, token=str(uuid.uuid4())) as server:
        await server.add_token('key_prefix "" { policy = "read" }')
        token = await server.add_token('key_prefix "app/" { policy = "write" }')

        async def put(path: str, headers: dict[str, str]) -> int:
            tls = certificates.ssl_context()
            status, _ = await http(server.port, "PUT", f"/v1/kv/{path}", body="1", headers=headers, tls=tls)
            return status

        assert await put("app/a", {"X-Consul-Token": token}) == 200
        assert await put("other", {"X-Consul-Token": token}) == 403
        assert await put("app/a", {}) == 403
        with pytest.raises(ServerCommandError, match="TTL"):
            await server.api("PUT", "/v1/session/create", json.dumps({"TTL": "1s"}))
        with pytest.raises((OSError, EOFError)):
            await http(server.port, "GET", "/v1/status/leader", tls=without_client_certificate(certificates))


@pytest.mark.asyncio
async def test_consul_limits() -> None:
    async with ConsulServer(session_ttl_min=1, max_connections=8) as server:
        await server.api("PUT", "/v1/session/create", json.dumps({"TTL": "1s"}))

        async def ask(streams: Streams) -> bytes:
            with contextlib.suppress(ConnectionResetError):
                streams[1].write(b"GET /v1/status/leader HTTP/1.1\r\nHost: localhost\r\n\r\n")
                return await streams[0].read(12)
            return b""

        async with contextlib.AsyncExitStack() as stack, asyncio.timeout(scaled(10)):
            opened = [await asyncio.open_connection(server.host, server.port) for _ in range(20)]
            for _, writer in opened:
                stack.callback(writer.transport.abort)
            answered = [await ask(streams) for streams in opened].count(b"HTTP/1.1 200")
        # Those of the requests before may still have been counted.
        assert 1 <= answered <= 8


@pytest.mark.asyncio
async def test_consul_for_development(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    async with ConsulServer(dev=True, tls=certificates, token=str(uuid.uuid4()), session_ttl_min=1) as server:
        await server.api("PUT", "/v1/session/create", json.dumps({"TTL": "1s"}))
        assert (await server.api("GET", "/v1/session/list")).startswith('[\n    {\n        "ID"')
        await server.add_token('key_prefix "" { policy = "read" }')


@pytest.mark.asyncio
async def test_zookeeper_with_tls(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    async with ZooKeeperServer(tls=certificates) as server:
        assert await server.mode() == "standalone"
        with pytest.raises((OSError, EOFError)):
            await exchange(server.port, b"srvr", tls=without_client_certificate(certificates))


@pytest.mark.asyncio
async def test_zookeeper_options() -> None:
    async with ZooKeeperServer(
        tick_time=0.2, max_session_timeout=60, min_session_timeout=0.3, max_connections=7
    ) as server:
        configuration = set((await server.four_letter_word("conf")).splitlines())
        assert configuration >= {
            "tickTime=200",
            "minSessionTimeout=300",
            "maxSessionTimeout=60000",
            "maxClientCnxns=7",
        }


@pytest.mark.asyncio
async def test_zookeeper_limits_connections_by_default() -> None:
    async with ZooKeeperServer(max_connections=None) as server:
        assert "maxClientCnxns=60" in (await server.four_letter_word("conf")).splitlines()


@pytest.mark.parametrize("extended_types", [True, False])
@pytest.mark.asyncio
async def test_zookeeper_extended_types(*, extended_types: bool) -> None:
    create_ttl, with_ttl, unimplemented = 21, 5, (-6).to_bytes(4, signed=True)
    async with ZooKeeperServer(extended_types=extended_types) as server:
        answer = await zookeeper(server, create_ttl, zookeeper_node("/ttl", with_ttl) + (9000).to_bytes(8))
        assert (b"/ttl" in answer, unimplemented in answer) == (extended_types, not extended_types)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.asyncio
async def test_a_missing_program_names_its_packages(
    kind: Callable[[], Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = kind()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerMissingError, match=f"Debian packages: {server.packages}"):
        await server.start()
    await server.close()


@pytest.mark.parametrize("kind", NEWER)
@pytest.mark.asyncio
async def test_a_missing_version_is_named(
    kind: Callable[[], Server], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = kind()
    monkeypatch.setenv("AIOLIBKV_SERVERS", str(tmp_path))
    with pytest.raises(ServerMissingError, match=r"(etcd 3\.5|zookeeper 3\.9|postgresql 18) is not in"):
        await server.start()
    await server.close()


@pytest.mark.asyncio
async def test_versions() -> None:
    async with EtcdServer() as old, EtcdServer(version="3.5") as new:
        assert "etcdctl version: 3.5." in await new.ctl("version")
        for server, version in ((old, "3.4."), (new, "3.5.")):
            assert any(f'server_version="{version}' in name for name in await server.metrics())
    async with ZooKeeperServer(version="3.9") as zookeeper_server:
        assert (await zookeeper_server.four_letter_word("srvr")).startswith("Zookeeper version: 3.9.")


@pytest.mark.asyncio
async def test_missing_jars_name_their_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ZOOKEEPER_HOME", str(tmp_path))
    server = ZooKeeperServer()
    with pytest.raises(ServerMissingError, match="Debian packages: zookeeper"):
        await server.start()
    await server.close()


@pytest.mark.asyncio
async def test_a_failed_start_shows_the_log() -> None:
    server = EtcdServer(extra_args=["--no-such-option"])
    with pytest.raises(ServerStartError, match=r"(?s)ended before it was ready.*no-such-option"):
        await server.start()
    await server.close()


@pytest.mark.asyncio
async def test_a_failed_member_ends_its_cluster() -> None:
    cluster = EtcdCluster(size=3, extra_args=["--no-such-option"])
    with pytest.raises(ServerStartError, match="no-such-option"):
        await cluster.__aenter__()
    assert [server.running for server in cluster.servers] == [False] * 3


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.asyncio
async def test_taken_ports(kind: Callable[[], Server]) -> None:
    server = kind()
    taken = server.port
    with socket.socket() as squatter:
        squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        squatter.bind((server.host, taken))
        squatter.listen()
        try:
            await server.start()
            assert server.port != taken
        finally:
            await server.close()


@pytest.mark.asyncio
async def test_taken_ports_of_a_restart() -> None:
    async with EtcdServer() as server:
        await server.kill()
        with socket.socket() as squatter:
            squatter.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            squatter.bind((server.host, server.port))
            squatter.listen()
            with pytest.raises(ServerStartError, match="taken by another process"):
                await server.start()


@pytest.mark.asyncio
async def test_nobody_else_is_given_the_port_of_a_dead_server() -> None:
    async with EtcdServer() as server:
        await server.kill()
        with socket.socket() as other, pytest.raises(OSError, match="in use"):
            other.bind((server.host, server.port))


@pytest.mark.asyncio
async def test_start_twice_is_an_error() -> None:
    async with EtcdServer() as server:
        with pytest.raises(RuntimeError, match="already running"):
            await server.start()
    with pytest.raises(RuntimeError, match="not running"):
        server.pause()


SCRIPT = """
import asyncio, os, signal, sys
from aiolibkv.testing import servers

server = getattr(servers, sys.argv[2])()
asyncio.run(server.start())
print(server.pid, server.directory, flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
elif sys.argv[1] == "forked" and os.fork():
    os.wait()
    assert server.running
"""


@pytest.mark.parametrize(
    ("end", "kind"),
    [("exit", EtcdServer), ("killed", EtcdServer), ("forked", EtcdServer), ("killed", PostgresServer)],
)
@pytest.mark.asyncio
async def test_servers_end_with_the_process_that_started_them(end: str, kind: type[Server]) -> None:
    script = subprocess.Popen([sys.executable, "-c", SCRIPT, end, kind.__name__], stdout=subprocess.PIPE, text=True)  # noqa: ASYNC220 -- short
    assert script.stdout is not None
    async with asyncio.timeout(scaled(20)):
        output, _ = await asyncio.to_thread(script.communicate)
    pid, directory = output.split()

    def gone() -> bool:
        try:
            return "State:\tZ" in Path(f"/proc/{pid}/status").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return True

    await eventually(gone, within=5, message="the server is still there")
    assert script.returncode == (-signal.SIGKILL if end == "killed" else 0)
    if end == "killed":
        shutil.rmtree(directory)
    else:
        assert not Path(directory).exists()  # noqa: ASYNC240 -- one stat
