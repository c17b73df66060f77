"""The parts of one file, in order, over as many connections as pay."""

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
CONTACTS = 8_000  # some 2 MB of plain text, 39 parts
DEADLINE_SECONDS = 20.0


@dataclass
class Room:
    """A part, and the shop that it returns to."""

    shop: Shop
    room: memoryview

    def release(self) -> None:
        self.shop.held -= 1


@dataclass
class Shop:
    """Hands out parts of a file of `length` bytes, no more than `limit` at once."""

    length: int
    limit: int = 100
    taken_bytes: int = 0
    held: int = 0
    most_held: int = 0

    def take(self, wait: bool) -> Room | None:
        if self.held == self.limit:
            assert not wait, "nobody is there to give one back"
            return None
        size = min(PART_BYTES, self.length - self.taken_bytes)
        self.taken_bytes += size
        self.held += 1
        self.most_held = max(self.most_held, self.held)
        return Room(self, memoryview(bytearray(size)))


@dataclass
class Work:
    """Clocks by which each part takes a second, of which the CPU works `busy`."""

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


def test_parts_come_in_order_and_make_up_the_file(sendgrid):
    """One connection at first; with an idle CPU soon as many as allowed."""
    export_id = sendgrid.export(CONTACTS)
    with sendgrid.download(export_id) as download, RangeReader(download).open() as reader:
        shop = Shop(download.length)
        content = b""
        for part in fetch_parts(download, reader, shop.take, 8, Work(busy=0.1).clocks()):
            content += part.room
            part.release()
    assert sendgrid.stored(export_id) == content
    assert (9, 0) == (shop.most_held, shop.held)


def test_what_was_read_already_is_not_read_again(sendgrid):
    """The first bytes tell what a file is; the parts go on behind them, on the same connection."""
    export_id = sendgrid.export(CONTACTS)
    with sendgrid.download(export_id) as download, RangeReader(download).open() as reader:
        head = bytearray(1_234)
        reader.fill(memoryview(head))
        shop = Shop(download.length, taken_bytes=len(head))
        parts = [bytes(part.room) for part in fetch_parts(download, reader, shop.take, 1)]
    assert sendgrid.stored(export_id) == head + b"".join(parts)
    assert 1 == download.connections


def test_parts_that_arrive_out_of_order_wait_for_their_turn():
    """The third part, the first with a request of its own, is answered only when the fourth has been asked for."""
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
            shop = Shop(download.length)
            for part in fetch_parts(download, reader, shop.take, 4, Work(busy=0.0).clocks()):
                content += part.room
        assert sendgrid.stored(export_id) == content
    assert fourth_is_asked_for.is_set()


@pytest.mark.parametrize(
    ("busy", "expected"), [(0.0, [2, 9, 9]), (0.2, [2, 6, 9]), (0.69, [2, 3, 5, 9]), (0.71, [2] * 4)]
)
def test_connections_are_added_only_while_the_cpu_is_idle(sendgrid, busy, expected):
    """Where the CPU is the bound, more connections cost and bring nothing; one part more than these is underway."""
    export_id = sendgrid.export(CONTACTS)
    underway = []
    with sendgrid.download(export_id) as download, RangeReader(download).open() as reader:
        shop = Shop(download.length)
        for part in fetch_parts(download, reader, shop.take, 8, Work(busy).clocks()):
            underway.append(shop.held)
            part.release()
    assert expected == underway[: len(expected)]


def test_never_more_parts_are_taken_than_there_is_memory_for(sendgrid):
    """Whatever the number of connections that would pay."""
    with sendgrid.download(sendgrid.export(CONTACTS)) as download, RangeReader(download).open() as reader:
        shop = Shop(download.length, limit=3)
        use_all(fetch_parts(download, reader, shop.take, 8, Work(busy=0.0).clocks()))
    assert (3, download.length, 0) == (shop.most_held, shop.taken_bytes, shop.held)


def test_a_single_part_at_a_time_will_do(sendgrid):
    export_id = sendgrid.export(CONTACTS)
    content = b""
    with sendgrid.download(export_id) as download, RangeReader(download).open() as reader:
        shop = Shop(download.length, limit=1)
        for part in fetch_parts(download, reader, shop.take, 8, Work(busy=0.0).clocks()):
            content += part.room
            part.release()
    assert sendgrid.stored(export_id) == content


def test_an_error_in_one_part_stops_all_and_releases_every_part(sendgrid):
    """The parts before it have come; nothing is waited for in vain."""
    sendgrid.emulator.inject(*(Fault("status", listener="files", status=503, nth=number) for number in range(6, 99)))
    with sendgrid.download(sendgrid.export(CONTACTS)) as download, RangeReader(download).open() as reader:
        shop = Shop(download.length)
        with pytest.raises(ExportIncompleteError, match="the storage responded with 503"):
            use_all(fetch_parts(download, reader, shop.take, 4, Work(busy=0.0).clocks()))
        with pytest.raises(StoppedError):
            RangeReader(download).open()
    assert 0 == shop.held


def test_whoever_stops_listening_stops_all_and_leaves_no_part(sendgrid):
    """As when the upload of an earlier part failed."""
    with sendgrid.download(sendgrid.export(CONTACTS)) as download, RangeReader(download).open() as reader:
        shop = Shop(download.length)
        with closing(fetch_parts(download, reader, shop.take, 4, Work(busy=0.0).clocks())) as parts:
            for _ in range(5):
                next(parts).release()
            assert shop.held > 0
    assert 0 == shop.held
    assert shop.taken_bytes < download.length


def test_parts_survive_cuts_and_expired_urls(sendgrid):
    """Each part is resumed on its own."""
    sendgrid.emulator.configure(bytes_per_connection=30_000)
    sendgrid.emulator.inject(Fault("expire", listener="files", nth=7), Fault("expire", listener="files", nth=8))
    export_id = sendgrid.export(CONTACTS)
    with sendgrid.download(export_id) as download, RangeReader(download).open() as reader:
        shop = Shop(download.length)
        parts = [bytes(part.room) for part in fetch_parts(download, reader, shop.take, 4, Work(busy=0.0).clocks())]
    assert sendgrid.stored(export_id) == b"".join(parts)


def test_a_storage_without_ranges_is_read_as_one_stream(sendgrid):
    """Each further connection would have to read everything before its part again."""
    sendgrid.emulator.configure(ranges=False)
    export_id = sendgrid.export(CONTACTS)
    with sendgrid.download(export_id) as download, RangeReader(download).open() as reader:
        shop = Shop(download.length)
        parts = [bytes(part.room) for part in fetch_parts(download, reader, shop.take, 8, Work(busy=0.0).clocks())]
    assert sendgrid.stored(export_id) == b"".join(parts)
    assert (1, download.length) == (download.connections, download.fetched_bytes)


def test_a_storage_that_only_claims_ranges_soon_is_one_stream_again(sendgrid):
    """The first answer with everything tells: beside the nine parts underway by then one more goes on to the end."""
    export_id = sendgrid.export(CONTACTS)
    sendgrid.emulator.inject(Fault("no_ranges", listener="files"))
    with sendgrid.download(export_id) as download, RangeReader(download).open() as reader:
        shop = Shop(download.length)
        parts = [bytes(part.room) for part in fetch_parts(download, reader, shop.take, 8, Work(busy=0.0).clocks())]
    assert sendgrid.stored(export_id) == b"".join(parts)
    assert download.connections <= 1 + 9 + 1
