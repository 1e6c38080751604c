"""Key rules."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiolibkv import InvalidKeyError
from aiolibkv.keys import below, is_key, normalize_directory, normalize_key
from aiolibkv.store.paths import Paths


@pytest.mark.parametrize("key", ["a", "/a", "a/", "//a//"])
def test_outer_slashes_are_dropped(key: str) -> None:
    assert normalize_key(key) == "a"


@pytest.mark.parametrize(
    "key",
    [
        *("", "/", "a//b", ".", "..", "a/./b", "a/..", "a\nb", "a\x00", "a\u00a0b", "a\u200bb", "\ud800"),
        *("\U0001f600", "\ufff0", "\ufffd", "\uffff", "x" * 513, "é" * 257, ".aiolibkv", ".aiolibkv/x", "/.aiolibkv/x"),
    ],
)
def test_bad_keys(key: str) -> None:
    with pytest.raises(InvalidKeyError):
        normalize_key(key)


@pytest.mark.parametrize("key", [" ", "a b", "%", "?#&", "é/ü", "x" * 512, "a/.aiolibkv", ".aiolibkvx", "...", ".a"])
def test_good_keys(key: str) -> None:
    assert normalize_key(key) == key


@pytest.mark.parametrize("key", [b"a", bytearray(b"a"), ["a"], None, 1])
def test_other_types(key: Any) -> None:
    with pytest.raises(TypeError, match=f"a key is a str, not {type(key).__name__}"):
        normalize_key(key)


def test_the_root_is_only_a_directory() -> None:
    assert normalize_directory("/") == ""
    with pytest.raises(InvalidKeyError):
        normalize_key("/")


@given(st.text(max_size=20), st.text(max_size=20))
@example("", "d0")
@example("", "d0/x")
@example("", "d.")
@example("", "d/")
def test_bounds_hold_what_is_below_and_nothing_else(directory: str, key: str) -> None:
    first, end = below(f"d{directory}")
    inside = key.startswith(f"d{directory}/")
    assert (first <= key < end) == inside


def _take(path: str) -> None:
    """Take any path."""


@given(st.lists(st.text("a/.é\n ", max_size=4) | st.just(".aiolibkv/x") | st.just("a" * 513), max_size=4))
def test_what_is_plain_is_seen(names: list[str]) -> None:
    paths = Paths("", _take)
    if paths.are_plain(names):
        assert [paths.visible(name) for name in names] == names


def test_most_lists_are_plain() -> None:
    assert Paths("app", _take).are_plain(["app/a b", "app/a.b/c", "app/%?#"])
    assert not Paths("app", _take).are_plain(["app/a", "app/.aiolibkv/waiters/x"])


@example("a//b")
@example("a/\uffee")
@example("a/\ufffc")
@example("\U0001f600")
@given(st.text("a/.é\n " + "\u00a0", max_size=6) | st.just(".aiolibkv/x") | st.just("a" * 512) | st.just("é" * 257))
def test_a_key_in_its_one_spelling(name: str) -> None:
    try:
        is_one = normalize_key(name) == name
    except InvalidKeyError:
        is_one = False
    assert is_key(name) == is_one
