"""Certificates for servers that require them of their clients."""

import ssl
from datetime import UTC, datetime
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

_PAST = datetime(2001, 1, 1, tzinfo=UTC)


class Certificates:
    """An authority, a certificate for servers on this machine and certificates for clients, as PEM files.

    Keys are in PKCS #8 format, which Java needs.

    Args:
        directory: where to write the files.
        client_name: the common name in the client's certificate; etcd takes it for the user's name.

    Attributes:
        ca: the authority's certificate, for ``ca_file``.
        server_cert: the certificate for servers.
        server_key: its key.
        client_cert: the certificate for clients, for ``cert_file``.
        client_key: its key, for ``key_file``.
    """

    def __init__(self, directory: Path, *, client_name: str = "client") -> None:
        """Make the certificates."""
        self._directory = directory
        self._authority = trustme.CA()
        self.ca: Path = directory / "ca.pem"
        self._authority.cert_pem.write_to_path(self.ca)
        self.server_cert: Path
        self.server_key: Path
        self.server_cert, self.server_key = self._issue("server", "localhost", "127.0.0.1", "::1")
        self.client_cert: Path
        self.client_key: Path
        self.client_cert, self.client_key = self.client(client_name)

    def client(self, name: str, *, expired: bool = False) -> tuple[Path, Path]:
        """Make a client's certificate.

        Args:
            name: its common name, and what its files are called.
            expired: whether its time is over.

        Returns:
            The paths of the certificate and of its key.
        """
        return self._issue(f"client-{name}", f"{name}@localhost", common_name=name, expired=expired)

    def expired_server(self) -> tuple[Path, Path]:
        """Make a server's certificate whose time is over; returns the paths of the certificate and of its key."""
        return self._issue("expired-server", "localhost", "127.0.0.1", "::1", expired=True)

    def ssl_context(self) -> ssl.SSLContext:
        """Return a context with which the client is accepted by the servers."""
        context = ssl.create_default_context(cafile=self.ca)
        context.load_cert_chain(self.client_cert, self.client_key)
        return context

    def _issue(
        self, file_name: str, *identities: str, common_name: str | None = None, expired: bool = False
    ) -> tuple[Path, Path]:
        end = _PAST if expired else None
        issued = self._authority.issue_cert(*identities, common_name=common_name, not_after=end)
        key = load_pem_private_key(issued.private_key_pem.bytes(), password=None)
        cert_path = self._directory / f"{file_name}.pem"
        key_path = self._directory / f"{file_name}.key"
        cert_path.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        key_path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return cert_path, key_path
