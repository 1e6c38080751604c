"""Settings that reload themselves: a mirror of a directory; an outage leaves them as they were.

Run it: python examples/reloading_config.py sqlite:///app.db
Change a setting from elsewhere: python examples/reloading_config.py sqlite:///app.db color=blue
"""

import asyncio
import sys

from aiolibkv import AsyncStore, Mirror, open_store


async def follow(store: AsyncStore) -> None:
    async with Mirror(store, "config") as settings:
        async for snapshot in settings.changes():
            values = {pair.key.removeprefix("config/"): pair.value.decode() for pair in snapshot}
            print(f"settings: {values}", flush=True)
            if values.get("stop") == "yes":
                break


async def main(url: str, *assignments: str) -> None:
    async with open_store(url) as store:
        for assignment in assignments:
            name, _, value = assignment.partition("=")
            await store.put(f"config/{name}", value.encode())
        if not assignments:
            await follow(store)


if __name__ == "__main__":
    try:
        asyncio.run(main(*(sys.argv[1:] or ["sqlite:///app.db"])))
    except KeyboardInterrupt:
        print("stopped", flush=True)
