"""Counts the contacts that pass by, in pieces cut anywhere.

A CSV row is not a line: values hold line breaks, so a line feed ends a record only outside quotes. A JSON
export has one object per line. A byte order mark and blank lines at the start or the end belong to no record. Of all
values only a digest of the first record of a CSV file is kept, and whether it is SendGrid's header: any file may have
it, whatever the order of the files.
"""

from __future__ import annotations

import hashlib
import json
import re
from codecs import BOM_UTF8
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from airflow_provider_sendgrid.files.line_feeds import LineFeeds, line_feeds

_MAX_FIRST_RECORD_BYTES = 1024 * 1024
_MAX_RECORD_BYTES = 16 * 1024 * 1024
_LINE_BREAKS = b"\r\n"
# No contact's first field, the e-mail address, is this word.
_FIRST_COLUMN = re.compile(rb'(?:"EMAIL"|EMAIL)(?:,|[\r\n]|$)', re.IGNORECASE)

ENDS_IN_QUOTES = "The file is truncated: it ends within a quoted value."
ENDS_IN_OBJECT = "The file is truncated: its last line is not a whole JSON object."
TOO_LONG = "The file is not CSV of contacts: its first record is longer than 1 MiB."


@dataclass(frozen=True, slots=True)
class RecordCount:
    """What was counted in one file.

    Attributes:
        records: all records, a header included.
        first_record_sha256: of the first record of a CSV file, empty if there is none.
        damage: why this cannot be a whole file; else empty.
        has_header: whether the first field of a CSV file is ``EMAIL``, as in SendGrid's header.
    """

    records: int
    first_record_sha256: str = ""
    damage: str = ""
    has_header: bool = False

    def rows(self, header_sha256: str) -> int:
        """Contacts in this file, where `header_sha256` is the digest of the export's header."""
        is_header = self.first_record_sha256 != "" and self.first_record_sha256 == header_sha256
        return self.records - (self.has_header or is_header)


class RecordCounter(Protocol):
    """Counts the records of one file that is fed to it in pieces."""

    def feed(self, plain: bytes | memoryview) -> None:
        """Count the next piece."""

    def finish(self) -> RecordCount:
        """What was counted."""


def record_counter(file_type: str) -> RecordCounter:
    """A counter for a file of type ``csv`` or ``json``."""
    return CsvCounter() if file_type == "csv" else JsonCounter()


class _Start:
    """Leaves out a UTF-8 byte order mark at the start of a file, and line breaks before its first record."""

    def __init__(self) -> None:
        self._held = b""  # the beginning of a byte order mark, perhaps
        self._may_have_mark = self._is_before_record = True

    def feed(self, plain: bytes | memoryview) -> bytes | memoryview:
        """What is left of the next piece."""
        if not self._is_before_record:
            return plain
        piece, self._held = self._held + bytes(plain), b""
        if self._may_have_mark and len(piece) < len(BOM_UTF8) and BOM_UTF8.startswith(piece):
            self._held = piece
            return b""
        if self._may_have_mark:
            piece, self._may_have_mark = piece.removeprefix(BOM_UTF8), False
        piece = piece.lstrip(b"\r\n")
        self._is_before_record = not piece
        return piece

    def finish(self) -> bytes:
        """What is left at the end."""
        return self._held


class CsvCounter:
    """Counts CSV records: line feeds outside quotes, and a last record without one; blank lines at the end are none."""

    def __init__(self, lines: LineFeeds | None = None) -> None:
        self._lines = lines or line_feeds()
        self._start = _Start()
        self._is_empty = True
        self._line_feeds_at_end = 0  # in the line breaks that follow the last other byte
        self._first_record: bytes | None = b""

    def feed(self, plain: bytes | memoryview) -> None:
        """Count the next piece."""
        self._feed(self._start.feed(plain))

    def finish(self) -> RecordCount:
        """What was counted."""
        self._feed(self._start.finish())
        first = self._first_record
        digest = hashlib.sha256(first.rstrip(b"\r\n")).hexdigest() if first else ""
        has_header = first is not None and _FIRST_COLUMN.match(first) is not None
        if self._lines.in_quotes:
            return RecordCount(self._lines.count + 1, digest, ENDS_IN_QUOTES, has_header)
        records = self._lines.count - self._line_feeds_at_end + (not self._is_empty)
        return RecordCount(records, digest, TOO_LONG if first is None else "", has_header)

    def _feed(self, plain: bytes | memoryview) -> None:
        if not plain:
            return
        self._is_empty = False
        if self._lines.count == 0 and self._first_record is not None:
            self._keep_first_record(plain)
        self._lines.feed(plain)
        self._count_at_end(plain)

    def _count_at_end(self, plain: bytes | memoryview) -> None:
        if plain[-1] not in _LINE_BREAKS:
            self._line_feeds_at_end = 0
            return
        piece = bytes(plain)
        end = len(piece.rstrip(_LINE_BREAKS))
        self._line_feeds_at_end = piece.count(b"\n", end) + (0 if end else self._line_feeds_at_end)

    def _keep_first_record(self, plain: bytes | memoryview) -> None:
        """Collect bytes up to the first line feed outside quotes; give up on a record without end."""
        known = (self._first_record or b"") + bytes(plain[: _MAX_FIRST_RECORD_BYTES + 1])
        end = known.find(b"\n")
        quotes = known.count(b'"', 0, max(0, end))
        while end >= 0 and quotes % 2:
            following = known.find(b"\n", end + 1)
            quotes += known.count(b'"', end, max(end, following))
            end = following
        known = known[: end + 1] if end >= 0 else known
        self._first_record = known if len(known) <= _MAX_FIRST_RECORD_BYTES else None


class JsonCounter:
    """Counts JSON objects, one per line; blank lines are none. The last one is parsed: a file may be cut within it."""

    def __init__(self) -> None:
        self._start = _Start()
        self._records = 0
        self._last: bytes | bytearray = b""
        self._open = bytearray()  # the line that has no end yet

    def feed(self, plain: bytes | memoryview) -> None:
        """Count the next piece."""
        self._feed(self._start.feed(plain))

    def finish(self) -> RecordCount:
        """What was counted."""
        self._feed(self._start.finish())
        self._end_lines([self._open])
        is_whole = not self._records or _is_object(self._last)
        return RecordCount(self._records, damage="" if is_whole else ENDS_IN_OBJECT)

    def _feed(self, plain: bytes | memoryview) -> None:
        first, *others = bytes(plain).split(b"\n")
        # What is longer is no record of SendGrid's; that it was cut off here will be noticed when it is parsed.
        self._open += first[: max(0, _MAX_RECORD_BYTES + 1 - len(self._open))]
        if others:
            *lines, last = others
            self._end_lines([self._open, *lines])
            self._open = bytearray(last)

    def _end_lines(self, lines: Sequence[bytes | bytearray]) -> None:
        records = [line for line in lines if line and not line.isspace()]
        self._records += len(records)
        self._last = records[-1] if records else self._last


def _is_object(line: bytes | bytearray) -> bool:
    try:
        return len(line) <= _MAX_RECORD_BYTES and isinstance(json.loads(line, strict=False), dict)
    except (ValueError, RecursionError):
        return False
