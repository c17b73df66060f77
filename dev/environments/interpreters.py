"""Finds the Python interpreter for an Airflow version."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

PYTHON_FOR_AIRFLOW_2 = "3.11"
PYTHON_FOR_AIRFLOW_3 = "3.12"


def python_for(airflow: str) -> Path:
    """The Python that managed services use with this Airflow, else the running one."""
    wanted = python_version_for(airflow)
    for candidate in candidate_pythons(wanted):
        if is_working(candidate) and version_of(candidate) == wanted:
            return candidate
    print(f"No Python {wanted} found: using {sys.executable}", flush=True)
    return Path(sys.executable)


def python_version_for(airflow: str) -> str:
    return PYTHON_FOR_AIRFLOW_2 if airflow.startswith("2.") else PYTHON_FOR_AIRFLOW_3


def candidate_pythons(version: str) -> list[Path]:
    """Possible paths of a Python version: on PATH, known to uv, installed by pyenv."""
    from_uv = output_of(["uv", "python", "find", version])
    pyenv_root = output_of(["pyenv", "root"])
    found = [
        shutil.which(f"python{version}"),
        from_uv,
        *(Path(pyenv_root).glob(f"versions/{version}.*/bin/python{version}") if pyenv_root else ()),
    ]
    return [Path(candidate) for candidate in found if candidate]


def output_of(command: list[str]) -> str | None:
    """The output of a command, or None if it is not installed or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    except OSError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def is_working(python: Path) -> bool:
    """False for a launcher on PATH without an interpreter."""
    return output_of([str(python), "-c", "print('yes')"]) == "yes"


def version_of(python: Path) -> str:
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
