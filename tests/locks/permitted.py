"""A process that holds a permit and the writer's part of a lock, and says so, and what becomes of them.

Arguments: the store's URL, the ttl.
"""

from __future__ import annotations

import asyncio
import sys

from aiolibkv import LockLostError, ReadWriteLock, Semaphore, open_store


async def main(url: str, ttl: float) -> None:
    async with open_store(url) as store:
        semaphore, writing = (
            Semaphore(store, "pool", permits=1, ttl=ttl),
            ReadWriteLock(store, "table", ttl=ttl).writing(),
        )
        try:
            async with semaphore as permit, writing as part:
                print(max(permit.freed_within, part.freed_within), flush=True)
                await asyncio.get_running_loop().create_future()
        except LockLostError:
            refused = 0
            for held in (permit, part):
                try:
                    await store.put("late", b"", guard=held)
                except LockLostError:
                    refused += 1
            print("lost", refused, flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
