"""A process that tells all it can about stores that know secrets: everything logged, every error, every repr.

Its argument is a file with a description in JSON; beside it goes what the servers made up.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from aiolibkv import AsyncStore, Candidate, Config, Discovery, Follower, new_store, open_store, register_backend
from aiolibkv.backends.etcd import EtcdDriver
from aiolibkv.backends.zookeeper import ZooKeeperDriver
from aiolibkv.store import Store

_NONSENSE = b"\x00\xff nonsense \r\n\r\n" * 20


def show(what: object) -> None:
    print(repr(what), what, flush=True)


def show_error(error: BaseException) -> None:
    """Show an error as a log does, and all that is chained to it, also what a log leaves out."""
    print("".join(traceback.format_exception(error)), flush=True)
    known: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in known:
            known.add(id(each))
            print("chained:", repr(each), str(each), repr(each.args), repr(vars(each)), flush=True)
            waiting += [each.__cause__, each.__context__]


async def attempt(work: Callable[[], Awaitable[object]]) -> None:
    try:
        show(await work())
    except Exception as error:
        logging.getLogger("telling").exception("it failed")
        show_error(error)


async def learned_by(store: AsyncStore) -> list[str]:
    """Return the secrets that a store was given by its server."""
    if isinstance(store, Store) and isinstance(store.driver, EtcdDriver):
        return [str(store.driver._connection.token)]
    if isinstance(store, Store) and isinstance(store.driver, ZooKeeperDriver):
        password = (await store.driver._session.connection()).welcome.password
        return [repr(password), password.hex()]
    return []


async def use(store: AsyncStore, learned: list[str]) -> None:
    """Do everything once, and note the secrets that the store has learned meanwhile."""
    show(store)
    async with store:
        show(store.capabilities)
        lock = store.new_lock("lock", value=b"me")
        candidate = Candidate(store, "leader", "me")
        discovery = Discovery(store, "services")
        async with lock as held, store.watch("key") as watch, store.watch_tree("") as tree:
            for each in (lock, held, watch, tree, candidate, Follower(store, "leader"), discovery):
                show(each)
            show(await store.put("key", b"", guard=held))
            show(await store.put("alive", b"", keep_alive=True))
            show(await store.put("timed", b"", ttl=60))
            show(await anext(tree))
        async with candidate.lead(), discovery.register("web", "here") as registration:
            show(registration)
        await attempt(lambda: store.get("missing"))
        learned += await learned_by(store)
    show(store)


async def enter(make: Callable[[], AsyncStore]) -> None:
    async with make() as store:
        show(await store.get("key"))


async def tell(description: dict[str, Any], learned: list[str]) -> None:
    asyncio.get_running_loop().slow_callback_duration = 0.0  # every callback is logged, with what it was given
    backend, endpoint = description["backend"], description["endpoint"]
    good, bad = (Config(**description[name], prefix="telling", connection_timeout=5.0) for name in ("good", "bad"))
    show(good)
    await attempt(lambda: use(new_store(backend, [endpoint], good), learned))
    await attempt(partial(enter, lambda: new_store(backend, [endpoint], bad)))
    await _tell_of_servers(backend, {**description["good"], "connection_timeout": 0.5})
    if "password" in description["good"]:
        await _tell_of_users(backend, endpoint, description["good"])
    else:
        await _tell_of_tokens(backend, endpoint, description["good"]["token"])


async def _tell_of_servers(backend: str, settings: dict[str, Any]) -> None:
    """Meet servers that refuse, that say nothing, and that talk nonsense, with and without TLS."""

    async def talk_nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(_NONSENSE)
        await writer.drain()
        writer.close()

    async def say_nothing(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(2.0)
        writer.close()

    await attempt(partial(enter, lambda: new_store(backend, ["127.0.0.1:1"], Config(**settings))))
    for answer in (talk_nonsense, say_nothing):
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
            for tls in (False, True):
                await attempt(partial(enter, lambda: new_store(backend, [endpoint], Config(**settings, tls=tls))))  # noqa: B023


async def _tell_of_users(backend: str, endpoint: str, settings: dict[str, Any]) -> None:
    user, password = settings["username"], settings["password"]
    good = f"{backend}://{quote(user, safe='')}:{quote(password, safe='')}@{endpoint}/telling"
    await attempt(partial(enter, lambda: open_store(good)))
    for url in (
        f"{backend}://{user}:{password}@{endpoint}/telling",
        f"{backend}://{user}:{password}?x@{endpoint}/telling",
        f"{backend}://{user}:{password}#x@{endpoint}/telling",
        f"{backend}://{user}:x?{password}@{endpoint}/telling",
        f"{backend}://{user}:[{password}]@{endpoint}/telling",
        f"{backend}://{user}:{quote(password, safe='')}\u2100@{endpoint}/telling",
        f"{backend}//{user}:{password}@{endpoint}",
        f"nothing://{user}:{quote(password, safe='')}@{endpoint}",
        f"{good}?password=other",
        f"{good}?password={quote(password, safe='')}&password=other",
        f"{good}?connection_timeout=long",
        f"{good}?ca_file=missing&password",
        f"{good}?unknown=1",
    ):
        await attempt(partial(enter, lambda: open_store(url)))  # noqa: B023
    await attempt(partial(enter, lambda: open_store(good, Config(password=f"{password}x"))))
    for address in (f"{user}:{password}@{endpoint}", f"{user}:{quote(password, safe='')}@{endpoint}"):
        await attempt(partial(enter, lambda: new_store(backend, [address])))  # noqa: B023
    await attempt(partial(enter, lambda: new_store(backend, [endpoint], Config(password=password))))
    await attempt(partial(enter, lambda: new_store(backend, [endpoint], Config(token=password))))

    def fail(_: object, config: Config) -> AsyncStore:
        raise RuntimeError(f"{config}")

    register_backend("broken", fail)
    await attempt(partial(enter, lambda: open_store(good.replace(backend, "broken", 1))))


async def _tell_of_tokens(backend: str, endpoint: str, token: str) -> None:
    for given in (f"{token}\n", f"{token}\u00e9", lambda: f"{token}\n", token.encode, lambda: f"{token}x"):
        await attempt(partial(enter, lambda: new_store(backend, [endpoint], Config(token=given))))  # type: ignore[arg-type] # noqa: B023
    for url in (
        f"{backend}://{endpoint}/telling?token={quote(token, safe='')}",
        f"{backend}://{endpoint}/telling?token={quote(token, safe='')}&token=other",
        f"{backend}://{endpoint}/telling?token={token}&x",
        f"{backend}://{quote(token, safe='')}@{endpoint}/telling",
    ):
        await attempt(partial(enter, lambda: open_store(url)))  # noqa: B023


def main() -> None:
    os.dup2(1, 2)
    logging.basicConfig(stream=sys.stdout, level=logging.DEBUG, format="%(name)s %(message)s %(args)r")
    logging.captureWarnings(capture=True)
    warnings.simplefilter("always")
    given = Path(sys.argv[1])
    learned: list[str] = []
    asyncio.run(tell(json.loads(given.read_text()), learned), debug=True)
    given.with_suffix(".learned").write_text("\n".join(learned))
    print("all was told")


if __name__ == "__main__":
    main()
