"""What runs are said to show: pairs in turn, medians, and goals that are evaluated by them."""

from benchmarks.cases import QUICK, Case, Contender, all_cases
from benchmarks.measurements import MIB, Run, Spread, memory_goal, rate_goal, ratio, ratio_goal, speedup_goal
from benchmarks.report import table
from benchmarks.runner import Outcome

RUNS = {
    "ours": [Run(1.0, 2.0, 100 * MIB), Run(3.0, 2.0, 110 * MIB), Run(2.0, 2.0, 90 * MIB)],
    "theirs": [Run(2.0, 1.0, 40 * MIB), Run(4.0, 1.0, 40 * MIB), Run(8.0, 1.0, 40 * MIB)],
}


def test_a_ratio_compares_runs_of_the_same_round():
    assert Spread(0.5, 0.25, 0.75) == ratio(RUNS, "ours", "theirs")


def test_a_goal_is_met_by_the_median():
    assert ratio_goal("b", "ours", "theirs", most=0.5).evaluate(RUNS).is_met is True
    assert ratio_goal("b", "ours", "theirs", most=0.4).evaluate(RUNS).is_met is False
    assert speedup_goal("b", "ours", "theirs", least=2).evaluate(RUNS).is_met is True


def test_a_goal_without_runs_is_not_evaluated():
    assert ratio_goal("b", "ours", "missing", most=1).evaluate(RUNS).is_met is None


def test_a_rate_counts_the_additional_cpu_time():
    assert rate_goal("b", "ours", "theirs", 300_000_000, least=1).evaluate(RUNS).seen == Spread(300.0, 300.0, 300.0)


def test_memory_is_measured_above_that_of_imports():
    assert memory_goal("b", "ours", "theirs", most=64).evaluate(RUNS).seen == Spread(60.0, 50.0, 70.0)


def test_the_table_shows_missing_programs():
    case = Case("c", "A case", 1, (Contender("ours", "ours"), Contender("a | b", "x")))
    shown = table(Outcome(case, {"ours": RUNS["ours"]}, {"a | b": "missing: x is not installed"}), is_quick=False)
    assert r"| a \| b | missing: x is not installed |" in shown


def test_cases_have_unique_names_and_whole_blocks():
    cases = all_cases(QUICK, 1.0, lambda size: size)
    sizes = [(contender.size or case.size) % case.block_bytes for case in cases for contender in case.contenders]
    assert len({case.name for case in cases}) == len(cases)
    assert set(sizes) == {0}
