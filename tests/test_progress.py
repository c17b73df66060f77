"""What a person reads in the log while files are on their way."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

import pytest

from airflow_provider_sendgrid.progress import Progress
from tests.sendgrid_source import HandClock

MIB, GIB = 1024**2, 1024**3


@pytest.fixture
def clock():
    return HandClock(1_000.0)


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_line_says_which_file_how_far_how_fast_and_how_long_still(clock, lines):
    file = Progress(5, clock=clock).file(1, 2 * GIB)
    clock.advance(20)
    file.advance(GIB + GIB // 4)
    assert ["File 2 of 5: 1.2 GiB of 2.0 GiB (62 %), 67 MB/s, about 12 s left."] == lines()


def test_small_files_are_told_in_mib(clock, lines):
    file = Progress(1, clock=clock).file(0, 40 * MIB)
    clock.advance(10)
    file.advance(10 * MIB)
    assert ["File 1 of 1: 10.0 MiB of 40.0 MiB (25 %), 1.0 MB/s, about 30 s left."] == lines()


def test_there_is_a_line_every_ten_seconds_at_most(clock, lines):
    """However many files are on their way, and however small their pieces."""
    progress = Progress(2, clock=clock)
    files = [progress.file(index, GIB) for index in (0, 1)]
    for _ in range(100):
        clock.advance(0.5)
        for file in files:
            file.advance(1_000)
    assert 5 == len(lines())
    assert 2 * 100 * 1_000 == progress.fetched_bytes


def test_a_short_delivery_says_nothing_on_the_way(clock, lines):
    file = Progress(1, clock=clock).file(0, GIB)
    clock.advance(9.9)
    file.advance(GIB)
    assert [] == lines()


@pytest.mark.parametrize(("length", "count", "percent"), [(0, 0, "0 %"), (1, 1, "100 %"), (3, 2, "66 %")])
def test_no_length_and_no_time_are_too_small_to_be_told(clock, lines, length, count, percent):
    """Neither divides by zero."""
    progress = Progress(1, every_seconds=0.0, clock=clock)
    progress.file(0, length).advance(count)
    [line] = lines()
    assert f"({percent})" in line


def test_a_rate_is_that_of_the_file_not_of_the_delivery(clock, lines):
    """A file that was begun late is not slow."""
    progress = Progress(2, clock=clock)
    clock.advance(1_000)
    file = progress.file(1, 100 * MIB)
    clock.advance(1)
    file.advance(50 * MIB)
    assert ["File 2 of 2: 50.0 MiB of 100.0 MiB (50 %), 52 MB/s, about 1 s left."] == lines()
    assert (1.0, 1_001.0) == (file.seconds, progress.seconds)


def test_bytes_of_many_threads_are_counted_once_each(clock):
    progress = Progress(8, clock=clock)
    files = [progress.file(index, 1) for index in range(8)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda file: [file.advance(1) for _ in range(2_000)], files))
    assert 16_000 == progress.fetched_bytes
