"""Whether a history of concurrent calls can have come from one register per key, reached by each call at one instant.

A search for an order of the calls in which each takes effect between its beginning and its end (after Wing and Gong),
that never looks at the same state twice (after Lowe), for each key by itself: what holds for each key holds for all.

Every write of a history writes a value of its own, so that a read tells which write it saw.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

Outcome = Literal["done", "missing", "exists", "modified", "unknown"]


class NotLinearizableError(AssertionError):
    """No order of the calls explains what they returned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """A call on one key, and what it returned. Calls that certainly had no effect and saw nothing are not among them.

    Attributes:
        client: who made it.
        key: the key.
        call: put and delete are the atomic ones, too.
        began: seconds on the clock of the whole history.
        ended: seconds; infinity when what became of it is unknown, since it may still take effect.
        outcome: "done", a definite refusal, or "unknown" for a write that may take effect once or never. An `exists`
            is "done" when the key was there, else "missing".
        value: what was written or read.
        index: of the value, if it was returned.
        expected: the condition of a write: None whatever is there, 0 nothing, else the index that the key is at.
    """

    client: str
    key: str
    call: Literal["get", "exists", "put", "delete"]
    began: float
    ended: float
    outcome: Outcome
    value: bytes | None = None
    index: int | None = None
    expected: int | None = None


def check(history: Iterable[Operation], *, exact_compare: bool = True, lag: float = 0.0) -> None:
    """Raise NotLinearizableError unless each key of a history behaved like one register, absent at first.

    Args:
        history: in any order.
        exact_compare: as in Capabilities. Without it, a conditional write may also succeed on a key that was created
            again while the write was under way.
        lag: seconds by which a read may be older than its beginning, though never older than what its client saw
            before.
    """
    keys: dict[str, list[Operation]] = defaultdict(list)
    for operation in _lagging(history, lag):
        keys[operation.key].append(operation)
    for operations in keys.values():
        _Search(_with_indexes(operations), exact_compare=exact_compare).run()


@dataclass(frozen=True, slots=True)
class _Register:
    """The state of a key.

    Attributes:
        value: None when there is none.
        index: of the value; None when nobody was ever told.
        highest: the highest index so far that somebody was told.
        born: when the call that created the key had ended.
    """

    value: bytes | None = None
    index: int | None = None
    highest: int = 0
    born: float = -math.inf


class _State(NamedTuple):
    """How far an order has come.

    Attributes:
        first: all definite operations before this one have taken effect.
        later: and these after it.
        used: how many of each class of unknown operations have taken effect.
        register: the result.
    """

    first: int
    later: frozenset[int]
    used: tuple[int, ...]
    register: _Register


