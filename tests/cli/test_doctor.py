"""The command doctor."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from aiolibkv.cli.text import masked
from aiolibkv.testing.servers.process import HOST, Port
from aiolibkv.testing.servers.tls import Certificates
from cli.tool import Ended, Tool

BACKENDS = ("consul", "etcd", "postgresql", "zookeeper")


def wrong(ended: Ended) -> list[list[str]]:
    """Return what is wrong: what was looked at, what was found, and what to do about it."""
    assert ended.err == ""
    return [line.split("\t")[1:] for line in ended.lines if line.startswith("WRONG\t")]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_name_that_nobody_knows(backend: str) -> None:
    ended = Tool(f"{backend}://aiolibkv.invalid:1/?connection_timeout=0.5").run("doctor")
    assert ended.code == 3
    server, usable = wrong(ended)
    assert server[1].startswith("aiolibkv.invalid:1: the name is not known: ")
    assert "is it spelled right" in server[2]
    assert "aiolibkv.invalid could not be looked up" in usable[1]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_port_where_nobody_listens(backend: str) -> None:
    with Port() as port:
        ended = Tool(f"{backend}://user:secret@{HOST}:{port}/?connection_timeout=0.2").run("doctor")
    assert ended.code == 3
    server, usable = wrong(ended)
    assert server[1:] == [f"{HOST}:{port}: nobody listens there", "is the server running, and on this port?"]
    assert usable[0] == "usable"
    assert b"secret" not in ended.out


@pytest.mark.parametrize(
    "url",
    [
        "etcd://{}/app?username=u&password=pa@ssw0rd",
        "etcd://app:pa ssw0rd@{}/app?",
        "etcd://{}/?username=u&passw%6Frd=pa'ssw0rd",
    ],
)
def test_no_password_is_shown(url: str) -> None:
    with Port() as port:
        ended = Tool(f"{url.format(f'{HOST}:{port}')}&connection_timeout=0.2".replace("?&", "?")).run("doctor")
    assert ended.code == 3
    assert "***" in ended.lines[0]
    assert "ssw0rd" not in ended.out.decode() + ended.err


def test_no_password_is_in_a_message() -> None:
    assert masked("at etcd://h/?password=pa@ssw0rd&prefix=a") == "at etcd://h/?password=***&prefix=a"
    assert masked("at etcd://u:p@ss@h/a") == "at etcd://***@h/a"


async def silence(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


def on_server(context: ssl.SSLContext | None, examine: Callable[[str], Awaitable[None]]) -> None:
    """Examine a server that takes connections and ends them."""

    async def run() -> None:
        server = await asyncio.start_server(silence, HOST, 0, ssl=context)
        async with server:
            await examine(f"{HOST}:{server.sockets[0].getsockname()[1]}")

    asyncio.run(run())


def test_a_server_of_another_kind() -> None:
    async def examine(endpoint: str) -> None:
        ended = await asyncio.to_thread(Tool(f"etcd://{endpoint}/?connection_timeout=0.2").run, "doctor")
        assert f"ok\tserver\t{endpoint}: listens" in ended.lines
        ((what, _, advice),) = wrong(ended)
        assert (what, advice) == ("usable", "is that the right kind of server, and does it serve?")

    on_server(None, examine)


def test_tls(tmp_path: Path) -> None:
    certificates = Certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server_cert, certificates.server_key)

    async def found(endpoint: str, parameters: str) -> Ended:
        return await asyncio.to_thread(Tool(f"etcd://{endpoint}/?connection_timeout=0.2{parameters}").run, "doctor")

    async def examine(endpoint: str) -> None:
        plain = wrong(await found(endpoint, ""))
        assert ["tls", f"{endpoint} speaks TLS", "add tls=true to the URL"] in plain
        untrusted = wrong(await found(endpoint, "&tls=true"))
        assert untrusted[0][1].startswith(f"{endpoint}: its certificate is not trusted: ")
        trusted = await found(endpoint, f"&tls=true&ca_file={certificates.ca}")
        assert any(f"{endpoint}: listens, TLSv1.3, certificate until " in line for line in trusted.lines)

    on_server(context, examine)


def test_a_server_without_tls() -> None:
    async def examine(endpoint: str) -> None:
        url = f"etcd://{endpoint}/?connection_timeout=0.2&tls=true"
        (_, found, advice), _ = wrong(await asyncio.to_thread(Tool(url).run, "doctor"))
        assert found.startswith(f"{endpoint}: the TLS handshake failed: ")
        assert "does it speak TLS on this port" in advice

    on_server(None, examine)
