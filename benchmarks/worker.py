"""A process that has one subject, and measures what it is told to."""

from __future__ import annotations

import asyncio
from multiprocessing.connection import Connection

from measurements import MEASUREMENTS, Bench
from subjects import SUBJECTS


def serve(pipe: Connection, backend: str, number: int, url: str, value: int, connect: bool) -> None:  # noqa: FBT001 -- from a process
    """Measure what comes by the pipe, until None comes.

    Args:
        pipe: gives the number of a measurement, a size and seconds; takes figures, or a str that tells why there are
            none. The first that it takes is None, or such a str, when the subject has connected.
        backend: the key in SUBJECTS.
        number: the subject's place there.
        url: where the server is.
        value: how many bytes a value has.
        connect: whether to connect before; else the measurement does.
    """
    asyncio.run(_serve(pipe, Bench(SUBJECTS[backend][number](url), b"v" * value), connect=connect))


async def _serve(pipe: Connection, bench: Bench, *, connect: bool) -> None:
    try:
        try:
            if connect:
                await bench.subject.connect()
                await bench.subject.put(bench.first_key, bench.value)
        except Exception as error:  # noqa: BLE001 -- of any library; the results tell it
            pipe.send(_reason(error))
            return
        pipe.send(None)
        while (order := await asyncio.to_thread(pipe.recv)) is not None:
            number, size, seconds = order
            try:
                pipe.send(await MEASUREMENTS[number].measure(bench, size, seconds))
            except Exception as error:  # noqa: BLE001 -- of any library; the results tell it
                pipe.send(_reason(error))
    finally:
        await bench.subject.stack.aclose()


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"
