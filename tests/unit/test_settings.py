"""Config, URLs, names, endpoints, errors."""

from __future__ import annotations

import pickle
import random
import ssl
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import pytest

import aiolibkv
from aiolibkv import AsyncStore, BackendNotSupportedError, Config, new_store, open_store, register_backend, registry
from aiolibkv.store import endpoints as endpoints_module
from aiolibkv.store.backoff import growing_pauses
from aiolibkv.store.endpoints import Endpoint, Endpoints, parse_endpoint


class SeenError(Exception):
    def __init__(self, endpoints: Sequence[str], config: Config) -> None:
        self.endpoints = list(endpoints)
        self.config = config


@pytest.fixture(autouse=True)
def seen_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registered", {})

    def factory(endpoints: Sequence[str], config: Config) -> AsyncStore:
        raise SeenError(endpoints, config)

    def file(endpoints: Sequence[str], config: Config) -> AsyncStore:
        raise SeenError(endpoints, config)

    file.endpoint_is_path = True  # type: ignore[attr-defined]

    def database(endpoints: Sequence[str], config: Config) -> AsyncStore:
        raise SeenError(endpoints, config)

    database.path_option = "database"  # type: ignore[attr-defined]
    register_backend("seen", factory)
    register_backend("database", database)
    register_backend("file", file)


def read(url: str, config: Config | None = None) -> SeenError:
    with pytest.raises(SeenError) as caught:
        open_store(url, config)
    return caught.value


@pytest.mark.parametrize(
    ("url", "endpoints", "prefix"),
    [
        ("seen://h:1", ["h:1"], ""),
        ("seen://h:1,g:2,[::1]:3/app/x/", ["h:1", "g:2", "[::1]:3"], "app/x"),
        ("seen://", [], ""),
        ("seen:///app", [], "app"),
        ("file://", [], ""),
        ("file:///file.db", ["file.db"], ""),
        ("file:///dir/file.db?prefix=p", ["dir/file.db"], "p"),
        ("file:////tmp/a%20b.db", ["/tmp/a b.db"], ""),
        ("seen://name", ["name"], ""),
        ("SEEN://Name/%C3%A9", ["Name"], "é"),
        ("seen://h?prefix=p", ["h"], "p"),
    ],
)
def test_urls(url: str, endpoints: list[str], prefix: str) -> None:
    seen = read(url)
    assert (seen.endpoints, seen.config.prefix) == (endpoints, prefix)


def test_the_path_of_a_url_may_be_an_option() -> None:
    seen = read("database://h:1,g:2/my%20base?prefix=app")
    assert (seen.endpoints, seen.config.prefix) == (["h:1", "g:2"], "app")
    assert dict(seen.config.options) == {"database": "my base"}
    assert dict(read("database://h").config.options) == {}
    with pytest.raises(ValueError, match="two different values for database"):
        open_store("database://h/one?database=two")
    with pytest.raises(ValueError, match="differ in option 'database'"):
        open_store("database://h/one", Config(options={"database": "two"}))


def test_url_parameters_are_fields_or_options() -> None:
    config = read("seen://us%40er:p%3Aw@h?tls=true&ca_file=/ca&request_timeout=2.5&speed=9").config
    assert (config.username, config.password, config.tls) == ("us@er", "p:w", True)
    assert (config.ca_file, config.request_timeout, dict(config.options)) == ("/ca", 2.5, {"speed": "9"})


def test_url_adds_to_config() -> None:
    config = read("seen://h/p?request_timeout=2", Config(connection_timeout=1, prefix="p")).config
    assert (config.connection_timeout, config.request_timeout, config.prefix) == (1, 2, "p")


def test_the_same_thing_may_be_said_in_other_words() -> None:
    assert read("seen://h/p/?prefix=/p").config.prefix == "p"
    config = Config(prefix="p", tls=True, ca_file=Path("/ca"))
    assert read("seen://h?prefix=/p/&tls=true&ca_file=/ca", config).config == Config(
        prefix="p", tls=True, ca_file="/ca"
    )


