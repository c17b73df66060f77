"""What users install: the package alone."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]


def builder():
    """The command that builds a wheel: hatchling or uv."""
    if find_spec("hatchling"):
        return [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d"]
    uv = Path(sys.executable).with_name("uv")
    found = str(uv) if uv.exists() else shutil.which("uv")
    return [found, "build", "--quiet", "--wheel", "--out-dir"] if found else None


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of a copy, so that the repository stays as it is."""
    command = builder()
    if command is None:
        pytest.skip("neither hatchling nor uv is installed: no wheel can be built")
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "hatch_build.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    for name in ("airflow_provider_sendgrid", "example_dags", "tests", "dev"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run([*command, str(folder)], cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    [built] = folder.glob("*.whl")
    return zipfile.ZipFile(built)


def test_the_wheel_contains_only_the_package(wheel):
    """No tests, examples or dev."""
    tops = {name.split("/")[0] for name in wheel.namelist()}

    [metadata] = {top for top in tops if top.endswith(".dist-info")}
    assert {"airflow_provider_sendgrid", metadata} == tops


def test_the_wheel_contains_the_whole_package(wheel):
    package = REPOSITORY / "airflow_provider_sendgrid"
    files = {str(path.relative_to(REPOSITORY)) for path in package.rglob("*") if path.is_file()}

    expected = {name for name in files if "__pycache__" not in name}

    assert expected == {name for name in wheel.namelist() if name.startswith("airflow_provider_sendgrid/")}


def test_the_wheel_has_the_marker_of_typed_packages(wheel):
    assert "airflow_provider_sendgrid/py.typed" in wheel.namelist()


def test_the_wheel_names_its_entry_point_license_and_python(wheel):
    [metadata] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    [entries] = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]

    text = wheel.read(metadata).decode()

    assert "Name: airflow-provider-sendgrid\n" in text
    assert "License-Expression: Apache-2.0\n" in text
    assert "Requires-Python: >=3.10\n" in text
    assert "[apache_airflow_provider]" in wheel.read(entries).decode()


def test_links_on_the_package_index_are_absolute(wheel):
    """They begin with the address in pyproject.toml; links to pictures are links to the raw files."""
    [metadata] = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
    text = wheel.read(metadata).decode()
    [repository] = re.findall(r"(?m)^Project-URL: Repository, (\S+)$", text)

    links = re.findall(r"\]\(([^)\s]+)\)", text.partition("\n\n")[2])

    assert f"{repository}/blob/main/docs/quickstart.md" in links
    assert f"{repository}/raw/main/docs/images/graph-airflow-3.png" in links
    assert f"{repository}/actions/workflows/ci.yml/badge.svg" in links
    assert [] == [link for link in links if not link.startswith("https://")]
