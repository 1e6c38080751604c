"""What is compared: this library, and others that reach the same servers."""

from subjects.aetcd import Aetcd
from subjects.aiohttp import Aiohttp
from subjects.aiosqlite import Aiosqlite
from subjects.aiozk import Aiozk
from subjects.asyncpg import Asyncpg
from subjects.base import Subject
from subjects.dictionary import Dict
from subjects.etcd3aio import Etcd3aio
from subjects.grpc_aio import GrpcAio
from subjects.kazoo import Kazoo
from subjects.ours import Aiolibkv, InMemory
from subjects.py_consul import PyConsul
from subjects.py_key_value import PyKeyValue

SUBJECTS: dict[str, tuple[type[Subject], ...]] = {
    "memory": (InMemory, Dict, PyKeyValue),
    "sqlite": (Aiolibkv, Aiosqlite),
    "postgresql": (Aiolibkv, Asyncpg),
    "etcd": (Aiolibkv, GrpcAio, Aetcd, Etcd3aio),
    "consul": (Aiolibkv, Aiohttp, PyConsul),
    "zookeeper": (Aiolibkv, Aiozk, Kazoo),
}
OURS = Aiolibkv.name

__all__ = ["OURS", "SUBJECTS", "Subject"]
