"""Every cell of the fault matrix: `make faults`."""

from __future__ import annotations

import pytest

from tests.faults.cell_checks import check_cell
from tests.faults.matrix import cells


@pytest.mark.parametrize("cell", list(cells()), ids=lambda cell: cell.name)
def test_a_fault_has_the_declared_outcome(services, cell):
    check_cell(services, cell)
