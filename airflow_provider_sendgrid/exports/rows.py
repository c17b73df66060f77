"""Counts the contacts that pass by, in pieces cut anywhere.

A CSV row is not a line: values hold line breaks, so a line feed ends a record only outside quotes. A JSON
export has one object per line. Nothing is decoded, and of all values only a digest of the first record is
kept: it tells whether a later file repeats the header.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Protocol

from airflow_provider_sendgrid.exports.line_feeds import LineFeeds, line_feeds

_MAX_FIRST_RECORD_BYTES = 1024 * 1024
_LINE_FEED = ord("\n")


@dataclass(frozen=True, slots=True)
class RecordCount:
    """What was counted in one file.

    Attributes:
        records: all records, a header included.
        first_record_sha256: of the first record of a CSV file, empty where there is none.
        ends_in_quotes: whether a CSV file ends within a quoted value, as no whole one does.
    """

    records: int
    first_record_sha256: str = ""
    ends_in_quotes: bool = False

    def rows(self, header_sha256: str) -> int:
        """Contacts in this file, where `header_sha256` is the digest of the export's header."""
        has_header = self.first_record_sha256 != "" and self.first_record_sha256 == header_sha256
        return self.records - has_header


class RecordCounter(Protocol):
    """Counts the records of one file that is fed to it in pieces."""

    def feed(self, plain: bytes | memoryview) -> None:
        """Count the next piece."""

    def finish(self) -> RecordCount:
        """What was counted."""


def record_counter(file_type: str) -> RecordCounter:
    """A counter for a file of type ``csv`` or ``json``."""
    return CsvCounter() if file_type == "csv" else JsonCounter()


class CsvCounter:
    """Counts CSV records: line feeds outside quotes, and a last record without one."""

    def __init__(self, lines: LineFeeds | None = None) -> None:
        self._lines = lines or line_feeds()
        self._is_open = False
        self._first_record: bytes | None = b""

    def feed(self, plain: bytes | memoryview) -> None:
        """Count the next piece."""
        if not plain:
            return
        if self._lines.count == 0 and self._first_record is not None:
            self._keep_first_record(plain)
        self._lines.feed(plain)
        self._is_open = self._lines.in_quotes or plain[-1] != _LINE_FEED

    def finish(self) -> RecordCount:
        """What was counted."""
        first = self._first_record
        digest = hashlib.sha256(first.rstrip(b"\r\n")).hexdigest() if first else ""
        return RecordCount(self._lines.count + self._is_open, digest, self._lines.in_quotes)

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
    """Counts JSON objects, one per line; blank lines are none."""

    def __init__(self) -> None:
        self._records = 0
        self._is_open = False

    def feed(self, plain: bytes | memoryview) -> None:
        """Count the next piece."""
        first, *others = bytes(plain).split(b"\n")
        self._is_open = self._is_open or bool(first.strip())
        for line in others:
            self._records += self._is_open
            self._is_open = bool(line.strip())

    def finish(self) -> RecordCount:
        """What was counted."""
        return RecordCount(self._records + self._is_open)
