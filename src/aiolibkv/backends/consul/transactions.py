"""Consul's transactions: what is sent, and what the answer means. Without any I/O."""

from __future__ import annotations

import json
from binascii import b2a_base64
from collections.abc import Sequence
from http import HTTPStatus
from json.encoder import encode_basestring
from typing import NamedTuple

from aiolibkv.backends.consul.encoding import Answer, Entry, parse_entry, reading, text_of
from aiolibkv.backends.consul.failures import Failure, TxnFailedError
from aiolibkv.errors import KeyExistsError, KeyModifiedError, KeyNotFoundError, StoreError
from aiolibkv.store import Guard, Removal, Step, Write

MAX_TXN_BYTES = 512 * 1024
"""The server's default ``txn_max_req_len``: of the body, in which values are base64."""

MAX_TXN_OPERATIONS = 64
"""Up to 1.13; 128 since."""

MAX_STEPS = (MAX_TXN_OPERATIONS - 1) // 3
"""Of a commit: a guard, and three operations for each key that is written at an index."""

MAX_COMMIT_BYTES = 288 * 1024
"""Keys and values of a commit that fit into a transaction in any case: a key stands there three times and may be twice
as long, a value a third longer."""


class Operation(NamedTuple):
    """One operation on a key.

    Attributes:
        verb: Consul's word for what is done.
        path: the key, or what keys begin with.
        fields: what else the verb needs, as JSON that begins with a comma.
    """

    verb: str
    path: str
    fields: str = ""


def writing(path: str, value: bytes, flags: int, session: str | None) -> Operation:
    """Return what writes a key: bound to a session, or to none."""
    fields = f',"Value":"{b2a_base64(value, newline=False).decode()}","Flags":{flags}'
    return Operation("lock", path, f'{fields},"Session":"{session}"') if session else Operation("set", path, fields)


def checking(path: str, index: int) -> Operation:
    """Return the condition of a write that a key is at an index; 0: that there is none."""
    return Operation("check-index", path, f',"Index":{index}') if index else Operation("check-not-exists", path)


def looking(path: str) -> Operation:
    """Return what tells by its failure whether there is a key, without its value, to whoever may read.

    No key is at index 0. The verb for what must not exist takes the right to write.
    """
    return Operation("check-index", path, ',"Index":0')


def guarding(guard: Guard | None) -> list[Operation]:
    """Return the conditions that a guard stands for."""
    return [] if guard is None else [checking(guard.path, guard.token)]


class Transaction:
    """Operations that are carried out together or not at all.

    Attributes:
        body: as it is sent.
    """

    def __init__(self, operations: Sequence[Operation], scope: str = "") -> None:
        """Encode a transaction.

        Args:
            operations: in order.
            scope: what is added to each, as ``fields`` of an operation.
        """
        self._paths = [operation.path for operation in operations]
        encoded = [
            f'{{"KV":{{"Verb":"{verb}","Key":{encode_basestring(path)}{fields}{scope}}}}}'
            for verb, path, fields in operations
        ]
        self.body: bytes = f"[{','.join(encoded)}]".encode()

    @property
    def is_too_large(self) -> bool:
        """Whether the server would not take it."""
        return len(self.body) > MAX_TXN_BYTES

    def parse(self, answer: Answer) -> list[Entry]:
        """Return what the operations gave: sets and gets in order, deletions and checks nothing.

        Raises:
            TxnFailedError: the transaction was refused.
            MalformedError: the answer is not Consul's.
        """
        with reading():
            content = json.loads(answer.body)
            if answer.status == HTTPStatus.CONFLICT:
                failures = [Failure(error["OpIndex"], text_of(error["What"])) for error in content["Errors"]]
                if not failures:
                    raise ValueError("a refusal without a reason")
                if any(failure.position not in range(len(self._paths)) for failure in failures):
                    raise ValueError("a refusal of what was not asked for")
                raise TxnFailedError(failures, self._paths)
            return [parse_entry(result["KV"]) for result in content["Results"]]


class Commit:
    """Steps that are carried out in one transaction.

    Attributes:
        transaction: what is sent.
        changes: the steps that write or delete, those that write first.
    """

    def __init__(
        self, steps: Sequence[Step], *, flags: int, session: str | None, guard: Guard | None, scope: str
    ) -> None:
        """Make the transaction.

        A key that is written is deleted before, which detaches it from a session. Where nothing is written, a key that
        must not exist is looked for by what tells of it to whoever may read.

        Args:
            steps: each of another key.
            flags: of the keys that are written.
            session: that they are bound to, if any.
            guard: what else has to hold.
            scope: as for Transaction.
        """
        self._steps = steps
        self._guard = guard
        written = [step for step in steps if isinstance(step, Write)]
        removed = [step for step in steps if isinstance(step, Removal)]
        self.changes: Sequence[Write | Removal] = [*written, *removed]
        operations = guarding(guard)
        self._owners: list[Step | None] = [None] * len(operations)
        for step in steps:
            is_looked_for = step.expected == 0 and not self.changes
            made = [looking(step.path)] if is_looked_for else _operations(step, flags, session)
            operations += made
            self._owners += [step] * len(made)
        self.transaction: Transaction = Transaction(operations, scope)

    def indexes(self, entries: Sequence[Entry]) -> list[int]:
        """Return the index of each step's key, 0 of those that are not written.

        Raises:
            MalformedError: the answer does not tell.
        """
        found = {entry.pair.key: entry.pair.last_index for entry in entries}
        with reading():
            return [found[step.path] if isinstance(step, Write) else 0 for step in self._steps]

    def written_at(self, index: int) -> list[int]:
        """Return what ``indexes`` would, from the index of one of the keys: all of them are written at the same."""
        return [index if isinstance(step, Write) else 0 for step in self._steps]

    def unmet(self, failed: TxnFailedError) -> TxnFailedError | None:
        """Return a failure without what was looked for and is missing, as it must be; None if all conditions hold."""
        failures = [failure for failure in failed.failures if not (failure.missing and self._must_not_exist(failure))]
        return TxnFailedError(failures, failed.paths) if failures else None

    def _must_not_exist(self, failure: Failure) -> bool:
        step = self._owners[failure.position]
        return step is not None and step.expected == 0

    def refusal(self, failed: TxnFailedError) -> Exception:
        """Return the error for its failure."""
        general = failed.refusal(self._guard)
        if general is not None:
            return general
        failure = failed.failures[0]
        step = self._owners[failure.position]
        assert step is not None, "the guard holds"
        if failure.exists or (failure.modified and step.expected == 0):
            return KeyExistsError(key=step.path)
        if failure.missing and (isinstance(step, Removal) or step.expected is None):
            return KeyNotFoundError(key=step.path)
        if failure.missing or failure.modified:
            return KeyModifiedError(key=step.path)
        return StoreError(f"the server refused: {failure.reason}", key=step.path)


def _operations(step: Step, flags: int, session: str | None) -> list[Operation]:
    deleting = Operation("delete", step.path)
    if isinstance(step, Write):
        setting = writing(step.path, step.value, flags, session)
        if step.expected is None:
            return [deleting, setting]
        if step.expected == 0:
            return [checking(step.path, 0), setting]
        return [checking(step.path, step.expected), deleting, setting]
    condition = Operation("get", step.path) if step.expected is None else checking(step.path, step.expected)
    return [condition, deleting] if isinstance(step, Removal) else [condition]
