"""Some cells of every kind of the fault matrix; `make faults` checks all."""

from __future__ import annotations

import pytest

from airflow_provider_sendgrid.emulator.faults import KINDS
from tests.faults.cell_checks import check_cell
from tests.faults.matrix import CONDITIONS, cells, rows
from tests.faults.table import PAGE, artifact, with_summary
from tests.support.storage_proxy import ERRORS, TRANSPORT_FAULTS


@pytest.mark.parametrize("cell", [cell for cell in cells() if cell.is_quick], ids=lambda cell: cell.name)
def test_a_fault_has_the_declared_outcome(services, cell):
    check_cell(services, cell)


def test_the_documentation_has_the_current_counts():
    """`make faults` writes the counts."""
    assert PAGE.read_text() == with_summary(PAGE.read_text())


def test_the_documentation_names_every_condition():
    assert [] == [condition for condition in CONDITIONS if f"| {condition} |" not in PAGE.read_text()]


def test_the_table_has_a_line_for_every_fault():
    lines = artifact().splitlines()

    assert [] == [
        row.name for row in rows() if not any(line.startswith(f"| {row.title} | {row.times} |") for line in lines)
    ]


def test_every_kind_of_fault_is_in_the_matrix():
    """Except four kinds with other tests."""
    used = {row.fault.kind for row in rows()}

    assert {*KINDS, *ERRORS, *TRANSPORT_FAULTS} - {"changed", "null_listing", "unfilled", "reorder"} == used
