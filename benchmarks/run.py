"""Measure this library and others side by side, on real servers that this starts; README.md beside it says how.

    python benchmarks/run.py

It makes an environment of its own at first, benchmarks/.venv, with what can be installed of requirements.txt.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import platform
import shlex
import sqlite3
import subprocess
import sys
import tempfile
import venv
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ENVIRONMENT = HERE / ".venv"
LOCKED_AT_ONCE = 50
"""More tasks than that do not each hold a lock."""
PATIENCE = 120.0
"""Seconds beyond those of a round, until a client that does not answer is given up."""


def main() -> int:
    """Measure what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backends", default="memory,sqlite,etcd,consul,zookeeper", help="separated by commas")
    parser.add_argument("--operations", default="", help="separated by commas; all of them when not given")
    parser.add_argument("--tasks", default="1,50,500", help="how many tasks at once, separated by commas")
    parser.add_argument("--rounds", type=int, default=7, help="of which the median is told, the least and the most")
    parser.add_argument("--seconds", type=float, default=0.5, help="of one round of one client")
    parser.add_argument("--value", type=int, default=100, help="bytes of a value")
    parser.add_argument("--output", type=Path, default=HERE / "results", help="the directory of the results")
    parser.add_argument("--here", action="store_true", help="take the libraries of this Python, and install nothing")
    arguments = parser.parse_args()
    if not arguments.here:
        return subprocess.run([make_environment(), __file__, "--here", *sys.argv[1:]], check=False).returncode
    results = asyncio.run(measure_all(arguments))
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    from report import plot, table

    text = table(results)
    (arguments.output / "results.md").write_text(text)
    print(text)
    plot(results, arguments.output)
    return 0


def make_environment() -> Path:
    """Install this library and the others, each by itself, so that one that cannot be installed is only left out."""
    python = ENVIRONMENT / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        venv.create(ENVIRONMENT, with_pip=True)
    install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*install, "--editable", f"{HERE.parent}[all,test]"], check=True)
    for requirement in (HERE / "requirements.txt").read_text().splitlines():
        if subprocess.run([*install, requirement], check=False).returncode:
            print(f"left out, since it cannot be installed: {requirement}", file=sys.stderr)
    return python


async def measure_all(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure one backend after the other."""
    backends = {}
    for backend in arguments.backends.split(","):
        print(f"{backend} ...", file=sys.stderr, flush=True)
        try:
            async with running(backend) as url:
                backends[backend] = await measure_backend(backend, url, arguments)
        except RuntimeError as error:
            # A server that is not installed leaves the others to be measured.
            print(f"{backend} is left out: {error}", file=sys.stderr)
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "command": shlex.join(["python", "benchmarks/run.py", *(word for word in sys.argv[1:] if word != "--here")]),
        "machine": machine(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "rounds": arguments.rounds,
        "value": arguments.value,
        "backends": backends,
    }


@asynccontextmanager
async def running(backend: str) -> AsyncIterator[str]:
    """Run a server, and give the URL of a store on it."""
    if backend == "memory":
        yield "memory://"
    elif backend == "sqlite":
        with tempfile.TemporaryDirectory(prefix="aiolibkv-benchmark-") as directory:
            yield f"sqlite:///{directory}/pairs.db?durability=full"
    else:
        from aiolibkv.testing.servers import ConsulServer, EtcdServer, ZooKeeperServer

        kinds = {"etcd": EtcdServer, "consul": ConsulServer, "zookeeper": ZooKeeperServer}
        async with kinds[backend]() as server:
            yield f"{backend}://{server.endpoint}"


async def measure_backend(backend: str, url: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure all clients of a backend, in turns that rotate."""
    from clients import CLIENTS
    from worker import OPERATIONS

    with ExitStack() as stack:
        pipes: dict[str, Connection] = {}
        told: dict[str, Any] = {}
        for number, kind in enumerate(CLIENTS[backend]):
            name = kind.__name__
            pipe = stack.enter_context(client_process(backend, number, url, arguments.value))
            hello = await answer(pipe, PATIENCE)
            told[name] = {"package": kind.package, "note": kind.note}
            if isinstance(hello, str):
                told[name]["left out"] = hello
            else:
                told[name]["version"], told[name]["operations"] = hello
                pipes[name] = pipe
        results = []
        for operation in arguments.operations.split(",") if arguments.operations else OPERATIONS:
            names = [name for name in pipes if operation in told[name]["operations"]]
            for tasks in map(int, arguments.tasks.split(",")):
                if operation != "lock" or tasks <= LOCKED_AT_ONCE:
                    results += await compare({name: pipes[name] for name in names}, operation, tasks, arguments)
    return {"clients": told, "results": results}


async def compare(
    pipes: dict[str, Connection], operation: str, tasks: int, arguments: argparse.Namespace
) -> list[dict[str, Any]]:
    """Measure one operation on each client, in rounds; each round begins with another client."""
    samples: dict[str, list[tuple[float, float]]] = {name: [] for name in pipes}
    failures: dict[str, str] = {}
    names = list(pipes)
    for turn in range(arguments.rounds):
        first = turn % max(1, len(names))
        for name in names[first:] + names[:first]:
            if name not in failures:
                pipes[name].send((operation, tasks, arguments.seconds))
                sample = await answer(pipes[name], PATIENCE + arguments.seconds)
                if isinstance(sample, str):
                    failures[name] = sample
                else:
                    samples[name].append(sample)
    return [
        {"operation": operation, "tasks": tasks, "client": name, "failure": failures[name]}
        if name in failures
        else {
            "operation": operation,
            "tasks": tasks,
            "client": name,
            "rate": spread([rate for rate, _ in samples[name]]),
            "cpu": spread([cpu for _, cpu in samples[name]]),
        }
        for name in names
    ]


async def answer(pipe: Connection, limit: float) -> Any:
    """Return what a client's process says.

    Raises:
        RuntimeError: it has ended, or says nothing in time; what is measured after it would mean nothing.
    """
    try:
        if await asyncio.to_thread(pipe.poll, limit):
            return pipe.recv()
    except EOFError:
        raise RuntimeError("the process of a client has ended") from None
    raise RuntimeError(f"a client has not answered for {limit:g} s")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return median, minimum and maximum."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return {"median": median, "min": ordered[0], "max": ordered[-1]}


@contextmanager
def client_process(backend: str, number: int, url: str, value: int) -> Iterator[Connection]:
    """Run a client in a process of its own."""
    from worker import serve

    context = multiprocessing.get_context("spawn")
    pipe, their_end = context.Pipe()
    process = context.Process(target=serve, args=(their_end, backend, number, url, value), daemon=True)
    process.start()
    their_end.close()
    try:
        yield pipe
    finally:
        try:
            pipe.send(None)
        except OSError:
            pass
        process.join(10)
        process.kill()


def machine() -> str:
    """Describe the machine."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text().splitlines() if information.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{platform.platform()}, {f'{len(models)} x {models[0]}' if models else platform.processor()}"


if __name__ == "__main__":
    sys.exit(main())
