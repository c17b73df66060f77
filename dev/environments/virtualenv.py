"""Creates a virtual environment with one Airflow version and this package.

Needs only Python >= 3.10 and its standard library, because a fresh clone has nothing else:

    python3 -m dev.environments.virtualenv .venv --airflow 3.3.1 --group dev
    python3 -m dev.environments.virtualenv .lab/env-2.10.3 --airflow 2.10.3 --group test --choose-python --with redis

The versions are those of Airflow's constraint files, or the newest ones if there is no file for this version and
Python. Servers for tests are always the newest ones.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from dev import REPOSITORY, inherited_environment
from dev.environments.interpreters import is_working, output_of, python_for, version_of

LOCAL_CONSTRAINTS = REPOSITORY.parent / "shared" / "constraints"
AIRFLOW_CONSTRAINTS = "https://raw.githubusercontent.com/apache/airflow/constraints-{airflow}/constraints-{python}.txt"
DOWNLOAD_TIMEOUT_SECONDS = 8
PINNED = "Airflow's constraints"
UNPINNED = "newest versions"
# moto's old versions return wrong checksums; numpy is often pinned to a version for a newer Python.
IGNORED_PINS = ("moto", "py-partiql-parser", "numpy")


@dataclass(frozen=True)
class EnvironmentSpec:
    """What the environment contains."""

    folder: Path
    airflow: str
    group: str = "dev"
    choose_python: bool = False
    extra_requirements: tuple[str, ...] = ()

    @property
    def stamp(self) -> Path:
        """A file whose date is that of the environment; make compares it with pyproject.toml."""
        return self.folder / f"airflow-{self.airflow}.made"

    @property
    def is_current(self) -> bool:
        """Whether the environment exists and its sources have not changed since."""
        sources = (REPOSITORY / "pyproject.toml", Path(__file__))
        return self.stamp.exists() and all(path.stat().st_mtime <= self.stamp.stat().st_mtime for path in sources)

    @property
    def pins(self) -> str:
        """Where the versions come from."""
        return self.stamp.read_text()

    @property
    def requirements(self) -> list[str]:
        return ["--editable", str(REPOSITORY), f"apache-airflow=={self.airflow}", *self.extra_requirements]


def create(spec: EnvironmentSpec) -> None:
    """Create or update the environment. The stamp is written last, so that a broken one is created again."""
    started = time.monotonic()
    say(f"Creating {spec.folder} with Airflow {spec.airflow} (again only if pyproject.toml changes)")
    for old in spec.folder.glob("*.made"):
        old.unlink()
    python = create_venv(spec.folder, python_for(spec.airflow) if spec.choose_python else Path(sys.executable))
    pins = constraints(spec.airflow, version_of(python), spec.folder)
    install_uv(python)
    is_pinned = install(python, spec, pins)
    spec.stamp.write_text(PINNED if is_pinned else UNPINNED)
    say(f"Created {spec.folder} in {time.monotonic() - started:.0f} s")


def create_venv(folder: Path, base_python: Path) -> Path:
    """Create a virtual environment, unless there is one of this Python version; return its python."""
    python = folder / "bin" / "python"
    if (folder / "bin" / "uv").exists() and is_working(python) and version_of(python) == version_of(base_python):
        return python
    shutil.rmtree(folder, ignore_errors=True)
    made = subprocess.run([base_python, "-m", "venv", folder], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        shutil.rmtree(folder, ignore_errors=True)
        sys.exit(f"{made.stdout}{made.stderr}\n{venv_instructions(version_of(base_python))}")
    return python


def venv_instructions(python_version: str) -> str:
    return (
        f"Python {python_version} cannot create virtual environments: its venv or ensurepip is missing.\n"
        f"On Debian or Ubuntu: apt install python{python_version}-venv. On Fedora: dnf install python3-pip.\n"
        "Or use another Python: make PYTHON=/path/to/python3 ..."
    )


def install_uv(python: Path) -> None:
    """Uv installs Airflow's 150 packages in seconds, pip in minutes."""
    if not (python.parent / "uv").exists():
        run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"])


