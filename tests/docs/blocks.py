"""The fenced blocks of what users read, and what is done with each kind of them.

    python -m tests.docs.blocks

lists how many there are of which kind. A block that cannot be run says why in a comment right above it:
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
        text: what stands in it.
        reason: why it cannot be run; empty where it is.
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
        """The file that the block shows, where it shows one."""
        found = _INCLUDED.fullmatch(self.text.strip())
        return found[1] if found else ""

    @property
    def kind(self) -> str:
        """What is done with it."""
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
    """What users read, but for pages that are nothing but another file."""
    found = [*sorted(REPOSITORY.glob("[A-Z]*.md")), *sorted((REPOSITORY / "docs").rglob("*.md"))]
    return [page for page in found if not _INCLUDED.fullmatch(page.read_text().strip())]


def blocks_of(page: Path) -> list[Block]:
    """All blocks of one page.

    Raises:
        ValueError: one does not end.
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
    """Those of every page."""
    return [block for page in pages() for block in blocks_of(page)]


def blocks_of_kind(kind: str) -> list[Block]:
    """Those of one kind."""
    return [block for block in all_blocks() if block.kind == kind]


def commands_of(block: Block) -> list[str]:
    """Its command lines, continued ones joined, without comments."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]


def main() -> None:
    """Tell how many there are."""
    found = all_blocks()
    for kind, count in sorted(Counter(block.kind for block in found).items()):
        print(f"{count:4}  {kind}")
    for block in found:
        if block.reason:
            print(f"      not run: {block}: {block.reason}")


if __name__ == "__main__":
    main()
