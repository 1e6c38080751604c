"""The benchmarks run; what they measure is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


def test_the_embedded_backends_are_measured(tmp_path: Path) -> None:
    options = ("--backends", "memory,sqlite", "--tasks", "1,5", "--rounds", "2", "--seconds", "0.01")
    command = (sys.executable, str(BENCHMARKS / "run.py"), "--here", *options, "--output", str(tmp_path))
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())["backends"]
    for backend, other in (("memory", "Dict"), ("sqlite", "Aiosqlite")):
        assert not [each for each in results[backend]["results"] if "failure" in each]
        measured = {(each["client"], each["operation"], each["tasks"]) for each in results[backend]["results"]}
        assert {("Aiolibkv", "lock", 5), ("Aiolibkv", "list", 1), (other, "delete", 5), (other, "put", 1)} <= measured
        assert all(0 < each["rate"]["min"] <= each["rate"]["median"] for each in results[backend]["results"])
        assert f"## {backend}" in (tmp_path / "results.md").read_text()
        assert all(("version" in client) != ("left out" in client) for client in results[backend]["clients"].values())
