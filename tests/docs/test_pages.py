"""What the documentation says is so: its blocks run, its links lead somewhere, its tables are those of the code."""

from __future__ import annotations

import ast
import dataclasses
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import aiolibkv
import aiolibkv.events
import aiolibkv.store
import aiolibkv.testing.conformance
import aiolibkv.testing.servers
from aiolibkv import Config
from aiolibkv.testing.scale import scaled
from docs.pages import DOCS, ROOT, anchors, blocks, links, pages, read, tables

INSTALLS = re.compile(r"python3 -m venv|pip install")
NO_DEFAULT = {"", "the agent's", "the path of a URL"}
KEPT: dict[tuple[str, str], Callable[[Any], object]] = {
    ("sqlite", "durability"): lambda driver: driver._durability,
    ("etcd", "leading_slash"): lambda driver: driver._keyspace.key("a"),
    ("postgresql", "schema"): lambda driver: driver._schema,
    ("postgresql", "table"): lambda driver: driver._table,
    ("zookeeper", "acl"): lambda driver: driver._acl,
    ("zookeeper", "auth"): lambda driver: driver._reach.credentials,
    ("zookeeper", "session_timeout"): lambda driver: driver._session_timeout,
}
"""What a driver makes of each option that has a default."""
PROJECT = tomllib.loads(read("pyproject.toml"))
NAMES = list(map(str, pages()))


def backends() -> dict[str, type[aiolibkv.store.Driver[Any]]]:
    """Return the drivers by their own names; an alias is not one more."""
    found = {}
    for place in PROJECT["project"]["entry-points"]["aiolibkv.backends"].values():
        module, _, name = place.partition(":")
        driver = getattr(import_module(module), name)
        found[driver.name] = driver
    return found


