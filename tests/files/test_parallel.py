"""The parts of one file, in order, over as many connections as are useful."""

from __future__ import annotations

import threading
from contextlib import closing
from dataclasses import dataclass, field

import pytest

from airflow_provider_sendgrid.emulator import Emulator, Fault, Settings
from airflow_provider_sendgrid.exceptions import ExportIncompleteError
from airflow_provider_sendgrid.files.parallel import Clocks, fetch_parts
from airflow_provider_sendgrid.files.range_reader import RangeReader
from airflow_provider_sendgrid.stopping import StoppedError
from tests.support.sendgrid_source import SendGrid

PART_BYTES = 50_000
CONTACTS = 8_000  # about 2 MB of plain text, 39 parts
DEADLINE_SECONDS = 20.0


@dataclass
class Part:
    """A part, and its owner."""

    owner: Buffers
    unfilled: memoryview

    def release(self) -> None:
        self.owner.held -= 1


@dataclass
class Buffers:
    """Parts of a file of `length` bytes, at most `limit` at once."""

    length: int
    limit: int = 100
    taken_bytes: int = 0
    held: int = 0
    most_held: int = 0

    def next_part(self, wait: bool) -> Part | None:
        if self.held == self.limit:
            assert not wait, "no one would release one"
            return None
        size = min(PART_BYTES, self.length - self.taken_bytes)
        self.taken_bytes += size
        self.held += 1
        self.most_held = max(self.most_held, self.held)
        return Part(self, memoryview(bytearray(size)))


@dataclass
class Work:
    """Clocks that show a second for each part; the CPU is busy for the share `busy` of it."""

    busy: float
    now: float = 0.0
    asked: list[float] = field(default_factory=list)

    def wall(self) -> float:
        self.now += 1.0
        return self.now

    def cpu(self) -> float:
        return self.now * self.busy

    def clocks(self) -> Clocks:
        return Clocks(self.wall, self.cpu)


def use_all(parts) -> None:
    for part in parts:
        part.release()


@pytest.fixture
def sendgrid():
    with Emulator(Settings(encoding="plain"), populate=False) as emulator:
        yield SendGrid(emulator)


def test_parts_arrive_in_order_and_make_up_the_file(sendgrid):
    """One connection at first; while the CPU is idle, soon as many as allowed."""
    export_id = sendgrid.export(CONTACTS)
    with sendgrid.download(export_id) as download, RangeReader(download).open() as reader:
        buffers = Buffers(download.length)
        content = b""
        for part in fetch_parts(download, reader, buffers.next_part, 8, Work(busy=0.1).clocks()):
            content += part.unfilled
            part.release()
    assert sendgrid.stored(export_id) == content
    assert (9, 0) == (buffers.most_held, buffers.held)


def test_bytes_read_before_are_not_read_again(sendgrid):
    """The first bytes show the file's type; the parts follow on the same connection."""
    export_id = sendgrid.export(CONTACTS)
    with sendgrid.download(export_id) as download, RangeReader(download).open() as reader:
        head = bytearray(1_234)
        reader.fill(memoryview(head))
        buffers = Buffers(download.length, taken_bytes=len(head))
        parts = [bytes(part.unfilled) for part in fetch_parts(download, reader, buffers.next_part, 1)]
    assert sendgrid.stored(export_id) == head + b"".join(parts)
    assert 1 == download.connections


def test_parts_that_arrive_early_wait_for_their_turn():
    """The third part, the first with its own request, arrives only after the fourth was requested."""
    fourth_is_asked_for = threading.Event()

    def hold_back(request) -> None:
        asked = request.headers.get("range", "")
        if asked.startswith(f"bytes={3 * PART_BYTES}-"):
            fourth_is_asked_for.set()
        elif asked.startswith(f"bytes={2 * PART_BYTES}-"):
            assert fourth_is_asked_for.wait(DEADLINE_SECONDS)

    with Emulator(Settings(encoding="plain"), populate=False, observe=hold_back) as emulator:
        sendgrid = SendGrid(emulator)
        export_id = sendgrid.export(CONTACTS)
        content = b""
        with sendgrid.download(export_id) as download, RangeReader(download).open() as reader:
            buffers = Buffers(download.length)
            for part in fetch_parts(download, reader, buffers.next_part, 4, Work(busy=0.0).clocks()):
                content += part.unfilled
        assert sendgrid.stored(export_id) == content
    assert fourth_is_asked_for.is_set()


