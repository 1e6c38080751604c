"""The benchmarks run, and what is published is what was measured; how fast anything is, is not judged here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]
BENCHMARKS = PROJECT / "benchmarks"


def run(script: str, *arguments: str) -> None:
    command = (sys.executable, str(BENCHMARKS / script), "--here", *arguments)
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr


def test_everything_is_measured_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    budget = ("--largest", "10", "--rounds", "1", "--seconds", "0.01")
    run("run.py", "--backends", "memory,sqlite", *budget, "--output", str(path))
    records: list[dict[str, Any]] = json.loads(path.read_text())["records"]
    # The clients that are not installed here cannot connect.
    left_out = [record["subject"] for record in records if "failure" in record and record["measurement"] == "connect"]
    assert not [record for record in records if "failure" in record and record["subject"] not in left_out]
    assert not {"aiolibkv", "aiosqlite", "dict"} & set(left_out)
    records = [record for record in records if "figures" in record]
    assert all(least <= median <= most for each in records for median, least, most in each["figures"].values())
    measured = {(each["backend"], each["subject"], each["measurement"], each["size"]) for each in records}
    for backend, other in (("memory", "dict"), ("sqlite", "aiosqlite")):
        ours = {name for place, subject, name, _ in measured if (place, subject) == (backend, "aiolibkv")}
        assert {"get", "lock", "hand-over", "put to watch", "start-up", "keys", "registrations", "locks"} <= ours
        assert (backend, other, "delete", 1) in measured

    run("report.py", str(path), "--output", str(tmp_path))
    text = (tmp_path / "results.md").read_text()
    assert "### sqlite: SQLite" in text
    assert "| locks: acquire |" in text


def test_what_is_published_is_what_was_measured(tmp_path: Path) -> None:
    run("report.py", "--output", str(tmp_path))
    made = (tmp_path / "results.md").read_text()
    for page in (PROJECT / "README.md", BENCHMARKS / "README.md"):
        _, _, rest = page.read_text().partition("<!-- benchmarks: begin -->")
        published, _, _ = rest.partition("<!-- benchmarks: end -->")
        assert published.strip(), page
        assert published.strip() in made, page
