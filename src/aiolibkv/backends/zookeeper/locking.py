"""Locks: keys that are created, counted and deleted in one transaction each."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from aiolibkv.backends.zookeeper.connection import Connection
from aiolibkv.backends.zookeeper.epochs import Epochs, token_of
from aiolibkv.backends.zookeeper.failures import (
    BadVersionError,
    EphemeralParentError,
    NodeExistsError,
    NoNodeError,
    NotEmptyError,
    TransactionRefusedError,
)
from aiolibkv.backends.zookeeper.operations import Stat, create, delete, set_data, transaction
from aiolibkv.backends.zookeeper.tree import Ops, Place, is_retried, read_place, read_places, znode
from aiolibkv.backends.zookeeper.writing import Writer, no_children
from aiolibkv.errors import KeyExistsError, StoreError
from aiolibkv.store import Call, Guard, LeaseLostError

_log = logging.getLogger("aiolibkv")


class Locker:
    """The acquisitions and releases of one store's locks."""

    def __init__(self, writer: Writer, epochs: Epochs, acl: bytes) -> None:
        """Make a locker.

        Args:
            writer: creates nodes with their directories.
            epochs: what guards compare.
            acl: of the nodes that are created.
        """
        self._writer = writer
        self._epochs = epochs
        self._acl = acl

    async def acquire(
        self, call: Call, connection: Connection, path: str, value: bytes, holder: int
    ) -> tuple[Stat, int]:
        """Create a lock's key for the connection's session, and count the acquisition.

        Args:
            call: told when the write is sent and when its answer is known.
            connection: of the session.
            path: the key.
            value: its value.
            holder: a number that no other acquisition has.

        Returns:
            The key's stat, and the token of the acquisition, which guards compare.
        """
        node, epoch = znode(path), self._epochs.path(path)
        acquire: Ops = [
            create(node, b"", self._acl, ephemeral=True),
            *(set_data(node, b"") for _ in range(self._epochs.lock_version - 1)),
            set_data(node, value),
        ]
        count: Ops = [
            create(znode(self._epochs.holder(path, holder)), None, self._acl, ephemeral=True),
            set_data(znode(epoch), b""),
        ]
        places: Sequence[Place] = []
        while True:
            if places and places[0].node is not None:
                take = [delete(node, places[0].node.stat.version), *acquire]
            else:
                take = acquire
            operations = [*take, *count]
            if places and places[1].node is None:
                operations = [*take, create(znode(epoch), b"", self._acl), *count]
            try:
                results = await self._writer.create(call, connection, operations, len(value), places, None)
                return results[len(take) - 1], token_of(holder, results[-1].version)
            except EphemeralParentError as error:
                raise no_children() from error
            except (NoNodeError, NodeExistsError, BadVersionError, NotEmptyError) as error:
                _log.debug("zookeeper: a lock is tried again: %s", error)
            places = await read_places(connection, [path, epoch])
            if places[0].key is not None:
                raise KeyExistsError
            if (
                places[0].node is not None
                and places[0].node.stat.children
                and not await self._writer.sweep(connection, path)
            ):
                raise no_children()

    async def find_acquired(self, connection: Connection, path: str, holder: int) -> tuple[Stat, int] | None:
        """Return what ``acquire`` would have, if it was carried out.

        Raises:
            LeaseLostError: it was, and somebody has taken the lock away since.
        """
        path_of_epoch = self._epochs.path(path)
        lock, epoch, found = await read_places(connection, [path, path_of_epoch, self._epochs.holder(path, holder)])
        if found.node is None:
            return None
        if lock.node is None or epoch.node is None:
            raise LeaseLostError
        if (lock.node.stat.owner, lock.node.stat.version) != (connection.welcome.session, self._epochs.lock_version):
            raise LeaseLostError
        return lock.node.stat, token_of(holder, epoch.node.stat.version)

    async def release(
        self,
        connection: Connection,
        path: str,
        holder: int,
        token: int | None,
        places: Sequence[str],
        *,
        is_key: bool,
    ) -> bool:
        """Delete a lock's key if its acquisition still stands, and what was left of that otherwise; may be repeated.

        Args:
            connection: of the session that acquired it.
            path: the key.
            holder: the number of the acquisition.
            token: of the acquisition; None when it is not known whether it was carried out.
            places: nodes whose names nobody else uses, which are deleted as well.
            is_key: whether the session has written the lock's key meanwhile as one that is not to go.

        Returns:
            Whether the acquisition stood.
        """
        if token is None:
            token = await self._find_token(connection, path, holder)
        left = delete(znode(self._epochs.holder(path, holder)))
        deletions: Ops = [delete(znode(place)) for place in places]
        if token is not None:
            checks = self._epochs.checks(Guard(path, token))
            decisive = [*checks, delete(znode(path), self._epochs.lock_version), left]
            try:
                await connection.ask(transaction([*decisive, *deletions]))
            except TransactionRefusedError as error:
                if not is_retried(error.reason):
                    raise error.reason from error
                if error.position >= len(decisive):
                    # A place has gone already: each is then deleted by itself.
                    await delete_all(connection, deletions)
                    return await self.release(connection, path, holder, token, [], is_key=is_key)
            else:
                return True
            if not is_key:
                await self._delete_overwritten(connection, path, checks[1:])
        await delete_all(connection, [left, *deletions])
        return False

    async def _find_token(self, connection: Connection, path: str, holder: int) -> int | None:
        path_of_epoch = self._epochs.path(path)
        epoch, found = await read_places(connection, [path_of_epoch, self._epochs.holder(path, holder)])
        return None if epoch.node is None or found.node is None else token_of(holder, epoch.node.stat.version)

    async def _delete_overwritten(self, connection: Connection, path: str, checks: Ops) -> None:
        """Delete a lock's node that others have written since, but which lives with the session of the holder.

        It always went with its holder; a store that writes a lock's key makes a node of its own of it.
        """
        node = (await read_place(connection, path)).node
        if node is not None and node.stat.owner == connection.welcome.session:
            try:
                await connection.ask(transaction([*checks, delete(znode(path), node.stat.version)]))
            except TransactionRefusedError as error:
                _log.debug("zookeeper: a lock's node is somebody else's: %s", error)


async def delete_all(connection: Connection, deletions: Ops) -> None:
    """Delete nodes in one round trip; what is gone is gone."""
    for result in (await connection.ask_all(deletions)).values:
        if isinstance(result, StoreError) and not isinstance(result, NoNodeError):
            raise result