@pytest.mark.parametrize(
    ("busy", "expected"), [(0.0, [2, 9, 9]), (0.2, [2, 6, 9]), (0.69, [2, 3, 5, 9]), (0.71, [2] * 4)]
)
def test_connections_are_added_only_while_the_cpu_is_idle(sendgrid, busy, expected):
    """If the CPU is the limit, more connections only cost. One part more than connections is pending."""
    export_id = sendgrid.export(CONTACTS)
    pending = []
    with sendgrid.download(export_id) as download, RangeReader(download).open() as reader:
        buffers = Buffers(download.length)
        for part in fetch_parts(download, reader, buffers.next_part, 8, Work(busy).clocks()):
            pending.append(buffers.held)
            part.release()
    assert expected == pending[: len(expected)]


def test_no_more_parts_are_taken_than_there_are_buffers(sendgrid):
    """Even if more connections would be useful."""
    with sendgrid.download(sendgrid.export(CONTACTS)) as download, RangeReader(download).open() as reader:
        buffers = Buffers(download.length, limit=3)
        use_all(fetch_parts(download, reader, buffers.next_part, 8, Work(busy=0.0).clocks()))
    assert (3, download.length, 0) == (buffers.most_held, buffers.taken_bytes, buffers.held)


def test_one_part_at_a_time_is_enough(sendgrid):
    export_id = sendgrid.export(CONTACTS)
    content = b""
    with sendgrid.download(export_id) as download, RangeReader(download).open() as reader:
        buffers = Buffers(download.length, limit=1)
        for part in fetch_parts(download, reader, buffers.next_part, 8, Work(busy=0.0).clocks()):
            content += part.unfilled
            part.release()
    assert sendgrid.stored(export_id) == content


def test_an_error_in_one_part_stops_all_and_releases_them(sendgrid):
    """The parts before it have arrived."""
    sendgrid.emulator.inject(*(Fault("status", listener="files", status=503, nth=number) for number in range(6, 99)))
    with sendgrid.download(sendgrid.export(CONTACTS)) as download, RangeReader(download).open() as reader:
        buffers = Buffers(download.length)
        with pytest.raises(ExportIncompleteError, match="the storage responded with 503"):
            use_all(fetch_parts(download, reader, buffers.next_part, 4, Work(busy=0.0).clocks()))
        with pytest.raises(StoppedError):
            RangeReader(download).open()
    assert 0 == buffers.held


def test_closing_the_generator_stops_and_releases_all_parts(sendgrid):
    """As if the upload of an earlier part failed."""
    with sendgrid.download(sendgrid.export(CONTACTS)) as download, RangeReader(download).open() as reader:
        buffers = Buffers(download.length)
        with closing(fetch_parts(download, reader, buffers.next_part, 4, Work(busy=0.0).clocks())) as parts:
            for _ in range(5):
                next(parts).release()
            assert buffers.held > 0
    assert 0 == buffers.held
    assert buffers.taken_bytes < download.length


def test_parts_survive_broken_connections_and_expired_urls(sendgrid):
    """Each part is resumed separately."""
    sendgrid.emulator.configure(bytes_per_connection=30_000)
    sendgrid.emulator.inject(Fault("expire", listener="files", nth=7), Fault("expire", listener="files", nth=8))
    export_id = sendgrid.export(CONTACTS)
    with sendgrid.download(export_id) as download, RangeReader(download).open() as reader:
        buffers = Buffers(download.length)
        parts = [
            bytes(part.unfilled)
            for part in fetch_parts(download, reader, buffers.next_part, 4, Work(busy=0.0).clocks())
        ]
    assert sendgrid.stored(export_id) == b"".join(parts)


def test_a_storage_without_ranges_is_read_as_one_stream(sendgrid):
    """Each further connection would have to read everything before its part again."""
    sendgrid.emulator.configure(ranges=False)
    export_id = sendgrid.export(CONTACTS)
    with sendgrid.download(export_id) as download, RangeReader(download).open() as reader:
        buffers = Buffers(download.length)
        parts = [
            bytes(part.unfilled)
            for part in fetch_parts(download, reader, buffers.next_part, 8, Work(busy=0.0).clocks())
        ]
    assert sendgrid.stored(export_id) == b"".join(parts)
    assert (1, download.length) == (download.connections, download.fetched_bytes)


def test_a_storage_that_ignores_ranges_becomes_one_stream(sendgrid):
    """The first response with the whole file shows it: after nine pending parts, one connection reads the rest."""
    export_id = sendgrid.export(CONTACTS)
    sendgrid.emulator.inject(Fault("no_ranges", listener="files"))
    with sendgrid.download(export_id) as download, RangeReader(download).open() as reader:
        buffers = Buffers(download.length)
        parts = [
            bytes(part.unfilled)
            for part in fetch_parts(download, reader, buffers.next_part, 8, Work(busy=0.0).clocks())
        ]
    assert sendgrid.stored(export_id) == b"".join(parts)
    assert download.connections <= 1 + 9 + 1
