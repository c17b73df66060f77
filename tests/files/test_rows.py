"""Contacts are counted as the csv module reads them, in pieces cut anywhere."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import sys
import tracemalloc
from codecs import BOM_UTF8
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_sendgrid.files.rows import (
    ENDS_IN_OBJECT,
    ENDS_IN_QUOTES,
    TOO_LONG,
    CsvCounter,
    JsonCounter,
    LineFeeds,
    NumpyLineFeeds,
    RecordCount,
    fastest_line_feeds,
    record_counter,
)

MIB = 1024 * 1024
HEADER = ["EMAIL", "FIRST_NAME", "CONTACT_ID"]
# Characters that matter to CSV, and then any others.
VALUES = st.text(st.sampled_from('",\n\r a\\\tä') | st.characters(exclude_categories=["Cs"]), max_size=12)
ROWS = st.lists(st.lists(VALUES, min_size=3, max_size=3), max_size=8)
BORDERS = st.lists(st.integers(0, 500))


def csv_bytes(rows, *, quoted=lambda _: True, line_end="\n"):
    """A CSV file; SendGrid (`quoted=bool`) quotes all values except empty ones."""
    cells = ([f'"{each.replace(chr(34), chr(34) * 2)}"' if quoted(each) else each for each in row] for row in rows)
    return "".join(",".join(row) + line_end for row in cells).encode()


def read_by_csv(content):
    return list(csv.reader(io.StringIO(content.decode(), newline="")))


def cut(data, borders):
    ends = sorted({border % (len(data) + 1) for border in borders} | {len(data)})
    return [data[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def count(counter, pieces):
    for piece in pieces:
        counter.feed(piece)
    return counter.finish()


def header_of(content):
    """The digest of a file's first record."""
    return count(CsvCounter(), [content]).first_record_sha256


# --- CSV


@given(ROWS, BORDERS, st.sampled_from(["\n", "\r\n"]), st.sampled_from([bool, lambda _: True]), st.booleans())
def test_records_are_those_that_the_csv_module_reads(rows, borders, line_end, quoted, is_open):
    """With quotes, line breaks and commas in values; with and without a line break at the end."""
    content = csv_bytes([HEADER, *rows], quoted=quoted, line_end=line_end)
    content = content.removesuffix(line_end.encode()) if is_open else content
    counted = count(CsvCounter(), cut(content, borders))
    assert counted.records == len(read_by_csv(content)) == len(rows) + 1
    assert counted.rows(header_of(csv_bytes([HEADER]))) == len(rows)


def test_a_file_may_be_cut_anywhere():
    content = csv_bytes([HEADER, ['a\n\n"b"', "", '""'], ['"', "\n", ",\r\n"], ["", "", ""]])
    for border in range(len(content) + 1):
        counted = count(CsvCounter(), [content[:border], content[border:]])
        digest = hashlib.sha256(b'"EMAIL","FIRST_NAME","CONTACT_ID"').hexdigest()
        assert counted == RecordCount(4, digest, has_header=True)


@given(BORDERS)
def test_a_header_with_a_line_break_is_one_record(borders):
    """Users choose the names of custom fields."""
    content = csv_bytes([["EMAIL", 'my "own"\nfield'], ["a", "b"]])
    counted = count(CsvCounter(), cut(content, borders))
    assert counted.first_record_sha256 == hashlib.sha256(b'"EMAIL","my ""own""\nfield"').hexdigest()
    assert counted.records == 2


@pytest.mark.parametrize(
    ("content", "records"),
    [
        (b"", 0),
        (b"\n", 0),
        (b"\r\n\r\n", 0),
        (BOM_UTF8, 0),
        (BOM_UTF8 + b"\r\n", 0),
        (BOM_UTF8[:2], 1),
        (b'"EMAIL"', 1),
        (b'"EMAIL"\n', 1),
        (b'"EMAIL"\n"a', 2),
        (b'"EMAIL"\n"a\n', 2),
        (b'"EMAIL"\n""\n\n', 2),
    ],
)
def test_tiny_csv_files_are_counted(content, records):
    """A value without its closing quote is an open record."""
    assert count(CsvCounter(), [content]).records == records


@pytest.mark.parametrize(
    ("content", "rows"), [(b"", 0), (b'"EMAIL"', 0), (b'"EMAIL"\n', 0), (b'"EMAIL"\r\n', 0), (b'"EMAIL"\n""\n', 1)]
)
def test_an_empty_export_has_no_rows(content, rows):
    assert count(CsvCounter(), [content]).rows(header_of(b'"EMAIL"\n')) == rows


