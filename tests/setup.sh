#!/bin/sh
# Prepare what the tests need: the servers, and a virtual environment (AIOLIBKV_VENV, by default .venv).
set -eu
cd "$(dirname "$0")/.."

venv=${AIOLIBKV_VENV:-.venv}
if [ ! -x "$venv/bin/python" ]; then
    python=${PYTHON:-python3}
    if ! "$python" -c 'import ensurepip' 2>/dev/null; then
        if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
            apt-get update -q
            apt-get install -y -q --no-install-recommends python3-venv
        else
            echo "tests/setup.sh: $python has no ensurepip; install its venv package (Debian: python3-venv)" >&2
            exit 1
        fi
    fi
    "$python" -m venv "$venv"
fi
"$venv/bin/python" -m pip install -q --disable-pip-version-check --upgrade 'pip>=25.1'
# Outside CI, tests whose servers are missing are skipped.
sh tests/install-servers.sh || [ -z "${CI:-}" ]
"$venv/bin/python" -m pip install -q --disable-pip-version-check --editable '.[all,test]' --group dev
