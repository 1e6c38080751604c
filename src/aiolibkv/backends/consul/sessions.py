"""Lifetimes by Consul's sessions: a key that a session holds goes with it.

Seen on 1.8.7: a session that is not renewed ends between once and twice its TTL after the last renewal; its
identifier is the server's choice, but its name is the client's and is listed.
"""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import dataclass
from http import HTTPStatus
from uuid import uuid4

from aiolibkv.backends.consul.connection import Connection, together
from aiolibkv.backends.consul.encoding import (
    check_done,
    duration,
    find_session,
    parse_info,
    parse_renewal,
    parse_session,
    reading,
)
from aiolibkv.backends.consul.failures import lacks_node, shortest_ttl
from aiolibkv.errors import AccessDeniedError, NotReachableError, StoreError
from aiolibkv.store import Lease, Lifetime
from aiolibkv.store.tasks import Tasks

NODE = "aiolibkv"
"""The node that sessions are bound to, where the token may: one without checks, of which no server is part.

A session ends with its node. The node of the agent that was asked for it goes 7 to 15 s after a server died (Autopilot
on 1.8.7), and with it each session of all clients of that server, whatever its TTL. This one stays when nobody uses
it: to remove it would end the sessions of whoever just began to.
"""

SHORTEST_TTL = 10.0
LONGEST_TTL = 86400.0
LASTS_UP_TO = 2.0
"""Times its TTL that a session may last."""
_EXPIRING_TIME = 1.0
"""Seconds for the servers to remove what expired."""

_log = logging.getLogger("aiolibkv")


@dataclass(eq=False, kw_only=True)
class ConsulLease(Lease):
    """A session.

    Attributes:
        session_ttl: seconds; the session's TTL.
        renewed: whether the store renews it.
        name: chosen here, so that it is found when the answer was lost.
        asked: whether a request to create it may have been carried out.
        session: its identifier, "" until it is known.
        creation: the request to create it.
    """

    name: str
    renewed: bool
    ttl: float = 0.0
    session_ttl: float = 0.0
    asked: bool = False
    session: str = ""
    creation: asyncio.Task[None] | None = None

    def ask(self) -> None:
        """Note that the request to create it leaves."""
        self.asked = True

    def last(self, session_ttl: float) -> None:
        """Note the session's TTL.

        One that is renewed counts on the TTL. One that is not may last twice as long, and has to be ended by whoever
        wants it gone in time.
        """
        self.session_ttl = session_ttl
        longest = session_ttl * LASTS_UP_TO
        self.ttl = session_ttl if self.renewed else longest
        self.overshoot: float = longest + _EXPIRING_TIME - self.ttl


def new_lease(lifetime: Lifetime) -> ConsulLease:
    """Return a lease that is not granted yet.

    Half of a ttl that is renewed is asked for, because a session whose owner died may last twice as long.
    """
    lease = ConsulLease(name=f"aiolibkv-{uuid4().hex}", renewed=lifetime.keep_alive)
    lease.last(max(SHORTEST_TTL, lifetime.ttl / LASTS_UP_TO if lifetime.keep_alive else lifetime.ttl))
    return lease


def overshoot(ttl: float) -> float:
    """Return how many seconds later than its ttl a key may go when its writer has died."""
    return LASTS_UP_TO * max(SHORTEST_TTL, ttl) + _EXPIRING_TIME - ttl


