#!/bin/sh
# Run tests with the lowest versions of all dependencies that pyproject.toml allows; arguments go to pytest.
set -eu
. "$(dirname "$0")/packaging.sh"

venv=$work
"$bin/uv" venv -q --allow-existing --python "$bin/python" "$venv"
"$bin/uv" pip compile -q --python "$venv/bin/python" --resolution lowest-direct --all-extras --no-header --no-annotate \
    pyproject.toml -o "$venv/lowest.txt"
cat "$venv/lowest.txt"
# What the tests alone need is as new as goes with these.
"$bin/uv" pip install -q --python "$venv/bin/python" --constraint "$venv/lowest.txt" --editable '.[all,test]' --group dev
[ "$#" -gt 0 ] || set -- tests/unit tests/cli tests/*/test_conformance.py
PATH="$venv/bin:$PATH" "$venv/bin/python" -m pytest -p no:cacheprovider --numprocesses 2 --dist loadscope "$@"