@pytest.mark.parametrize("page", [name for name in NAMES if any(blocks(Path(name), "python"))])
def test_python_blocks(page: str, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    # aiolibkv comes from where these tests have it.
    environment["PYTHONPATH"] += os.pathsep + str(Path(aiolibkv.__file__).parents[1])
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-m", "docs.run_page", page],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=scaled(20),
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert not ended.stderr


@pytest.mark.parametrize("page", [name for name in NAMES if any(blocks(Path(name), "sh"))])
def test_shell_blocks(page: str, tmp_path: Path) -> None:
    """What installs something is not done again; the extras that it names exist."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for block in blocks(Path(page), "sh"):
        subprocess.run(["sh", "-n"], input=block.text, text=True, check=True)
        if not block.is_executed:
            continue
        for extras in re.findall(r"(?:aiolibkv|\.)\[([\w,]+)\]", block.text):
            assert set(extras.split(",")) <= PROJECT["project"]["optional-dependencies"].keys()
        lines = "\n".join(line for line in block.text.splitlines() if not INSTALLS.search(line))
        subprocess.run(
            ["sh", "-eu"], input=lines, text=True, cwd=tmp_path, env=environment, check=True, timeout=scaled(30)
        )


@pytest.mark.parametrize("page", NAMES)
def test_links_within_the_repository(page: str) -> None:
    for link in links(Path(page)):
        target, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", target):
            continue
        place = (ROOT / page).parent / target if target else ROOT / page
        assert place.exists(), link
        # What is built of docs/ has only what is in there.
        assert not page.startswith("docs/") or place.resolve().is_relative_to(DOCS), link
        if anchor:
            assert anchor in anchors(place.resolve().relative_to(ROOT)), link


def test_every_example_is_named() -> None:
    told = set(links(Path("examples/README.md")))
    assert told == {path.name for path in (ROOT / "examples").glob("*.py")}


def test_every_page_is_reached_from_the_front() -> None:
    front = {(DOCS / link.partition("#")[0]).resolve() for link in links(Path("docs/index.md"))}
    assert set(DOCS.glob("**/*.md")) - front - {DOCS / "index.md"} == set()


def test_the_table_of_settings_is_that_of_config() -> None:
    (rows,) = tables("docs/backends.md", "setting")
    fields = {field.name: field for field in dataclasses.fields(Config)}
    assert [row[0] for row in rows] == list(fields)
    for name, in_url, default, _ in rows:
        assert in_url.startswith("yes") != (name in {"options", "listener"}), name
        expected = fields[name].default
        if expected not in (None, "", dataclasses.MISSING) and name != "listener":
            assert default == f"{expected:g}" if isinstance(expected, float) else default == str(expected).lower(), name


def test_the_table_of_options_is_that_of_the_drivers() -> None:
    (rows,) = tables("docs/backends.md", "backend")
    told = {(backend, option) for backend, option, _, _ in rows}
    assert told == {(name, option) for name, driver in backends().items() for option in driver.option_names}


@pytest.mark.parametrize("login", [{}, {"username": "app", "password": "secret"}], ids=["nobody", "user"])
def test_the_defaults_of_options_are_those_of_the_drivers(login: dict[str, Any]) -> None:
    (rows,) = tables("docs/backends.md", "backend")
    told = {(backend, option): default for backend, option, default, _ in rows}
    assert {place for place, default in told.items() if default not in NO_DEFAULT} == KEPT.keys()
    for (backend, option), kept in KEPT.items():
        of_users, _, of_nobody = told[backend, option].partition(" with a username, else ")
        default = of_nobody if of_nobody and not login else of_users
        driver = backends()[backend]
        expected = driver(["127.0.0.1"], Config(**login, options={option: default}))
        assert kept(driver(["127.0.0.1"], Config(**login))) == kept(expected), (backend, option)


def test_the_limits_told_are_those_of_the_drivers() -> None:
    (rows,) = (table for table in tables("docs/backends.md", "") if table[0][0] == "URL")
    names = ["memory", "sqlite", "etcd", "consul", "zookeeper", "postgresql"]
    told = {row[0]: row[1:] for row in rows}
    for label, field in {
        "largest value, bytes": "max_value_bytes",
        "most operations of a commit": "max_operations",
        "most bytes of a commit": "max_commit_bytes",
    }.items():
        for name, cell in zip(names, told[label], strict=True):
            endpoints = {"memory": [], "sqlite": ["x.db"]}.get(name, ["127.0.0.1:1"])
            store = aiolibkv.new_store(name, endpoints)
            assert int(re.split(r"\D", cell)[0]) == getattr(store.capabilities, field), (name, field)


def test_every_public_name_is_in_the_reference() -> None:
    told = set(re.findall(r"^::: (\S+)$", read("docs/reference.md"), re.MULTILINE))
    events = [name for name, value in vars(aiolibkv.events).items() if isinstance(value, type) and name[0].isupper()]
    for module, names in {
        "aiolibkv": aiolibkv.__all__,
        "aiolibkv.store": aiolibkv.store.__all__,
        "aiolibkv.events": events,
        "aiolibkv.testing.servers": aiolibkv.testing.servers.__all__,
        "aiolibkv.testing.conformance": aiolibkv.testing.conformance.__all__,
    }.items():
        assert {f"{module}.{name}" for name in names} <= told


def logged() -> Iterator[tuple[str, str]]:
    """Give the level and the text of each line that the library logs at INFO or above."""
    for path in sorted((ROOT / "src").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("_log."):
                level = ast.unparse(node.func).removeprefix("_log.")
                texts = [each.value for each in node.args if isinstance(each, ast.Constant)]
                if level != "debug" and isinstance(texts[0], str):
                    yield level, texts[0]


def test_every_line_of_the_log_is_told() -> None:
    page = read("docs/howto/monitoring.md")
    # What is fixed in it; names of backends and reasons come from outside.
    words = {max(re.split(r"%[.\d]*\w", text), key=len).strip(" :;'"): level for level, text in logged()}
    assert {word: level for word, level in words.items() if word not in page} == {}
