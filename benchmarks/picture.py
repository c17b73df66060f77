"""One picture of all cases: each contender's median wall time, ours in colour."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.running import Outcome
from benchmarks.runs import MIB, Quantity, Spread, values

_OURS, _OTHERS, _INK = "#1a82e2", "#b9c1c9", "#3c4650"
_COLUMNS = 2
_TITLE_LETTERS = 46  # in a line, as wide as a column of any reader's font


def draw(outcomes: list[Outcome], path: Path, *, is_quick: bool) -> None:
    """Fonts are the reader's own, so that the picture stays small."""
    mpl.rcParams.update({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 8, "text.color": _INK})
    shown = [outcome for outcome in outcomes if outcome.runs]
    lines = -(-len(shown) // _COLUMNS)
    figure = Figure(figsize=(10, 0.6 + 2.3 * lines), layout="constrained")
    axes = figure.subplots(lines, _COLUMNS, squeeze=False).flat
    for outcome, axis in zip(shown, axes, strict=False):
        _draw_case(outcome, axis)
    for axis in list(axes)[len(shown) :]:
        axis.set_axis_off()
    if is_quick:
        figure.suptitle("QUICK: sizes too small to judge by")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, metadata={"Date": None})


def _draw_case(outcome: Outcome, axis: Any) -> None:
    quantity: Quantity = "peak" if outcome.case.name == "memory" else "wall"
    unit, divisor = ("MiB at the highest", MIB) if quantity == "peak" else ("seconds", 1)
    names = [contender.name for contender in outcome.case.contenders if contender.name in outcome.runs]
    spreads = [Spread.of([value / divisor for value in values(outcome.runs, name, quantity)]) for name in names]
    ours = {contender.name for contender in outcome.case.contenders if contender.peer == "ours"}
    bars = axis.barh(
        names,
        [spread.middle for spread in spreads],
        color=[_OURS if name in ours else _OTHERS for name in names],
        xerr=[
            [spread.middle - spread.lowest for spread in spreads],
            [spread.highest - spread.middle for spread in spreads],
        ],
        ecolor=_INK,
        error_kw={"elinewidth": 0.6},
    )
    axis.bar_label(bars, [f" {spread.middle:.3g}" for spread in spreads], padding=3)
    axis.set_title(textwrap.fill(f"{outcome.case.title}: {unit}", _TITLE_LETTERS), loc="left", fontsize=9)
    axis.invert_yaxis()
    axis.margins(x=0.15)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=_INK, length=0)
