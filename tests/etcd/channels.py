"""Connections to servers without a store."""

import contextlib
from collections.abc import AsyncIterator

from aiolibkv import Config
from aiolibkv.backends.etcd.channel import Channel
from aiolibkv.store.endpoints import parse_endpoint
from aiolibkv.store.resolver import Resolver
from aiolibkv.store.tls import Tls
from aiolibkv.testing.scale import scaled


@contextlib.asynccontextmanager
async def channel_to(endpoint: str, config: Config | None = None) -> AsyncIterator[Channel]:
    """Yield a channel to a server, and close it."""
    names = Resolver()
    channel = Channel(parse_endpoint(endpoint, 2379), names, Tls(config or Config(), alpn=["h2"]), scaled(5))
    try:
        yield channel
    finally:
        await channel.close()
        names.close()
