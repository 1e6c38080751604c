"""A job that only one of many processes runs at a time: a lock, and a guard on what it writes.

Start it several times: python examples/single_runner.py
The processes of one machine share a SQLite database; give another store for more: etcd://127.0.0.1:2379/jobs
"""

import asyncio
import os
import sys

from aiolibkv import AsyncStore, LockLostError, open_store


async def run_job(store: AsyncStore, worker: str) -> None:
    print(f"{worker} waits for its turn", flush=True)
    async with store.new_lock("nightly/lock", value=worker.encode(), ttl=15) as held:
        print(f"{worker} runs the job, fencing token {held.fencing_token}", flush=True)
        for step in range(3):
            await asyncio.sleep(0.1)  # the work
            # Refused by the server when the lock is not held any more, whatever this process believes.
            await store.put("nightly/progress", f"{worker}: step {step}".encode(), guard=held)
    print(f"{worker} is done", flush=True)


async def main(url: str) -> None:
    worker = f"worker-{os.getpid()}"
    async with open_store(url) as store:
        try:
            await run_job(store, worker)
        except LockLostError as error:
            print(f"{worker} stopped: {error}", flush=True)


if __name__ == "__main__":
    try:
        asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "sqlite:///jobs.db"))
    except KeyboardInterrupt:
        print("stopped", flush=True)
