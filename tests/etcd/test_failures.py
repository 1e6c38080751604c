"""What the statuses of failed calls mean."""

import asyncio
from collections.abc import AsyncIterator
from functools import partial

import pytest
import pytest_asyncio

from aiolibkv import AccessDeniedError, Config, NotReachableError, StoreError
from aiolibkv.backends.etcd.channel import RpcFailedError
from aiolibkv.backends.etcd.failures import AnswerTooLargeError, RefusedError, explain
from aiolibkv.testing.scale import scaled
from aiolibkv.testing.servers import EtcdServer
from etcd.fronts import UNAVAILABLE, front, refusing, status
from stores import EtcdStore

APPLIED_PERHAPS, NOT_APPLIED = False, True
UNKNOWN, PERMISSION_DENIED, FAILED_PRECONDITION = 2, 7, 9


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[EtcdServer]:
    async with EtcdServer() as running:
        yield running


@pytest.mark.parametrize(
    ("code", "details", "error", "refused", "breaks", "token"),
    [
        ("UNAVAILABLE", "etcdserver: no leader", NotReachableError, NOT_APPLIED, True, False),
        ("UNAVAILABLE", "etcdserver: leader changed", NotReachableError, APPLIED_PERHAPS, False, False),
        ("UNAVAILABLE", "etcdserver: request timed out", NotReachableError, APPLIED_PERHAPS, True, False),
        ("BROKEN", "the server closed the connection", NotReachableError, APPLIED_PERHAPS, True, False),
        ("UNAVAILABLE", "no healthy upstream", NotReachableError, APPLIED_PERHAPS, False, False),
        ("HTTP 502", "", NotReachableError, APPLIED_PERHAPS, False, False),
        ("HTTP 429", "", NotReachableError, NOT_APPLIED, False, False),
        ("HTTP 403", "", AccessDeniedError, NOT_APPLIED, False, False),
        ("HTTP 413", "", RefusedError, NOT_APPLIED, False, False),
        ("HTTP 302", "", NotReachableError, APPLIED_PERHAPS, True, False),
        ("RESOURCE_EXHAUSTED", "etcdserver: too many requests", NotReachableError, NOT_APPLIED, False, False),
        ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded", StoreError, APPLIED_PERHAPS, False, False),
        (
            "TOO_LARGE",
            "an answer of 5 bytes, of which 4 are received",
            AnswerTooLargeError,
            APPLIED_PERHAPS,
            False,
            False,
        ),
        ("PERMISSION_DENIED", "etcdserver: permission denied", AccessDeniedError, NOT_APPLIED, False, False),
        ("UNAUTHENTICATED", "etcdserver: invalid auth token", AccessDeniedError, NOT_APPLIED, False, True),
        ("INVALID_ARGUMENT", "etcdserver: user name is empty", AccessDeniedError, NOT_APPLIED, False, True),
        (
            "INVALID_ARGUMENT",
            "etcdserver: authentication failed, invalid user ID or password",
            AccessDeniedError,
            NOT_APPLIED,
            False,
            False,
        ),
        ("INVALID_ARGUMENT", "etcdserver: request is too large", RefusedError, NOT_APPLIED, False, False),
        ("NOT_FOUND", "etcdserver: requested lease not found", RefusedError, NOT_APPLIED, False, False),
        ("CANCELLED", "context canceled", NotReachableError, APPLIED_PERHAPS, False, False),
        ("UNKNOWN", "raft proposal dropped", NotReachableError, NOT_APPLIED, False, False),
        ("UNKNOWN", "raft: stopped", NotReachableError, APPLIED_PERHAPS, True, False),
        ("FAILED_PRECONDITION", "etcdserver: not leader", NotReachableError, NOT_APPLIED, True, False),
        ("UNKNOWN", "etcdserver: request cancelled", NotReachableError, APPLIED_PERHAPS, False, False),
        ("CANCELLED", "etcdserver: request canceled", NotReachableError, APPLIED_PERHAPS, False, False),
        ("NOT_GRPC", "an answer without a status", NotReachableError, APPLIED_PERHAPS, True, False),
        ("UNIMPLEMENTED", "unknown service etcdserverpb.KV", NotReachableError, NOT_APPLIED, True, False),
        ("DATA_LOSS", "etcdserver: corrupt cluster", StoreError, APPLIED_PERHAPS, False, False),
        ("A_NEW_ONE", "", StoreError, APPLIED_PERHAPS, False, False),
    ],
)
def test_meanings(
    code: str, details: str, error: type[StoreError], *, refused: bool, breaks: bool, token: bool
) -> None:
    meaning = explain(RpcFailedError(code, details))
    assert type(meaning.error) is error
    assert (meaning.refused, meaning.breaks, meaning.token) == (refused, breaks, token)
    assert (details or code) in str(meaning.error)


LEARNER = "etcdserver: rpc not supported for learner"


