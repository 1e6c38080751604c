"""What the statuses of failed calls mean."""

import asyncio

import pytest

from aiolibkv import AccessDeniedError, Config, NotReachableError, StoreError
from aiolibkv.backends.etcd import EtcdStore
from aiolibkv.backends.etcd.channel import RpcFailedError
from aiolibkv.backends.etcd.failures import AnswerTooLargeError, RefusedError, explain
from aiolibkv.testing.servers import EtcdServer

APPLIED_PERHAPS, NOT_APPLIED = False, True


@pytest.mark.parametrize(
    ("code", "details", "error", "refused", "breaks", "token"),
    [
        ("UNAVAILABLE", "etcdserver: no leader", NotReachableError, NOT_APPLIED, True, False),
        ("UNAVAILABLE", "etcdserver: leader changed", NotReachableError, APPLIED_PERHAPS, False, False),
        ("UNAVAILABLE", "etcdserver: request timed out", NotReachableError, APPLIED_PERHAPS, True, False),
        ("UNAVAILABLE", "Socket closed", NotReachableError, APPLIED_PERHAPS, True, False),
        ("RESOURCE_EXHAUSTED", "etcdserver: too many requests", NotReachableError, NOT_APPLIED, False, False),
        ("RESOURCE_EXHAUSTED", "etcdserver: mvcc: database space exceeded", StoreError, APPLIED_PERHAPS, False, False),
        (
            "RESOURCE_EXHAUSTED",
            "CLIENT: Received message larger than max (5 vs. 4)",
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
        ("CANCELLED", "context canceled", NotReachableError, APPLIED_PERHAPS, True, False),
        ("UNKNOWN", "Stream removed", NotReachableError, APPLIED_PERHAPS, True, False),
        ("UNKNOWN", "raft proposal dropped", NotReachableError, NOT_APPLIED, False, False),
        (
            "PERMISSION_DENIED",
            "Received http2 header with status: 403",
            NotReachableError,
            APPLIED_PERHAPS,
            True,
            False,
        ),
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


def test_what_was_not_sent_was_not_applied() -> None:
    assert explain(RpcFailedError("UNAVAILABLE", "failed to connect to all addresses", sent=False)).refused


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
    # etcd carries them out, though it says that there is no space.
    async with (
        EtcdServer(extra_args=["--quota-backend-bytes=8000000"]) as server,
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
