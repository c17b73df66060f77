"""Runs the tests on other Airflow versions, each in its own environment, and prints a table of results.

    python3 -m dev.environments.suites test 2.10.3 3.3.1
    python3 -m dev.environments.suites e2e 3.0.6

Needs only Python >= 3.10 and its standard library, as `dev.environments.virtualenv` does.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from dev import REPOSITORY, WORK_FOLDER, inherited_environment
from dev.environments.interpreters import version_of
from dev.environments.virtualenv import EnvironmentSpec, create, say

SUITES = {"test": "tests", "e2e": "tests/e2e", "kills": "tests/kills", "browser": "tests/browser"}
# Only warnings of this package and of the example DAGs are errors.
WARNINGS = "default\nerror:::airflow_provider_sendgrid\nerror:::sendgrid_"


@dataclass(frozen=True)
class Result:
    """The result of one suite on one version; `is_green` is pytest's exit code."""

    airflow: str
    python: str
    pins: str
    passed: int
    failed: int
    skipped: int
    seconds: float
    is_green: bool


def run(suite: str, airflow: str, more: Iterable[str] = ()) -> Result:
    """Create the environment if necessary, and run a suite in it, or the tests of it named in `more`."""
    spec = EnvironmentSpec(WORK_FOLDER / f"env-{airflow}", airflow, group="e2e", choose_python=True)
    if not spec.is_current:
        create(spec)
    python = spec.folder / "bin" / "python"
    report = spec.folder / f"{suite}.xml"
    report.unlink(missing_ok=True)
    say(f"Airflow {airflow}, Python {version_of(python)}: {SUITES[suite]}")
    arguments = ["-p", "no:cacheprovider", "-o", f"filterwarnings={WARNINGS}", f"--junitxml={report}"]
    more = list(more)
    tests = [] if any(each.startswith(SUITES[suite]) for each in more) else [SUITES[suite]]
    started = time.monotonic()
    done = subprocess.run(
        [python, "-m", "pytest", *tests, *arguments, *more], cwd=REPOSITORY, env=inherited_environment(), check=False
    )
    seconds = time.monotonic() - started
    return Result(airflow, version_of(python), spec.pins, *counts(report), seconds, done.returncode == 0)


def counts(report: Path) -> tuple[int, int, int]:
    """The numbers of tests that passed, failed (errors included) and were skipped, from pytest's report."""
    if not report.exists():
        return 0, 0, 0
    suites = list(ET.parse(report).getroot().iter("testsuite"))
    names = ("tests", "failures", "errors", "skipped")
    total = {name: sum(int(suite.get(name, 0)) for suite in suites) for name in names}
    failed = total["failures"] + total["errors"]
    return total["tests"] - failed - total["skipped"], failed, total["skipped"]


def table(results: Iterable[Result]) -> str:
    """The results in Markdown."""
    rows = ["| " + " | ".join(map(str, cells(each))) + " |" for each in results]
    head = [
        "| Airflow | Python | installed | passed | failed | skipped | seconds | green |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    return "\n".join([*head, *rows])


def cells(result: Result) -> tuple[object, ...]:
    counted = (result.passed, result.failed, result.skipped, f"{result.seconds:.0f}")
    return result.airflow, result.python, result.pins, *counted, "yes" if result.is_green else "NO"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("versions", nargs="+", metavar="VERSION")
    parser.add_argument("--pytest", default="", help="more arguments for pytest")
    options = parser.parse_args()
    results: list[Result] = []
    for version in options.versions:
        results.append(run(options.suite, version, options.pytest.split()))
        print("\n" + table(results) + "\n", flush=True)
    sys.exit(0 if all(result.is_green for result in results) else 1)


if __name__ == "__main__":
    main()
