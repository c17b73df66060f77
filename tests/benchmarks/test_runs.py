"""What runs are said to show: pairs in turn, medians, and bars that are judged by them."""

from benchmarks.cases import QUICK, Case, Contender, all_cases
from benchmarks.report import table
from benchmarks.running import Outcome
from benchmarks.runs import MIB, Run, Spread, memory_bar, rate_bar, ratio, ratio_bar, speedup_bar

RUNS = {
    "ours": [Run(1.0, 2.0, 100 * MIB), Run(3.0, 2.0, 110 * MIB), Run(2.0, 2.0, 90 * MIB)],
    "theirs": [Run(2.0, 1.0, 40 * MIB), Run(4.0, 1.0, 40 * MIB), Run(8.0, 1.0, 40 * MIB)],
}


def test_a_ratio_pairs_the_runs_of_one_round():
    assert Spread(0.5, 0.25, 0.75) == ratio(RUNS, "ours", "theirs")


def test_a_bar_is_met_by_the_median():
    assert ratio_bar("b", "ours", "theirs", most=0.5).judge(RUNS).is_met is True
    assert ratio_bar("b", "ours", "theirs", most=0.4).judge(RUNS).is_met is False
    assert speedup_bar("b", "ours", "theirs", least=2).judge(RUNS).is_met is True


def test_a_bar_without_its_contender_is_not_judged():
    assert ratio_bar("b", "ours", "nobody", most=1).judge(RUNS).is_met is None


def test_a_rate_counts_the_cpu_time_that_came_on_top():
    assert rate_bar("b", "ours", "theirs", 300_000_000, least=1).judge(RUNS).seen == Spread(300.0, 300.0, 300.0)


def test_memory_is_counted_from_what_imports_need():
    assert memory_bar("b", "ours", "theirs", most=64).judge(RUNS).seen == Spread(60.0, 50.0, 70.0)


def test_a_peer_that_is_missing_stands_in_the_table():
    case = Case("c", "A case", 1, (Contender("ours", "ours"), Contender("a | b", "x")))
    shown = table(Outcome(case, {"ours": RUNS["ours"]}, {"a | b": "missing: x is not installed"}), is_quick=False)
    assert r"| a \| b | missing: x is not installed |" in shown


def test_cases_have_names_of_their_own_and_files_of_whole_blocks():
    cases = all_cases(QUICK, 1.0, lambda size: size)
    sizes = [(contender.size or case.size) % case.block_bytes for case in cases for contender in case.contenders]
    assert len({case.name for case in cases}) == len(cases)
    assert set(sizes) == {0}
