"""Draws one chart: the time of each program to copy one file. An SVG for small screens and dark mode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from benchmarks.measurements import Spread, values
from benchmarks.runner import Outcome

_WIDTH, _LINE, _BAR = 480, 40, 14
_VALUE_WIDTH = 56
_STYLE = """
  text { font: 14px system-ui, sans-serif; fill: #3c4650 }
  .ours { fill: #1a82e2 }
  .other { fill: #b9c1c9 }
  @media (prefers-color-scheme: dark) {
    text { fill: #d5dae0 }
    .ours { fill: #4aa3f5 }
    .other { fill: #626c78 }
  }
"""


@dataclass(frozen=True)
class Bar:
    """One line of the chart."""

    name: str
    seconds: float
    is_ours: bool = False


# Our runs in the chart: the default first, then without counting rows.
_OURS = {
    ("rows", "ours, rows counted"): "this provider",
    ("one-file", "ours"): "this provider, verify_row_count=False",
}


def draw(outcomes: Sequence[Outcome], path: Path, *, is_quick: bool) -> None:
    """Draw what was measured of `rows` and `one-file`: this provider, then the other programs."""
    by_case = {outcome.case.name: outcome for outcome in outcomes}
    one_file = by_case["one-file"].case.contenders if "one-file" in by_case else ()
    others = {("one-file", each.name): each.name for each in one_file if each.peer != "ours"}
    bars = [
        Bar(shown, _median(by_case[case], name), is_ours=(case, name) in _OURS)
        for (case, name), shown in (_OURS | others).items()
        if case in by_case and name in by_case[case].runs
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(chart(bars, "QUICK: too small to compare" if is_quick else "Seconds for one file of 2 GiB"))


def _median(outcome: Outcome, name: str) -> float:
    return Spread.of(values(outcome.runs, name, "wall")).middle


def chart(bars: Sequence[Bar], title: str) -> str:
    """Horizontal bars, each below its name, with the reader's fonts and background."""
    height = 36 + _LINE * len(bars)
    longest = max((bar.seconds for bar in bars), default=1.0)
    size = f'width="{_WIDTH}" height="{height}" viewBox="0 0 {_WIDTH} {height}"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{_STYLE}</style>",
        f'<text x="0" y="16" font-weight="bold">{escape(title)}</text>',
    ]
    for number, bar in enumerate(bars):
        top = 36 + _LINE * number
        width = (_WIDTH - _VALUE_WIDTH) * bar.seconds / longest
        color = "ours" if bar.is_ours else "other"
        lines += [
            f'<text x="0" y="{top + 12}">{escape(bar.name)}</text>',
            f'<rect class="{color}" x="0" y="{top + 17}" width="{width:.1f}" height="{_BAR}"/>',
            f'<text x="{width + 6:.1f}" y="{top + 29}">{bar.seconds:.3g}</text>',
        ]
    return "\n".join([*lines, "</svg>", ""])
