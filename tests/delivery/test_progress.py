"""What a person reads in the log while files are fetched."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import pytest

from airflow_provider_sendgrid.delivery.progress import Progress, speed
from tests.support.clock import FakeClock

MIB, GIB = 1024**2, 1024**3


@dataclass
class Download:
    length: int
    received_bytes: int = 0


class Fetching:
    """The downloads of one export."""

    def __init__(self, clock, file_count: int, **options) -> None:
        self.progress = Progress("6f", file_count, clock=clock, **options)
        self.downloads: dict[int, Download] = {}

    def begin(self, index: int, length: int) -> None:
        self.downloads[index] = Download(length)
        self.progress.begin(index, self.downloads[index])

    def receive(self, index: int, count: int) -> None:
        """Receive bytes of a file, `count` in all."""
        self.downloads[index].received_bytes = count


@pytest.fixture
def clock():
    return FakeClock(1_000.0)


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.INFO)
    return lambda: [record.getMessage() for record in caplog.records]


def test_a_line_has_the_figures_first_and_the_export_once(clock, lines):
    fetching = Fetching(clock, 5)
    fetching.begin(1, 2 * GIB)
    clock.advance(20)
    fetching.receive(1, GIB + GIB // 4)
    fetching.progress.report()
    assert ["62 % 1.2 of 2.0 GiB, 67 MB/s, about 12 s left: file 2 of 5 of SendGrid export 6f"] == lines()


def test_small_files_are_reported_in_mib_and_together(clock, lines):
    fetching = Fetching(clock, 9)
    for index in (2, 3, 5):
        fetching.begin(index, 40 * MIB)
    clock.advance(10)
    fetching.receive(2, 20 * MIB)
    fetching.receive(5, 10 * MIB)
    fetching.progress.report()
    assert ["25 % 30.0 of 120.0 MiB, 3.1 MB/s, about 30 s left: files 3 to 6 of 9 of SendGrid export 6f"] == lines()


def test_a_line_is_logged_every_ten_seconds_even_without_bytes(clock, lines):
    """And not more often, however often `report` is called."""
    fetching = Fetching(clock, 1)
    fetching.begin(0, GIB)
    for _ in range(100):
        clock.advance(0.5)
        fetching.progress.report()
    assert ["0 % 0.0 of 1.0 GiB, 0.0 MB/s, nothing received yet: file 1 of 1 of SendGrid export 6f"] * 5 == lines()


@pytest.mark.parametrize(
    ("rate", "shown"),
    [(0, "0.0 MB/s"), (400, "0.4 kB/s"), (30_000, "30.0 kB/s"), (100_000, "0.1 MB/s"), (12_300_000, "12 MB/s")],
)
def test_a_slow_link_is_not_shown_as_zero(rate, shown):
    assert shown == speed(rate)


def test_what_is_received_but_not_stored_is_not_called_done(clock, lines):
    """The storage may be slower than SendGrid."""
    fetching = Fetching(clock, 1)
    fetching.begin(0, GIB)
    fetching.receive(0, GIB)
    clock.advance(10)
    fetching.progress.report()
    assert ["100 % 1.0 of 1.0 GiB received, not all of it stored yet: file 1 of 1 of SendGrid export 6f"] == lines()


def test_a_file_that_does_not_answer_is_reported(clock, lines):
    fetching = Fetching(clock, 1)
    fetching.begin(0, -1)
    clock.advance(10)
    fetching.progress.report()
    assert ["Waiting for the first bytes: file 1 of 1 of SendGrid export 6f"] == lines()


def test_a_short_delivery_logs_no_progress(clock, lines):
    fetching = Fetching(clock, 1)
    fetching.begin(0, GIB)
    clock.advance(9.9)
    fetching.progress.report()
    assert [] == lines()


def test_what_ended_is_not_reported(clock, lines):
    fetching = Fetching(clock, 2)
    fetching.begin(0, GIB)
    fetching.progress.end(0)
    clock.advance(10)
    fetching.progress.report()
    assert [] == lines()


@pytest.mark.parametrize(("length", "count", "percent"), [(0, 0, "100 %"), (1, 1, "100 %"), (3, 2, "66 %")])
def test_no_length_and_no_time_are_too_small_to_be_reported(clock, lines, length, count, percent):
    """Neither divides by zero."""
    fetching = Fetching(clock, 1, every_seconds=0.0)
    fetching.begin(0, length)
    fetching.receive(0, count)
    fetching.progress.report()
    [line] = lines()
    assert line.startswith(percent)


def test_a_rate_is_that_of_the_file_not_of_the_delivery(clock, lines):
    """A file that was begun late is not slow; bytes that were received twice count once."""
    fetching = Fetching(clock, 2)
    clock.advance(1_000)
    fetching.begin(1, 100 * MIB)
    clock.advance(1)
    fetching.receive(1, 50 * MIB)
    fetching.progress.report()
    assert ["50 % 50.0 of 100.0 MiB, 52 MB/s, about 1 s left: file 2 of 2 of SendGrid export 6f"] == lines()
    fetching.receive(1, 200 * MIB)
    assert (1.0, 1_001.0) == (fetching.progress.seconds_of(1), fetching.progress.seconds)
    clock.advance(10)
    fetching.progress.report()
    assert lines()[-1].startswith("100 % 100.0 of 100.0 MiB received")
