"""Some cells of the fault matrix of every kind; all of them: `make faults`."""

from __future__ import annotations

import pytest

from tests.faults.cells import prove
from tests.faults.matrix import cells


@pytest.mark.parametrize("cell", [cell for cell in cells() if cell.is_quick], ids=lambda cell: cell.name)
def test_a_fault_ends_as_declared_and_nothing_is_left_behind(world, cell):
    prove(world, cell)
