"""Counts the records of a file, in a stream of chunks that may be cut anywhere.

A CSV record is not a line: values contain line breaks, so a line feed ends a record only outside quotes. A JSON file
has one object per line. A byte order mark and blank lines at the start or the end belong to no record. Any file of an
export may begin with SendGrid's header. Therefore two things are kept of a CSV file's first record: a digest, and
whether it is that header. No other values are kept.
"""

from __future__ import annotations

import hashlib
import json
import re
from abc import ABC, abstractmethod
from codecs import BOM_UTF8
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

_MAX_FIRST_RECORD_BYTES = 1024 * 1024
_MAX_RECORD_BYTES = 16 * 1024 * 1024
_PIECE_BYTES = 128 * 1024  # fits into a core's cache, with everything computed from it
_LINE_BREAKS = b"\r\n"
_QUOTE, _LINE_FEED = b'"\n'
_ALL_BUT_STRUCTURE = bytes(set(range(256)) - set(b'"\n'))
# No contact's first field, the e-mail address, is this word.
_FIRST_COLUMN = re.compile(rb'(?:"EMAIL"|EMAIL)(?:,|[\r\n]|$)', re.IGNORECASE)

ENDS_IN_QUOTES = "The file is truncated: it ends within a quoted value."
ENDS_IN_OBJECT = "The file is truncated: its last line is not a complete JSON object."
TOO_LONG = "The file is not CSV of contacts: its first record is longer than 1 MiB."


