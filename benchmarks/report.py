"""Outcomes as a table and as JSON."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Any

from benchmarks.measurements import MIB, GoalResult, Spread, ratio, values
from benchmarks.runner import Outcome

_MARKS = {True: "met", False: "**missed**", None: "not evaluated"}


def table(outcome: Outcome, *, is_quick: bool) -> str:
    """One case in Markdown: times, then goals."""
    case = outcome.case
    lines = [f"### {case.title}{' (QUICK: sizes too small to evaluate by)' if is_quick else ''}", ""]
    first = case.contenders[0].name
    lines += [
        f"| | wall, s | CPU, s | peak, MiB | wall of “{first}” is | runs |",
        "|---|---|---|---|---|---|",
        *(_row(outcome, contender.name, first) for contender in case.contenders),
    ]
    if case.goals:
        lines += [
            "",
            "| goal | measured | |",
            "|---|---|---|",
            *(_goal_row(goal.evaluate(outcome.runs)) for goal in case.goals),
        ]
    return "\n".join(lines)


def _row(outcome: Outcome, name: str, first: str) -> str:
    if name not in outcome.runs:
        return f"| {_cell(name)} | {outcome.missing.get(name, 'not run').splitlines()[-1]} | | | | 0 |"
    runs = outcome.runs
    wall, cpu, peak = (Spread.of(values(runs, name, quantity)) for quantity in ("wall", "cpu", "peak"))
    compared = "" if name == first or first not in runs else f"{_spread(ratio(runs, first, name))} x this"
    cells = (_cell(name), _spread(wall), _spread(cpu), f"{peak.highest / MIB:.0f}", compared, str(len(runs[name])))
    return f"| {' | '.join(cells)} |"


def _goal_row(result: GoalResult) -> str:
    seen = _spread(result.seen) if result.seen else ""
    return f"| {_cell(result.text)} | {seen} | {_MARKS[result.is_met]} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _spread(spread: Spread) -> str:
    middle, lowest, highest = (
        f"{number:.0f}" if number >= 100 else f"{number:.2f}"
        for number in (spread.middle, spread.lowest, spread.highest)
    )
    return f"{middle} ({lowest}…{highest})"


def results(outcomes: list[Outcome], *, is_quick: bool) -> dict[str, Any]:
    return {
        "quick": is_quick,
        "python": platform.python_version(),
        "cases": [
            {
                "name": outcome.case.name,
                "title": outcome.case.title,
                "runs": {name: [asdict(run) for run in runs] for name, runs in outcome.runs.items()},
                "missing": outcome.missing,
                "goals": [asdict(goal.evaluate(outcome.runs)) for goal in outcome.case.goals],
            }
            for outcome in outcomes
        ],
    }
