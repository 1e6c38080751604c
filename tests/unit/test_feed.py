"""The feed: differences, coalescing, order."""

from __future__ import annotations

import pytest

from aiolibkv import Change, KVPair, Snapshot
from aiolibkv.store import Feed


def pair(key: str, index: int, value: bytes = b"v") -> KVPair:
    return KVPair(key, value, index)


def tree_feed(prefix: str = "") -> Feed:
    hidden = f"{prefix}.aiolibkv/"
    return Feed("", tree=True, name=lambda path: None if path.startswith(hidden) else path[len(prefix) :])


def taken(feed: Feed) -> list[Snapshot]:
    states = []
    while (state := feed.take()) is not None:
        states.append(state)
    return states


def test_the_first_state_is_given_even_when_empty() -> None:
    feed = tree_feed()
    assert feed.take() is None
    feed.reset([], 0)
    (state,) = taken(feed)
    assert (list(state), state.changes, state.last_index) == ([], (), 0)
    feed.reset([], 5)
    assert taken(feed) == []


def test_changes_are_the_difference_to_the_state_before() -> None:
    feed = tree_feed()
    feed.reset([pair("a", 1), pair("b", 2)], 2)
    feed.apply([("b", pair("b", 3)), ("c", pair("c", 3)), ("a", None)], 3)
    first, second = taken(feed)
    assert first.changes == (Change("a", pair("a", 1), None), Change("b", pair("b", 2), None))
    assert second.changes == (
        Change("a", None, pair("a", 1)),
        Change("b", pair("b", 3), pair("b", 2)),
        Change("c", pair("c", 3), None),
    )
    assert list(second) == [pair("b", 3), pair("c", 3)]
    assert second.get("/c/") == pair("c", 3)
    assert second.get("a") is None


def test_listing_again_gives_only_the_difference() -> None:
    feed = tree_feed()
    feed.reset([pair("a", 1), pair("b", 2)], 2)
    taken(feed)
    feed.reset([pair("a", 1), pair("b", 2)], 9)
    assert taken(feed) == []
    feed.reset([pair("b", 2), pair("d", 10)], 10)
    (state,) = taken(feed)
    assert [change.key for change in state.changes] == ["a", "d"]


def test_a_known_change_is_not_given_again() -> None:
    feed = tree_feed()
    feed.reset([pair("a", 1)], 1)
    feed.apply([("a", pair("a", 1))], 1)
    feed.apply([("z", None)], 2)
    assert len(taken(feed)) == 1


def test_few_states_stay_apart_and_many_are_merged_into_the_last() -> None:
    feed = tree_feed()
    feed.reset([], 0)
    for index in range(1, 201):
        feed.apply([("a", pair("a", index))], index)
    assert [state.last_index for state in taken(feed)] == list(range(201))
    for index in range(201, 1001):
        feed.apply([("a", pair("a", index))], index)
    states = taken(feed)
    assert len(states) < 300
    assert list(states[-1]) == [pair("a", 1000)]


def test_what_came_and_went_between_two_takes_is_not_given() -> None:
    feed = tree_feed()
    feed.reset([], 0)
    taken(feed)
    for index in range(1, 601):
        feed.apply([("a", pair("a", index) if index % 2 else None)], index)
    states = taken(feed)
    assert all(state.changes for state in states)
    assert list(states[-1]) == []


def test_keys_that_come_and_go_while_nobody_takes_are_not_kept() -> None:
    feed = tree_feed()
    feed.reset([pair("kept", 1), pair("gone", 1)], 1)
    taken(feed)
    for index in range(2, 10_000, 2):
        name = f"passing/{index}"
        feed.apply([(name, pair(name, index))], index)
        feed.apply([(name, None)], index + 1)
    feed.apply([("gone", None)], 10_000)
    assert sum(len(changed) for changed, _ in feed._pending) < 1000
    states = taken(feed)
    assert list(states[-1]) == [pair("kept", 1)]
    assert [change.key for state in states for change in state.changes].count("gone") == 1


def test_the_index_never_decreases_although_the_servers_does() -> None:
    feed = tree_feed()
    feed.reset([pair("a", 90)], 100)
    feed.reset([pair("a", 3)], 4)
    first, second = taken(feed)
    assert (first.last_index, second.last_index) == (100, 100)
    assert second.changes == (Change("a", pair("a", 3), pair("a", 90)),)
    assert feed.index == 4


def test_paths_become_keys_and_the_reserved_subtree_is_hidden() -> None:
    feed = tree_feed("app/")
    feed.reset([pair("app/.aiolibkv/x", 1), pair("app/a", 2)], 2)
    feed.apply([("app/.aiolibkv/y", pair("app/.aiolibkv/y", 3))], 3)
    feed.apply([("app/b", pair("app/b", 4))], 4)
    first, second = taken(feed)
    assert [p.key for p in first] == ["a"]
    assert [p.key for p in second] == ["a", "b"]


def test_an_error_comes_before_what_is_pending() -> None:
    feed = tree_feed()
    feed.reset([], 0)
    feed.fail(KeyError("x"))
    with pytest.raises(KeyError):
        feed.take()


def test_snapshots_are_sequences_that_compare_by_pairs() -> None:
    pairs = [pair("a", 1), pair("b", 2)]
    snapshot = Snapshot(pairs, last_index=2)
    assert snapshot == pairs
    assert snapshot == tuple(pairs)
    assert snapshot == Snapshot(pairs)
    assert hash(snapshot) == hash(Snapshot(pairs))
    assert snapshot != Snapshot()
    assert snapshot != "ab"
    assert snapshot[0] == pairs[0]
    assert snapshot[1:] == tuple(pairs[1:])
    assert repr(snapshot) == "<Snapshot of 2 pairs, 0 changes, index 2>"
