"""From a URL to endpoints and settings.

``scheme://user:password@host:port,host:port/prefix?name=value``; ``scheme:///path?name=value`` for backends whose
endpoint is a path, ``scheme://host:port/database?prefix=app`` for those whose path is an option. Nothing of a URL that
may be a password is repeated in an error.
"""

from __future__ import annotations

import dataclasses
import math
import os
import re
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, unquote

from aiolibkv.config import Config, nearest_first
from aiolibkv.keys import normalize_directory

NAME = re.compile(r"[a-z][a-z0-9+._-]*")
"""What a backend may be called, since it is the scheme of URLs."""

_FIELDS = {field.name: field for field in dataclasses.fields(Config)}
_PARAMETERS = _FIELDS.keys() - {"options", "listener"}
_TRUTHS = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
_SECONDS = frozenset({"connection_timeout", "request_timeout"})
_OF_HOSTS = frozenset({"host", "port"})
"""Where other libraries' URLs have what stands before the path here."""
_HOST = re.compile(r"[A-Za-z0-9.-]+(:[0-9]+)?")


class Location(NamedTuple):
    """A URL taken apart. The standard library knows one host in a URL, and its errors may show a password.

    Attributes:
        scheme: the backend's name.
        authority: credentials and hosts.
        path: with the slash before it.
        query: what follows "?".
    """

    scheme: str
    authority: str
    path: str
    query: str


def split_url(url: str) -> Location:
    """Take a URL apart.

    Raises:
        ValueError: it is none.
    """
    scheme, found, rest = url.partition("://")
    if not found or not NAME.fullmatch(scheme.lower()):
        example = f"etcd://{url}" if _HOST.fullmatch(url) else "etcd://localhost:2379"
        raise ValueError(
            f"a store's URL is scheme://host:port/prefix and begins with the backend's name, as in {example} or memory://"
        )
    if "#" in rest:
        raise ValueError("a store's URL has no fragment; write # as %23")
    rest, _, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    if authority in {"http:", "https:", f"{scheme}:"} and path.startswith("/"):
        secure = ", and ?tls=true" if authority == "https:" else ""
        raise ValueError(f"the URL has two schemes: write {scheme}://host:port{secure}")
    if authority and "@" in path:
        raise ValueError(
            "the URL cannot be read; in a user, a password or a path write %40 for @, %2F for /, %3F for ?"
        )
    return Location(scheme.lower(), authority, slash + path, query)


def read_location(
    location: Location,
    config: Config,
    *,
    endpoint_is_path: bool,
    path_option: str | None,
    option_names: Collection[str] | None,
) -> tuple[Sequence[str], Config]:
    """Read a URL.

    Args:
        location: the URL taken apart.
        config: what the URL adds to.
        endpoint_is_path: whether the backend's endpoint is a path.
        path_option: the option that the path is; None when it is the prefix.
        option_names: what the backend has, None when it is not known.

    Returns:
        The endpoints and the settings.

    Raises:
        ValueError: a part cannot be read, a parameter is unknown, or URL and config say different things.
    """
    credentials, _, hosts = location.authority.rpartition("@")
    settings, options = _parameters(location, option_names)
    if credentials:
        user, separator, password = credentials.partition(":")
        _set(settings, "username", unquote(user))
        if separator:
            _set(settings, "password", unquote(password))
    path = unquote(location.path)
    if endpoint_is_path:
        if location.authority:
            scheme = location.scheme
            raise ValueError(f"{scheme} takes a path: {scheme}:///relative or {scheme}:////absolute")
        endpoints = [path[1:]] if len(path) > 1 else []
    else:
        endpoints = [unquote(host) for host in hosts.split(",")] if hosts else []
        if path_option is not None:
            if len(path) > 1:
                _set(options, path_option, path[1:])
        elif prefix := normalize_directory(path):
            _set(settings, "prefix", prefix)
    return endpoints, _merged(config, settings, options)


def _parameters(location: Location, option_names: Collection[str] | None) -> tuple[dict[str, Any], dict[str, str]]:
    settings: dict[str, Any] = {}
    options: dict[str, str] = {}
    for name, text in _pairs(location.query):
        if name in settings or name in options:
            raise ValueError(f"parameter {name!r} is given twice")
        if name in _PARAMETERS:
            settings[name] = _value(name, text)
        elif name in _FIELDS:
            raise ValueError(f"{name!r} is no parameter: an option is a parameter of its own name, a listener is code")
        elif option_names is None or name in option_names:
            options[name] = text
        elif name in _OF_HOSTS:
            raise ValueError(
                f"{location.scheme}: {name!r} stands before the path, as in {location.scheme}://h1:1,h2:2/; a Unix"
                " socket, for backends that can use one, as unix:%2Fpath%2Fof%2Fsocket"
            )
        else:
            known = ", ".join(nearest_first(name, {*_PARAMETERS, *option_names}))
            raise ValueError(f"{location.scheme}: unknown option {name!r}, only {known}")
    return settings, options


def _pairs(query: str) -> Sequence[tuple[str, str]]:
    try:
        return parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        pass
    raise ValueError("what follows ? in a store's URL is name=value&name=value; write ? in a password as %3F")


def _set(settings: dict[str, Any], name: str, value: str) -> None:
    if settings.setdefault(name, value) != value:
        raise ValueError(f"the URL gives two different values for {name}")


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


def _merged(config: Config, settings: dict[str, Any], options: dict[str, str]) -> Config:
    merged = dict(config.options)
    for name, option in options.items():
        if str(merged.setdefault(name, option)) != option:
            raise ValueError(f"URL and config differ in option {name!r}")
    for name, value in settings.items():
        given = getattr(config, name)
        if (os.fspath(given) if isinstance(given, os.PathLike) else given) not in (_FIELDS[name].default, value):
            raise ValueError(f"URL and config differ in {name}")
    return dataclasses.replace(config, **settings, options=merged)
