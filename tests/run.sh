#!/bin/sh
# Install what the tests need and run them all; arguments go to pytest. Most tests wait for servers, so four workers
# share two cores; each runs whole modules or classes, with servers of its own.
set -eu
cd "$(dirname "$0")/.."

sh tests/setup.sh
exec "${AIOLIBKV_VENV:-.venv}/bin/python" -m pytest --numprocesses 4 --dist loadscope "$@"
