"""A worker that works while it is the leader, and steps aside when it is not.

Start it several times and stop the leader: python examples/elected_worker.py etcd://127.0.0.1:2379/workers
"""

import asyncio
import os
import sys

from aiolibkv import Candidate, Follower, open_store


async def work(node: str) -> None:
    while True:
        print(f"{node} works", flush=True)
        await asyncio.sleep(1)


async def follow(follower: Follower) -> None:
    async for leader in follower.follow_election():
        print(f"the leader is {leader}", flush=True)


async def main(url: str) -> None:
    node = f"node-{os.getpid()}"
    async with open_store(url) as store:
        candidate = Candidate(store, "leader", node)
        following = asyncio.create_task(follow(Follower(store, "leader")))
        working: asyncio.Task[None] | None = None
        try:
            async for elected in candidate.run_for_election():
                if elected:
                    working = asyncio.create_task(work(node))
                elif working is not None:
                    working.cancel()
        finally:
            await candidate.stop()
            following.cancel()
            if working is not None:
                working.cancel()


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory://"))
    except KeyboardInterrupt:
        print("stopped", flush=True)
