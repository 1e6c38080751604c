#!/bin/sh
# Install what the tests need and run them all; arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."

sh tests/setup.sh
exec "${AIOLIBKV_VENV:-.venv}/bin/python" -m pytest "$@"
