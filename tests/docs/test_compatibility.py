"""The compatibility page agrees with pyproject.toml and the Makefile."""

from __future__ import annotations

import re

from packaging.requirements import Requirement

from tests.docs.blocks import REPOSITORY

PAGE = (REPOSITORY / "docs" / "compatibility.md").read_text()
MAKEFILE = (REPOSITORY / "Makefile").read_text()
PYPROJECT = (REPOSITORY / "pyproject.toml").read_text()


def test_every_tested_airflow_is_listed():
    [line] = [line for line in PAGE.splitlines() if line.startswith("| Airflow |")]
    tested, deployed = line.split("whole deployments on")

    assert versions_of("TEST_VERSIONS") == set(re.findall(r"\d+\.\d+\.\d+", tested.split("|")[3]))
    assert versions_of("E2E_VERSIONS") == set(re.findall(r"\d+\.\d+\.\d+", deployed))


def versions_of(variable):
    """The value of a variable in the Makefile."""
    [value] = re.findall(rf"(?m)^{variable} := (.+)$", MAKEFILE)
    [newest] = re.findall(r"(?m)^NEWEST := (.+)$", MAKEFILE)
    return set(value.replace("$(NEWEST)", newest).split())


def test_every_dependency_is_listed_with_its_lowest_version():
    rows = dict(re.findall(r"(?m)^\| `([\w-]+)` \| `(>=[\d.]+)` \|", PAGE))
    declared = re.findall(r'"([\w-]+>=[^"]+)"', PYPROJECT.partition("[project.entry-points")[0])

    assert rows == {each.name: str(each.specifier) for each in map(Requirement, declared) if each.name != "hatchling"}


def test_the_python_versions_are_those_of_the_package():
    declared = re.findall(r"Programming Language :: Python :: (3\.\d+)", PYPROJECT)

    assert f"| Python | {declared[0]} to {declared[-1]} |" in PAGE
