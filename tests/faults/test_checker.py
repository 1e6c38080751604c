"""The checker of histories accepts what a register can have done, and refuses what it cannot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations, permutations
from random import Random
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from faults.linearizability import NotLinearizableError, Operation, Outcome, check

Call = Literal["get", "exists", "put", "delete"]


def op(
    call: Call,
    began: float,
    ended: float,
    outcome: Outcome = "done",
    *,
    at: tuple[str, int] | str | None = None,
    expected: int | None = None,
) -> Operation:
    """Make an operation; ``at`` is the value written or read, with its index if it was returned."""
    value, index = at if isinstance(at, tuple) else (at, None)
    return Operation(
        client=f"client {began:g}",
        key="key",
        call=call,
        began=began,
        ended=math.inf if outcome == "unknown" else ended,
        outcome=outcome,
        value=None if value is None else value.encode(),
        index=index,
        expected=expected,
    )


PUT_A = op("put", 0, 1, at=("a", 1))

GOOD = {
    "nothing": [],
    "one after the other": [
        op("get", 0, 1, "missing"),
        op("put", 2, 3, at=("a", 1), expected=0),
        op("put", 4, 5, "exists", at="b", expected=0),
        op("put", 6, 7, at=("c", 2), expected=1),
        op("put", 8, 9, "modified", at="d", expected=1),
        op("delete", 10, 11, "modified", expected=1),
        op("delete", 12, 13, expected=2),
        op("delete", 14, 15, "missing", expected=2),
        op("delete", 16, 17, "missing"),
        op("put", 18, 19, "modified", at="e", expected=2),
        op("exists", 20, 21, "missing"),
    ],
    "a read during a write sees either state": [
        PUT_A,
        op("put", 2, 9, at=("b", 2)),
        op("get", 3, 4, at=("a", 1)),
        op("get", 5, 6, at=("b", 2)),
    ],
    "concurrent writes take effect in the order of their indexes": [
        op("put", 0, 9, at=("b", 2)),
        op("put", 1, 8, at=("a", 1)),
        op("get", 10, 11, at=("b", 2)),
    ],
    "an unknown write never happens": [PUT_A, op("put", 2, 3, "unknown", at="b"), op("get", 4, 5, at=("a", 1))],
    "an unknown write happens late": [
        PUT_A,
        op("put", 2, 3, "unknown", at="b"),
        op("get", 4, 5, at=("a", 1)),
        op("get", 6, 7, at=("b", 3)),
    ],
    "an unknown write that nobody read explains a refusal": [
        PUT_A,
        op("put", 2, 3, "unknown", at="b"),
        op("put", 4, 5, "modified", at="c", expected=1),
    ],
    "an unknown deletion": [PUT_A, op("delete", 2, 3, "unknown"), op("exists", 4, 5, "missing")],
    "an unknown swap that was too late": [
        PUT_A,
        op("put", 2, 3, "unknown", at="b", expected=1),
        op("put", 4, 5, at=("c", 2), expected=1),
        op("get", 6, 7, at=("c", 2)),
    ],
    "many unknown writes": [
        PUT_A,
        *(op("put", 2, 3, "unknown", at=f"b{number}") for number in range(40)),
        *(op("delete", 2, 3, "unknown") for _ in range(40)),
        op("get", 4, 5, "missing"),
        op("exists", 6, 7),
        op("get", 8, 9, "missing"),
        op("get", 10, 11, at=("b7", 2)),
    ],
    "two keys": [PUT_A, replace(op("put", 2, 3, at=("b", 1)), key="other"), op("get", 4, 5, at=("a", 1))],
}

BAD = {
    "a stale read": [PUT_A, op("put", 2, 3, at=("b", 2)), op("get", 4, 5, at=("a", 1))],
    "a stale absence": [PUT_A, op("get", 2, 3, "missing")],
    "a stale existence": [PUT_A, op("delete", 2, 3), op("exists", 4, 5)],
    "reads that go back during a write": [
        PUT_A,
        op("put", 2, 9, at=("b", 2)),
        op("get", 3, 4, at=("b", 2)),
        op("get", 5, 6, at=("a", 1)),
    ],
    "a read of the future": [op("get", 0, 1, at=("a", 1)), op("put", 2, 3, at=("a", 1))],
    "a lost write": [op("put", 0, 1, at=("a", 1)), op("get", 2, 3, "missing"), op("get", 4, 5, at=("a", 1))],
    "a deletion that did not last": [PUT_A, op("delete", 2, 3), op("get", 4, 5, at=("a", 1))],
    "an unknown write that happens twice": [
        op("put", 0, 1, "unknown", at="a"),
        op("put", 2, 3, at=("b", 2)),
        op("get", 4, 5, at=("b", 2)),
        op("get", 6, 7, at=("a", 3)),
        op("put", 8, 9, at=("c", 4)),
        op("get", 10, 11, at=("a", 5)),
    ],
    "an unknown write that is undone": [
        PUT_A,
        op("put", 2, 3, "unknown", at="b"),
        op("get", 4, 5, at=("b", 2)),
        op("get", 6, 7, at=("a", 1)),
    ],
    "an unknown deletion that happens twice": [
        PUT_A,
        op("delete", 2, 3, "unknown"),
        op("get", 4, 5, "missing"),
        op("put", 6, 7, at=("b", 2)),
        op("get", 8, 9, "missing"),
    ],
    "an unknown write before it began": [op("get", 0, 1, at=("a", 1)), op("put", 2, 3, "unknown", at="a")],
    "two swaps of one previous": [
        PUT_A,
        op("put", 2, 9, at=("b", 2), expected=1),
        op("put", 2, 9, at=("c", 3), expected=1),
    ],
    "two unknown swaps of one previous": [
        PUT_A,
        op("put", 2, 9, "unknown", at="b", expected=1),
        op("put", 2, 9, "unknown", at="c", expected=1),
        op("get", 10, 11, at=("b", 2)),
        op("get", 12, 13, at=("c", 3)),
    ],
    "two creations": [op("put", 0, 9, at=("a", 1), expected=0), op("put", 0, 9, at=("b", 2), expected=0)],
    "two deletions of one key": [PUT_A, op("delete", 2, 9), op("delete", 2, 9)],
    "a read of what nobody wrote": [op("get", 0, 1, at=("a", 1))],
    "a read of what was refused": [
        PUT_A,
        op("put", 2, 3, "exists", at="b", expected=0),
        op("get", 4, 5, at=("b", 2)),
    ],
    "a creation of an existing key": [PUT_A, op("put", 2, 3, at=("b", 2), expected=0)],
    "a swap against an old index": [
        PUT_A,
        op("put", 2, 3, at=("b", 2)),
        op("put", 4, 5, at=("c", 3), expected=1),
    ],
    "a swap of a missing key": [PUT_A, op("delete", 2, 3), op("put", 4, 5, at=("b", 2), expected=1)],
    "a deletion of a missing key": [op("delete", 0, 1)],
    "a deletion against an old index": [PUT_A, op("put", 2, 3, at=("b", 2)), op("delete", 4, 5, expected=1)],
    "a refusal to create a missing key": [op("put", 0, 1, "exists", at="a", expected=0)],
    "a refusal of the current previous": [PUT_A, op("put", 2, 3, "modified", at="b", expected=1)],
    "a refusal to delete the current previous": [PUT_A, op("delete", 2, 3, "modified", expected=1)],
    "a refusal to delete an existing key": [PUT_A, op("delete", 2, 3, "missing")],
    "an index that goes back": [op("put", 0, 1, at=("a", 2)), op("put", 2, 3, at=("b", 1))],
    "an index that stays": [PUT_A, op("put", 2, 3, at=("b", 1))],
    "an index that begins again with the key": [
        PUT_A,
        op("delete", 2, 3),
        op("put", 4, 5, at=("b", 1)),
    ],
    "an unknown write at an older index": [
        op("put", 0, 1, at=("a", 2)),
        op("put", 2, 3, "unknown", at="b"),
        op("get", 4, 5, at=("b", 1)),
    ],
    "a read at another index": [PUT_A, op("get", 2, 3, at=("a", 2))],
    "many unknown writes do not explain a stale read": [
        PUT_A,
        op("put", 2, 3, at=("b", 2)),
        *(op("put", 4, 5, "unknown", at=f"c{number}") for number in range(40)),
        *(op("delete", 4, 5, "unknown") for _ in range(40)),
        op("get", 6, 7, at=("a", 1)),
    ],
}


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("exact_compare", [True, False])
def test_good_histories_are_accepted(name: str, exact_compare: bool) -> None:  # noqa: FBT001 -- a parameter of tests
    check(GOOD[name], exact_compare=exact_compare)


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("exact_compare", [True, False])
def test_bad_histories_are_refused(name: str, exact_compare: bool) -> None:  # noqa: FBT001 -- a parameter of tests
    with pytest.raises(NotLinearizableError):
        check(BAD[name], exact_compare=exact_compare)


def test_a_comparison_that_is_not_exact_takes_a_new_key_for_the_old_one_only_while_it_is_made() -> None:
    created_meanwhile = [
        PUT_A,
        op("put", 2, 9, at=("c", 3), expected=1),
        op("delete", 3, 4),
        op("put", 5, 6, at=("b", 2)),
    ]
    check(created_meanwhile, exact_compare=False)
    with pytest.raises(NotLinearizableError):
        check(created_meanwhile)
    created_before = [
        PUT_A,
        op("delete", 2, 3),
        op("put", 4, 5, at=("b", 2)),
        op("put", 6, 7, at=("c", 3), expected=1),
    ]
    with pytest.raises(NotLinearizableError):
        check(created_before, exact_compare=False)


def test_a_read_may_lag_behind_others_but_not_behind_its_client() -> None:
    stale = [PUT_A, op("put", 2, 3, at=("b", 2)), op("get", 4, 5, at=("a", 1))]
    check(stale, lag=1.5)
    with pytest.raises(NotLinearizableError):
        check(stale, lag=0.5)
    saw_more = [
        *stale[:2],
        replace(op("get", 3.2, 3.5, at=("b", 2)), client="reader"),
        replace(stale[2], client="reader"),
    ]
    with pytest.raises(NotLinearizableError):
        check(saw_more, lag=1.5)
    late_swap = [*stale[:2], op("put", 4, 5, at=("c", 3), expected=1)]
    with pytest.raises(NotLinearizableError):
        check(late_swap, lag=1.5)


def test_the_error_shows_what_does_not_fit() -> None:
    with pytest.raises(NotLinearizableError, match=r"(?s)>.*client 4: get: done b'a' at 1"):
        check(BAD["a stale read"])


class _Run:
    """A random history of concurrent calls on one real register."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._value: bytes | None = None
        self._index = 0
        self._highest = 0
        self._clock = 0.0
        self._told: list[int] = []
        self.history: list[Operation] = []

    def run(self, steps: int, clients: int) -> None:
        """Have clients begin calls, let them take effect, and end them, in any order."""
        waiting: list[Operation] = []
        effective: list[Operation] = []
        for _ in range(steps):
            self._clock += 1
            is_one_free = len(waiting) + len(effective) < clients
            match self._random.choice(["begin"] * is_one_free + ["act"] * bool(waiting) + ["end"] * bool(effective)):
                case "begin":
                    waiting.append(self._begin())
                case "act":
                    effective.append(self._act(waiting.pop(self._random.randrange(len(waiting)))))
                case _:
                    self._end(effective.pop(self._random.randrange(len(effective))))
        for operation in effective:
            self._end(operation)
        for operation in waiting:
            self._lose(operation)

    def _begin(self) -> Operation:
        call: Call = self._random.choice(["get", "exists", "put", "put", "delete"])
        expected = None
        if call in {"put", "delete"} and self._random.random() < 0.6:
            # Nobody can know an index that nobody was told.
            known = [*self._told[-1:] * 4, *self._told[-5:], 10**6]
            expected = self._random.choice([*known, 0] if call == "put" else known)
        value = f"{self._clock:g}" if call == "put" else None
        return op(call, self._clock, self._clock, at=value, expected=expected)

    def _act(self, operation: Operation) -> Operation:
        exists = self._value is not None
        match operation.call, operation.expected:
            case (("get" | "exists" | "delete"), _) if not exists:
                return replace(operation, outcome="missing")
            case "get", _:
                self._told.append(self._index)
                return replace(operation, value=self._value, index=self._index)
            case "exists", _:
                return operation
            case _, 0 if exists:
                return replace(operation, outcome="exists")
            case _, int(expected) if expected and not (exists and self._index == expected):
                return replace(operation, outcome="modified")
            case "delete", _:
                self._value = None
                return operation
        self._highest = self._index = self._highest + self._random.randint(1, 2)
        self._value = operation.value
        return replace(operation, index=self._index)

    def _end(self, operation: Operation) -> None:
        if operation.call in {"put", "delete"} and self._random.random() < 0.2:
            self._lose(operation)
        else:
            self.history.append(replace(operation, ended=self._clock))
            if operation.call == "put" and operation.index is not None:
                self._told.append(operation.index)

    def _lose(self, operation: Operation) -> None:
        if operation.call in {"put", "delete"}:
            self.history.append(replace(operation, ended=math.inf, outcome="unknown", index=None))


