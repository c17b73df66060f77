"""Makes a virtual environment with one Airflow version and this package in it.

Runs under any Python >= 3.10 with the standard library alone, for it is what a fresh clone starts with:

    python3 -m dev.environment .venv --airflow 3.3.1 --group dev
    python3 -m dev.environment .lab/env-2.10.3 --airflow 2.10.3 --group test --choose-python --with redis

The versions are those that Airflow's own constraint files pin; without a file for that version and Python,
the newest that resolve. Servers that stand in for others in tests are none of Airflow's: they are the newest always.
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

from dev.pythons import answer_of, python_for, runs, version_of

REPOSITORY = Path(__file__).resolve().parent.parent
PINNED_NEARBY = REPOSITORY.parent / "shared" / "constraints"
PINNED_BY_AIRFLOW = "https://raw.githubusercontent.com/apache/airflow/constraints-{airflow}/constraints-{python}.txt"
DOWNLOAD_TIMEOUT_SECONDS = 8
PINNED = "as Airflow's constraints pin it"
UNPINNED = "newest that resolve"
# Pins that are left out: moto is pinned for Airflow's own tests, and an old one answers with wrong checksums; numpy's
# is often for a newer Python only, and what is used of it has been there for ever.
UNHEEDED_PINS = ("moto", "py-partiql-parser", "numpy")


@dataclass(frozen=True)
class Wish:
    """What the environment shall hold."""

    folder: Path
    airflow: str
    group: str = "dev"
    choose_python: bool = False
    extra_requirements: tuple[str, ...] = ()

    @property
    def stamp(self) -> Path:
        """Its date says when the environment was last made; make compares it with pyproject.toml."""
        return self.folder / f"airflow-{self.airflow}.made"

    @property
    def is_fulfilled(self) -> bool:
        """Whether the environment is there, and nothing that it is made from has changed since."""
        sources = (REPOSITORY / "pyproject.toml", Path(__file__))
        return self.stamp.exists() and all(path.stat().st_mtime <= self.stamp.stat().st_mtime for path in sources)

    @property
    def pins(self) -> str:
        """Which versions the environment holds."""
        return self.stamp.read_text()

    @property
    def requirements(self) -> list[str]:
        return ["--editable", str(REPOSITORY), f"apache-airflow=={self.airflow}", *self.extra_requirements]


def make(wish: Wish) -> None:
    """Creates or updates the environment; the stamp is written last, so that a broken one is made again."""
    started = time.monotonic()
    say(f"Making {wish.folder} with Airflow {wish.airflow} (once; again when pyproject.toml changes)")
    for old in wish.folder.glob("*.made"):
        old.unlink()
    python = create_venv(wish.folder, python_for(wish.airflow) if wish.choose_python else Path(sys.executable))
    pins = constraints(wish.airflow, version_of(python), wish.folder)
    install_uv(python)
    is_pinned = install(python, wish, pins)
    wish.stamp.write_text(PINNED if is_pinned else UNPINNED)
    say(f"Made {wish.folder} in {time.monotonic() - started:.0f} s")


def create_venv(folder: Path, base_python: Path) -> Path:
    """The environment's python; an environment of the same Python version is kept and updated."""
    python = folder / "bin" / "python"
    if (folder / "bin" / "uv").exists() and runs(python) and version_of(python) == version_of(base_python):
        return python
    shutil.rmtree(folder, ignore_errors=True)
    made = subprocess.run([base_python, "-m", "venv", folder], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        shutil.rmtree(folder, ignore_errors=True)
        sys.exit(f"{made.stdout}{made.stderr}\n{how_to_get_venv(version_of(base_python))}")
    return python


def how_to_get_venv(python_version: str) -> str:
    return (
        f"Python {python_version} cannot make virtual environments: its venv or ensurepip is missing.\n"
        f"On Debian or Ubuntu: apt install python{python_version}-venv. On Fedora: dnf install python3-pip.\n"
        "Or use another Python: make PYTHON=/path/to/python3 ..."
    )


def install_uv(python: Path) -> None:
    """Uv installs Airflow's 150 distributions in seconds; pip takes minutes."""
    if not (python.parent / "uv").exists():
        run([python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "uv"])


def install(python: Path, wish: Wish, pins: Path | None) -> bool:
    """Whether all pins were heeded: they are made for one Python, elsewhere the newest versions must do."""
    if pins is None:
        say(f"No constraints for Airflow {wish.airflow} at hand: installing the newest versions that fit")
    elif uv_install(python, wish, ["--constraints", str(pins)]):
        return True
    else:
        say(f"These constraints do not fit Python {version_of(python)}: installing the newest versions that fit")
    if not uv_install(python, wish, []):
        sys.exit(f"Airflow {wish.airflow} could not be installed into {wish.folder}; the reason stands above")
    return False


def uv_install(python: Path, wish: Wish, arguments: list[str]) -> bool:
    # Compiled now, once: otherwise airflow commands would spend seconds on it until all modules were met.
    command = [python.parent / "uv", "pip", "install", "--quiet", "--python", python, "--compile-bytecode"]
    group = ["--group", f"{REPOSITORY / 'pyproject.toml'}:{wish.group}"]
    installed = subprocess.run(
        [*command, *group, *wish.requirements, *arguments], env=uv_environment(python), check=False
    )
    return installed.returncode == 0


def uv_environment(python: Path) -> dict[str, str]:
    """Uv does not read pip's settings: a package index that pip was told to use instead is handed on."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment.setdefault("UV_HTTP_TIMEOUT", "120")
    index = os.environ.get("PIP_INDEX_URL") or pip_setting(python, "global.index-url")
    if index:
        environment.setdefault("UV_DEFAULT_INDEX", index)
    return environment


def pip_setting(python: Path, name: str) -> str | None:
    return answer_of([str(python), "-m", "pip", "config", "get", name])


def constraints(airflow: str, python_version: str, folder: Path) -> Path | None:
    """Airflow's pins for one version: the file kept next to the repository, else Airflow's own, else none."""
    pins = folder / "constraints.txt"
    nearby = PINNED_NEARBY / f"{airflow}.txt"
    if nearby.exists():
        pins.write_bytes(nearby.read_bytes())
    elif download(constraints_url(airflow, python_version), pins) is None:
        return None
    pins.write_text(heeded(pins.read_text()))
    return pins


def heeded(pins: str) -> str:
    return re.sub(rf"(?mi)^({'|'.join(UNHEEDED_PINS)})\b.*\n", "", pins)


def constraints_url(airflow: str, python_version: str) -> str:
    return PINNED_BY_AIRFLOW.format(airflow=airflow, python=python_version)


def download(url: str, path: Path) -> Path | None:
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT_SECONDS) as answer:
            path.write_bytes(answer.read())
    except OSError as error:
        say(f"{url}: {error}")
        return None
    return path


def run(command: list[str | Path]) -> None:
    if subprocess.run(command, check=False).returncode != 0:
        sys.exit(f"This failed: {' '.join(map(str, command))}")


def say(line: str) -> None:
    print(line, flush=True)


def wish_from_command_line() -> Wish:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--airflow", required=True, metavar="VERSION")
    parser.add_argument(
        "--group",
        default="dev",
        choices=["dev", "test", "e2e", "clouds"],
        help="dependency group in pyproject.toml",
    )
    parser.add_argument("--choose-python", action="store_true", help="the Python usual for that Airflow version")
    parser.add_argument("--with", action="append", default=[], metavar="REQUIREMENT", dest="extra_requirements")
    given = parser.parse_args()
    return Wish(given.folder, given.airflow, given.group, given.choose_python, tuple(given.extra_requirements))


if __name__ == "__main__":
    if sys.version_info < (3, 10):  # noqa: UP036 - the system's python3 may be any
        sys.exit(f"Python 3.10 or newer is needed; {sys.executable} is older. Try: make PYTHON=python3.12 ...")
    make(wish_from_command_line())
