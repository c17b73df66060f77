"""Users can install the wheel: under the constraints of managed Airflow, and with the lowest versions it names."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dev.environments.interpreters import python_version_for
from dev.environments.virtualenv import uv_environment

REPOSITORY = Path(__file__).parents[1]
PACKAGE = "airflow_provider_sendgrid"
CONSTRAINTS = {path.stem: path for path in sorted((REPOSITORY.parent / "shared" / "constraints").glob("*.txt"))}
LOWEST = "lowest"
NEXT_PYTHON = "3.14"
NEWEST = max(CONSTRAINTS, key=lambda version: [*map(int, version.split("."))], default="none")
UV = Path(sys.executable).with_name("uv")
PIN = re.compile(r"(?m)^([\w.-]+)(?:\[[^]]*\])?==(\S+)")
OUR_DEPENDENCIES = {"apache-airflow", "apache-airflow-providers-amazon", "asgiref", "httpx", "isal", "requests"}

pytestmark = pytest.mark.skipif(not UV.exists(), reason="uv is not installed beside this Python")


def run_uv(*arguments):
    done = subprocess.run(
        [UV, *arguments], env=uv_environment(Path(sys.executable)), capture_output=True, text=True, check=False
    )
    assert 0 == done.returncode, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built from a copy, so that the repository stays as it is."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    shutil.copytree(REPOSITORY / PACKAGE, source / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    run_uv("build", "--quiet", "--wheel", "--out-dir", str(folder), str(source))
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def requirements(wheel):
    """What the wheel says that it needs."""
    archive = zipfile.ZipFile(wheel)
    [metadata] = [archive.read(name).decode() for name in archive.namelist() if name.endswith("/METADATA")]
    return re.findall(r"(?m)^Requires-Dist: (.+)$", metadata)


@pytest.fixture(scope="module")
def resolutions(wheel, requirements, tmp_path_factory):
    """The versions that each installation would take, asked for all at once; nothing is installed."""
    folder = tmp_path_factory.mktemp("requirements")

    def resolve(case, wanted, *arguments):
        asked = folder / f"{case}.in"
        asked.write_text("\n".join([f"airflow-provider-sendgrid @ {wheel.as_uri()}", *wanted]))
        output = run_uv("pip", "compile", "--quiet", "--no-header", "--no-annotate", str(asked), *arguments)
        return dict(PIN.findall(output))

    def under(version, path, python=None):
        python = python or python_version_for(version)
        arguments = ("--constraints", str(path), "--python-version", python)
        return resolve(version, [f"apache-airflow=={version}"], *arguments)

    with ThreadPoolExecutor() as pool:
        asked = {version: pool.submit(under, version, path) for version, path in CONSTRAINTS.items()}
        lowest = ("--resolution", "lowest-direct", "--python-version", "3.11")
        if CONSTRAINTS:
            asked[NEXT_PYTHON] = pool.submit(under, NEWEST, CONSTRAINTS[NEWEST], NEXT_PYTHON)
        asked[LOWEST] = pool.submit(resolve, LOWEST, requirements, *lowest)
    return asked


@pytest.mark.skipif(not CONSTRAINTS, reason="no constraint files lie beside the repository (../shared/constraints)")
@pytest.mark.parametrize("version", CONSTRAINTS or ["none"])
def test_it_resolves_under_the_constraints_of(resolutions, version):
    """With the Python that this line is run with, and with no pin moved."""
    pinned = dict(PIN.findall(CONSTRAINTS[version].read_text()))

    taken = resolutions[version].result()

    assert version == taken["apache-airflow"]
    assert set(taken) >= OUR_DEPENDENCIES
    assert {} == {name: taken[name] for name in OUR_DEPENDENCIES & set(pinned) if taken[name] != pinned[name]}


@pytest.mark.skipif(not CONSTRAINTS, reason="no constraint files lie beside the repository (../shared/constraints)")
def test_it_resolves_for_the_next_python(resolutions):
    """CI tries that Python without requiring it; the newest Airflow's constraints allow it."""
    pinned = dict(PIN.findall(CONSTRAINTS[NEWEST].read_text()))

    taken = resolutions[NEXT_PYTHON].result()

    assert NEWEST == taken["apache-airflow"]
    assert {} == {name: taken[name] for name in OUR_DEPENDENCIES & set(pinned) if taken[name] != pinned[name]}


def test_it_resolves_with_the_lowest_versions_that_it_names(resolutions, requirements):
    """All but Airflow's own: its first releases install with their constraints alone; extras are not asked for."""
    floors = dict(re.findall(r"(?m)^([\w.-]+)>=([\w.]+)", "\n".join(requirements)))

    taken = resolutions[LOWEST].result()

    assert floors.keys() >= OUR_DEPENDENCIES
    assert taken["apache-airflow"].startswith("2.1")
    for name in (floors.keys() & taken.keys()) - {"apache-airflow"}:
        assert version_in(floors[name]) == version_in(taken[name])[: len(version_in(floors[name]))]


def version_in(text):
    return [int(number) for number in text.split(".")]