def _by_trying_everything(history: list[Operation]) -> bool:
    """Tell whether any order whatsoever explains a short history."""
    definite = [operation for operation in history if operation.outcome != "unknown"]
    unknown = [operation for operation in history if operation.outcome == "unknown"]
    return any(
        _explains(order)
        for count in range(len(unknown) + 1)
        for happened in combinations(unknown, count)
        for order in permutations([*definite, *happened])
    )


def _explains(order: Sequence[Operation]) -> bool:
    if any(later.ended < earlier.began for earlier, later in combinations(order, 2)):
        return False
    value: bytes | None = None
    index: int | None = None
    highest = 0
    told = {operation.value: operation.index for operation in order if operation.call == "get"}
    for operation in order:
        exists, expected = value is not None, operation.expected
        fits = not exists if expected == 0 else expected is None or (exists and index == expected)
        match operation.call, operation.outcome:
            case _, "missing":
                possible = not exists
            case "get", _:
                possible = (value, index) == (operation.value, operation.index)
            case "exists", _:
                possible = exists
            case "put", "exists":
                possible = exists
            case "put", "modified":
                possible = not fits
            case "delete", "modified":
                possible = exists and not fits
            case "delete", _:
                possible = exists and fits
                value = index = None
            case _:
                value, index = operation.value, operation.index or told.get(operation.value)
                possible = fits and (index is None or index > highest)
                highest = max(highest, index or 0)
        if not possible:
            return False
    return True


