"""A process that holds a permit and the writer's part of a lock, and says so. Arguments: the store's URL, the ttl."""

from __future__ import annotations

import asyncio
import sys

from aiolibkv import ReadWriteLock, Semaphore, open_store


async def main(url: str, ttl: float) -> None:
    async with (
        open_store(url) as store,
        Semaphore(store, "pool", permits=1, ttl=ttl) as permit,
        ReadWriteLock(store, "table", ttl=ttl).writing() as part,
    ):
        print(max(permit.freed_within, part.freed_within), flush=True)
        await asyncio.get_running_loop().create_future()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2])))
