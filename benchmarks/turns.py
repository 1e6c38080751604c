"""Subjects take turns at being measured, each in a process of its own."""

from __future__ import annotations

import asyncio
import multiprocessing
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from statistics import median
from typing import Any

from measurements import MEASUREMENTS, Figures, Measurement
from subjects import SUBJECTS
from worker import serve

_PATIENCE = 120.0
"""Seconds until a subject that does not answer is given up."""


@dataclass(frozen=True)
class Budget:
    """What is measured, and for how long.

    Attributes:
        measurements: their names.
        largest: no size above it.
        rounds: how often at most; the median counts.
        seconds: of one round of one subject, about.
        value: bytes of a value.
    """

    measurements: Sequence[str]
    largest: int
    rounds: int
    seconds: float
    value: int


class Failed(Exception):  # noqa: N818 -- told as a result
    """A subject could not be measured; the text tells why."""


class Process:
    """A subject in a process of its own.

    Attributes:
        has_ended: whether it can be asked nothing more.
    """

    def __init__(self, process: BaseProcess, pipe: Connection) -> None:
        """Take a process that was started."""
        self.has_ended = False
        self._process = process
        self._pipe = pipe

    async def measure(self, number: int, size: int, seconds: float) -> Figures:
        """Let it measure something.

        Raises:
            Failed: it could not, or did not answer and was killed.
        """
        self._pipe.send((number, size, seconds))
        figures: Figures = await self.answer()
        return figures

    async def answer(self) -> Any:
        """Return what it says next.

        Raises:
            Failed: it says that something failed, or nothing.
        """
        try:
            if not await asyncio.to_thread(self._pipe.poll, _PATIENCE):
                raise Failed(f"no answer for {_PATIENCE:g} s")
            answer = self._pipe.recv()
        except (EOFError, Failed) as error:
            self.has_ended = True
            self._process.kill()
            raise Failed(str(error) or "its process has ended") from None
        if isinstance(answer, str):
            raise Failed(answer)
        return answer

    async def end(self) -> None:
        """Let it close, or kill it."""
        try:
            self._pipe.send(None)
        except OSError:
            pass
        await asyncio.to_thread(self._process.join, 10)
        self._process.kill()


async def measure_backend(backend: str, url: str, budget: Budget) -> list[dict[str, Any]]:
    """Measure all subjects of a backend; return a record for each measurement, size and subject."""
    async with AsyncExitStack() as stack:
        turns = _Turns(backend, url, budget)
        for number in range(len(SUBJECTS[backend])):
            try:
                turns.processes[number] = await stack.enter_async_context(turns.start(number, connect=True))
            except Failed as failed:
                left_out = {"backend": backend, "subject": SUBJECTS[backend][number].name, "failure": str(failed)}
                turns.records.append({**left_out, "measurement": "connect", "size": 1})
        for place, measurement in enumerate(MEASUREMENTS):
            if measurement.name in budget.measurements:
                for size in measurement.sizes:
                    if size <= budget.largest:
                        await turns.compare(place, size)
        return turns.records


class _Turns:
    """Turns of the subjects of a backend.

    Attributes:
        processes: those that have connected, by their numbers.
        records: what was measured.
    """

    def __init__(self, backend: str, url: str, budget: Budget) -> None:
        self.processes: dict[int, Process] = {}
        self.records: list[dict[str, Any]] = []
        self._backend = backend
        self._url = url
        self._budget = budget

    @asynccontextmanager
    async def start(self, number: int, *, connect: bool) -> AsyncIterator[Process]:
        """Start the process of a subject.

        Raises:
            Failed: it could not connect.
        """
        context = multiprocessing.get_context("spawn")
        pipe, their_end = context.Pipe()
        arguments = (their_end, self._backend, number, self._url, self._budget.value, connect)
        process = context.Process(target=serve, args=arguments, daemon=True)
        process.start()
        their_end.close()
        started = Process(process, pipe)
        try:
            await started.answer()
            yield started
        finally:
            await started.end()

    async def compare(self, place: int, size: int) -> None:
        """Measure something on each subject, in rounds; each round begins with another subject."""
        measurement = MEASUREMENTS[place]
        numbers = [number for number in self.processes if self._can(number, measurement, size)]
        rounds: dict[int, list[Figures]] = {number: [] for number in numbers}
        failures: dict[int, str] = {}
        began = time.monotonic()
        for turn in range(min(self._budget.rounds, measurement.most_rounds)):
            first = turn % max(1, len(numbers))
            for number in numbers[first:] + numbers[:first]:
                if number not in failures:
                    try:
                        rounds[number].append(await self._take_turn(number, place, size))
                    except Failed as failed:
                        failures[number] = str(failed)
        for number in numbers:
            told = {"failure": failures[number]} if number in failures else {"figures": _spread(rounds[number])}
            name = SUBJECTS[self._backend][number].name
            what = {"backend": self._backend, "measurement": measurement.name, "size": size, "subject": name}
            self.records.append({**what, **told})
        took = time.monotonic() - began
        print(f"{self._backend}: {measurement.name}, {measurement.counted(size)}: {took:.1f} s", file=sys.stderr)

    def _can(self, number: int, measurement: Measurement, size: int) -> bool:
        subject = SUBJECTS[self._backend][number]
        is_too_much = measurement.unit == "watch" and size > subject.most_watches
        return subject.can(measurement.needs) and not is_too_much and not self.processes[number].has_ended

    async def _take_turn(self, number: int, place: int, size: int) -> Figures:
        if not MEASUREMENTS[place].is_fresh:
            return await self.processes[number].measure(place, size, self._budget.seconds)
        async with self.start(number, connect=False) as process:
            return await process.measure(place, size, self._budget.seconds)


def _spread(rounds: Sequence[Figures]) -> dict[str, list[float]]:
    """Return median, least and most of each figure, in four digits."""
    return {
        name: [float(f"{value:.4g}") for value in (median(values), min(values), max(values))]
        for name in rounds[0]
        if (values := [figures[name] for figures in rounds])
    }