@pytest.mark.parametrize(
    "url",
    [
        *("seen:h", "h:1", "", "seen://h#x", "seen://h?tls=perhaps", "seen://h?request_timeout=soon"),
        *("seen://h?request_timeout=nan", "seen://h?request_timeout=0", "seen://h?prefix=a&prefix=b", "seen://h?x"),
        *("seen://h/a?prefix=b", "seen://u@h?username=v", "seen://h?options=x", "seen://h/a//b", "seen://h?ca_file=x"),
        *("seen://h?tls=true&cert_file=x", "seen://h?connection_timeout=inf"),
    ],
)
def test_bad_urls(url: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        open_store(url)


@pytest.mark.parametrize(
    ("url", "error", "message"),
    [
        ("localhost", ValueError, "as in etcd://localhost or memory://$"),
        ("localhost:2379", ValueError, "as in etcd://localhost:2379 or memory://$"),
        ("ann:secret@h:2379", ValueError, "as in etcd://localhost:2379 or"),
        ("memory", ValueError, "or memory://$"),
        ("http://h:2379", BackendNotSupportedError, r"as in etcd://host:2379, not with http: .*consul.*etcd"),
        ("https://ann:secret@h", BackendNotSupportedError, r"as in etcd://host:2379\?tls=true, not with https"),
        ("conzul://ann:secret@h", BackendNotSupportedError, "no backend 'conzul', only consul, "),
        ("memory://?tsl=true", ValueError, "^memory: unknown option 'tsl', only tls, bucket, .*username$"),
        ("etcd:///?host=/run/x", ValueError, "^etcd: 'host' stands before the path, .* as unix:%2Fpath%2Fof%2Fsocket$"),
        ("sqlite:///a.db?durable=full", ValueError, "^sqlite: unknown option 'durable', only durability, "),
        ("memory://?request_timout=secret", ValueError, "'request_timout', only request_timeout, "),
        ("seen://h?listener=print", ValueError, "a listener is code"),
    ],
)
def test_what_people_write_for_a_url_is_answered_with_what_to_write(
    url: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message) as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


def test_a_url_in_place_of_a_backend_is_not_repeated() -> None:
    with pytest.raises(BackendNotSupportedError, match=r"open_store; new_store takes .*: .*etcd.*memory") as caught:
        new_store("etcd://ann:secret@h")
    assert "secret" not in str(caught.value)
    with pytest.raises(TypeError, match="name is a str, not NoneType"):
        new_store(None)  # type: ignore[arg-type]
    for url in (None, b"memory://", 1):
        with pytest.raises(TypeError, match=f"a URL is a str, not {type(url).__name__}"):
            open_store(url)  # type: ignore[arg-type]


def test_a_unix_socket_is_a_host_whose_slashes_are_encoded() -> None:
    seen = read("seen://unix:%2Frun%2Fkv.sock,h:1/app")
    assert (seen.endpoints, seen.config.prefix) == (["unix:/run/kv.sock", "h:1"], "app")


@pytest.mark.parametrize(
    "url", ["file://file.db", "file://dir/file.db", "file://./file.db", "file://u:secret@/file.db"]
)
def test_a_path_has_three_slashes_before_it(url: str) -> None:
    with pytest.raises(ValueError, match="file:///relative or file:////absolute") as caught:
        open_store(url)
    assert "secret" not in str(caught.value)


def test_what_the_backends_make_of_slashes() -> None:
    for url in ("sqlite://app.db", "sqlite://data/app.db", "etcd:///app", "consul:///app", "zookeeper:///app"):
        with pytest.raises(ValueError, match=r"takes a path|at least one endpoint"):
            open_store(url)


@pytest.mark.parametrize(
    ("url", "config", "name"),
    [
        ("seen://h/a", Config(prefix="b"), "prefix"),
        ("seen://u:secret1@h", Config(username="u", password="secret2"), "password"),
        ("seen://h?speed=1", Config(options={"speed": "2"}), "speed"),
    ],
)
def test_url_and_config_may_not_differ(url: str, config: Config, name: str) -> None:
    with pytest.raises(ValueError, match=name) as caught:
        open_store(url, config)
    assert "secret" not in str(caught.value)


def test_unknown_parameters_are_refused_by_the_backend() -> None:
    with pytest.raises(ValueError, match="unknown option 'speed'"):
        open_store("memory://?speed=1")


@pytest.mark.parametrize(
    ("make", "nearest"),
    [
        (lambda: new_store("consul", ["localhost"], Config(options={"name_space": "kv"})), "namespace"),
        (lambda: open_store("consul://localhost?name_space=kv"), "namespace"),
        (lambda: open_store("consul://localhost?request_timeuot=1"), "request_timeout"),
        (lambda: new_store("zokeeper", ["localhost"]), "zookeeper"),
    ],
)
def test_what_is_unknown_is_answered_with_what_is_like_it_first(make: Callable[[], object], nearest: str) -> None:
    with pytest.raises((ValueError, BackendNotSupportedError), match=f"(only|are:) {nearest}, "):
        make()


def test_defaults() -> None:
    nothing = dict.fromkeys(("ca_file", "cert_file", "key_file", "username", "password", "token", "listener"))
    times = {"connection_timeout": 5.0, "request_timeout": 5.0}
    assert vars(Config()) == {**times, **nothing, "tls": False, "prefix": "", "bucket": "aiolibkv", "options": {}}


def test_secrets_are_not_shown() -> None:
    config = Config(username="ann", password="secret", token="secret")
    assert "secret" not in repr(config)
    assert "ann" in repr(config)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("request_timeout", "5"), ("connection_timeout", True), ("tls", "false"), ("tls", 1), ("tls", None)),
        *(("ca_file", b"secret"), ("cert_file", 5), ("key_file", 5), ("username", 5), ("password", b"secret")),
        *(("token", b"secret"), ("token", 5), ("bucket", None), ("options", None), ("options", ["secret"])),
        ("listener", "secret"),
    ],
)
def test_config_types(name: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"{name} is .*, not {type(value).__name__}") as caught:
        Config(**{name: value})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["request_timeout", "connection_timeout"])
