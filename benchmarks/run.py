"""Measure this library and others side by side, on real servers that this starts; README.md beside it says how.

    python benchmarks/run.py

It makes an environment of its own at first, benchmarks/.venv, with what can be installed of requirements.txt.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import platform
import shlex
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

from environment import HERE, run_there


def main() -> int:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", help="separated by commas; all of them when not given")
    parser.add_argument("--measurements", help="separated by commas; all of them when not given")
    parser.add_argument("--largest", type=int, default=10_000, help="measure no more tasks, watches or keys than that")
    parser.add_argument("--rounds", type=int, default=7, help="of which the median is told, the least and the most")
    parser.add_argument("--seconds", type=float, default=0.5, help="of one round of one library, about")
    parser.add_argument("--value", type=int, default=100, help="bytes of a value")
    parser.add_argument("--quick", action="store_true", help="in about twelve minutes: 3 rounds of 0.15 s")
    parser.add_argument("--output", type=Path, default=HERE / "results.json", help="the file of the results")
    parser.add_argument("--here", action="store_true", help="take the libraries of this Python, and install nothing")
    arguments = parser.parse_args()
    if not arguments.here:
        return run_there(__file__)
    asyncio.run(_measure(arguments))
    print(f"written: {arguments.output}; python benchmarks/report.py shows it", file=sys.stderr)
    return 0


async def _measure(arguments: argparse.Namespace) -> None:
    """Measure one backend after the other; what is measured so far is written after each."""
    from measurements import MEASUREMENTS
    from servers import running
    from subjects import SUBJECTS
    from turns import Budget, measure_backend

    names = [measurement.name for measurement in MEASUREMENTS]
    budget = Budget(
        measurements=_chosen(arguments.measurements, names),
        largest=arguments.largest,
        rounds=3 if arguments.quick else arguments.rounds,
        seconds=0.15 if arguments.quick else arguments.seconds,
        value=arguments.value,
    )
    servers: dict[str, str] = {}
    packages: dict[str, str] = {}
    records: list[dict[str, Any]] = []
    results = {
        "command": shlex.join(["python", "benchmarks/run.py", *_told(sys.argv)]),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": _machine(),
        "python": platform.python_version(),
        "rounds": budget.rounds,
        "seconds": budget.seconds,
        "value": budget.value,
        "servers": servers,
        "packages": packages,
        "records": records,
    }
    for backend in _chosen(arguments.backends, SUBJECTS):
        print(f"{datetime.now(UTC):%H:%M:%S} {backend} ...", file=sys.stderr, flush=True)
        try:
            async with running(backend) as (url, server):
                records += await measure_backend(backend, url, budget)
        except RuntimeError as error:
            # A server that is not installed leaves the others to be measured.
            print(f"{backend} is left out: {error}", file=sys.stderr)
            continue
        servers[backend] = server
        packages |= {subject.package: _version(subject.package) for subject in SUBJECTS[backend] if subject.package}
        arguments.output.write_text(_as_json(results))


def _chosen(words: str | None, known: Iterable[str]) -> list[str]:
    """Return the names that the command line gives, or all that are known."""
    if words is None:
        return list(known)
    if unknown := set(words.split(",")).difference(known):
        raise SystemExit(f"not known: {', '.join(sorted(unknown))}; known are {', '.join(known)}")
    return words.split(",")


def _told(words: Sequence[str]) -> Iterator[str]:
    """Leave out of the arguments where the results go, which changes nothing of them."""
    for before, word in pairwise(words):
        if "--output" not in (before, word) and word != "--here":
            yield word


def _as_json(results: dict[str, Any]) -> str:
    """Return the results as JSON, a record to a line."""
    records = ",\n".join(json.dumps(record) for record in results["records"])
    head = json.dumps({**results, "records": []}, indent=1).removesuffix("[]\n}")
    return f"{head}[\n{records}\n]}}\n"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _machine() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processors = f"{len(models)} x {models[0]}" if models else platform.processor()
    return f"{platform.system()} {platform.release().partition('-')[0]}, {processors}"


if __name__ == "__main__":
    sys.exit(main())
