"""Measures this provider and other programs in turn; prints a table, writes JSON and a chart.

    python -m benchmarks                      everything, some 25 minutes
    python -m benchmarks --case tls --rounds 3
    python -m benchmarks --quick              small files, only to check that everything works

Run it on an idle machine.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
import zlib
from importlib import import_module
from pathlib import Path

from benchmarks.cases import QUICK, Case, Scale, all_cases
from benchmarks.certificates import make_certificates
from benchmarks.content import block
from benchmarks.measurements import GIB
from benchmarks.report import results, table
from benchmarks.runner import Outcome, Workspace, run_case
from dev import REPOSITORY, WORK_FOLDER

FOLDER = WORK_FOLDER / "benchmarks"
CHART = REPOSITORY / "docs" / "performance.svg"


def main() -> None:
    options = arguments()
    scale = QUICK if options.quick else Scale()
    content = block(FOLDER / "content", "gzip", scale.block_bytes)
    hashing = hashing_seconds_per_gib()
    cases = all_cases(scale, hashing, lambda size: size // content.size * content.plain_size)
    chosen = [case for case in cases if options.case in (None, case.name)]
    if not chosen:
        sys.exit(f"There is no case {options.case!r}; there are {', '.join(case.name for case in cases)}.")
    with tempfile.TemporaryDirectory() as keys:
        workspace = Workspace(FOLDER, make_certificates(Path(keys)))
        outcomes = [measure(case, workspace, options.rounds, is_quick=options.quick) for case in chosen]
    write(outcomes, is_quick=options.quick, is_all=options.case is None)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--case", metavar="NAME", help="only this case")
    parser.add_argument("--quick", action="store_true", help="small sizes, to check that everything works")
    parser.add_argument("--rounds", type=int, default=5, help="runs of each, after a warm-up (default: 5)")
    return parser.parse_args()


def measure(case: Case, workspace: Workspace, rounds: int, *, is_quick: bool) -> Outcome:
    say(f"{case.name}: {case.title} (load {os.getloadavg()[0]:.1f})")
    outcome = run_case(case, workspace, rounds, say)
    print(f"\n{table(outcome, is_quick=is_quick)}\n", flush=True)
    return outcome


def write(outcomes: list[Outcome], *, is_quick: bool, is_all: bool) -> None:
    path = FOLDER / ("quick.json" if is_quick else "results.json")
    path.write_text(json.dumps(results(outcomes, is_quick=is_quick), indent=1) + "\n")
    say(f"Written: {path.relative_to(REPOSITORY)}")
    chart = CHART if is_all and not is_quick else path.with_suffix(".svg")
    try:
        draw = import_module("benchmarks.chart").draw
    except ImportError as error:
        say(f"No chart: {error}")
        return
    draw(outcomes, chart, is_quick=is_quick)
    say(f"Drawn: {chart.relative_to(REPOSITORY)}")


def hashing_seconds_per_gib(size: int = 64 * 1024 * 1024) -> float:
    """CPU seconds for SHA-256 and CRC32 of 1 GiB on this machine: the best of three."""
    content = bytearray(size)
    try:
        crc32 = import_module("isal.isal_zlib").crc32
    except ImportError:
        crc32 = zlib.crc32
    return min(_seconds(hashlib.sha256, content) + _seconds(crc32, content) for _ in range(3)) * GIB / size


def _seconds(function: object, content: bytearray) -> float:
    began = time.process_time()
    function(content)  # type: ignore[operator]
    return time.process_time() - began


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
