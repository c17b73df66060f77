"""Writes the fault matrix into its page of the documentation: `make faults` does so when every cell has been proved."""

from __future__ import annotations

from typing import Final

from tests.conftest import REPOSITORY
from tests.faults.matrix import cells, rows, table

PAGE: Final = REPOSITORY / "docs" / "faults.md"
BEGIN, END = "<!-- the matrix, written by `make faults` -->", "<!-- the end of the matrix -->"


def with_table(page: str) -> str:
    """The page with the matrix of now in it."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    counted = f"{len(list(rows()))} faults, {len(list(cells()))} cells:"
    return f"{before}{BEGIN}\n\n{counted}\n\n{table()}\n\n{END}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
