"""Finds the Python that an Airflow version is usually run with."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

PYTHON_FOR_AIRFLOW_2 = "3.11"
PYTHON_FOR_AIRFLOW_3 = "3.12"


def python_for(airflow: str) -> Path:
    """The interpreter that managed services run this Airflow line with, else the running one."""
    wanted = python_version_for(airflow)
    for candidate in candidate_pythons(wanted):
        if runs(candidate) and version_of(candidate) == wanted:
            return candidate
    print(f"No Python {wanted} found: using {sys.executable}", flush=True)
    return Path(sys.executable)


def python_version_for(airflow: str) -> str:
    return PYTHON_FOR_AIRFLOW_2 if airflow.startswith("2.") else PYTHON_FOR_AIRFLOW_3


def candidate_pythons(version: str) -> list[Path]:
    """Where a Python of a version may be: under its name on PATH, known to uv, or installed by pyenv."""
    by_uv = answer_of(["uv", "python", "find", version])
    pyenv_root = answer_of(["pyenv", "root"])
    found = [
        shutil.which(f"python{version}"),
        by_uv,
        *(Path(pyenv_root).glob(f"versions/{version}.*/bin/python{version}") if pyenv_root else ()),
    ]
    return [Path(candidate) for candidate in found if candidate]


def answer_of(command: list[str]) -> str | None:
    """What a command prints, or None when it is not there or fails."""
    try:
        asked = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except OSError:
        return None
    return asked.stdout.strip() or None if asked.returncode == 0 else None


def runs(python: Path) -> bool:
    """False for a launcher on PATH without an interpreter behind it."""
    return answer_of([str(python), "-c", "print('yes')"]) == "yes"


def version_of(python: Path) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
