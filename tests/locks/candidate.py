"""A process that campaigns until it is killed, and says when it leads and when it does not.

Arguments: the store's URL, its name, the ttl.
"""

from __future__ import annotations

import asyncio
import sys
import time

from aiolibkv import Candidate, open_store


async def main(url: str, node: str, ttl: float) -> None:
    async with open_store(url) as store:
        async for elected in Candidate(store, "leader", node, ttl=ttl).run_for_election():
            print(int(elected), f"{time.monotonic():.6f}", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], float(sys.argv[3])))
