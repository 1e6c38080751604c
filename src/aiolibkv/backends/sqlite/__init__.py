"""Backend ``sqlite``: a durable store in one file, shared by the processes of one machine."""

from aiolibkv.backends.sqlite.store import SqliteStore

__all__ = ["SqliteStore"]
