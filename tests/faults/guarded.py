"""Servers that let some users do some things: one description for each backend, with secrets that can be found."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar
from uuid import uuid4

from aiolibkv import AsyncStore, Config, new_store
from aiolibkv.testing.framing import Framing
from aiolibkv.testing.servers import ConsulServer, EtcdServer, ZooKeeperServer
from aiolibkv.testing.servers.base import Server
from secrecy import new_secret

OWN = "mine"
"""The directory that the limited user may use."""
OTHERS = "others"
"""The directory that it may not use."""
TOKEN_TTL = 1
"""Seconds for which etcd's tokens last without being used."""


class Guarded(ABC):
    """A running server, and who may do what there.

    Attributes:
        backend: the name of the backend.
        framing: by which a proxy finds requests.
        server: the server.
        admin: settings of who may do everything.
        limited: settings of who may use the keys below ``OWN`` only.
        unknown: settings of somebody whom the server does not know.
    """

    backend: ClassVar[str]
    framing: ClassVar[Framing]

    def __init__(self, server: Server) -> None:
        self.server = server
        self.admin: dict[str, Any] = {}
        self.limited: dict[str, Any] = {}
        self.unknown: dict[str, Any] = {}

    def store(self, who: dict[str, Any], endpoint: str | None = None, **settings: Any) -> AsyncStore:
        return new_store(self.backend, [endpoint or self.server.endpoint], Config(**{**who, **settings}))

    async def new_user(self) -> dict[str, Any]:
        """Make another user who may do what the limited one may."""
        return self.limited

    @abstractmethod
    async def forbid(self, user: dict[str, Any], key: str) -> None:
        """Take away from a user the right to read a key of ``OWN``."""


class GuardedEtcd(Guarded):
    backend = "etcd"
    framing = "http2"
    server: EtcdServer

    async def new_user(self) -> dict[str, Any]:
        name, password = f"user-{uuid4().hex}", new_secret()
        await self.server.add_user(name, password, prefix=f"{OWN}/")
        return {"username": name, "password": password}

    async def forbid(self, user: dict[str, Any], key: str) -> None:
        await self.server.ctl("role", "revoke-permission", "--prefix=true", user["username"], f"{OWN}/")


class GuardedConsul(Guarded):
    backend = "consul"
    framing = "http1"
    server: ConsulServer

    async def new_user(self) -> dict[str, Any]:
        rules = f'key_prefix "{OWN}/" {{ policy = "write" }} session_prefix "" {{ policy = "write" }}'
        return {"token": await self.server.add_token(rules)}

    async def forbid(self, user: dict[str, Any], key: str) -> None:
        for listed in json.loads(await self.server.api("GET", "/v1/acl/tokens")):
            path = f"/v1/acl/token/{listed['AccessorID']}"
            if json.loads(await self.server.api("GET", path))["SecretID"] == user["token"]:
                await self.server.api("DELETE", path)


class GuardedZooKeeper(Guarded):
    backend = "zookeeper"
    framing = "zookeeper"
    server: ZooKeeperServer

    async def forbid(self, user: dict[str, Any], key: str) -> None:
        """Replace the key by one of the administrator's: rights belong to nodes."""
        async with self.store(self.admin) as admin:
            await admin.delete(key)
            await admin.put(key, b"")


@asynccontextmanager
async def guarded_etcd() -> AsyncIterator[Guarded]:
    password = new_secret()
    async with EtcdServer(auth=("root", password), extra_args=[f"--auth-token-ttl={TOKEN_TTL}"]) as server:
        guarded = GuardedEtcd(server)
        guarded.admin = {"username": "root", "password": password}
        guarded.limited = await guarded.new_user()
        guarded.unknown = {"username": "root", "password": new_secret()}
        yield guarded


@asynccontextmanager
async def guarded_consul() -> AsyncIterator[Guarded]:
    token = new_secret()
    async with ConsulServer(token=token) as server:
        guarded = GuardedConsul(server)
        guarded.admin = {"token": token}
        guarded.limited = await guarded.new_user()
        guarded.unknown = {"token": new_secret()}
        yield guarded


@asynccontextmanager
async def guarded_zookeeper() -> AsyncIterator[Guarded]:
    async with ZooKeeperServer() as server:
        guarded = GuardedZooKeeper(server)
        closed = {"acl": "creator", "session_timeout": 4}
        guarded.admin = {"username": "ann", "password": new_secret(), "options": closed}
        world = {"acl": "world", "session_timeout": 4}
        guarded.limited = {"username": "bob", "password": new_secret(), "options": world}
        guarded.unknown = {"username": "ann", "password": new_secret(), "options": world}
        yield guarded


GUARDED = {"consul": guarded_consul, "etcd": guarded_etcd, "zookeeper": guarded_zookeeper}