def test_a_repeated_header_is_no_row():
    """SendGrid does not document whether later files do."""
    header = header_of(csv_bytes([HEADER]))
    repeating = count(CsvCounter(), [csv_bytes([HEADER, ["a", "b", "c"], ["d", "e", "f"]])])
    continuing = count(CsvCounter(), [csv_bytes([["a", "b", "c"], ["d", "e", "f"]])])
    assert (repeating.rows(header), continuing.rows(header)) == (2, 2)


@given(ROWS, BORDERS, st.sampled_from(["\n", "\r\n"]), st.integers(0, 3), st.booleans(), st.booleans())
def test_byte_order_marks_and_blank_lines_are_no_records(rows, borders, line_end, blank, before, has_mark):
    """Neither the count nor the digest of the header, however the file is cut into pieces."""
    content = csv_bytes([HEADER, *rows], line_end=line_end)
    blanks = line_end.encode() * blank
    odd = BOM_UTF8 * has_mark + (blanks if before else b"") + content + blanks
    assert count(CsvCounter(), cut(odd, borders)) == count(CsvCounter(), [content])


def test_blank_lines_at_the_end_may_be_cut_anywhere():
    content = BOM_UTF8 + b'\n"EMAIL"\n"a\n\n"\n""\r\n\r\n\n'
    digest = hashlib.sha256(b'"EMAIL"').hexdigest()
    for border in range(len(content) + 1):
        assert count(CsvCounter(), [content[:border], content[border:]]) == RecordCount(3, digest, has_header=True)
    pieces = [content[i : i + 1] for i in range(len(content))]
    assert count(CsvCounter(), pieces) == RecordCount(3, digest, has_header=True)


@pytest.mark.parametrize(
    ("content", "has_header"),
    [
        (b'"EMAIL","CITY"\n"a@b.c",\n', True),
        (b"email\r\na@b.c\r\n", True),
        (b"EMAIL", True),
        (b'"EMAIL_2","CITY"\n', False),
        (b'"a@b.c","EMAIL"\n', False),
        (b',"EMAIL"\n', False),
        (b"", False),
    ],
)
def test_a_header_is_recognized_by_its_first_column(content, has_header):
    """A contact's other values may be any word, such as the channel that it prefers."""
    assert has_header is count(CsvCounter(), [content]).has_header


def test_a_blank_line_between_records_is_a_record():
    content = b'"EMAIL"\n\n"a"\n'
    assert count(CsvCounter(), [content]).records == len(read_by_csv(content))


@pytest.mark.parametrize("content", [b'"EMAIL"\n"a', b'"EMAIL"\n"a\n\n', b'"'])
def test_a_csv_file_that_ends_within_quotes_is_truncated(content):
    counted = count(CsvCounter(), [content])
    assert counted.damage == ENDS_IN_QUOTES


def test_without_a_header_all_records_are_rows():
    assert RecordCount(3).rows("") == 3
    assert RecordCount(3, "digest").rows("") == 3


@pytest.mark.parametrize("size", [1024 * 1024 - 1, 1024 * 1024, 1024 * 1024 + 1, 3 * 1024 * 1024])
@pytest.mark.parametrize("step", [64 * 1024, 1024 * 1024, 8 * 1024 * 1024])
def test_a_first_record_of_any_size_is_counted(size, step):
    """Up to 1 MiB of it is kept: memory must not grow with it, and no header is longer."""
    content = b'"' + b"x" * (size - 3) + b'"\n"a"\n'
    counted = count(CsvCounter(), [content[start : start + step] for start in range(0, len(content), step)])
    assert counted.records == 2
    assert bool(counted.first_record_sha256) is (size <= 1024 * 1024)
    assert counted.damage == ("" if size <= 1024 * 1024 else TOO_LONG)


def test_empty_pieces_change_nothing():
    counter = CsvCounter()
    for piece in (b"", b'"EMAIL"', b"", b"\n", b""):
        counter.feed(piece)
    assert counter.finish().records == 1


# --- JSON


@given(
    st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=3), max_size=8),
    BORDERS,
    st.sampled_from(["\n", "\r\n", "\n\n", "\n \n"]),
    st.booleans(),
)
def test_json_objects_are_counted(contacts, borders, line_end, is_open):
    """One per line; blank lines are not counted."""
    content = line_end.join(map(json.dumps, contacts)) + ("" if is_open else line_end)
    counted = count(JsonCounter(), cut(content.encode(), borders))
    assert counted == RecordCount(len(contacts))
    assert counted.rows("") == counted.rows(header_of(b'"EMAIL"\n')) == len(contacts)