@dataclass(frozen=True, slots=True)
class RecordCount:
    """What was counted in one file.

    Attributes:
        records: all records, a header included.
        first_record_sha256: digest of the first record of a CSV file, empty if there is none.
        damage: why the file is not complete; empty if it may be.
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


def record_counter(file_type: str) -> RecordCounter:
    """A counter for a file of type ``csv`` or ``json``."""
    return CsvCounter() if file_type == "csv" else JsonCounter()


class RecordCounter(ABC):
    """Counts the records of one file, without a byte order mark, and without line breaks before the first record."""

    def __init__(self) -> None:
        self._held = b""  # may be the start of a byte order mark
        self._may_have_mark = self._is_before_record = True

    def feed(self, plain: bytes | memoryview) -> None:
        """Count the next piece."""
        if not self._is_before_record:
            self._count(plain)
            return
        piece, self._held = self._held + bytes(plain), b""
        if self._may_have_mark and len(piece) < len(BOM_UTF8) and BOM_UTF8.startswith(piece):
            self._held = piece
            return
        if self._may_have_mark:
            piece, self._may_have_mark = piece.removeprefix(BOM_UTF8), False
        piece = piece.lstrip(_LINE_BREAKS)
        self._is_before_record = not piece
        self._count(piece)

    def finish(self) -> RecordCount:
        """The result, at the end of the file."""
        self._count(self._held)
        return self._result()

    @abstractmethod
    def _count(self, plain: bytes | memoryview) -> None: ...

    @abstractmethod
    def _result(self) -> RecordCount: ...


class CsvCounter(RecordCounter):
    """Counts line feeds outside quotes, and a last record without one, but no blank lines at the end."""

    def __init__(self) -> None:
        super().__init__()
        self._line_feeds = fastest_line_feeds()
        self._is_empty = True
        self._line_feeds_at_end = 0  # after the last byte that is not a line break
        self._first_record: bytes | None = b""

    def _count(self, plain: bytes | memoryview) -> None:
        if not plain:
            return
        self._is_empty = False
        if self._line_feeds.count == 0 and self._first_record is not None:
            self._keep_first_record(plain)
        self._line_feeds.feed(plain)
        self._count_at_end(plain)

    def _result(self) -> RecordCount:
        first = self._first_record
        digest = hashlib.sha256(first.rstrip(_LINE_BREAKS)).hexdigest() if first else ""
        has_header = first is not None and _FIRST_COLUMN.match(first) is not None
        if self._line_feeds.in_quotes:
            return RecordCount(self._line_feeds.count + 1, digest, ENDS_IN_QUOTES, has_header)
        records = self._line_feeds.count - self._line_feeds_at_end + (not self._is_empty)
        return RecordCount(records, digest, TOO_LONG if first is None else "", has_header)

    def _count_at_end(self, plain: bytes | memoryview) -> None:
        if plain[-1] not in _LINE_BREAKS:
            self._line_feeds_at_end = 0
            return
        piece = bytes(plain)
        end = len(piece.rstrip(_LINE_BREAKS))
        self._line_feeds_at_end = piece.count(b"\n", end) + (0 if end else self._line_feeds_at_end)

    def _keep_first_record(self, plain: bytes | memoryview) -> None:
        """Keep bytes up to the first line feed outside quotes; None once they are too many."""
        known = (self._first_record or b"") + bytes(plain[: _MAX_FIRST_RECORD_BYTES + 1])
        end = known.find(b"\n")
        quotes = known.count(b'"', 0, max(0, end))
        while end >= 0 and quotes % 2:
            following = known.find(b"\n", end + 1)
            quotes += known.count(b'"', end, max(end, following))
            end = following
        known = known[: end + 1] if end >= 0 else known
        self._first_record = known if len(known) <= _MAX_FIRST_RECORD_BYTES else None


class JsonCounter(RecordCounter):
    """Counts lines that are not blank. The last one is parsed, because the file may have been cut within it."""

    def __init__(self) -> None:
        super().__init__()
        self._records = 0
        self._last: bytes | bytearray = b""
        self._line = bytearray()  # the current line, so far

    def _count(self, plain: bytes | memoryview) -> None:
        first, *others = bytes(plain).split(b"\n")
        # Longer lines are not SendGrid's records; cut off here, they are not valid JSON.
        self._line += first[: max(0, _MAX_RECORD_BYTES + 1 - len(self._line))]
        if others:
            *lines, last = others
            self._end_lines([self._line, *lines])
            self._line = bytearray(last)

    def _result(self) -> RecordCount:
        self._end_lines([self._line])
        is_complete = not self._records or _is_object(self._last)
        return RecordCount(self._records, damage="" if is_complete else ENDS_IN_OBJECT)

    def _end_lines(self, lines: Sequence[bytes | bytearray]) -> None:
        records = [line for line in lines if line and not line.isspace()]
        self._records += len(records)
        self._last = records[-1] if records else self._last


def _is_object(line: bytes | bytearray) -> bool:
    try:
        return len(line) <= _MAX_RECORD_BYTES and isinstance(json.loads(line, strict=False), dict)
    except (ValueError, RecursionError):
        return False


# Line feeds outside quotes, in two ways that differ only in speed. Measured on contacts, in MB per CPU second: numpy
# 1,900, the standard library 380.


def fastest_line_feeds() -> LineFeeds:
    """With numpy where it is installed."""
    try:
        return NumpyLineFeeds(import_module("numpy"))
    except ImportError:
        return LineFeeds()


class LineFeeds:
    """Counts line feeds outside quotes in a stream, with the standard library.

    Attributes:
        count: so far.
        in_quotes: whether the next byte is within quotes.
    """

    def __init__(self) -> None:
        self.count = 0
        self.in_quotes = False

    def feed(self, plain: bytes | memoryview) -> None:
        """Count in the next piece."""
        view = memoryview(plain)
        for start in range(0, len(view), _PIECE_BYTES):
            self._count(view[start : start + _PIECE_BYTES])

    def _count(self, piece: memoryview) -> None:
        # Two adjacent quotes open and close, or close and open, with nothing in between. Without them only the quotes
        # of values with line breaks are left: in most pieces none.
        structure = bytes(piece).translate(None, _ALL_BUT_STRUCTURE).replace(b'""', b"")
        parts = structure.split(b'"')
        self.count += sum(map(len, parts[self.in_quotes :: 2]))
        self.in_quotes ^= len(parts) % 2 == 0


class NumpyLineFeeds(LineFeeds):
    """The same with numpy. 64 bytes become one word with a bit for each byte."""

    def __init__(self, numpy: Any) -> None:
        super().__init__()
        self._numpy = numpy
        self._matches = numpy.zeros(_PIECE_BYTES, numpy.bool_)
        self._words = numpy.zeros(_PIECE_BYTES // 64, numpy.uint64)

    def _count(self, piece: memoryview) -> None:
        characters = self._numpy.frombuffer(piece, self._numpy.uint8)
        unquoted = self._unquoted(self._bits(characters, _QUOTE))
        line_feeds = self._bits(characters, _LINE_FEED)
        self._numpy.bitwise_and(line_feeds, unquoted, out=line_feeds)
        self.count += self._ones(line_feeds)

    def _bits(self, characters: Any, wanted: int) -> Any:
        """Bits: whether a character is the wanted one; the last word is padded with zeros."""
        matches = self._matches[: -(-len(characters) // 64) * 64]
        matches[len(characters) :] = False
        self._numpy.equal(characters, wanted, out=matches[: len(characters)])
        return self._numpy.packbits(matches, bitorder="little").view("<u8")

    def _unquoted(self, quotes: Any) -> Any:
        """Bits: whether the number of quotes in the stream, up to and including each character, is even."""
        numpy, words = self._numpy, self._words[: len(quotes)]
        for bits in (1, 2, 4, 8, 16, 32):
            numpy.left_shift(quotes, bits, out=words)
            numpy.bitwise_xor(quotes, words, out=quotes)
        numpy.right_shift(quotes, 63, out=words)
        ends = numpy.bitwise_xor.accumulate(words)
        words[0] = not self.in_quotes
        numpy.bitwise_xor(ends[:-1], words[0], out=words[1:])
        self.in_quotes ^= bool(ends[-1])
        numpy.negative(words, out=words)  # 1 becomes 64 ones
        return numpy.bitwise_xor(quotes, words, out=quotes)

    def _ones(self, words: Any) -> int:
        if hasattr(self._numpy, "bitwise_count"):
            return int(self._numpy.bitwise_count(words).sum())
        return int(self._numpy.count_nonzero(self._numpy.unpackbits(words.view(self._numpy.uint8))))
