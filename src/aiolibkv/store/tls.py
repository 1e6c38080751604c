"""TLS settings, made of a config's files and made anew when these have changed."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import ssl
from collections.abc import Iterator, Sequence
from pathlib import Path

from aiolibkv.config import Config, File

_log = logging.getLogger("aiolibkv")

_REFUSAL = re.compile("ALERT_.*(CERTIFICATE|UNKNOWN_CA)")
"""What OpenSSL calls it when the other side does not accept a certificate, or misses one."""

_Signature = tuple[tuple[int, ...], ...]


class Tls:
    """The TLS settings of a store; a connection made after the files were rotated uses the new ones.

    Each connection asks for them, in the event loop: to look at three files takes microseconds, to load them less than
    a millisecond. Only the system's authorities, or those that SSL_CERT_FILE and SSL_CERT_DIR name, which are used when
    there is no ``ca_file``, take some 20 ms, at the first connection and after a rotation.
    """

    def __init__(self, config: Config, *, alpn: Sequence[str] = ()) -> None:
        """Keep the settings; no file is read.

        Args:
            config: its ``tls``, ``ca_file``, ``cert_file`` and ``key_file`` are used.
            alpn: protocols to offer; also set in an SSLContext of the config, which is used as it is otherwise.
        """
        self._config = config
        self._alpn = list(alpn)
        self._context: ssl.SSLContext | None = None
        self._signature: _Signature | None = None
        self._authorities = 0
        self._is_outdated = False

    def context(self) -> ssl.SSLContext | None:
        """Return the present settings, None for plain TCP.

        Files that cannot be used, as during a rotation, are tried again at the next call; the last good ones stay in
        use meanwhile, which is logged once.

        Raises:
            ValueError: a file cannot be read or used, and none ever could; names the field and the file.
        """
        if isinstance(self._config.tls, ssl.SSLContext):
            if self._context is None:
                self._context = self._config.tls
                self._offer(self._context)
        elif self._config.tls:
            self._read_again()
        return self._context

    def _read_again(self) -> None:
        try:
            # What changes after this look is seen by the next one.
            signature = self._look()
            if signature == self._signature:
                return
            context = _make_context(self._config)
            authorities = context.cert_store_stats()["x509_ca"]
            if self._authorities and not authorities:
                # The ssl module says nothing of a file of the system that it cannot use.
                raise ValueError("the system's authorities cannot be read")
        except ValueError as error:
            if self._context is None:
                raise
            if not self._is_outdated:
                _log.warning("certificates have changed and cannot be used; the last good ones stay in use: %s", error)
            self._is_outdated = True
            return
        self._offer(context)
        self._context, self._signature, self._authorities = context, signature, authorities
        self._is_outdated = False

    def _offer(self, context: ssl.SSLContext) -> None:
        if self._alpn:
            context.set_alpn_protocols(self._alpn)

    def _look(self) -> _Signature:
        signature = []
        for field in ("ca_file", "cert_file", "key_file"):
            file = getattr(self._config, field)
            if file is None:
                continue
            try:
                status = Path(file).stat()
            except (OSError, ValueError) as error:
                raise _unreadable(field, file, error) from error
            signature.append(_signature_of(status))
        if self._config.ca_file is None:
            signature += _system_authorities()
        return tuple(signature)


def _signature_of(status: os.stat_result) -> tuple[int, ...]:
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _system_authorities() -> Iterator[tuple[int, ...]]:
    paths = ssl.get_default_verify_paths()
    for path in (paths.cafile, paths.capath):
        if path is not None:
            with contextlib.suppress(OSError):
                yield _signature_of(Path(path).stat())


def refuses_certificate(error: BaseException | None) -> bool:
    """Tell whether an error comes of a certificate that one side does not accept, which no other attempt changes."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return True
        if isinstance(error, ssl.SSLError) and _REFUSAL.search(error.reason or ""):
            return True
        error = error.__cause__
    return False


def _make_context(config: Config) -> ssl.SSLContext:
    if config.ca_file is not None:
        _check_readable("ca_file", config.ca_file)
    try:
        # Without a file these are the system's.
        context = ssl.create_default_context(cafile=config.ca_file)
    except (OSError, ValueError) as error:
        raise ValueError(f"ca_file {str(config.ca_file)!r} cannot be used: {error}") from error
    if config.cert_file is not None and config.key_file is not None:
        _check_readable("cert_file", config.cert_file)
        _check_readable("key_file", config.key_file)
        try:
            # An encrypted key would have the terminal asked for its password.
            context.load_cert_chain(config.cert_file, config.key_file, password=lambda: b"")
        except (OSError, ValueError) as error:
            files = f"cert_file {str(config.cert_file)!r} and key_file {str(config.key_file)!r}"
            raise ValueError(f"{files} cannot be used: {error}") from error
    return context


def _check_readable(field: str, file: File) -> None:
    # What the ssl module says of a file names neither the field nor the file.
    try:
        Path(file).read_bytes()
    except (OSError, ValueError) as error:
        raise _unreadable(field, file, error) from error


def _unreadable(field: str, file: File, error: Exception) -> ValueError:
    reason = error.strerror if isinstance(error, OSError) else error
    return ValueError(f"{field} {str(file)!r} cannot be read: {reason}")
