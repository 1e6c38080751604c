"""The way to the servers: which one is used, as whom, and what its refusals mean.

One link is in use at a time. When it is lost, everything under way on it fails, the next endpoint becomes current, and
the next call opens a link to it. Nothing here repeats a request that may have been applied.
"""

from __future__ import annotations

import asyncio
import logging
from random import uniform
from typing import TypeVar, cast

from aiolibkv.backends.etcd.channel import Channel, RpcFailedError
from aiolibkv.backends.etcd.codec import (
    Authenticate,
    AuthenticateAnswer,
    DeleteRange,
    Headed,
    LeaseGrant,
    LeaseKeepAlive,
    LeaseKeepAliveAnswer,
    LeaseRevoke,
    Put,
    Range,
    RangeAnswer,
    Txn,
    TxnAnswer,
    decode,
    encode,
)
from aiolibkv.backends.etcd.failures import Meaning, explain
from aiolibkv.backends.etcd.link import EMPTY_KEY, NEEDS_LEADER, RANGE, Link, LinkStream
from aiolibkv.backends.etcd.pages import Page, decode_page
from aiolibkv.backends.etcd.table import MalformedError
from aiolibkv.config import Config
from aiolibkv.errors import AccessDeniedError, NotReachableError, StoreError
from aiolibkv.store import Call, Endpoints
from aiolibkv.store.driver import Observer
from aiolibkv.store.resolver import Resolver
from aiolibkv.store.tasks import Tasks, wait_shielded
from aiolibkv.store.tls import Tls

A = TypeVar("A")
H = TypeVar("H", bound=Headed)

_METHODS: dict[type[object], str] = {
    Range: RANGE,
    Put: "/etcdserverpb.KV/Put",
    DeleteRange: "/etcdserverpb.KV/DeleteRange",
    Txn: "/etcdserverpb.KV/Txn",
    LeaseGrant: "/etcdserverpb.Lease/LeaseGrant",
    LeaseRevoke: "/etcdserverpb.Lease/LeaseRevoke",
    LeaseKeepAlive: "/etcdserverpb.Lease/LeaseKeepAlive",
    Authenticate: "/etcdserverpb.Auth/Authenticate",
}
_WATCH = "/etcdserverpb.Watch/Watch"

_log = logging.getLogger("aiolibkv")

_ANSWERING_TIME = 1.5
_ANSWERING_SHARE = 0.3
"""Seconds, or if that is more a share of connection_timeout, that a server has to give a sign of life."""
_ENTERING_SHARE = 0.9
"""Of connection_timeout, in which all endpoints are tried; then there is still time to tell why none can be used."""
_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 0.5
_CLOSING_TIME = 0.5


