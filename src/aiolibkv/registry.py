"""From a backend's name or a URL to a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, cast

from aiolibkv.config import Config, nearest_first
from aiolibkv.errors import BackendNotSupportedError
from aiolibkv.protocol import AsyncStore

if TYPE_CHECKING:
    from importlib.metadata import Distribution, EntryPoint

    from aiolibkv.store import Driver

Factory = Callable[[Sequence[str], Config], "AsyncStore | Driver[Any]"]

GROUP = "aiolibkv.backends"

_registered: dict[str, Factory] = {}


def register_backend(name: str, factory: Factory) -> None:
    """Make a backend known under a name, which then comes before a package's backend of that name.

    Args:
        name: what ``new_store`` and the scheme of a URL say; lower-case letters, digits and ``+._-`` after a letter.
        factory: called with the endpoints and the config, it returns a driver or a whole store, without I/O. A Driver
            class is such a factory.

    Raises:
        ValueError: no URL can say that name.
        TypeError: the factory cannot be called.
    """
    from aiolibkv.urls import NAME

    if not NAME.fullmatch(name):
        raise ValueError(f"a backend's name is lower-case letters, digits and +._- after a letter, not {name!r}")
    if not callable(factory):
        raise TypeError(f"a factory is a callable, not {type(factory).__name__}")
    _registered[name] = factory


def new_store(backend: str, endpoints: Sequence[str] = (), config: Config | None = None) -> AsyncStore:
    """Make a store; entering it connects.

    Args:
        backend: a backend's name, such as ``"etcd"``.
        endpoints: "host:port" of its servers, the port may be left out; for "sqlite" the path of the file; for "memory"
            nothing, or one name.
        config: settings; the defaults when not given.

    Returns:
        A store that is not connected yet.

    Raises:
        BackendNotSupportedError: there is no such backend, or its package is not installed.
        ValueError: endpoints or settings that the backend cannot use.
        TypeError: the endpoints are not a sequence of str, or the config is not a Config.
    """
    if not isinstance(backend, str):
        raise TypeError(f"a backend's name is a str, not {type(backend).__name__}")
    if not isinstance(endpoints, Sequence) or isinstance(endpoints, str):
        raise TypeError(f"endpoints are a sequence of str, not one {type(endpoints).__name__}")
    for endpoint in endpoints:
        if not isinstance(endpoint, str):
            raise TypeError(f"an endpoint is a str, not {type(endpoint).__name__}")
    return _composed(_factory(backend)(tuple(endpoints), _checked(config)))


def open_store(url: str, config: Config | None = None) -> AsyncStore:
    """Make a store from a URL; entering it connects.

    URLs of the backends:

        memory://                                    private to this store
        memory://name                                shared by the stores of one event loop
        sqlite:///relative.db                        sqlite:////absolute.db
        etcd://h1:2379,h2:2379/prefix
        consul://127.0.0.1:8500/prefix               consul://unix:%2Frun%2Fconsul.sock/prefix
        zookeeper://h1:2181,h2:2181/prefix
        postgresql://h1:5432/database?prefix=app

    ``user:password@`` may stand before the hosts. A parameter (``?tls=true&request_timeout=2``, "+" is a space) is a
    field of Config, or else an option of the backend. The prefix begins after the slash, since keys have no leading
    one; keys that others write into etcd with one are reached with ``?leading_slash=true``.

    For authors of backends: the path is the endpoint where the factory has a true attribute ``endpoint_is_path``, as
    SQLite's, and the option that its attribute ``path_option`` names where there is one, as PostgreSQL's.

    Args:
        url: see above; parts may be percent-encoded.
        config: settings; the URL adds to them.

    Returns:
        A store that is not connected yet.

    Raises:
        BackendNotSupportedError: as for new_store.
        ValueError: a parameter is unknown or cannot be read, or URL and config say different things.
    """
    from aiolibkv.urls import read_location, split_url

    if not isinstance(url, str):
        raise TypeError(f"a URL is a str, not {type(url).__name__}")
    location = split_url(url)
    factory = _factory(location.scheme)
    endpoints, merged = read_location(
        location,
        _checked(config),
        endpoint_is_path=getattr(factory, "endpoint_is_path", False),
        path_option=getattr(factory, "path_option", None),
        option_names=getattr(factory, "option_names", None),
    )
    return new_store(location.scheme, endpoints, merged)


def _checked(config: Config | None) -> Config:
    if config is None:
        return Config()
    if not isinstance(config, Config):
        raise TypeError(f"config is a Config, not {type(config).__name__}")
    return config


def _composed(made: AsyncStore | Driver[Any]) -> AsyncStore:
    # Here, so that importing this library does not load what a store is made of.
    from aiolibkv.store import Driver, Store

    if isinstance(made, Driver):
        store: Store[Driver[Any]] = Store(made)
        return store
    return made


def _factory(name: str) -> Factory:
    if name in _registered:
        return _registered[name]
    found = _entry_points().get(name)
    if found is None:
        raise BackendNotSupportedError(_unknown(name))
    return _loaded(name, found)


def _loaded(name: str, point: EntryPoint) -> Factory:
    try:
        factory = point.load()
        if not callable(factory):
            raise TypeError(f"{point.value} is neither a class nor a function")
    except Exception as error:  # importing somebody else's package may raise anything
        package = point.dist.name if point.dist is not None else "aiolibkv"
        extra = point.module.rpartition(".")[2]
        if isinstance(error, ImportError) and point.dist is not None and extra in _extras(point.dist):
            message = f"backend {name!r} needs more packages ({error}): pip install '{package}[{extra}]'"
        else:
            message = f"backend {name!r} of the package {package} cannot be loaded: {error or type(error).__name__}"
        raise BackendNotSupportedError(message) from error
    return cast("Factory", factory)


def _extras(distribution: Distribution) -> Sequence[str]:
    return distribution.metadata.get_all("Provides-Extra") or ()


def _unknown(name: str) -> str:
    known = ", ".join(nearest_first(name, {*_registered, *_entry_points()}))
    if "://" in name:  # it may hold a password
        return f"a URL is for open_store; new_store takes the name of a backend: {known}"
    if name in {"http", "https"}:
        secure = "?tls=true" if name == "https" else ""
        return f"a store's URL begins with the backend's name, as in etcd://host:2379{secure}, not with {name}: {known}"
    return f"there is no backend {name!r}, only {known}"


@cache
def _entry_points() -> dict[str, EntryPoint]:
    # A fifth of what importing this library costs would be this module of the standard library.
    from importlib.metadata import entry_points

    return {point.name: point for point in entry_points(group=GROUP)}