class _Search:
    """The search for an order of the operations of one key."""

    def __init__(self, operations: Sequence[Operation], *, exact_compare: bool) -> None:
        self._exact_compare = exact_compare
        self._definite = sorted((o for o in operations if o.outcome != "unknown"), key=lambda o: o.began)
        # Unknown operations that do the same are tried in the order of their beginnings: in any order of effects two
        # of them can change places so that the earlier comes first.
        classes: dict[object, list[Operation]] = defaultdict(list)
        for operation in sorted((o for o in operations if o.outcome == "unknown"), key=lambda o: o.began):
            classes[operation.call, operation.expected, operation.index].append(operation)
        self._classes = list(classes.values())

    def run(self) -> None:
        """Raise NotLinearizableError unless there is an order."""
        start = self._observe(_State(0, frozenset(), (0,) * len(self._classes), _Register()))
        furthest = start
        known = {start}
        paths = [self._next(start)]
        while furthest.first < len(self._definite):
            if not paths:
                raise NotLinearizableError(self._explain(furthest))
            state = next(paths[-1], None)
            if state is None:
                paths.pop()
            elif state not in known:
                known.add(state)
                paths.append(self._next(state))
                furthest = max(furthest, state, key=_progress)

    def _next(self, state: _State) -> Iterator[_State]:
        """Yield the states after each write that may be the next to take effect."""
        end = math.inf
        writes = []
        for number in self._candidates(state):
            operation = self._definite[number]
            if _is_too_late(operation, state.register):
                return
            end = min(end, operation.ended)
            register = self._effect(state.register, operation)
            if register is not None:
                writes.append((number, register))
        for number, register in writes:
            yield self._observe(self._done(state, number, register))
        for kind, operations in enumerate(self._classes):
            count = state.used[kind]
            if count < len(operations) and operations[count].began <= end:
                register = self._effect(state.register, operations[count])
                if register is not None:
                    used = (*state.used[:kind], count + 1, *state.used[kind + 1 :])
                    yield self._observe(state._replace(used=used, register=register))

    def _observe(self, state: _State) -> _State:
        """Let what agrees with a state and changes nothing take effect: it can only get harder to explain later."""
        agreed = True
        while agreed:
            agreed = False
            for number in self._candidates(state):
                if self._effect(state.register, self._definite[number]) == state.register:
                    state = self._done(state, number, state.register)
                    agreed = True
        return state

    def _candidates(self, state: _State) -> Iterator[int]:
        """Yield the definite operations that began before any other one that is still to take effect had ended."""
        end = math.inf
        for number in range(state.first, len(self._definite)):
            operation = self._definite[number]
            if operation.began > end:
                return
            if number not in state.later:
                end = min(end, operation.ended)
                yield number

    def _done(self, state: _State, number: int, register: _Register) -> _State:
        first, later = state.first, state.later | {number}
        while first in later:
            later -= {first}
            first += 1
        return _State(first, later, state.used, register)

    def _effect(self, register: _Register, operation: Operation) -> _Register | None:
        """Return the state after an operation, or None when it cannot have this outcome in this state."""
        exists = register.value is not None
        fits = self._fits(register, operation)
        match operation.outcome, operation.call:
            case "missing", _:
                agrees = not exists
            case "exists", _:
                agrees = exists
            case "modified", "delete":
                agrees = exists and register.index != operation.expected
            case "modified", _:
                agrees = register.index != operation.expected
            case _, "exists":
                agrees = exists
            case _, "get":
                agrees = register.value == operation.value
            case _, "delete":
                return _Register(highest=register.highest) if exists and fits else None
            case _:
                index = operation.index
                if not fits or (index is not None and index <= register.highest):
                    return None
                born = register.born if exists else operation.ended
                return _Register(operation.value, index, max(register.highest, index or 0), born)
        return register if agrees else None

    def _fits(self, register: _Register, operation: Operation) -> bool:
        """Tell whether the condition of a write holds."""
        if not operation.expected:
            return operation.expected is None or register.value is None
        if register.index == operation.expected:
            return True
        is_new = register.value is not None and register.born > operation.began
        return not self._exact_compare and is_new and operation.expected <= register.highest

    def _explain(self, state: _State) -> str:
        candidates = list(self._candidates(state))
        around = range(max(0, state.first - 12), min(len(self._definite), candidates[-1] + 3))
        start = self._definite[around[0]].began
        lines = [f"key {self._definite[0].key!r}: no order of its {len(self._definite)} calls explains their results"]
        lines.append(f"the longest one that was found leads to {state.register}; then none of those with > is possible")
        for number in around:
            mark = ">" if number in candidates else " " if number > state.first else "."
            lines.append(f"{mark} {_describe(self._definite[number], start)}")
        lines.append("calls of unknown outcome:")
        for operation in sorted((o for kind in self._classes for o in kind), key=lambda o: o.began):
            lines.append(f"? {_describe(operation, start)}")
        return "\n".join(lines)


def _lagging(history: Iterable[Operation], lag: float) -> Iterator[Operation]:
    """Yield the operations, reads as if they had begun earlier."""
    seen: dict[str, float] = defaultdict(lambda: -math.inf)
    for operation in sorted(history, key=lambda o: o.began):
        is_read = operation.call in {"get", "exists"}
        began = min(operation.began, max(operation.began - lag, seen[operation.client]))
        if operation.outcome != "unknown":
            seen[operation.client] = max(seen[operation.client], operation.ended)
        yield replace(operation, began=began) if is_read else operation


def _is_too_late(operation: Operation, register: _Register) -> bool:
    """Tell whether an operation that did not agree with a state cannot take effect any more: indexes only increase."""
    return operation.index is not None and operation.index <= register.highest


def _progress(state: _State) -> int:
    return state.first + len(state.later)


def _with_indexes(operations: Sequence[Operation]) -> list[Operation]:
    """Give writes of unknown outcome the index that readers saw.

    Raises:
        NotLinearizableError: somebody read what nobody wrote, or one write at two indexes.
    """
    indexes: dict[bytes | None, int | None] = {}
    for write in operations:
        if write.call == "put" and write.outcome in {"done", "unknown"}:
            assert write.value not in indexes, "each write has a value of its own"
            indexes[write.value] = write.index
    for read in operations:
        if read.call == "get" and read.outcome == "done":
            if read.value not in indexes:
                raise NotLinearizableError(f"nobody may have written this: {_describe(read, 0)}")
            if indexes[read.value] is None:
                indexes[read.value] = read.index
            if indexes[read.value] != read.index:
                raise NotLinearizableError(f"written at {indexes[read.value]}, and read: {_describe(read, 0)}")
    return [
        replace(operation, index=indexes.get(operation.value)) if operation.call == "put" else operation
        for operation in operations
    ]


def _describe(operation: Operation, start: float) -> str:
    condition = "" if operation.expected is None else f" if at {operation.expected}"
    value = "" if operation.value is None else f" {operation.value!r} at {operation.index}"
    span = f"{operation.began - start:8.4f} to {operation.ended - start:8.4f}"
    return f"{span} {operation.client}: {operation.call}{condition}: {operation.outcome}{value}"
