"""Consul's transactions: what is sent, and what the answer means. Without any I/O."""

from __future__ import annotations

import json
from binascii import b2a_base64
from collections.abc import Sequence
from http import HTTPStatus
from json.encoder import encode_basestring_ascii
from typing import NamedTuple

from aiolibkv.backends.consul.encoding import Answer, Entry, parse_entry, reading, text_of
from aiolibkv.backends.consul.failures import Failure, TxnFailedError
from aiolibkv.store import Guard

MAX_TXN_BYTES = 512 * 1024
"""The server's default ``txn_max_req_len``: of the body, in which values are base64."""

MAX_TXN_OPERATIONS = 64
"""Up to 1.13; 128 since."""


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


def replacing(path: str, expected: int | None, setting: Operation, guard: Guard | None) -> list[Operation]:
    """Return what writes a key, detached from what it was.

    Args:
        path: the key.
        expected: None whatever is there; 0 only when there is nothing; else only when the key is at this index.
        setting: what writes it.
        guard: what else has to hold.
    """
    operations = guarding(guard)
    if expected is not None:
        operations.append(checking(path, expected))
    if expected != 0:
        operations.append(Operation("delete", path))
    operations.append(setting)
    return operations


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
            f'{{"KV":{{"Verb":"{verb}","Key":{encode_basestring_ascii(path)}{fields}{scope}}}}}'
            for verb, path, fields in operations
        ]
        self.body = f"[{','.join(encoded)}]".encode()

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
