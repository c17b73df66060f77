"""Some cells of the fault matrix of every kind; all of them: `make faults`."""

from __future__ import annotations

import pytest

from airflow_provider_sendgrid.emulator.faults import KINDS
from tests.faults.cells import prove
from tests.faults.matrix import CONDITIONS, cells, rows
from tests.faults.storage_proxy import ERRORS, TROUBLES
from tests.faults.table import PAGE, artifact, with_summary


@pytest.mark.parametrize("cell", [cell for cell in cells() if cell.is_quick], ids=lambda cell: cell.name)
def test_a_fault_ends_as_declared_and_nothing_is_left_behind(world, cell):
    prove(world, cell)


def test_the_documentation_counts_the_cells_that_are_proved():
    """`make faults` writes the counts."""
    assert PAGE.read_text() == with_summary(PAGE.read_text())


def test_the_documentation_names_every_condition():
    assert [] == [condition for condition in CONDITIONS if f"| {condition} |" not in PAGE.read_text()]


def test_the_table_has_a_line_for_every_fault():
    lines = artifact().splitlines()

    assert [] == [
        row.name for row in rows() if not any(line.startswith(f"| {row.said} | {row.times} |") for line in lines)
    ]


def test_every_kind_of_fault_is_in_the_matrix():
    """Three kinds have tests of their own: `test_delivery`, `exports/test_names`, `hooks/test_sendgrid`."""
    used = {row.fault.kind for row in rows()}

    assert {*KINDS, *ERRORS, *TROUBLES} - {"changed", "null_listing", "unfilled", "reorder"} == used
