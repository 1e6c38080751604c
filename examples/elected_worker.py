"""A worker that works while it is the leader, and steps aside when it is not.

Start it several times and stop the leader: python examples/elected_worker.py
The processes of one machine share a SQLite database; give another store for more: etcd://127.0.0.1:2379/workers
"""

import asyncio
import os
import sys

from aiolibkv import Candidate, Follower, HeldLock, open_store

NODE = f"node-{os.getpid()}"


async def work(_: HeldLock) -> None:
    while True:
        print(f"{NODE} works", flush=True)
        await asyncio.sleep(1)


async def follow(follower: Follower) -> None:
    async for leader in follower.follow_election():
        print(f"the leader is {leader}", flush=True)


async def main(url: str) -> None:
    async with open_store(url) as store:
        following = asyncio.create_task(follow(Follower(store, "leader")))
        try:
            await Candidate(store, "leader", NODE).run(work)
        finally:
            following.cancel()
            await asyncio.wait({following})


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "sqlite:///workers.db"))
    except KeyboardInterrupt:
        print("stopped", flush=True)
