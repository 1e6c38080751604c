"""The environment of the benchmarks, with the libraries that are compared."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).parent
_DIRECTORY = HERE / ".venv"


def run_there(script: str) -> int:
    """Run a script, with the arguments of this process, in the environment of the benchmarks; return its exit code.

    The environment is made at first, and again when what it is made from has changed. Each library is installed by
    itself, so that one that cannot be is only left out.
    """
    python = str(_DIRECTORY / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python"))
    requirements = (HERE / "requirements.txt").read_text()
    made_from = _DIRECTORY / "made-from"
    wanted = requirements + (HERE.parent / "pyproject.toml").read_text()
    if not made_from.exists() or made_from.read_text() != wanted:
        venv.create(_DIRECTORY, with_pip=True)
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*install, "--editable", f"{HERE.parent}[all,test]"], check=True)
        for requirement in requirements.splitlines():
            if subprocess.run([*install, requirement], check=False).returncode:
                print(f"left out, since it cannot be installed: {requirement}", file=sys.stderr)
        made_from.write_text(wanted)
    # What pip installs is compiled; this library is read from its sources, which is not to count at start-up.
    subprocess.run([python, "-m", "compileall", "-q", str(HERE.parent / "src")], check=True)
    return subprocess.run([python, script, "--here", *sys.argv[1:]], check=False).returncode
