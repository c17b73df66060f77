"""Reads and counts the objects of one delivery, with code that is not the package's."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, TextIO

from dev.demo.targets import ObjectStore
from dev.services.s3 import bucket_and_key

MANIFEST = "_manifest.json"


@dataclass(frozen=True)
class Delivery:
    """The objects that the last task returned, and all others with their prefix."""

    store: ObjectStore
    uris: list[str]

    @property
    def keys(self) -> list[str]:
        return [bucket_and_key(uri)[1] for uri in self.uris]

    @property
    def prefix(self) -> str:
        return self.keys[0].rpartition("/")[0] + "/"

    def sizes(self) -> dict[str, int]:
        return self.store.sizes(self.prefix)

    def manifest(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.store.open(self.prefix + MANIFEST).read())
        return content

    def contacts(self) -> int:
        return sum(count_contacts(key, self._text(key)) for key in self.keys)

    def first_lines(self, count: int) -> list[str]:
        """The first lines of the first object."""
        return [line.rstrip("\n") for line in islice(self._text(self.keys[0]), count)]

    def _text(self, key: str) -> TextIO:
        body = self.store.open(key)
        plain = gzip.GzipFile(fileobj=body) if key.endswith(".gz") else body
        return io.TextIOWrapper(plain, encoding="utf-8", newline="")


def count_contacts(key: str, text: Iterator[str]) -> int:
    """Rows below the header of a CSV file, lines of a JSON file."""
    if ".json" in key:
        return sum(1 for line in text if line.strip())
    return max(0, sum(1 for _ in csv.reader(text)) - 1)
