"""Results of test suites."""

from dev.environments.suites import Result, counts, table

REPORT = """<?xml version="1.0" encoding="utf-8"?>
<testsuites><testsuite name="pytest" errors="1" failures="2" skipped="3" tests="10" time="1.5"/></testsuites>
"""


def test_errors_count_as_failures(tmp_path):
    report = tmp_path / "test.xml"
    report.write_text(REPORT)

    assert (4, 3, 3) == counts(report)


def test_a_suite_without_a_report_has_no_counts(tmp_path):
    assert (0, 0, 0) == counts(tmp_path / "missing.xml")


def test_the_table_has_one_line_per_version():
    results = [
        Result("2.10.3", "3.11", "pinned", 9, 0, 1, 61.4, True),
        Result("3.3.1", "3.12", "newest", 0, 0, 0, 1.0, False),
    ]

    lines = table(results).splitlines()

    assert "| 2.10.3 | 3.11 | pinned | 9 | 0 | 1 | 61 | yes |" == lines[2]
    assert lines[3].endswith("| NO |")