@pytest.mark.parametrize(
    ("content", "records"),
    [(b"", 0), (b"\n", 0), (b" \r\n\n", 0), (b"{}", 1), (b"{}\n{", 2), (BOM_UTF8 + b"{}\n", 1), (BOM_UTF8, 0)],
)
def test_tiny_json_files_are_counted(content, records):
    assert count(JsonCounter(), [content]).records == records


def test_a_json_file_truncated_in_its_last_record_is_damaged():
    content = BOM_UTF8 + '{"a": "ä"}\r\n\n{"b": {"c": ["}", 1]}}'.encode()
    last = content.index(b'{"b"')
    for end in range(len(content) + 1):
        counted = count(JsonCounter(), [content[: end // 2], content[end // 2 : end]])
        is_whole = end in (0, 3) or end in range(content.index(b"}") + 1, last + 1) or end == len(content)
        assert (counted.damage == "") is is_whole, content[:end]


@pytest.mark.parametrize("content", [b"[]", b"1", b'{"a": 1}\n\xff', b'{"a": 1}\nnull\n', b"[" * 100_000, b'{"a"}\n\n'])
def test_a_json_file_ends_with_an_object(content):
    assert count(JsonCounter(), [content]).damage == ENDS_IN_OBJECT


def test_a_json_record_without_end_takes_bounded_memory():
    counter, piece = JsonCounter(), b'{"a": "' + b"x" * MIB
    tracemalloc.start()
    for _ in range(100):
        counter.feed(piece)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 60 * MIB
    assert counter.finish() == RecordCount(1, damage=ENDS_IN_OBJECT)


@pytest.mark.parametrize(("file_type", "kind"), [("csv", CsvCounter), ("json", JsonCounter)])
def test_each_file_type_has_its_counter(file_type, kind):
    assert type(record_counter(file_type)) is kind


def test_a_first_record_of_many_lines_is_read_once():
    """Reading all earlier lines again for each line feed would take minutes for half a million."""
    counter = record_counter("csv")
    counter.feed(b'"' + b"\n" * 500_000 + b'",x\ny\n')
    assert counter.finish().records == 2


# --- line feeds outside quotes

NUMPY_1 = SimpleNamespace(**{name: each for name, each in vars(np).items() if name != "bitwise_count"})
WAYS = pytest.mark.parametrize(
    "way",
    [LineFeeds, lambda: NumpyLineFeeds(np), lambda: NumpyLineFeeds(NUMPY_1)],
    ids=["plain", "numpy", "numpy 1"],
)
# Bytes that matter at the borders of words of 64 bits and of pieces of 128 KiB.
TEXTS = st.lists(
    st.sampled_from([b'"', b"\n", b'""', b"a", b"\0", b"\x80\xff", b"x" * 61, b"x" * 64, b'"\n' * 33]), max_size=40
).map(b"".join)


def count_slowly(content):
    count, in_quotes = 0, False
    for character in content:
        in_quotes ^= character == ord('"')
        count += character == ord("\n") and not in_quotes
    return count, in_quotes


def counted_by(lines, *pieces):
    for piece in pieces:
        lines.feed(piece)
    return lines.count, lines.in_quotes


@WAYS
@given(content=TEXTS, borders=st.lists(st.integers(0, 2_000), max_size=6))
def test_line_feeds_outside_quotes_are_counted_in_any_pieces(way, content, borders):
    pieces = cut(content, borders)
    assert count_slowly(content) == counted_by(way(), *pieces) == counted_by(way(), *map(memoryview, pieces))


@WAYS
@pytest.mark.parametrize("size", [128 * 1024 + more for more in (-65, -64, -1, 0, 1, 63, 64, 65)])
def test_pieces_larger_than_those_counted_at_once(way, size):
    """With quotes left open over the border, and closed again."""
    content = (b'"a\n' + b"x" * (size - 6) + b'\n"\n') * 3 + b'"\n'
    assert count_slowly(content) == counted_by(way(), content)


def test_numpy_is_used_where_it_is_installed(monkeypatch):
    assert type(fastest_line_feeds()) is NumpyLineFeeds
    monkeypatch.setitem(sys.modules, "numpy", None)
    assert type(fastest_line_feeds()) is LineFeeds
