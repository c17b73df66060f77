"""Names of the objects at a prefix: the manifest, the files of exports, receipts, and orders of files."""

from __future__ import annotations

import re
from dataclasses import dataclass

MANIFEST_NAME = "_manifest.json"
RECEIPTS = "_receipts/"
SAFE_ID = re.compile(r"[A-Za-z0-9](?:\.?[A-Za-z0-9_-])*")
_FILE_NAME = re.compile(rf"({SAFE_ID.pattern})-\d{{5,}}-of-\d{{5,}}\.(csv|json)(\.gz)?")
_MAX_FILES = 10_000


def receipt_name(name: str) -> str:
    """The name of the receipt of an object."""
    return f"{RECEIPTS}{name}.json"


def order_name(export_id: str) -> str:
    """The name of the object that holds the order of an export's files."""
    return f"{RECEIPTS}{export_id}.json"


def file_stem(export_id: str, number: int, count: int) -> str:
    """The name of file `number` (from 1) of an export of `count` files, without its extension."""
    return f"{export_id}-{number:05d}-of-{count:05d}"


def name_of_uri(uri: str) -> str:
    """The name of an object at its prefix."""
    return uri.rpartition("/")[2]


@dataclass(frozen=True, slots=True)
class FileName:
    """The parts of the name of a stored file.

    Attributes:
        export_id: id of the export.
        count: number of files in the export.
        extension: such as ``.csv.gz``.
    """

    export_id: str
    count: int
    extension: str

    @classmethod
    def parse(cls, name: str) -> FileName | None:
        """Split a name; None if it is not the name of a stored file."""
        match = _FILE_NAME.fullmatch(name)
        if match is None:
            return None
        count, _, extension = name.rpartition("-of-")[2].partition(".")
        return cls(match[1], int(count), f".{extension}")

    def of_all_files(self) -> list[str]:
        """The names of all files of the export; none if the count is larger than that of any export."""
        numbers = range(1, self.count + 1) if self.count <= _MAX_FILES else ()
        return [file_stem(self.export_id, number, self.count) + self.extension for number in numbers]