class Sessions:
    """Sessions on the servers."""

    def __init__(self, connection: Connection, tasks: Tasks) -> None:
        self._connection = connection
        self._tasks = tasks
        self._is_on_own_node = True

    async def create(self, lease: ConsulLease) -> None:
        """Create the session of a lease, or find the one that was created before.

        Raises:
            NotReachableError: it is not known to be there; to be tried again, also with the same lease.
        """
        if lease.asked and await self._find(lease):
            return
        try:
            await self._create_to_the_end(lease)
        except NotReachableError as error:
            if not error.maybe_applied or not await self._find(lease):
                raise

    async def renew(self, lease: ConsulLease) -> bool:
        """Renew the session; False when there is none any more.

        A leader whose disk hangs answers renewals without asking the other servers, who may have another leader by now
        (seen on 1.8.7). It does not answer a consistent read, so that a renewal counts only together with one that was
        sent beside it through the same server: whoever leads from then on gives each session its whole time.
        """
        renewal, reading = await together(
            [
                self._connection.repeatable("PUT", f"session/renew/{lease.session}"),
                self._connection.read(f"session/info/{lease.session}?consistent"),
            ]
        )
        with self._connection.understanding(renewal):
            if not parse_renewal(renewal, lease.session):
                return False
        if reading.endpoint != renewal.endpoint:
            raise NotReachableError("the server that renewed the session is not heard", endpoint=str(renewal.endpoint))
        with self._connection.understanding(reading):
            return parse_info(reading, lease.session)

    async def destroy(self, lease: ConsulLease) -> None:
        """End the session, if there is one, and its keys with it."""
        if lease.creation is not None and not lease.creation.done():
            try:
                await asyncio.wait({lease.creation})
            finally:
                lease.creation.cancel()
        if lease.session or (lease.asked and await self._find(lease)):
            answer = await self._connection.repeatable("PUT", f"session/destroy/{lease.session}")
            with self._connection.understanding(answer):
                check_done(answer)

    async def _create_to_the_end(self, lease: ConsulLease) -> None:
        """Create the session, and have the request answered though the caller is cancelled.

        One that was given up may be carried out after the server was asked for the session's name.
        """
        lease.creation = self._tasks.start(self._create(lease))
        await asyncio.shield(lease.creation)

    async def _create(self, lease: ConsulLease) -> None:
        was_asked = lease.asked
        try:
            await self._request(lease)
        except StoreError as error:
            if not error.maybe_applied:
                lease.asked = was_asked
            raise

    async def _request(self, lease: ConsulLease) -> None:
        is_registered, on_own_node, denial = False, self._is_on_own_node, None
        while True:
            settings = {
                "Name": lease.name,
                "TTL": duration(lease.session_ttl),
                "Behavior": "delete",
                "LockDelay": "0s",
                # With the default, the session would end as soon as the agent is thought to be dead.
                "NodeChecks": [],
            }
            if on_own_node:
                settings["Node"] = NODE
            try:
                answer = await self._connection.request(
                    "PUT",
                    "session/create",
                    json.dumps(settings).encode(),
                    patience=self._connection.patience,
                    on_sending=lease.ask,
                )
                if lacks_node(answer.text) and on_own_node and not is_registered:
                    is_registered = True
                    await self._register()
                    continue
            except AccessDeniedError as error:
                if not on_own_node:
                    raise
                on_own_node, denial = False, error
                continue
            if denial is not None and self._is_on_own_node:
                # Not a denial of everything, such as of a token that has ended.
                _log.info("consul: sessions are bound to the agent that is asked for them, since %s", denial)
                self._is_on_own_node = False
            if answer.status == HTTPStatus.OK:
                with self._connection.understanding(answer):
                    lease.session = parse_session(answer)
                return
            with self._connection.understanding(answer), reading():
                shortest = shortest_ttl(answer.text)
            if shortest is None or not lease.session_ttl < shortest <= LONGEST_TTL:
                raise StoreError(f"the server gives no session: {answer.text}")
            lease.last(shortest)

    async def _register(self) -> None:
        """Make the node that sessions are bound to, for all stores of the datacenter."""
        node = {"Node": NODE, "Address": "127.0.0.1"}
        answer = await self._connection.repeatable("PUT", "catalog/register", json.dumps(node).encode())
        with self._connection.understanding(answer):
            check_done(answer)

    async def _find(self, lease: ConsulLease) -> bool:
        answer = await self._connection.read("session/list?consistent")
        with self._connection.understanding(answer):
            lease.session = find_session(answer, lease.name)
        return bool(lease.session)
