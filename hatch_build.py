"""The README of the package index: README.md with absolute links.

README.md has relative links, which work in a clone and on GitHub. The package index needs absolute ones; they begin
with `Repository` in `[project.urls]`.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from hatchling.metadata.plugin.interface import MetadataHookInterface

_RELATIVE = re.compile(r"(?<=\]\()(?!https?://|#)[^)\s]+(?=\))")
_PICTURES = (".png", ".svg")


class ReadmeHook(MetadataHookInterface):
    """Sets the field `readme`."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Called by hatchling when it builds."""
        readme = Path(self.root, "README.md").read_text(encoding="utf-8")
        text = with_absolute_links(readme, metadata["urls"]["Repository"])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}


def with_absolute_links(readme: str, repository: str) -> str:
    """Replace each relative link by the address of that file on the branch `main`."""

    def absolute(link: re.Match[str]) -> str:
        kind = "raw" if link[0].endswith(_PICTURES) else "blob"
        return urljoin(f"{repository}/{kind}/main/", link[0])

    return _RELATIVE.sub(absolute, readme)
