"""A process that works while it is the leader, until it is killed, and says when its work begins and what it writes.

Arguments: the store's URL, its name, the ttl. Times are of the common clock; that of a write is when it was sent.
"""

from __future__ import annotations

import asyncio
import sys
import time

from aiolibkv import Candidate, HeldLock, open_store


async def main(url: str, node: str, ttl: float) -> None:
    async with open_store(url) as store:

        async def work(held: HeldLock) -> None:
            print("begin", f"{time.monotonic():.6f}", flush=True)
            while True:
                sent = time.monotonic()
                await store.put("work", node.encode(), guard=held)
                print("wrote", f"{sent:.6f}", flush=True)
                await asyncio.sleep(0.02)

        await Candidate(store, "leader", node, ttl=ttl).run(work)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