def install(python: Path, spec: EnvironmentSpec, pins: Path | None) -> bool:
    """Install everything, without the constraints if they do not fit this Python; return whether they did."""
    if pins is None:
        say(f"No constraints for Airflow {spec.airflow} were found: installing the newest versions that fit")
    elif uv_install(python, spec, ["--constraints", str(pins)]):
        return True
    else:
        say(f"These constraints do not fit Python {version_of(python)}: installing the newest versions that fit")
    if not uv_install(python, spec, []):
        sys.exit(f"Airflow {spec.airflow} could not be installed into {spec.folder}; see the output above")
    return False


def uv_install(python: Path, spec: EnvironmentSpec, arguments: list[str]) -> bool:
    # Compiled now; otherwise the first airflow commands would take seconds for it.
    command = [python.parent / "uv", "pip", "install", "--quiet", "--python", python, "--compile-bytecode"]
    group = ["--group", f"{REPOSITORY / 'pyproject.toml'}:{spec.group}"]
    installed = subprocess.run(
        [*command, *group, *spec.requirements, *arguments], env=uv_environment(python), check=False
    )
    return installed.returncode == 0


def uv_environment(python: Path) -> dict[str, str]:
    """Variables for uv, with the package index of pip's settings, which uv does not read."""
    environment = inherited_environment()
    environment.setdefault("UV_HTTP_TIMEOUT", "120")
    index = os.environ.get("PIP_INDEX_URL") or pip_setting(python, "global.index-url")
    if index:
        environment.setdefault("UV_DEFAULT_INDEX", index)
    return environment


def pip_setting(python: Path, name: str) -> str | None:
    return output_of([str(python), "-m", "pip", "config", "get", name])


def constraints(airflow: str, python_version: str, folder: Path) -> Path | None:
    """Airflow's constraints for one version: a file next to the repository, else Airflow's own, else None."""
    pins = folder / "constraints.txt"
    local = LOCAL_CONSTRAINTS / f"{airflow}.txt"
    if local.exists():
        pins.write_bytes(local.read_bytes())
    elif download(constraints_url(airflow, python_version), pins) is None:
        return None
    pins.write_text(without_ignored_pins(pins.read_text()))
    return pins


def without_ignored_pins(pins: str) -> str:
    return re.sub(rf"(?mi)^({'|'.join(IGNORED_PINS)})\b.*\n", "", pins)


def constraints_url(airflow: str, python_version: str) -> str:
    return AIRFLOW_CONSTRAINTS.format(airflow=airflow, python=python_version)


def download(url: str, path: Path) -> Path | None:
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_SECONDS) as response:
            path.write_bytes(response.read())
    except OSError as error:
        say(f"{url}: {error}")
        return None
    return path


def run(command: list[str | Path]) -> None:
    if subprocess.run(command, check=False).returncode != 0:
        sys.exit(f"Failed: {' '.join(map(str, command))}")


def say(line: str) -> None:
    print(line, flush=True)


def parse_arguments() -> EnvironmentSpec:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--airflow", required=True, metavar="VERSION")
    parser.add_argument(
        "--group",
        default="dev",
        choices=["dev", "test", "e2e", "clouds"],
        help="dependency group in pyproject.toml",
    )
    parser.add_argument("--choose-python", action="store_true", help="the Python that managed Airflow services use")
    parser.add_argument("--with", action="append", default=[], metavar="REQUIREMENT", dest="extra_requirements")
    options = parser.parse_args()
    return EnvironmentSpec(
        options.folder, options.airflow, options.group, options.choose_python, tuple(options.extra_requirements)
    )


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036 - the system's python3 may be any
        sys.exit(f"Python 3.10 or newer is needed; {sys.executable} is older. Try: make PYTHON=python3.12 ...")
    create(parse_arguments())