class Connection:
    """The servers of one store, of which one is spoken to."""

    def __init__(self, endpoints: Endpoints, config: Config, observer: Observer) -> None:
        """Make a connection; nothing is sent."""
        self._endpoints = endpoints
        self._config = config
        self._observer = observer
        self._tasks = Tasks()
        self._closings = Tasks()
        self._resolver = Resolver()
        self._tls = Tls(config, alpn=["h2"])
        self._link: Link | None = None
        self._opening: asyncio.Task[Link] | None = None
        self._authenticating: asyncio.Task[None] | None = None
        self.token: str | None = None
        self._failures = 0

    async def open(self) -> None:
        """Reach one of the endpoints, giving each its share of connection_timeout.

        Raises:
            NotReachableError: none of them answers as it should.
            AccessDeniedError: the user or password is wrong.
            ValueError: a file cannot be read or is not what it should be.
        """
        self._resolver = Resolver()
        self._tls.context()
        loop = asyncio.get_running_loop()
        end = loop.time() + self._config.connection_timeout * _ENTERING_SHARE
        for left in range(len(self._endpoints), 0, -1):
            try:
                self._use(await self._open_link((end - loop.time()) / left))
                return
            except NotReachableError:
                if left == 1:
                    raise

    async def call(
        self, request: object, answer: type[H], *, write: Call | None = None, needs_leader: bool = True
    ) -> H:
        """Send a request and wait for its answer.

        Args:
            request: the message.
            answer: the kind of its answer.
            write: told that the request may change something, and whether it certainly did not.
            needs_leader: have a server that knows no leader refuse it.

        Raises:
            NotReachableError: no answer came.
            AccessDeniedError: the user may not do this.
            RefusedError: the server refuses it.
            StoreError: anything else the server says.
        """
        data = encode(request)
        renewed = False
        while True:
            link = await self.link()
            token = self.token
            metadata = self._metadata(token, needs_leader=needs_leader)
            if write is not None:
                write.writing()
            try:
                send = link.ask if isinstance(request, LeaseKeepAlive) else link.call
                received = await send(_METHODS[type(request)], data, metadata)
            except RpcFailedError as failure:
                meaning = self._judge(link, failure)
                if write is not None:
                    if meaning.refused:
                        write.settled()
                    meaning.error.maybe_applied = write.maybe_applied
                if not meaning.token or renewed or not self.has_user:
                    raise meaning.error from failure
                renewed = True
                await self._renew_token(token)
                continue
            self._failures = 0
            try:
                if answer is Page:
                    return _complete(cast("H", await decode_page(received)))
                return _complete(decode(answer, received))
            except MalformedError as error:
                self.lost(link, "the answer is not etcd's")
                raise NotReachableError(f"the answer is not etcd's: {error}", endpoint=str(link.endpoint)) from error

    async def txn(self, request: Txn, *, write: Call | None = None, needs_leader: bool = True) -> TxnAnswer:
        """Carry out a transaction; its answer holds one response for each operation of the branch taken.

        Raises:
            StoreError: as for call.
        """
        answer = await self.call(request, TxnAnswer, write=write, needs_leader=needs_leader)
        if len(answer.responses) != len(request.success if answer.succeeded else request.failure):
            raise NotReachableError("the answer is not etcd's: it does not fit the transaction")
        return answer

    async def renew(self, lease: int, key: bytes) -> tuple[int, int | None]:
        """Renew a lease at a server that knows who leads.

        A leader that is cut off, or whose disk hangs, may go on answering keep-alives after another was elected (etcd
        3.4), whose lease ends. A consistent read that is sent beside it through the same server tells: who was still
        the leader then has a successor who lets the lease begin anew.

        Args:
            lease: its identifier.
            key: what to read; a user who may not is told so after the leader was asked.

        Returns:
            Seconds that the lease has from the time of the call, 0 when there is no such lease; and the revision at
            which was read, None for who may not.

        Raises:
            NotReachableError: the lease was not renewed, or not for certain.
        """
        link = await self.link()
        reading = self._tasks.start(self._read_consistently(key))
        try:
            answer = await self.call(LeaseKeepAlive(lease), LeaseKeepAliveAnswer)
            revision = await shared(reading)
        finally:
            reading.cancel()
        if self._link is not link:
            raise NotReachableError("the connection broke while a lease was renewed", endpoint=str(link.endpoint))
        return max(answer.ttl, 0), revision

    async def _read_consistently(self, key: bytes) -> int | None:
        try:
            return (await self.call(Range(key, count_only=True), RangeAnswer)).header.revision
        except AccessDeniedError as denial:
            _log.debug("a server with a leader denies a read: %s", denial)
            return None

    async def watch_stream(self) -> tuple[Link, LinkStream]:
        """Open a stream for watches.

        Returns:
            The link it is on, and the stream.

        Raises:
            NotReachableError: no server can be reached.
        """
        link = await self.link()
        try:
            return link, link.stream(_WATCH, self._metadata(self.token, needs_leader=True))
        except RpcFailedError as failure:
            raise self._judge(link, failure).error from failure

    async def link(self) -> Link:
        """Return the link in use, opening one if there is none.

        Raises:
            NotReachableError: the current endpoint does not answer; the next call tries the next one.
        """
        if self._link is not None:
            return self._link
        if self._opening is None:
            self._opening = self._tasks.start(self._reopen())
        return await shared(self._opening)

    def broken(self, link: Link, failure: RpcFailedError) -> StoreError:
        """Judge the failure of a stream, and return what its users are to be told."""
        return self._judge(link, failure).error

    def lost(self, link: Link, reason: str) -> None:
        """Give up a link: what is under way on it fails, and the next endpoint is used."""
        if link is self._link:
            self._link = None
            self._failures += 1
            self._endpoints.failed(link.endpoint)
            link.drop(reason)
            self._closings.start(link.close())
            self._observer.disconnected(str(link.endpoint), reason)

    async def close(self) -> None:
        """Close everything; what is under way fails."""
        await self._tasks.close()
        if self._link is not None:
            self.lost(self._link, "the store is closed")
        await self._closings.settle(_CLOSING_TIME)
        await self._closings.close()
        self._resolver.close()

    @property
    def server(self) -> str | None:
        """The address of the server in use, if there is one."""
        return None if self._link is None else str(self._link.endpoint)

    @property
    def has_user(self) -> bool:
        """Whether requests are a user's, by a token."""
        return self._config.username is not None

    def _metadata(self, token: str | None, *, needs_leader: bool) -> list[tuple[str, str]]:
        metadata = [NEEDS_LEADER] if needs_leader else []
        if token:
            metadata.append(("token", token))
        return metadata

    def _judge(self, link: Link, failure: RpcFailedError) -> Meaning:
        meaning = explain(failure)
        meaning.error.endpoint = str(link.endpoint)
        if meaning.breaks:
            self.lost(link, failure.details)
        elif meaning.doubtful:
            link.doubt(failure.details)
        return meaning

    async def _reopen(self) -> Link:
        try:
            rounds = self._failures - len(self._endpoints)
            if rounds >= 0:
                # Every server failed since the last answer: all callers wait here together.
                pause = min(_FIRST_PAUSE * 2 ** min(rounds, 8), _LONGEST_PAUSE)
                await asyncio.sleep(pause * uniform(0.5, 1.0))
            # A slow way may need more than a server's share of the time.
            share = (1 + self._failures // len(self._endpoints)) / len(self._endpoints)
            link = await self._open_link(self._config.connection_timeout * min(share, 1.0))
            self._use(link)
            return link
        finally:
            self._opening = None

    def _use(self, link: Link) -> None:
        self._link = link
        self._observer.connected(str(link.endpoint))

    async def _open_link(self, limit: float) -> Link:
        endpoint = self._endpoints.current
        answering_time = max(_ANSWERING_TIME, _ANSWERING_SHARE * self._config.connection_timeout)
        link = Link(endpoint, Channel(endpoint, self._resolver, self._tls, limit), self.lost, answering_time)
        end = asyncio.get_running_loop().time() + limit
        try:
            await self._greet(link, end)
        except BaseException as error:
            await wait_shielded(self._closings.start(link.close()))
            if isinstance(error, TimeoutError | NotReachableError):
                self._failures += 1
                self._endpoints.failed(endpoint)
            if isinstance(error, TimeoutError):
                raise NotReachableError(f"no answer within {limit:.3g} s", endpoint=str(endpoint)) from error
            raise
        return link

    async def _greet(self, link: Link, end: float) -> None:
        """Connect, see that the server answers until some time of the loop's clock, and who we are to it."""
        try:
            # It ends by itself, and tells why.
            await link.connect()
            async with asyncio.timeout_at(end):
                await _knock(link)
                if self.has_user and self.token is None:
                    await self._authenticate(link)
        except RpcFailedError as failure:
            # Who answers by HTTP alone has not shown that there is an etcd.
            error = NotReachableError(failure.details) if failure.is_http else explain(failure).error
            error.endpoint = str(link.endpoint)
            if isinstance(error, NotReachableError | AccessDeniedError):
                raise error from failure

    async def _authenticate(self, link: Link) -> None:
        request = Authenticate(self._config.username or "", self._config.password or "")
        try:
            received = await link.call(_METHODS[Authenticate], encode(request), (NEEDS_LEADER,))
            self.token = decode(AuthenticateAnswer, received).token
        except RpcFailedError as failure:
            if "authentication is not enabled" not in failure.details:
                raise
            self.token = ""
        except MalformedError as error:
            raise NotReachableError("the answer is not etcd's") from error

    async def _renew_token(self, refused: str | None) -> None:
        if self.token != refused:
            return
        if self._authenticating is None:
            self._authenticating = self._tasks.start(self._reauthenticate())
        await shared(self._authenticating)

    async def _reauthenticate(self) -> None:
        try:
            link = await self.link()
            try:
                await self._authenticate(link)
            except RpcFailedError as failure:
                raise self._judge(link, failure).error from failure
        finally:
            self._authenticating = None


async def _knock(link: Link) -> None:
    """See that an etcd server answers.

    Raises:
        RpcFailedError: none does.
    """
    try:
        await link.call(RANGE, EMPTY_KEY, ())
    except RpcFailedError as failure:
        if "key is not provided" not in failure.details:
            raise


def _complete(answer: H) -> H:
    if answer.header.revision <= 0:
        raise MalformedError("no revision")
    return answer


async def shared(task: asyncio.Task[A]) -> A:
    """Wait for what others wait for too, each with an error of its own to be completed."""
    try:
        return await asyncio.shield(task)
    except StoreError as error:
        raise type(error)(error.message, endpoint=error.endpoint) from error
