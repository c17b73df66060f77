"""The fenced blocks of README, CONTRIBUTING and docs, and their kinds.

    python -m tests.docs.blocks

counts them by kind. A block that cannot be run has the reason in a comment right above it:
``<!-- not run: needs a Google Cloud project -->``.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
_FENCE = re.compile(r"(?P<indent> *)```(?P<language>[\w+-]*)(?P<rest>[^`]*)")
_REASON = re.compile(r"<!-- not run: (.+) -->")
_INCLUDED = re.compile(r'--8<-- "([^"]+)"')
_DATA = ("json", "yaml", "ini", "requirements")


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        page: path of the page below the repository.
        line: number of its first line.
        language: as the fence names it.
        text: its content.
        reason: why it is not run; empty if it is run.
    """

    page: str
    line: int
    language: str
    text: str
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"

    @property
    def included(self) -> str:
        """The file that the block includes; empty if it includes none."""
        found = _INCLUDED.fullmatch(self.text.strip())
        return found[1] if found else ""

    @property
    def kind(self) -> str:
        """How it is tested."""
        if self.reason:
            return "not run"
        if self.included:
            return "file"
        if self.language == "python":
            return "test" if "def test_" in self.text else "dag" if "with DAG(" in self.text else "snippet"
        if self.language == "text" and self.page.endswith("troubleshooting.md"):
            return "error"
        if self.language in _DATA:
            return "data"
        return "commands" if self.language == "sh" else "unknown"


def pages() -> list[Path]:
    """All pages, except those that only include another file."""
    found = [*sorted(REPOSITORY.glob("[A-Z]*.md")), *sorted((REPOSITORY / "docs").rglob("*.md"))]
    return [page for page in found if not _INCLUDED.fullmatch(page.read_text().strip())]


def blocks_of(page: Path) -> list[Block]:
    """All blocks of one page.

    Raises:
        ValueError: a block does not end.
    """
    name, found = page.relative_to(REPOSITORY).as_posix(), []
    lines = page.read_text().splitlines()
    numbered = iter(enumerate(lines, start=1))
    for number, line in numbered:
        fence = _FENCE.fullmatch(line)
        if fence is None:
            continue
        content = []
        for _, inner in numbered:
            if inner.strip() == "```":
                break
            content.append(inner.removeprefix(fence["indent"]))
        else:
            raise ValueError(f"{name}:{number}: this block does not end")
        reason = _REASON.fullmatch(lines[number - 2].strip()) if number > 1 else None
        text = "\n".join(content) + "\n"
        found.append(Block(name, number + 1, fence["language"], text, reason[1] if reason else ""))
    return found


def all_blocks() -> list[Block]:
    """The blocks of every page."""
    return [block for page in pages() for block in blocks_of(page)]


def blocks_of_kind(kind: str) -> list[Block]:
    """The blocks of one kind."""
    return [block for block in all_blocks() if block.kind == kind]


def commands_of(block: Block) -> list[str]:
    """Its command lines without comments; continued lines are joined."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def main() -> None:
    """Print the counts."""
    found = all_blocks()
    for kind, count in sorted(Counter(block.kind for block in found).items()):
        print(f"{count:4}  {kind}")
    for block in found:
        if block.reason:
            print(f"      not run: {block}: {block.reason}")


if __name__ == "__main__":
    main()
