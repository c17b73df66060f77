"""Some cells of the fault matrix of every kind; all of them: `make faults`."""

from __future__ import annotations

import pytest

from airflow_provider_sendgrid.emulator.spoiling import KINDS
from tests.faults.cells import prove
from tests.faults.matrix import cells, rows
from tests.faults.storage_proxy import ERRORS, TROUBLES
from tests.faults.table import PAGE, with_table


@pytest.mark.parametrize("cell", [cell for cell in cells() if cell.is_quick], ids=lambda cell: cell.name)
def test_a_fault_ends_as_declared_and_nothing_is_left_behind(world, cell):
    prove(world, cell)


def test_the_documentation_shows_the_matrix_that_is_proved():
    """`make faults` writes it."""
    assert PAGE.read_text() == with_table(PAGE.read_text())


def test_every_kind_of_fault_is_in_the_matrix():
    """Three kinds have tests of their own: `test_delivery`, `exports/test_names`, `hooks/test_sendgrid`."""
    used = {row.fault.kind for row in rows()}

    assert {*KINDS, *ERRORS, *TROUBLES} - {"changed", "null_listing", "unfilled", "reorder"} == used