@pytest.mark.parametrize(
    ("code", "details", "error", "breaks", "token"),
    [
        # 3.6 gives them another code than 3.4 and 3.5.
        ("UNAVAILABLE", LEARNER, NotReachableError, True, False),
        ("FAILED_PRECONDITION", LEARNER, NotReachableError, True, False),
        ("UNAVAILABLE", "etcdserver: not capable", NotReachableError, True, False),
        ("FAILED_PRECONDITION", "etcdserver: not capable", NotReachableError, True, False),
        # A proxy leaves out the code.
        ("UNKNOWN", "etcdserver: no leader", NotReachableError, True, False),
        ("UNKNOWN", "etcdserver: too many requests", NotReachableError, False, False),
        ("UNKNOWN", "etcdserver: permission denied", AccessDeniedError, False, False),
        ("UNKNOWN", "etcdserver: invalid auth token", AccessDeniedError, False, True),
        ("UNKNOWN", "etcdserver: user name is empty", AccessDeniedError, False, True),
        ("UNKNOWN", "etcdserver: revision of auth store is old", AccessDeniedError, False, True),
        ("UNKNOWN", "etcdserver: mvcc: required revision has been compacted", RefusedError, False, False),
        ("UNKNOWN", "etcdserver: requested lease not found", RefusedError, False, False),
        ("UNKNOWN", "etcdserver: lease already exists", RefusedError, False, False),
        ("UNKNOWN", "etcdserver: request is too large", RefusedError, False, False),
    ],
)
def test_words_count_whatever_the_code(
    code: str, details: str, error: type[StoreError], *, breaks: bool, token: bool
) -> None:
    meaning = explain(RpcFailedError(code, details))
    assert type(meaning.error) is error
    assert (meaning.refused, meaning.breaks, meaning.token) == (NOT_APPLIED, breaks, token)


@pytest.mark.parametrize("details", ["leader changed", "request timed out, possibly due to connection lost"])
def test_a_proxy_leaves_a_write_in_doubt(details: str) -> None:
    meaning = explain(RpcFailedError("UNKNOWN", f"etcdserver: {details}"))
    assert type(meaning.error) is NotReachableError
    assert not meaning.refused


@pytest.mark.asyncio
@pytest.mark.parametrize("code", [UNAVAILABLE, FAILED_PRECONDITION])
async def test_a_learner_is_left(server: EtcdServer, code: int) -> None:
    async with front(lambda _: status(code, LEARNER)) as learner:
        with pytest.raises(NotReachableError, match="learner") as caught:
            async with EtcdStore([learner], Config(connection_timeout=1)):
                pass
        assert learner in str(caught.value)
        async with EtcdStore([learner, server.endpoint]) as store:
            await store.put("key", b"")


@pytest.mark.asyncio
@pytest.mark.parametrize("code", [UNAVAILABLE, FAILED_PRECONDITION])
async def test_a_server_that_has_become_a_learner_is_left(server: EtcdServer, code: int) -> None:
    async with (
        front(refusing(code, LEARNER)) as learner,
        EtcdStore([learner, server.endpoint], Config(request_timeout=scaled(5))) as store,
    ):
        await store.put("key", b"value")
        assert (await store.get("key")).value == b"value"


@pytest.mark.asyncio
@pytest.mark.parametrize("code", [UNKNOWN, PERMISSION_DENIED])
async def test_a_denial_whatever_the_code(code: int) -> None:
    async with front(refusing(code, "etcdserver: permission denied")) as closed, EtcdStore([closed]) as store:
        for call in (store.get, partial(store.put, value=b""), store.delete, store.list, store.exists):
            with pytest.raises(AccessDeniedError) as caught:
                await call("key")
            assert caught.value.maybe_applied is False


def test_what_was_not_sent_was_not_applied() -> None:
    assert explain(RpcFailedError("BROKEN", "failed to connect to all addresses", sent=False)).refused


@pytest.mark.asyncio
async def test_a_server_without_space() -> None:
    async with (
        EtcdServer(extra_args=["--quota-backend-bytes=2000000"]) as server,
        EtcdStore([server.endpoint]) as store,
    ):
        with pytest.raises(StoreError, match="space quota") as caught:
            # The server looks at its size only when it commits what it has gathered, every 100 ms.
            for number in range(500):
                await store.put(f"key/{number % 5}", bytes(1024 * 1024))
        assert not isinstance(caught.value, NotReachableError)
        assert server.endpoint in str(caught.value)
        # What is there can be read and deleted.
        assert await store.delete_tree("key") > 0


@pytest.mark.asyncio
async def test_writes_that_are_on_their_way_when_the_space_runs_out() -> None:
    # etcd carries them out, though it says that there is no space. It counts its space with each commit to its file;
    # with one for each write, instead of every 0.1 s, some are always on their way just then.
    async with (
        EtcdServer(extra_args=["--quota-backend-bytes=8000000", "--backend-batch-limit=1"]) as server,
        EtcdStore([server.endpoint]) as store,
    ):
        refused: dict[str, StoreError] = {}

        async def fill(writer: int) -> None:
            for number in range(100):
                try:
                    await store.put(f"key/{writer}-{number}", bytes(100_000))
                except StoreError as error:
                    refused[f"key/{writer}-{number}"] = error
                    return

        await asyncio.gather(*(fill(writer) for writer in range(16)))
        assert refused
        applied = {pair.key for pair in await store.list("key")} & refused.keys()
        assert applied
        assert all(refused[key].maybe_applied for key in applied)


@pytest.mark.asyncio
async def test_a_server_that_takes_small_requests_only() -> None:
    async with (
        EtcdServer(extra_args=["--max-request-bytes=10000"]) as server,
        EtcdStore([server.endpoint], Config(prefix="small")) as store,
    ):
        with pytest.raises(StoreError, match="too large") as caught:
            await store.put("key", bytes(100_000))
        assert caught.value.maybe_applied is False
        assert not await store.exists("key")
