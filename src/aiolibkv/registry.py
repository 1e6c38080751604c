"""From a backend's name or a URL to a store."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

from aiolibkv.config import Config
from aiolibkv.errors import BackendNotSupportedError
from aiolibkv.keys import normalize_directory
from aiolibkv.protocol import AsyncStore

Factory = Callable[[Sequence[str], Config], AsyncStore]

GROUP = "aiolibkv.backends"

_registered: dict[str, Factory] = {}
_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_FIELDS = {field.name: field for field in dataclasses.fields(Config)}
_NAME = re.compile(r"[a-z][a-z0-9+._-]*")
_SECONDS = frozenset({"connection_timeout", "request_timeout"})


def register_backend(name: str, factory: Factory) -> None:
    """Make a backend known under a name, before those that packages bring.

    Args:
        name: what ``new_store`` and the scheme of a URL say; lower-case letters, digits and ``+._-`` after a letter.
        factory: called with the endpoints and the config, gives the store without I/O.

    Raises:
        ValueError: no URL can say that name.
        TypeError: the factory cannot be called.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"a backend's name is lower-case letters, digits and +._- after a letter, not {name!r}")
    if not callable(factory):
        raise TypeError(f"a factory is a callable, not {type(factory).__name__}")
    _registered[name] = factory


def new_store(backend: str, endpoints: Sequence[str] = (), config: Config | None = None) -> AsyncStore:
    """Make a store; entering it connects.

    Args:
        backend: a backend's name, such as ``"etcd"``.
        endpoints: "host:port" of its servers; for embedded stores see the backend.
        config: settings; the defaults when not given.

    Raises:
        BackendNotSupportedError: there is no such backend, or its package is not installed.
        ValueError: endpoints or settings that the backend cannot use.
        TypeError: endpoints that are no sequence of str, or a config that is no Config.
    """
    if not isinstance(endpoints, Sequence) or isinstance(endpoints, str):
        raise TypeError(f"endpoints are a sequence of str, not one {type(endpoints).__name__}")
    for endpoint in endpoints:
        if not isinstance(endpoint, str):
            raise TypeError(f"an endpoint is a str, not {type(endpoint).__name__}")
    return _factory(backend)(tuple(endpoints), _checked(config))


def open_store(url: str, config: Config | None = None) -> AsyncStore:
    """Make a store from a URL; entering it connects.

    ``scheme://user:password@host:port,host:port/prefix?name=value``, or ``scheme:///path?name=value`` where the factory
    has a true attribute ``endpoint_is_path``, as SQLite's. A parameter is a field of Config, or else an option of the
    backend; in it "+" is a space.

    Args:
        url: see above; parts may be percent-encoded.
        config: settings; the URL adds to them.

    Raises:
        BackendNotSupportedError: as for new_store.
        ValueError: a parameter is unknown or cannot be read, or URL and config say different things.
    """
    if not isinstance(url, str):
        raise TypeError(f"a URL is a str, not {type(url).__name__}")
    parts = _split(url)
    endpoints, settings = _read(parts, endpoint_is_path=getattr(_factory(parts.scheme), "endpoint_is_path", False))
    return new_store(parts.scheme, endpoints, _merged(_checked(config), settings))


def _checked(config: Config | None) -> Config:
    if config is None:
        return Config()
    if not isinstance(config, Config):
        raise TypeError(f"config is a Config, not {type(config).__name__}")
    return config


class _Parts(NamedTuple):
    scheme: str
    location: str
    path: str
    query: str


def _split(url: str) -> _Parts:
    """Split a URL. The standard library knows one host in a URL, and its errors may show a password."""
    scheme, found, rest = url.partition("://")
    if not found or not _NAME.fullmatch(scheme.lower()):
        raise ValueError("a store's URL is scheme://host:port/prefix")
    if "#" in rest:
        raise ValueError("a store's URL has no fragment; write # as %23")
    rest, _, query = rest.partition("?")
    location, slash, path = rest.partition("/")
    if location and "@" in path:
        raise ValueError(
            "the URL cannot be read; in a user, a password or a path write %40 for @, %2F for /, %3F for ?"
        )
    return _Parts(scheme.lower(), location, slash + path, query)


def _parameters(query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        pass
    raise ValueError("what follows ? in a store's URL is name=value&name=value; write ? in a password as %3F")


def _read(parts: _Parts, *, endpoint_is_path: bool) -> tuple[list[str], dict[str, Any]]:
    credentials, _, hosts = parts.location.rpartition("@")
    settings: dict[str, Any] = {}
    options: dict[str, str] = {}
    for name, text in _parameters(parts.query):
        if name in settings or name in options:
            raise ValueError(f"parameter {name!r} is given twice")
        if name == "options":
            raise ValueError("an option is a parameter of its own name")
        if name in _FIELDS:
            settings[name] = _value(name, text)
        else:
            options[name] = text
    if options:
        settings["options"] = options
    if credentials:
        user, separator, password = credentials.partition(":")
        _set(settings, "username", unquote(user))
        if separator:
            _set(settings, "password", unquote(password))
    path = unquote(parts.path)
    if endpoint_is_path:
        if parts.location:
            raise ValueError(f"{parts.scheme} takes a path: {parts.scheme}:///relative or {parts.scheme}:////absolute")
        return ([path[1:]] if len(path) > 1 else []), settings
    if prefix := normalize_directory(path):
        _set(settings, "prefix", prefix)
    return [unquote(host) for host in hosts.split(",")] if hosts else [], settings


def _set(settings: dict[str, Any], name: str, value: str) -> None:
    if settings.setdefault(name, value) != value:
        raise ValueError(f"the URL says two things about {name}")


def _value(name: str, text: str) -> object:
    if name == "tls":
        if text.lower() not in _TRUTHS:
            raise ValueError(f"parameter 'tls' is true or false, not {text!r}")
        return _TRUTHS[text.lower()]
    if name in _SECONDS:
        try:
            seconds = float(text)
        except ValueError:
            seconds = math.nan
        if math.isnan(seconds):
            raise ValueError(f"parameter {name!r} is a number of seconds, not {text!r}") from None
        return seconds
    return normalize_directory(text) if name == "prefix" else text


def _merged(config: Config, settings: dict[str, Any]) -> Config:
    options = dict(config.options)
    for name, value in settings.pop("options", {}).items():
        if str(options.setdefault(name, value)) != value:
            raise ValueError(f"URL and config differ in option {name!r}")
    for name, value in settings.items():
        given = getattr(config, name)
        if (str(given) if isinstance(given, Path) else given) not in (_FIELDS[name].default, value):
            raise ValueError(f"URL and config differ in {name}")
    return dataclasses.replace(config, **settings, options=options)


def _factory(name: str) -> Factory:
    if name in _registered:
        return _registered[name]
    found = _entry_points().get(name)
    if found is None:
        known = ", ".join(sorted(_registered.keys() | _entry_points().keys()))
        raise BackendNotSupportedError(f"there is no backend {name!r}, only {known}")
    try:
        factory: Factory = found.load()
    except ImportError as error:
        package = found.dist.name if found.dist is not None else "aiolibkv"
        extra = found.module.rpartition(".")[2]
        raise BackendNotSupportedError(
            f"backend {name!r} needs more packages ({error}): pip install '{package}[{extra}]'"
        ) from error
    return factory


@cache
def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=GROUP)}
