"""Several servers that form one service."""

import asyncio
from abc import abstractmethod
from collections.abc import Coroutine, Iterable, Sequence
from typing import Generic, Self, TypeVar

from aiolibkv.testing.scale import scaled
from aiolibkv.testing.servers.base import NOT_YET, PROBE_SECONDS, Server
from aiolibkv.testing.servers.process import POLL_INTERVAL


class Member(Server):
    """A server that can be one of a cluster."""

    @abstractmethod
    async def is_leader(self) -> bool:
        """Return whether this server leads its cluster; a single server does.

        Raises:
            OSError, EOFError: it did not answer.
        """


S = TypeVar("S", bound=Member)


class Cluster(Generic[S]):
    """Several servers that form one service.

    Args:
        servers: the members, not started yet.
    """

    def __init__(self, servers: Sequence[S]) -> None:
        """Take the members."""
        self.servers: tuple[S, ...] = tuple(servers)

    async def __aenter__(self) -> Self:
        """Start all members."""
        try:
            await self.start()
        except BaseException:
            for server in self.servers:
                server.discard()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        """Kill all members and remove their data."""
        await self.close()

    @property
    def endpoints(self) -> Sequence[str]:
        """Address and port of each member."""
        return tuple(server.endpoint for server in self.servers)

    async def start(self) -> None:
        """Start the members that do not run, and wait until all are ready.

        Raises:
            ServerMissingError: the program is not installed.
            ServerStartError: a member was not ready in time, or ended.
        """
        try:
            async with asyncio.TaskGroup() as group:
                for server in self.servers:
                    if not server.running:
                        server.keep_ports()
                        group.create_task(server.start())
        except ExceptionGroup as errors:
            # The others only failed to find it.
            raise errors.exceptions[0] from None

    async def stop(self) -> None:
        """Stop all members; their data stays."""
        await _together(server.stop() for server in self.servers)

    async def close(self) -> None:
        """Kill all members, remove their data and give their ports back."""
        await _together(server.close() for server in self.servers)

    async def leader(self, *, within: float = 20.0) -> S:
        """Return the member that leads, waiting for an election if need be.

        Args:
            within: seconds, before scaling.

        Raises:
            TimeoutError: there was no leader in that time.
        """
        async with asyncio.timeout(scaled(within)):
            while True:
                running = [server for server in self.servers if server.running]
                leads = await asyncio.gather(*(_leads(server) for server in running))
                leaders = [server for server, is_leader in zip(running, leads, strict=True) if is_leader]
                if len(leaders) == 1:
                    return leaders[0]
                await asyncio.sleep(POLL_INTERVAL)


async def _leads(server: Member) -> bool:
    try:
        async with asyncio.timeout(scaled(PROBE_SECONDS)):
            return await server.is_leader()
    except NOT_YET:
        return False


async def _together(work: Iterable[Coroutine[object, object, None]]) -> None:
    """Await all, then raise the first error as it is, not in a group."""
    results = await asyncio.gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
