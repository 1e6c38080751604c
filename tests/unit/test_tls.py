"""TLS settings: what files make of them, and files that change."""

from __future__ import annotations

import logging
import shutil
import ssl
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from aiolibkv import Config
from aiolibkv.store.tls import Tls
from aiolibkv.testing.servers import Certificates


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path)


@pytest.fixture
def fresh(tmp_path: Path) -> Certificates:
    directory = tmp_path / "fresh"
    directory.mkdir()
    return Certificates(directory)


def config(certificates: Certificates, **settings: Any) -> Config:
    files = {"ca_file": certificates.ca, "cert_file": certificates.client_cert, "key_file": certificates.client_key}
    return Config(**{"tls": True, **files, **settings})


def authorities(context: ssl.SSLContext | None) -> list[dict[str, Any]]:
    assert context is not None
    return context.get_ca_certs()


def test_plain_tcp_needs_nothing() -> None:
    assert Tls(Config()).context() is None


def test_a_given_context_is_used_as_it_is(certificates: Certificates) -> None:
    given = certificates.ssl_context()
    tls = Tls(Config(tls=given), alpn=["h2"])
    assert tls.context() is given
    assert tls.context() is given


def test_only_the_authorities_of_the_file_are_trusted(certificates: Certificates) -> None:
    assert len(authorities(Tls(config(certificates)).context())) == 1


def test_files_are_read_again_when_they_have_changed(certificates: Certificates, fresh: Certificates) -> None:
    tls = Tls(config(certificates))
    first = tls.context()
    assert tls.context() is first
    shutil.copy(fresh.client_cert, certificates.client_cert)
    shutil.copy(fresh.client_key, certificates.client_key)
    second = tls.context()
    assert second is not first
    shutil.copy(fresh.ca, certificates.ca)
    third = tls.context()
    assert authorities(third) != authorities(second)
    assert tls.context() is third


def test_the_systems_authorities_are_read_again(
    certificates: Certificates, fresh: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificates.ca))
    monkeypatch.setenv("SSL_CERT_DIR", str(certificates.ca / "nothing"))
    tls = Tls(Config(tls=True))
    before = tls.context()
    assert len(authorities(before)) == 1
    assert tls.context() is before
    certificates.ca.write_text("half of it")
    assert tls.context() is before
    certificates.ca.unlink()
    assert tls.context() is before
    shutil.copy(fresh.ca, certificates.ca)
    assert authorities(tls.context()) != authorities(before)


def test_a_link_to_another_directory_is_a_change(tmp_path: Path) -> None:
    """As Kubernetes mounts secrets."""
    now = tmp_path / "now"
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        Certificates(tmp_path / name)
    now.symlink_to(tmp_path / "old")
    tls = Tls(Config(tls=True, ca_file=now / "ca.pem"))
    before = authorities(tls.context())
    (tmp_path / "next").symlink_to(tmp_path / "new")
    (tmp_path / "next").replace(now)
    assert authorities(tls.context()) != before


def test_the_last_good_files_serve_during_a_rotation(
    certificates: Certificates, fresh: Certificates, caplog: pytest.LogCaptureFixture
) -> None:
    tls = Tls(config(certificates))
    good = tls.context()
    whole = certificates.client_cert.read_bytes()
    with caplog.at_level(logging.WARNING, "aiolibkv"):
        certificates.client_cert.write_bytes(whole[:100])
        assert tls.context() is good
        shutil.copy(fresh.client_cert, certificates.client_cert)  # its key is not there yet
        assert tls.context() is good
        certificates.client_key.unlink()
        assert tls.context() is good
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert str(certificates.client_cert) in caplog.text
    shutil.copy(fresh.client_key, certificates.client_key)
    assert tls.context() is not good
    with caplog.at_level(logging.WARNING, "aiolibkv"):
        certificates.ca.write_text("nonsense")
        tls.context()
    assert len(caplog.records) == 2


@pytest.mark.parametrize("field", ["ca_file", "cert_file", "key_file"])
def test_files_that_never_could_be_used_are_told(certificates: Certificates, tmp_path: Path, field: str) -> None:
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nonsense")
    for file in (tmp_path / "missing.pem", nonsense, tmp_path):
        tls = Tls(config(certificates, **{field: file}))
        for _ in range(2):
            with pytest.raises(ValueError, match=rf"{field} .*{file.name}"):
                tls.context()
    with pytest.raises(ValueError, match=f"{field} .*null"):
        Tls(config(certificates, **{field: "a\0b"})).context()


def test_a_key_with_a_password_asks_nobody(certificates: Certificates) -> None:
    key = load_pem_private_key(certificates.client_key.read_bytes(), password=None)
    secret = BestAvailableEncryption(b"secret")
    certificates.client_key.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secret))
    with pytest.raises(ValueError, match="key_file"):
        Tls(config(certificates)).context()
