"""A process that runs a periodic job, and says which slots begin.

Arguments: the store's URL, how far its clock is ahead, the ttl.
"""

from __future__ import annotations

import asyncio
import sys
import time
from datetime import datetime

from aiolibkv import HeldLock, PeriodicJob, open_store

EVERY = 0.25


async def main(url: str, lead: float, ttl: float) -> None:
    right = time.time
    time.time = lambda: right() + lead

    async def work(slot: datetime, held: HeldLock) -> None:
        assert held.is_held
        print(slot.timestamp(), flush=True)

    async with open_store(url) as store:
        await PeriodicJob(store, "job", every=EVERY, ttl=ttl).run(work)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])))
