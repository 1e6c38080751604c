"""The public calls of a store, told to its listener."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import wraps
from time import perf_counter
from typing import Any

from aiolibkv.events import CallEnded
from aiolibkv.store.calls import Calls

ON_ONE_KEY = ("put", "get", "exists", "delete", "atomic_put", "atomic_delete")
ON_ONE_DIRECTORY = ("list", "delete_tree", "keys", "children")
ON_SEVERAL_KEYS = ("commit", "get_many")


def tell_calls(store: object, calls: Calls) -> None:
    """Have each public call of a store end with an event, in its caller's context, if there is a listener."""
    if calls.listener is None:
        return
    for name in (*ON_ONE_KEY, *ON_ONE_DIRECTORY, *ON_SEVERAL_KEYS):
        setattr(store, name, _told(calls, name, getattr(store, name)))


def _told(calls: Calls, name: str, method: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @wraps(method)
    async def call(*arguments: Any, **settings: Any) -> Any:
        began, failure = perf_counter(), None
        try:
            return await method(*arguments, **settings)
        except BaseException as error:
            failure = error
            raise
        finally:
            key = _key(arguments, settings) if name not in ON_SEVERAL_KEYS else None
            calls.tell(CallEnded, name, key, perf_counter() - began, failure)

    return call


def _key(arguments: tuple[Any, ...], settings: dict[str, Any]) -> str | None:
    key = arguments[0] if arguments else settings.get("key", settings.get("directory"))
    return key.strip("/") if isinstance(key, str) else None
