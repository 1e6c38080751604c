"""What tests count: turns of other tasks, and the indexes of writes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from aiolibkv import AsyncStore, Check, Put


@asynccontextmanager
async def counted_turns() -> AsyncIterator[Callable[[], int]]:
    """Count in another task how often it has its turn while the block runs; what is given tells."""
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    try:
        yield lambda: turns
    finally:
        counting.cancel()
        await asyncio.wait({counting})


async def indexes_of_writes(one: AsyncStore, two: AsyncStore) -> list[int]:
    """Write through two stores with a prefix each, also what changes nothing, and return the indexes of the pairs."""
    indexes = [(await one.put("key", b"same")).last_index for _ in range(2)]
    indexes.append((await two.put("key", b"")).last_index)
    await two.delete("key")
    indexes.append((await two.put("key", b"")).last_index)
    pairs = await one.commit(Put("x", b""), Put("y", b""), Check("key"))
    indexes += [pair.last_index for pair in pairs if pair is not None]
    await one.commit(Check("key"))
    assert await one.delete_tree("") == 3
    indexes.append((await one.put("x", b"")).last_index)
    return indexes
