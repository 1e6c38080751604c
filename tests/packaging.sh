# What scripts share that build or install packages: $bin, with uv and all else for that, and $work, a directory that is
# removed at their end. They source it, and are in the repository's root then.
cd "$(dirname "$0")/.."

export UV_SYSTEM_CERTS=1 # the authorities that pip trusts too
bin=$(cd "${AIOLIBKV_VENV:-.venv}/bin" && pwd)
"$bin/python" -m pip install -q --disable-pip-version-check --group package
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
