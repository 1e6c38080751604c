"""What TLS needs, made of a config's files."""

from __future__ import annotations

import ssl
from pathlib import Path

from aiolibkv.config import Config


def ssl_context(config: Config) -> ssl.SSLContext | None:
    """Return what TLS needs, None for plain TCP. It reads files.

    Raises:
        ValueError: a file cannot be read or used; names the field and the file.
    """
    if not config.tls:
        return None
    context = config.tls if isinstance(config.tls, ssl.SSLContext) else ssl.create_default_context()
    if config.ca_file is not None:
        read_file("ca_file", config.ca_file)
        try:
            context.load_verify_locations(cafile=config.ca_file)
        except (OSError, ValueError) as error:
            raise ValueError(f"ca_file {str(config.ca_file)!r} cannot be used: {error}") from error
    if config.cert_file is not None and config.key_file is not None:
        read_file("cert_file", config.cert_file)
        read_file("key_file", config.key_file)
        try:
            # An encrypted key would have the terminal asked for its password.
            context.load_cert_chain(config.cert_file, config.key_file, password=lambda: b"")
        except (OSError, ValueError) as error:
            files = f"cert_file {str(config.cert_file)!r} and key_file {str(config.key_file)!r}"
            raise ValueError(f"{files} cannot be used: {error}") from error
    return context


def read_file(field: str, file: str | Path) -> bytes:
    """Read a file that a field of Config names.

    Raises:
        ValueError: it cannot be read; names the field and the file.
    """
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise ValueError(f"{field} {str(file)!r} cannot be read: {error.strerror}") from error
