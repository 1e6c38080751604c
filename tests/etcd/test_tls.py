"""TLS: certificates of both sides, and files that change, against real servers."""

import os
import shutil
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from aiolibkv import Config, NotReachableError
from aiolibkv.testing.proxy import FaultProxy
from aiolibkv.testing.scale import eventually, scaled
from aiolibkv.testing.servers import Certificates, EtcdServer
from aiolibkv.testing.servers.process import find_program, run_program
from stores import EtcdStore

pytestmark = [pytest.mark.asyncio(loop_scope="function"), pytest.mark.leaves_nothing_behind]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("tls"), client_name="somebody")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def tls_server(certificates: Certificates) -> AsyncIterator[EtcdServer]:
    async with EtcdServer(tls=certificates) as running:
        yield running


def tls_config(certificates: Certificates, **others: object) -> Config:
    files = {
        "ca_file": certificates.ca,
        "cert_file": certificates.client_cert,
        "key_file": certificates.client_key,
        **others,
    }
    return Config(tls=True, connection_timeout=scaled(3), **files)  # type: ignore[arg-type]


async def test_tls_with_a_client_certificate(tls_server: EtcdServer, certificates: Certificates) -> None:
    async with EtcdStore([tls_server.endpoint], tls_config(certificates)) as store:
        pair = await store.put("key", b"value")
        assert await anext(store.watch("key")) == pair


async def test_a_missing_client_certificate(tls_server: EtcdServer, certificates: Certificates) -> None:
    config = tls_config(certificates, cert_file=None, key_file=None)
    began = time.monotonic()
    with pytest.raises(NotReachableError, match="TLS handshake"):
        async with EtcdStore([tls_server.endpoint], config):
            pass
    assert time.monotonic() - began < scaled(3)


async def test_a_server_of_another_authority(
    tls_server: EtcdServer, certificates: Certificates, tmp_path: Path
) -> None:
    config = tls_config(certificates, ca_file=Certificates(tmp_path).ca)
    began = time.monotonic()
    with pytest.raises(NotReachableError, match="TLS handshake"):
        async with EtcdStore([tls_server.endpoint], config):
            pass
    assert time.monotonic() - began < scaled(3)


async def test_no_tls_to_a_server_that_wants_it(tls_server: EtcdServer) -> None:
    with pytest.raises(NotReachableError, match="perhaps it wants TLS"):
        async with EtcdStore([tls_server.endpoint], Config(connection_timeout=0.5)):
            pass


async def test_tls_to_a_server_without(certificates: Certificates) -> None:
    async with EtcdServer() as server:
        with pytest.raises(NotReachableError):
            async with EtcdStore([server.endpoint], tls_config(certificates)):
                pass


@pytest.mark.parametrize("name", ["ca_file", "cert_file", "key_file"])
@pytest.mark.parametrize("content", [None, b"nonsense"])
async def test_a_file_that_cannot_be_used(
    tls_server: EtcdServer, certificates: Certificates, tmp_path: Path, name: str, content: bytes | None
) -> None:
    file = tmp_path / "file.pem"
    if content is not None:
        file.write_bytes(content)
    async with FaultProxy(tls_server.host, tls_server.port) as proxy:
        with pytest.raises(ValueError, match=name) as caught:
            async with EtcdStore([proxy.endpoint], tls_config(certificates, **{name: file})):
                pass
        assert str(file) in str(caught.value)
        assert proxy.connections_total == 0


@pytest.mark.parametrize("named_by", ["ca_file", "SSL_CERT_FILE", "SSL_CERT_DIR"])
async def test_certificates_that_are_replaced_while_the_server_is_away(
    named_by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = Certificates(tmp_path)
    config = tls_config(certificates)
    directory = tmp_path / "authorities"
    directory.mkdir()
    await _add_to(directory, certificates.ca)
    if named_by != "ca_file":
        config = replace(config, ca_file=None)
        nothing = tmp_path / "nothing"
        monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca if named_by == "SSL_CERT_FILE" else nothing))
        monkeypatch.setenv("SSL_CERT_DIR", str(directory if named_by == "SSL_CERT_DIR" else nothing))
    async with EtcdServer(tls=certificates) as own, EtcdStore([own.endpoint], config) as store:
        pair = await store.put("key", b"value")
        await own.stop()
        # All of them, and of another authority.
        Certificates(tmp_path)
        await _add_to(directory, certificates.ca)
        await own.start()

        async def reads() -> bool:
            try:
                return await store.get("key") == pair
            except NotReachableError:
                return False

        await eventually(reads, within=10, message="the new certificates are used")


async def _add_to(directory: Path, authority: Path) -> None:
    """Add to a directory of authorities, where OpenSSL looks for a name that it makes of the subject."""
    command = [find_program("openssl", "openssl"), "x509", "-hash", "-noout", "-in", str(authority)]
    name = (await run_program(command, os.environ)).strip()
    shutil.copy(authority, directory / f"{name}.0")


async def test_an_ssl_context(tls_server: EtcdServer, certificates: Certificates) -> None:
    async with EtcdStore([tls_server.endpoint], Config(tls=certificates.ssl_context())) as store:
        pair = await store.put("key", b"value")
        assert await anext(store.watch("key")) == pair
