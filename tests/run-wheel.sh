#!/bin/sh
# Build the sdist and, from it, the wheel, and test what was built: what is in them, and, with each Python that is found
# here, the wheel, by the tests of the sdist, from which the library itself was removed. Arguments are tests to run in
# place of the default ones.
set -eu
. "$(dirname "$0")/packaging.sh"

# Where a Python of this version is: on the path, or among those of pyenv.
find_python() {
    for python in "python$1" "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$1".*/bin/python; do
        if "$python" -c "import sqlite3, sys; sys.exit('%d.%d' % sys.version_info[:2] != '$1')" 2>/dev/null; then
            echo "$python"
            return
        fi
    done
    return 1
}

# Install the wheel for one Python, and have it imported, its types checked, and its tests run.
check() {
    version=$1 venv=$work/venv-$1
    "$bin/uv" venv -q --python "$2" "$venv"
    "$bin/uv" pip install -q --python "$venv/bin/python" \
        "$(echo "$work"/dist/*.whl)[all,test]" hypothesis mypy opentelemetry-sdk pytest-timeout pytest-xdist
    shift 2
    cd "$work/sdist"
    "$venv/bin/python" -X dev -W error -c 'import aiolibkv'
    "$venv/bin/mypy" --cache-dir "$work/mypy-$version" tests/typing
    "$bin/pyright" --pythonpath "$venv/bin/python"
    # As in .ci/run: what fails is run once more by itself.
    suite --numprocesses 2 --dist loadscope "$@" || suite --last-failed --last-failed-no-failures none "$@"
}

suite() {
    PYTEST_DEBUG_TEMPROOT=$work "$venv/bin/python" -m pytest -q -o cache_dir="$work/cache-$version" "$@"
}

"$bin/uv" build -q --out-dir "$work/dist"
"$bin/twine" check --strict "$work"/dist/*
"$bin/python" tests/built.py "$work"/dist/*
mkdir "$work/sdist"
tar -xzf "$work"/dist/*.tar.gz -C "$work/sdist" --strip-components 1
rm -r "$work/sdist/src"

# What spawns many processes, or compares speeds, is not another one with another Python.
[ "$#" -gt 0 ] || set -- tests/memory tests/sqlite tests/loops/test_eager_tasks.py \
    --ignore tests/sqlite/test_conformance_two_processes.py \
    --ignore tests/sqlite/test_processes.py --ignore tests/sqlite/test_speed.py
checked=
for version in 3.11 3.12 3.13 3.14; do
    if python=$(find_python "$version"); then
        (check "$version" "$python" "$@") >"$work/$version.log" 2>&1 &
        checked="$checked $version:$!"
    else
        echo "Python $version: not found here, NOT TESTED"
    fi
done
[ -n "$checked" ] || { echo "no Python was found" >&2 && exit 1; }
failed=0
for each in $checked; do
    if wait "${each#*:}"; then
        echo "Python ${each%:*}: $(tail -n 1 "$work/${each%:*}.log")"
    else
        echo "Python ${each%:*}: FAILED"
        cat "$work/${each%:*}.log"
        failed=1
    fi
done
exit "$failed"
