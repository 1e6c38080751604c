"""Key rules."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiolibkv import InvalidKeyError
from aiolibkv.keys import below, normalize_directory, normalize_key


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
def test_bounds_hold_what_is_below_and_nothing_else(directory: str, key: str) -> None:
    first, end = below(f"d{directory}")
    inside = key.startswith(f"d{directory}/")
    assert (first <= key < end) == inside
