"""The chart of the performance page: the default first, and colours for both modes."""

import re

from benchmarks.cases import QUICK, all_cases
from benchmarks.chart import draw
from benchmarks.measurements import Run
from benchmarks.runner import Outcome


def test_the_default_is_the_first_bar(tmp_path):
    cases = all_cases(QUICK, 1.0, lambda size: 3 * size)
    outcomes = [Outcome(case, {each.name: [Run(2.0, 1.0, 1.0)] for each in case.contenders}, {}) for case in cases]

    draw(outcomes, tmp_path / "chart.svg", is_quick=False)

    drawn = (tmp_path / "chart.svg").read_text()
    names = re.findall(r'<text x="0" y="\d+">(.+?)</text>', drawn)
    assert ["this provider", "this provider, verify_row_count=False"] == names[:2]
    assert "HttpToS3Operator" in names
    assert 2 == drawn.count('class="ours"')
    assert "prefers-color-scheme: dark" in drawn
