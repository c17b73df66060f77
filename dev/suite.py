"""Runs the tests on other Airflow versions, each in an environment of its own, and tells the results in a table.

    python3 -m dev.suite test 2.10.3 3.3.1
    python3 -m dev.suite e2e 3.0.6

Runs under any Python >= 3.10 with the standard library alone, as `dev.environment` does.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from dev.environment import REPOSITORY, Wish, make, say
from dev.pythons import version_of

LAB_FOLDER = REPOSITORY / ".lab"
SUITES = {"test": "tests", "e2e": "tests/e2e", "kills": "tests/kills", "browser": "tests/browser"}
# What an old Airflow and its dependencies warn of is theirs; what we or an example do to be warned is an error.
WARNINGS = "default\nerror:::airflow_provider_sendgrid\nerror:::sendgrid_"


@dataclass(frozen=True)
class Result:
    """How one suite went on one version; `is_green` is what pytest says."""

    airflow: str
    python: str
    pins: str
    passed: int
    failed: int
    skipped: int
    seconds: float
    is_green: bool


def run(suite: str, airflow: str, more: Iterable[str] = ()) -> Result:
    """Makes the environment where it is not there, and runs one suite in it, or what `more` names of it."""
    wish = Wish(LAB_FOLDER / f"env-{airflow}", airflow, group="e2e", choose_python=True)
    if not wish.is_fulfilled:
        make(wish)
    python = wish.folder / "bin" / "python"
    report = wish.folder / f"{suite}.xml"
    report.unlink(missing_ok=True)
    say(f"Airflow {airflow}, Python {version_of(python)}: {SUITES[suite]}")
    arguments = ["-p", "no:cacheprovider", "-o", f"filterwarnings={WARNINGS}", f"--junitxml={report}"]
    more = list(more)
    tests = [] if any(each.startswith(SUITES[suite]) for each in more) else [SUITES[suite]]
    started = time.monotonic()
    ended = subprocess.run(
        [python, "-m", "pytest", *tests, *arguments, *more], cwd=REPOSITORY, env=environment(), check=False
    )
    seconds = time.monotonic() - started
    return Result(airflow, version_of(python), wish.pins, *counts(report), seconds, ended.returncode == 0)


def environment() -> dict[str, str]:
    """With that variable every airflow command would compile thousands of modules anew."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def counts(report: Path) -> tuple[int, int, int]:
    """How many tests passed, failed (or broke) and were skipped, as pytest wrote it down."""
    if not report.exists():
        return 0, 0, 0
    suites = ET.parse(report).getroot().iter("testsuite")
    told = [{name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")} for suite in suites]
    total = {name: sum(each[name] for each in told) for name in ("tests", "failures", "errors", "skipped")}
    failed = total["failures"] + total["errors"]
    return total["tests"] - failed - total["skipped"], failed, total["skipped"]


def table(results: Iterable[Result]) -> str:
    """In Markdown."""
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
    given = parser.parse_args()
    results: list[Result] = []
    for version in given.versions:
        results.append(run(given.suite, version, given.pytest.split()))
        print("\n" + table(results) + "\n", flush=True)
    sys.exit(0 if all(result.is_green for result in results) else 1)


if __name__ == "__main__":
    main()