def _lie(history: list[Operation], random: Random) -> list[Operation]:
    """Change something in a history."""
    number = random.randrange(len(history))
    operation, other = history[number], random.choice(history)
    lies = {
        "get": [
            replace(operation, outcome="missing", value=None, index=None),
            replace(operation, outcome="done", value=other.value or b"never", index=other.index or 1),
        ],
        "exists": [replace(operation, outcome="done"), replace(operation, outcome="missing")],
        "put": [
            replace(operation, outcome="done", index=random.randint(1, 9)),
            replace(operation, outcome="exists", index=None, expected=0),
            replace(operation, outcome="modified", index=None, expected=random.randint(1, 9)),
        ],
        "delete": [
            replace(operation, outcome="done", expected=random.choice([None, random.randint(1, 9)])),
            replace(operation, outcome="modified", expected=random.randint(1, 9)),
            replace(operation, outcome="missing"),
        ],
    }
    lie = random.choice(lies[operation.call])
    if lie.ended == math.inf:
        lie = replace(lie, ended=operation.began + random.randint(0, 5))
    return [*history[:number], lie, *history[number + 1 :]]


_seeds = st.integers(0, 2**32)


@given(_seeds)
@settings(deadline=None)
def test_what_a_register_really_did_is_accepted(seed: int) -> None:
    run = _Run(seed)
    run.run(steps=300, clients=8)
    check(run.history)
    check(run.history, exact_compare=False)


def _is_accepted(history: list[Operation]) -> bool:
    try:
        check(history)
    except NotLinearizableError:
        return False
    return True


@given(_seeds)
@settings(max_examples=300, deadline=None)
def test_it_agrees_with_trying_every_order(seed: int) -> None:
    run = _Run(seed)
    run.run(steps=15, clients=3)
    history = run.history[-6:]
    assert _is_accepted(history) == _by_trying_everything(history)
    if history:
        history = _lie(history, Random(seed))
        assert _is_accepted(history) == _by_trying_everything(history)
