"""Settings that reload themselves: a watch on a directory.

Run it, and change a setting from elsewhere: python examples/reloading_config.py etcd://127.0.0.1:2379/app
"""

import asyncio
import sys

from aiolibkv import AsyncStore, open_store


class Settings:
    """The settings as they are now; an outage leaves them as they were."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.changed = asyncio.Event()

    async def follow(self, store: AsyncStore, directory: str) -> None:
        async with store.watch_tree(directory) as watch:
            async for snapshot in watch:
                self.values = {pair.key.removeprefix(f"{directory}/"): pair.value.decode() for pair in snapshot}
                self.changed.set()


async def main(url: str) -> None:
    settings = Settings()
    async with open_store(url) as store:
        following = asyncio.create_task(settings.follow(store, "config"))
        try:
            while settings.values.get("stop") != "yes":
                await settings.changed.wait()
                settings.changed.clear()
                print(f"settings: {dict(sorted(settings.values.items()))}", flush=True)
        finally:
            following.cancel()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1] if len(sys.argv) > 1 else "memory://"))
