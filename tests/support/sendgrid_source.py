"""Exports of the emulator as a delivery uses them, with a manual clock; waits are recorded and take no time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_sendgrid.emulator import Emulator
from airflow_provider_sendgrid.exports import protocol
from airflow_provider_sendgrid.exports.client import SendGridClient
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.export import ExportFamily
from airflow_provider_sendgrid.exports.sessions import new_download_session
from airflow_provider_sendgrid.files.download import DownloadLimits, FileDownload
from airflow_provider_sendgrid.files.range_reader import RangeReader
from airflow_provider_sendgrid.files.source import ExportFiles, file_path

LIMITS = DownloadLimits(jitter=lambda: 1.0)


def connection_to(emulator: Emulator) -> SendGridConnection:
    return SendGridConnection.from_fields(name="test", password=emulator.api_key, host=emulator.url)


@dataclass
class SendGrid:
    """An emulator, its clock, and downloads from it; their waits are in `waits`."""

    emulator: Emulator
    clock: Callable[[], float] = time.time
    limits: DownloadLimits = LIMITS
    timeout_seconds: float = 10.0
    waits: list[float] = field(default_factory=list)

    def export(self, contacts: int, **options: Any) -> str:
        """Start an export of this many contacts; it is ready."""
        export_id = self.emulator.start_export([self.emulator.add_list("A list", contacts=contacts)], **options)
        self.emulator.export_files(export_id)
        return export_id

    def stored(self, export_id: str, index: int = 0) -> bytes:
        """A file's bytes as SendGrid stores them."""
        return self.emulator.export_files(export_id)[index].stored.path.read_bytes()

    def urls(self, export_id: str) -> tuple[str, ...]:
        """The signed URLs of its files."""
        with self.source(export_id) as source:
            return source.export().urls

    def fetched_bytes(self) -> int:
        """Bytes that the file storage sent."""
        return sum(request.bytes_sent for request in self.emulator.requests(listener="files"))

    def ranges(self) -> list[str | None]:
        """The requested ranges, in order."""
        return [request.headers.get("range") for request in self.emulator.requests(listener="files")]

    @contextmanager
    def source(self, export_id: str) -> Iterator[ExportFiles]:
        """The files of an export."""
        connection = connection_to(self.emulator)
        with SendGridClient(connection, sleep=self.waits.append) as client, new_download_session(connection) as session:
            yield ExportFiles(
                lambda: client.run_flow(protocol.get_export(ExportFamily.MARKETING, export_id)),
                session,
                allow_http=True,
                timeout_seconds=self.timeout_seconds,
                limits=self.limits,
                clock=self.clock,
                sleep=self.waits.append,
            )

    @contextmanager
    def download(self, export_id: str, index: int = 0) -> Iterator[FileDownload]:
        """One file of it."""
        with self.source(export_id) as source:
            path = file_path(source.export().urls[index])
            yield source.download(path, f"SendGrid export {export_id} file {index + 1} of 1")

    @contextmanager
    def reader(self, export_id: str) -> Iterator[RangeReader]:
        """A reader of its first file."""
        with self.download(export_id) as download, RangeReader(download).open() as reader:
            yield reader
