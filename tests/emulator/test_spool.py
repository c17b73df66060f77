"""Files are made once for each content, in little memory, and gone on close."""

from __future__ import annotations

import csv
import gzip
import io
import tracemalloc
from pathlib import Path

import pytest

from airflow_provider_sendgrid.emulator.contacts import HEADER, ContactBook
from airflow_provider_sendgrid.emulator.spool import Recipe, Spool, SpoolClosedError

PEOPLE = Recipe(ranges=((0, 1_200),))


@pytest.fixture
def spool():
    spool = Spool(seed=0)
    yield spool
    spool.close()


def make(spool, **changes):
    return spool.request(Recipe(**{"ranges": PEOPLE.ranges, **changes})).result()


def read(file):
    return b"".join(file.read_plain())


def test_a_file_is_the_header_and_every_contact(spool):
    [file] = make(spool)
    assert HEADER + ContactBook().rows("csv", 0, 1_200) == read(file)
    assert (1_200, len(read(file))) == (file.rows, file.plain_bytes)


def test_several_ranges_follow_each_other(spool):
    [file] = make(spool, ranges=((5, 10), (700, 1_900)))
    book = ContactBook()
    assert HEADER + book.rows("csv", 5, 5) + book.rows("csv", 700, 1_200) == read(file)


def test_json_has_no_header(spool):
    [file] = make(spool, file_type="json")
    assert ContactBook().rows("json", 0, 1_200) == read(file)


@pytest.mark.parametrize("encoding", ["x-gzip", "gzip", "bare"])
def test_files_are_stored_gzipped(spool, encoding):
    [file] = make(spool, encoding=encoding)
    assert read(file) == gzip.decompress(file.path.read_bytes())
    assert file.stored_bytes == file.path.stat().st_size


def test_a_plain_file_is_stored_as_it_is(spool):
    [file] = make(spool, encoding="plain")
    assert read(file) == file.path.read_bytes()


def test_rows_split_an_export_exactly(spool):
    """So many contacts a file, wherever the ranges and the blocks end."""
    files = make(spool, ranges=((0, 777), (900, 1_500)), max_rows=600)
    assert [file.rows for file in files] == [600, 600, 177]


@pytest.mark.parametrize("repeat_header", [True, False])
def test_further_files_repeat_the_header_or_do_not(spool, repeat_header):
    files = make(spool, max_rows=500, repeat_header=repeat_header)
    assert [True, repeat_header, repeat_header] == [read(file).startswith(HEADER) for file in files]
    rows = b"".join(read(file).removeprefix(HEADER) for file in files)
    assert ContactBook().rows("csv", 0, 1_200) == rows


def test_bytes_split_an_export_between_rows(spool):
    """No file is larger than asked, and together they hold everything."""
    files = make(spool, max_bytes=150_000, repeat_header=True)
    assert len(files) > 1
    assert all(file.plain_bytes <= 150_000 for file in files)
    counted = [sum(1 for _ in csv.reader(io.StringIO(read(file).decode(), newline=""))) - 1 for file in files]
    assert [file.rows for file in files] == counted
    assert sum(counted) == 1_200


@pytest.mark.parametrize("empty_encoding", ["x-gzip", "plain"])
def test_an_empty_export_is_one_file_with_the_header(spool, empty_encoding):
    [file] = make(spool, ranges=(), empty_encoding=empty_encoding)
    assert (read(file), file.rows) == (HEADER, 0)
    assert (file.path.read_bytes() == HEADER) is (empty_encoding == "plain")


def test_equal_recipes_share_their_files(spool):
    """Five hundred exports of one list cost one file."""
    assert len({id(spool.request(Recipe(ranges=((0, 100),)))) for _ in range(500)}) == 1


def test_another_edition_is_other_people_in_the_same_shape(spool):
    [first], [second] = make(spool), make(spool, edition=1)
    assert first.rows == second.rows
    assert first.etag != second.etag


def test_the_folder_is_gone_after_close():
    spool = Spool(seed=0)
    [file] = make(spool)
    spool.close()
    assert not Path(file.path).parent.exists()


def test_closing_ends_a_file_in_the_making():
    """Nobody waits for millions of contacts that nobody wants any more."""
    spool = Spool(seed=0)
    making = spool.request(Recipe(ranges=((0, 50_000_000),)))
    spool.close()
    assert making.cancelled() or isinstance(making.exception(), SpoolClosedError)


def test_memory_does_not_grow_with_the_export(spool):
    """Twenty times the contacts, the same memory."""
    make(spool, ranges=((0, 2_000),))
    peaks = []
    for contacts in (2_001, 40_000):
        tracemalloc.start()
        make(spool, ranges=((0, contacts),))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.5 + 100_000
    assert peaks[1] < 5_000_000
