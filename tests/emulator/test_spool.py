"""Files are written once for each content, in little memory, and deleted on close."""

from __future__ import annotations

import csv
import gzip
import io
import tracemalloc
from pathlib import Path

import pytest

from airflow_provider_sendgrid.emulator.contacts import HEADER, ContactGenerator
from airflow_provider_sendgrid.emulator.spool import FileSpec, Spool, SpoolClosedError

PEOPLE = FileSpec(ranges=((0, 1_200),))


@pytest.fixture
def spool():
    spool = Spool(seed=0)
    yield spool
    spool.close()


def make(spool, **changes):
    return spool.request(FileSpec(**{"ranges": PEOPLE.ranges, **changes})).result()


def read(file):
    return b"".join(file.read_plain())


def test_a_file_has_the_header_and_every_contact(spool):
    [file] = make(spool)
    assert HEADER + ContactGenerator().rows("csv", 0, 1_200) == read(file)
    assert (1_200, len(read(file))) == (file.rows, file.plain_bytes)


def test_ranges_of_contacts_are_concatenated(spool):
    [file] = make(spool, ranges=((5, 10), (700, 1_900)))
    generator = ContactGenerator()
    assert HEADER + generator.rows("csv", 5, 5) + generator.rows("csv", 700, 1_200) == read(file)


def test_json_has_no_header(spool):
    [file] = make(spool, file_type="json")
    assert ContactGenerator().rows("json", 0, 1_200) == read(file)


@pytest.mark.parametrize("encoding", ["x-gzip", "gzip", "bare"])
def test_files_are_stored_gzipped(spool, encoding):
    [file] = make(spool, encoding=encoding)
    assert read(file) == gzip.decompress(file.path.read_bytes())
    assert file.stored_bytes == file.path.stat().st_size


def test_a_plain_file_is_stored_uncompressed(spool):
    [file] = make(spool, encoding="plain")
    assert read(file) == file.path.read_bytes()


def test_an_export_is_split_by_rows(spool):
    """Wherever ranges and blocks end."""
    files = make(spool, ranges=((0, 777), (900, 1_500)), max_rows=600)
    assert [file.rows for file in files] == [600, 600, 177]


@pytest.mark.parametrize("repeat_header", [True, False])
def test_repeating_the_header_is_optional(spool, repeat_header):
    files = make(spool, max_rows=500, repeat_header=repeat_header)
    assert [True, repeat_header, repeat_header] == [read(file).startswith(HEADER) for file in files]
    rows = b"".join(read(file).removeprefix(HEADER) for file in files)
    assert ContactGenerator().rows("csv", 0, 1_200) == rows


def test_an_export_is_split_by_bytes_between_rows(spool):
    """No file exceeds the limit, and together they hold every contact."""
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


def test_equal_specs_share_their_files(spool):
    """Five hundred exports of one list need one file."""
    assert len({id(spool.request(FileSpec(ranges=((0, 100),)))) for _ in range(500)}) == 1


def test_another_version_has_other_contacts(spool):
    [first], [second] = make(spool), make(spool, version=1)
    assert first.rows == second.rows
    assert first.etag != second.etag


def test_the_folder_is_deleted_on_close():
    spool = Spool(seed=0)
    [file] = make(spool)
    spool.close()
    assert not Path(file.path).parent.exists()


def test_closing_stops_the_writing_of_a_file():
    spool = Spool(seed=0)
    future = spool.request(FileSpec(ranges=((0, 50_000_000),)))
    spool.close()
    assert future.cancelled() or isinstance(future.exception(), SpoolClosedError)


def test_memory_does_not_grow_with_the_export(spool):
    """Twenty times the contacts need the same memory."""
    make(spool, ranges=((0, 2_000),))
    peaks = []
    for contacts in (2_001, 40_000):
        tracemalloc.start()
        make(spool, ranges=((0, contacts),))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.5 + 100_000
    assert peaks[1] < 5_000_000
