"""Writes the fault matrix to `build/faults.md` and its counts to `docs/faults.md`: the last step of `make faults`."""

from __future__ import annotations

from typing import Final

from tests.conftest import REPOSITORY
from tests.faults.matrix import summary, table

ARTIFACT: Final = REPOSITORY / "build" / "faults.md"
PAGE: Final = REPOSITORY / "docs" / "faults.md"
BEGIN, END = "<!-- counts, written by `make faults` -->", "<!-- end of the counts -->"


def with_summary(page: str) -> str:
    """The page with the current counts."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{summary()}\n\n{END}{after}"


def artifact() -> str:
    """The page with the whole matrix."""
    return f"# The fault matrix\n\n{summary()}\n\n{table()}\n"


if __name__ == "__main__":
    ARTIFACT.parent.mkdir(exist_ok=True)
    ARTIFACT.write_text(artifact())
    PAGE.write_text(with_summary(PAGE.read_text()))
