"""Bringing a store to a wanted state, in batches; nothing that somebody else changed meanwhile is overwritten."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any

from aiolibkv import (
    AsyncStore,
    CallNotSupportedError,
    KeyExistsError,
    KeyModifiedError,
    KeyNotFoundError,
    KVPair,
    ValueTooLargeError,
)
from aiolibkv.cli.output import Output
from aiolibkv.cli.text import escaped

_MOST_KEYS = 100
_MOST_BYTES = 1024 * 1024
"""Of the values of one batch, of which both the wanted and the present ones are kept."""


@dataclass(frozen=True)
class Step:
    """What is to be done to one key.

    Attributes:
        key: the key.
        value: the value that it is to have, None when it is to go.
        previous: what it is, None when it is not there.
    """

    key: str
    value: bytes | None
    previous: KVPair | None

    async def carry_out(self, store: AsyncStore) -> None:
        """Carry it out, if the key is still what it was."""
        if self.value is not None:
            await store.atomic_put(self.key, self.value, self.previous)
        else:
            assert self.previous is not None, "what goes was there"
            await store.atomic_delete(self.key, self.previous)

    async def show(self, output: Output) -> None:
        """Write what is to be done."""
        event = "delete" if self.value is None else "create" if self.previous is None else "change"
        fields: dict[str, Any] = {"event": event, "key": self.key}
        await output.item(f"{event}\t{escaped(self.key)}", fields)


@dataclass
class Tally:
    """What was found and done.

    Attributes:
        seen: keys looked at.
        done: keys written or deleted.
        modified: keys that somebody else changed meanwhile, which were left alone.
        refused: keys that the store cannot have like this, and why.
    """

    seen: int = 0
    done: int = 0
    modified: list[str] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)

    async def carry_out(self, steps: Sequence[Step], store: AsyncStore) -> None:
        """Carry out steps, side by side; what fails for another reason than a change is raised when all have ended."""
        results = await asyncio.gather(*(step.carry_out(store) for step in steps), return_exceptions=True)
        for step, result in zip(steps, results, strict=True):
            if isinstance(result, KeyModifiedError | KeyExistsError | KeyNotFoundError):
                self.modified.append(step.key)
            elif isinstance(result, ValueTooLargeError | CallNotSupportedError):
                self.refused[step.key] = str(result)
            elif result is not None:
                raise result
            else:
                self.done += 1


async def batches(pairs: AsyncIterable[KVPair]) -> AsyncIterator[Sequence[KVPair]]:
    """Collect pairs in batches that fit into memory."""
    batch: list[KVPair] = []
    size = 0
    async for pair in pairs:
        batch.append(pair)
        size += len(pair.value)
        if len(batch) == _MOST_KEYS or size >= _MOST_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


async def steps_to(store: AsyncStore, wanted: Sequence[KVPair]) -> list[Step]:
    """Return what is to be done so that keys have the values of these pairs."""
    present = await store.get_many(pair.key for pair in wanted)
    return [
        Step(pair.key, pair.value, present.get(pair.key))
        for pair in wanted
        if pair.key not in present or present[pair.key].value != pair.value
    ]


async def everything(store: AsyncStore, directory: str = "") -> AsyncIterator[KVPair]:
    """Scan a directory; one that does not exist has nothing."""
    async with store.scan(directory, page=_MOST_KEYS) as scan:
        try:
            async for pair in scan:
                yield pair
        except KeyNotFoundError:
            return


async def steps_to_clear(
    store: AsyncStore, directory: str, staying: Callable[[Sequence[str]], Awaitable[Container[str]]]
) -> AsyncIterator[Sequence[Step]]:
    """Find what is to go, in batches.

    Args:
        store: where it is looked for.
        directory: the directory.
        staying: is given keys, and returns those that stay.
    """
    async for batch in batches(everything(store, directory)):
        stay = await staying([pair.key for pair in batch])
        yield [Step(pair.key, None, pair) for pair in batch if pair.key not in stay]
