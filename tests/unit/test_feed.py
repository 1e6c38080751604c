"""The feed: differences, coalescing, order."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Iterable
from random import Random
from time import process_time

import pytest

from aiolibkv import ANY, Change, Check, Delete, KVPair, Put, Snapshot
from aiolibkv.store import Feed, Followers
from aiolibkv.store.watch import _PENDING


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
    assert sum(len(state.changed) for state in feed._pending) < 1000
    states = taken(feed)
    assert list(states[-1]) == [pair("kept", 1)]
    assert [change.key for state in states for change in state.changes].count("gone") == 1


def test_what_is_again_as_it_was_taken_is_not_given() -> None:
    feed = tree_feed()
    feed.reset([pair("a", 1), pair("b", 1)], 1)
    taken(feed)
    for index in range(2, 300):
        feed.apply([("a", pair("a", index))], index)
    feed.reset([pair("a", 1), pair("b", 2)], 300)  # as of a server whose data was restored
    for index in range(301, 600):
        feed.apply([("b", pair("b", index))], index)
    assert {change.key for state in taken(feed) for change in state.changes} == {"b"}


def test_a_merged_state_that_is_as_it_was_taken_is_not_given() -> None:
    feed = tree_feed()
    feed.reset([pair("a", 1)], 1)
    taken(feed)
    for index in range(2, _PENDING + 2):
        feed.apply([("a", pair("a", index))], index)
    feed.reset([pair("a", 1)], _PENDING + 2)  # as of a server whose data was restored
    assert len(feed._pending) == 1
    assert taken(feed) == []


def test_large_values_that_nobody_takes_are_not_kept() -> None:
    feed = tree_feed()
    feed.reset([pair(f"kept/{number}", 1, bytes(1_000_000)) for number in range(10)], 1)
    for index in range(2, 102):
        feed.apply([("a", pair("a", index, bytes(500_000)))], index)
    kept = {
        id(each.value): each.value for state in feed._pending for each in state.changed.values() if each is not None
    }
    assert sum(len(value) for value in kept.values()) < 16_000_000
    states = taken(feed)
    assert (states[-1].get("a"), len(states[-1])) == (pair("a", 101, bytes(500_000)), 11)
    # One that keeps up is given each of them.
    for index in range(102, 130):
        feed.apply([("a", pair("a", index, bytes(500_000)))], index)
        if index % 5 == 0:
            assert [state.last_index for state in taken(feed)] == list(range(max(index - 4, 102), index + 1))


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


def test_a_snapshot_is_asked_by_key() -> None:
    pairs = [pair("a", 1), pair("config/a", 2), pair("config/b", 3)]
    snapshot = Snapshot(pairs)
    assert "config/a" in snapshot
    assert "/config/a/" in snapshot
    assert snapshot["config/a"] == snapshot["/config/a"] == snapshot.get("config/a") == pairs[1]
    for key in ("config", "config/c", "", "z"):
        assert key not in snapshot
        assert snapshot.get(key) is None
        with pytest.raises(KeyError, match=f"^'{key}'$"):
            snapshot[key]
    assert pairs[1] in snapshot
    assert pair("config/a", 9) not in snapshot
    assert 1 not in snapshot
    assert None not in snapshot
    with pytest.raises(IndexError):
        snapshot[3]
    assert list(reversed(snapshot)) == pairs[::-1]
    assert [*snapshot, snapshot.index(pairs[2])] == [*pairs, 2]
    assert pickle.loads(pickle.dumps(snapshot)) == copy.copy(snapshot) == snapshot


def test_a_snapshot_does_not_change_with_what_it_was_made_of() -> None:
    pairs = [pair("a", 1)]
    snapshot = Snapshot(pairs)
    pairs.append(pair("b", 2))
    assert list(snapshot) == pairs[:1]
    feed = tree_feed()
    feed.reset(pairs, 2)
    (before,) = taken(feed)
    feed.apply([("a", None), ("b", pair("b", 3)), ("c", pair("c", 3))], 3)
    (after,) = taken(feed)
    assert (list(before), list(after)) == (pairs, [pair("b", 3), pair("c", 3)])


@pytest.mark.parametrize("seed", range(20))
def test_snapshots_follow_each_other_as_dicts_do(seed: int) -> None:
    random = Random(seed)
    feed = tree_feed()
    feed.reset([], 0)
    taken(feed)
    state: dict[str, KVPair] = {}
    for index in range(1, 60):
        names = random.sample("abcdefghijklmnop", random.randrange(1, 8))
        changed = [(name, None if random.random() < 0.4 else pair(name, index)) for name in names]
        before = dict(state)
        for name, new in changed:
            if new is None:
                state.pop(name, None)
            else:
                state[name] = new
        feed.apply(changed, index)
        expected = [state[name] for name in sorted(state)]
        for snapshot in taken(feed):
            assert snapshot == expected
            assert [(each.key, each.pair, each.previous) for each in snapshot.changes] == [
                (name, state.get(name), before.get(name))
                for name in sorted(names)
                if state.get(name) != before.get(name)
            ]


def test_one_change_costs_as_much_as_a_few_copies_of_the_pairs() -> None:
    pairs = [pair(f"tree/{number:06d}", 1) for number in range(50_000)]
    feed = tree_feed()
    feed.reset(pairs, 1)
    (snapshot,) = taken(feed)

    def copying(pairs: Iterable[KVPair]) -> float:
        began = process_time()
        for _ in range(20):
            list(pairs)
        return process_time() - began

    def changing(first: int) -> float:
        began = process_time()
        for index in range(first, first + 20):
            feed.apply([("tree/025000", pair("tree/025000", index))], index)
            taken(feed)
        return process_time() - began

    floor = min(copying(pairs) for _ in range(5))
    assert min(changing(2 + 20 * turn) for turn in range(5)) < 20 * floor
    assert min(copying(snapshot) for _ in range(5)) < 10 * floor


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


def test_pairs_compare_by_all_they_have() -> None:
    one = KVPair("a", b"v", 1)
    assert one == KVPair("a", b"v", 1)
    assert hash(one) == hash(KVPair("a", b"v", 1))
    for other in (KVPair("b", b"v", 1), KVPair("a", b"w", 1), KVPair("a", b"v", 2), ("a", b"v", 1), None):
        assert one != other


@pytest.mark.parametrize("operation", [Put("a", b"v"), Delete("a"), Check("a")])
def test_operations_cannot_be_changed(operation: Put | Delete | Check) -> None:
    assert operation.previous is ANY
    assert repr(operation).endswith("previous=ANY)")
    with pytest.raises(dataclasses.FrozenInstanceError):
        operation.key = "b"  # type: ignore[misc]
    assert operation == copy.copy(operation)
    assert pickle.loads(pickle.dumps(operation)) == operation


def test_who_follows_which_key_or_directory() -> None:
    followers: Followers[str] = Followers()
    feeds = {
        name: Feed(path, tree=tree, name=str)
        for name, path, tree in (("all", "", True), ("a", "a", True), ("a/b", "a/b", True), ("key", "a/b", False))
    }
    for name, feed in feeds.items():
        followers.add(feed, name)
    changes = [("a/b", None), ("a/b/c", pair("a/b/c", 1)), ("ab", None)]
    assert followers.concerned(changes) == {
        "all": changes,
        "a": changes[:2],
        "a/b": changes[1:2],
        "key": changes[:1],
    }
    assert len(followers) == 4
    for name, feed in feeds.items():
        followers.discard(feed, name)
    assert not followers
    assert not followers.is_concerned("a/b")
