"""Backend ``sqlite``: a durable store in one file, shared by the processes of one machine."""

from aiolibkv.backends.sqlite.driver import SqliteDriver

__all__ = ["SqliteDriver"]