def test_timeouts_are_finite(name: str) -> None:
    for seconds in (0, -1, 0.0, float("inf"), float("nan"), 10**400, -(10**400)):
        with pytest.raises(ValueError, match=f"{name} is a finite number of seconds above 0"):
            Config(**{name: seconds})  # type: ignore[arg-type]
    assert isinstance(vars(Config(**{name: 3}))[name], float)  # type: ignore[arg-type]


def test_an_ssl_context_has_its_files() -> None:
    context = ssl.create_default_context()
    for files in ({"ca_file": "/ca"}, {"cert_file": "/cert", "key_file": "/key"}):
        with pytest.raises(ValueError, match="an SSLContext: load the files into it"):
            Config(tls=context, **files)  # type: ignore[arg-type]


def test_unknown_backends_name_the_known_ones() -> None:
    with pytest.raises(BackendNotSupportedError, match=r"no backend 'redis', only .*memory.*seen"):
        new_store("redis")


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of somebody else, with the extra ``heavy``."""
    described = tmp_path / "their_store-1.0.dist-info"
    described.mkdir()
    (described / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: their-store\nVersion: 1.0\nProvides-Extra: heavy\n"
    )
    (described / "entry_points.txt").write_text(
        f"[{registry.GROUP}]\nheavy = their.heavy:Driver\ngone = their.light:Gone\nvalue = their.light:VALUE\n"
        "broken = their.broken:Driver\nlost = their.lost:Driver\n"
    )
    package = tmp_path / "their"
    package.mkdir()
    (package / "heavy.py").write_text("import a_package_that_nobody_has")
    (package / "light.py").write_text("VALUE = 1")
    (package / "broken.py").write_text("raise RuntimeError('on a Tuesday')")
    monkeypatch.syspath_prepend(tmp_path)
    registry._entry_points.cache_clear()
    yield package
    registry._entry_points.cache_clear()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("heavy", r"needs more packages \(.*a_package_that_nobody_has.*\): pip install 'their-store\[heavy\]'"),
        ("gone", r"of the package their-store cannot be loaded: .*Gone"),
        ("value", "their.light:VALUE is neither a class"),
        ("broken", "cannot be loaded: on a Tuesday"),
        ("lost", "cannot be loaded: No module named 'their.lost'"),
    ],
)
@pytest.mark.usefixtures("installed")
def test_a_backend_that_cannot_be_loaded_is_not_supported(name: str, told: str) -> None:
    with pytest.raises(BackendNotSupportedError, match=told) as caught:
        new_store(name)
    assert caught.value.__cause__ is not None
    with pytest.raises(BackendNotSupportedError, match=told):
        open_store(f"{name}://h")


@pytest.mark.parametrize("endpoints", ["h:1", b"h:1", None, {"h:1": ""}, [b"h:1"], ["h:1", None], [("h", 1)]])
def test_endpoints_are_a_sequence_of_str(endpoints: Any) -> None:
    with pytest.raises(TypeError, match="endpoint"):
        new_store("seen", endpoints)


@pytest.mark.parametrize("config", [{}, {"prefix": "a"}, "a", 0])
def test_a_config_is_a_config(config: Any) -> None:
    with pytest.raises(TypeError, match="config is a Config"):
        new_store("seen", ["h"], config)
    with pytest.raises(TypeError, match="config is a Config"):
        open_store("seen://h", config)


def test_a_registered_name_is_the_scheme_of_a_url() -> None:
    for name in ("my_backend", "my-backend.2+tls"):
        register_backend(name, registry._registered["seen"])
        assert read(f"{name}://h").endpoints == ["h"]
    for name in ("", "Mine", "a b", "2nd", "mine://", "é"):
        with pytest.raises(ValueError, match="name"):
            register_backend(name, registry._registered["seen"])
    with pytest.raises(TypeError, match="factory"):
        register_backend("mine", "not a factory")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "endpoint"),
    [("h", ("h", 7)), ("h:1", ("h", 1)), ("127.0.0.1:65535", ("127.0.0.1", 65535)), ("[::1]", ("::1", 7))],
)
def test_endpoint(address: str, endpoint: tuple[str, int]) -> None:
    assert parse_endpoint(address, 7) == endpoint


@pytest.mark.parametrize(
    "address",
    [
        *("", ":1", "h:x", "h:0", "h:65536", "http://h:1", "h:1/x", "a b:1", "[::1]x"),
        *("a..b:1", ".a:1", "a" * 64 + ":1", "a\0b:1", "a\nb:1", "\ud800:1"),
    ],
)
def test_bad_endpoint(address: str) -> None:
    with pytest.raises(ValueError, match="endpoint"):
        parse_endpoint(address, 7)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("http://h:1", r"no URL: h:1$"),
        ("etcd://h/app", r"no URL: h:7$"),
        ("https://h:1/x", r"no URL: h:1, and the setting tls=True$"),
        ("http://h:secret/x", r"no URL: h:7$"),
        ("http:///x", r"no URL: localhost:7$"),
        ("::1", r"in brackets: \[::1\]:7$"),
        ("fe80::1%eth0", r"in brackets: \[fe80::1%eth0\]:7$"),
        ("unix:/run/kv.sock", r"such as localhost:7, no Unix socket$"),
    ],
)
def test_what_people_write_for_an_endpoint_is_answered_with_what_to_write(address: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        parse_endpoint(address, 7)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("backend", "port"), [("consul", 8500), ("etcd", 2379), ("postgresql", 5432), ("zookeeper", 2181)]
)
def test_every_backend_answers_what_people_write_with_what_to_write(backend: str, port: int) -> None:
    for address, message in (
        ("http://h:1", "no URL: h:1$"),
        (f"{backend}://h", f"no URL: h:{port}$"),
        ("https://h:1", "no URL: h:1, and the setting tls=True$"),
        ("::1", rf"in brackets: \[::1\]:{port}$"),
    ):
        with pytest.raises(ValueError, match=message):
            new_store(backend, ["other", address])
    for url, message in (
        (f"{backend}://::1/app", rf"in brackets: \[::1\]:{port}$"),
        (f"{backend}://http://h:1/app", f"two schemes: write {backend}://host:port$"),
        (f"{backend}://https://h:1", rf"two schemes: write {backend}://host:port, and \?tls=true$"),
    ):
        with pytest.raises(ValueError, match=message):
            open_store(url)


def test_unix_sockets() -> None:
    endpoint = parse_endpoint("unix:/run/kv.sock", 7, unix=True)
    assert (endpoint.is_unix, endpoint.host, str(endpoint)) == (True, "/run/kv.sock", "unix:/run/kv.sock")
    assert parse_endpoint("unix:///run/kv.sock", 7, unix=True) == endpoint
    assert not parse_endpoint("h", 7, unix=True).is_unix
    for address in ("unix:", "unix:kv.sock", "unix:/a\0b"):
        with pytest.raises(ValueError, match="unix:%2Fpath%2Fof%2Fsocket"):
            parse_endpoint(address, 7, unix=True)


def test_stores_begin_at_any_endpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoints_module, "shuffle", random.Random(1).shuffle)
    names = ["a", "b", "c"]
    orders = set()
    for _ in range(100):
        endpoints = Endpoints(names, 9)
        order = []
        for _ in names:
            order.append(endpoints.current.host)
            endpoints.failed(endpoints.current)
        orders.add(tuple(order))
    assert orders == set(permutations(names))


def test_pauses_grow_within_bounds() -> None:
    pauses = list(islice(growing_pauses(0.1, 1.0), 10))
    for pause, most in zip(pauses, [0.1, 0.2, 0.4, 0.8, *[1.0] * 6], strict=True):
        assert most / 2 <= pause <= most
    assert len(set(pauses)) == 10


def test_endpoints_move_on_once() -> None:
    endpoints = Endpoints(["a:1", "b:2", "[::1]:3"], 9)
    first = endpoints.current
    endpoints.failed(first)
    endpoints.failed(first)
    assert endpoints.current == Endpoint("b", 2)
    endpoints.failed(endpoints.current)
    assert str(endpoints.current) == "[::1]:3"
    endpoints.failed(endpoints.current)
    assert endpoints.current == first
    with pytest.raises(ValueError, match="at least one"):
        Endpoints([], 9)


def error_classes() -> list[type[aiolibkv.StoreError]]:
    named = (getattr(aiolibkv, name) for name in aiolibkv.__all__)
    return [item for item in named if isinstance(item, type) and issubclass(item, aiolibkv.StoreError)]


@pytest.mark.parametrize("kind", error_classes())
def test_errors_tell_what_and_where(kind: type[aiolibkv.StoreError]) -> None:
    error = kind(key="k", maybe_applied=True)
    error.locate("etcd", "h:1", "other")
    assert str(error) == f"{kind.meaning} (etcd at h:1, key 'k'); the write may have been applied"
    assert str(kind("text")) == "text"
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), type(again)) == (str(error), kind)


def test_errors_are_the_builtin_ones_too() -> None:
    builtin: dict[type[aiolibkv.StoreError], type[Exception]] = {
        aiolibkv.InvalidKeyError: ValueError,
        aiolibkv.ValueTooLargeError: ValueError,
        aiolibkv.KeyNotFoundError: KeyError,
        aiolibkv.AccessDeniedError: PermissionError,
        aiolibkv.NotReachableError: ConnectionError,
        aiolibkv.RequestTimeoutError: TimeoutError,
    }
    for kind in set(error_classes()) - {aiolibkv.StoreError}:
        assert kind.__bases__ == (aiolibkv.StoreError, *([builtin[kind]] if kind in builtin else []))
