"""A download that takes longer than its URLs and connections last; small in the suite, larger in `slow_download.py`."""

from __future__ import annotations

from airflow_provider_sendgrid.emulator import Emulator, Settings
from airflow_provider_sendgrid.files.range_reader import RangeReader
from airflow_provider_sendgrid.files.source import file_path
from tests.support.clock import FakeClock
from tests.support.sendgrid_source import SendGrid

BYTES_PER_CONTACT = 240


def fetch_over_short_lived_urls(contacts: int, cut_every_bytes: int) -> None:
    """Each connection breaks, each request takes half a second by the clock, and URLs are valid for two."""
    clock = FakeClock()
    settings = Settings(encoding="plain", bytes_per_connection=cut_every_bytes, url_lifetime=2)

    def half_a_second_later(request) -> None:
        clock.advance(0.5 if request.listener == "files" else 0.0)

    with Emulator(settings, populate=False, clock=clock, observe=half_a_second_later) as emulator:
        sendgrid = SendGrid(emulator, clock)
        export_id = sendgrid.export(contacts)
        with sendgrid.source(export_id) as source:
            download = source.download(file_path(source.export().urls[0]), "file 1")
            content = bytearray(emulator.export_files(export_id)[0].stored_bytes)
            with RangeReader(download).open() as reader:
                reader.fill(memoryview(content))
            assert source.renewals >= len(content) // cut_every_bytes // 5
        assert len(content) > contacts * BYTES_PER_CONTACT
        assert sendgrid.stored(export_id) == content
        assert sendgrid.fetched_bytes() < 1.1 * len(content)
