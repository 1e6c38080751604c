"""Seeing the requests that pass a proxy."""

from collections.abc import Iterator
from contextlib import contextmanager

from aiolibkv.testing.proxy import FaultProxy


@contextmanager
def recorded(proxy: FaultProxy) -> Iterator[list[bytes]]:
    """Collect the requests that pass during a `with` block, as far as they were sent, in place of cutting answers."""
    requests: list[bytes] = []

    def note(sent: bytes) -> bool:
        if requests and sent.startswith(requests[-1]):
            requests[-1] = sent
        else:
            requests.append(sent)
        return False

    proxy.cut_answers(1, matching=note)
    try:
        yield requests
    finally:
        proxy.cut_answers(0)
