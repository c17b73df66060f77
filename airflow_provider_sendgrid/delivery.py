"""The story of a delivery: every file of one export fetched, checked, stored, written down.

The only file that knows both SendGrid's exports and a storage. For each file: ask for it, look at its first
bytes, stream it, through gunzip or gzip where what is stored differs from what came, count its rows on the
way, and publish it when its length and checksums agree. When all are there, their rows must agree with
SendGrid's count. The manifest comes last: where it stands, the export is whole.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial

from airflow_provider_sendgrid.exceptions import DestinationConflictError, ExportIncompleteError
from airflow_provider_sendgrid.exports.download import FileChangedError, FileDownload, RangeReader
from airflow_provider_sendgrid.exports.export import ContactExport
from airflow_provider_sendgrid.exports.gunzip import Gunzip, Gzip, is_gzip
from airflow_provider_sendgrid.exports.rows import RecordCount, record_counter
from airflow_provider_sendgrid.exports.urls import SignedUrls
from airflow_provider_sendgrid.exports.watch import Outcome, look_at
from airflow_provider_sendgrid.manifest import MANIFEST_NAME, DeliveredFile, KnownManifest, manifest_content
from airflow_provider_sendgrid.storage.multipart import MIB, ObjectInfo, PartBuffers, PartWriter, Storage

log = logging.getLogger(__name__)

_PIECE_BYTES = 256 * 1024
_FETCHES_OF_A_CHANGING_FILE = 3
_SAFE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
_OBJECT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*-\d{5,}-of-\d{5,}\.(csv|json)(\.gz)?")
_CONTENT_TYPES = {
    ".csv": "text/csv; charset=utf-8",
    ".json": "application/x-ndjson",
    ".csv.gz": "application/gzip",
    ".json.gz": "application/gzip",
}


@dataclass(frozen=True, slots=True)
class DeliveryOptions:
    """How an export is delivered.

    Attributes:
        compression: ``gzip`` stores gzip whatever came, ``none`` stores plain.
        part_bytes: size of a part on its way, 5 MiB or more.
        max_concurrency: parts on their way at once; memory is about this many times `part_bytes`.
        verify_row_count: count the rows and compare them with SendGrid's count.
        write_manifest: write the manifest when all is done.
        replace: take the place of what an earlier manifest at this prefix names.
    """

    compression: str = "gzip"
    part_bytes: int = 8 * MIB
    max_concurrency: int = 8
    verify_row_count: bool = True
    write_manifest: bool = True
    replace: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be right.

        Raises:
            ValueError: says which and what it should be.
        """
        if self.compression not in ("gzip", "none"):
            raise ValueError(f"compression must be 'gzip' or 'none', not {self.compression!r}.")
        if not 5 * MIB <= self.part_bytes <= 1024 * MIB:
            raise ValueError(f"part_size must be from 5 MiB to 1 GiB, in bytes, not {self.part_bytes!r}.")
        if self.max_concurrency < 1:
            raise ValueError(f"max_concurrency must be 1 or more, not {self.max_concurrency!r}.")


@dataclass(frozen=True, slots=True)
class Source:
    """Where an export's files come from.

    Attributes:
        urls: the signed URLs of its files, and the export itself.
        open_file: prepares the download of file `index` (from 0), called as ``open_file(index, name)``.
    """

    urls: SignedUrls
    open_file: Callable[[int, str], FileDownload]


@dataclass(frozen=True, slots=True)
class Delivery:
    """What was delivered.

    Attributes:
        files: all files of the export, in SendGrid's order.
        export: as SendGrid described it before the first file.
        manifest_uri: of the manifest, None where none was written.
    """

    files: tuple[DeliveredFile, ...]
    export: ContactExport
    manifest_uri: str | None

    @property
    def rows(self) -> int | None:
        """Contacts in all files; None where they were not counted."""
        counts = [file.rows for file in self.files if file.rows is not None]
        return sum(counts) if len(counts) == len(self.files) else None

    def describe(self) -> str:
        """One sentence for a person: what was delivered, and where the proof stands."""
        rows = "rows not counted" if self.rows is None else f"{self.rows} rows"
        size = sum(file.size for file in self.files)
        proof = f"; manifest {self.manifest_uri}" if self.manifest_uri else ""
        return f"Delivered SendGrid export {self.export.id}: {len(self.files)} files, {rows}, {size} bytes{proof}."


def deliver_export(source: Source, storage: Storage, options: DeliveryOptions) -> Delivery:
    """Bring every file of a ready export into a storage, then write the manifest.

    Raises:
        ExportFailedError: SendGrid says ``failure``.
        ExportExpiredError: the files are no longer kept.
        ExportIncompleteError: it is not ready yet, a file could not be had whole, or the rows disagree.
        DestinationConflictError: another export's manifest stands there and `options.replace` is off.
        SendGridError: SendGrid could not be asked.
    """
    export = _ready_export(source.urls.export())
    before = _known_manifest(storage, export, options)
    stored = _store_all(source, storage, options, export)
    try:
        files = _counted(stored, storage)
        if options.verify_row_count:
            _verify_rows(files, export)
    except BaseException:
        for file in stored:
            storage.delete(file.name)
        raise
    if not options.write_manifest:
        return Delivery(files, export, None)
    info = ObjectInfo("application/json", {"sendgrid-export-id": export.id})
    storage.put(MANIFEST_NAME, manifest_content(files, export.summary()), info)
    _delete_replaced(before, files, storage)
    return Delivery(files, export, storage.uri(MANIFEST_NAME))


# Before the first byte


def _ready_export(export: ContactExport) -> ContactExport:
    now = datetime.now(timezone.utc).timestamp()
    sighting = look_at(export, now=now, started_at=now, polls=1)
    if (error := sighting.error()) is not None:
        raise error
    if sighting.outcome is not Outcome.READY:
        raise ExportIncompleteError(
            f"SendGrid export {export.id} is not ready to be delivered: its status is {export.status!r}, with "
            f"{len(export.urls)} files. Wait for it with a SendGridExportSensor before this task."
        )
    if not _SAFE_ID.fullmatch(export.id) or ".." in export.id:
        raise ValueError(f"export_id {export.id!r} cannot be part of an object's name; is it really an export's?")
    return export


def _known_manifest(storage: Storage, export: ContactExport, options: DeliveryOptions) -> KnownManifest | None:
    if not options.write_manifest or (content := storage.read(MANIFEST_NAME)) is None:
        return None
    known = KnownManifest.from_content(content)
    if known.export_id != export.id and not options.replace:
        owner = f"export {known.export_id}" if known.export_id else "something that is not ours"
        raise DestinationConflictError(
            f"SendGrid export {export.id}: {storage.uri(MANIFEST_NAME)} is the manifest of {owner}; nothing was "
            "downloaded or changed. Choose another prefix, or set replace=True to put this export in its place."
        )
    return known


# File by file


@dataclass(frozen=True, slots=True)
class _StoredFile:
    name: str
    size: int
    sha256: str
    count: RecordCount | None


def _store_all(source: Source, storage: Storage, options: DeliveryOptions, export: ContactExport) -> list[_StoredFile]:
    buffers = PartBuffers(options.max_concurrency * options.part_bytes)
    total = len(export.urls)
    with ThreadPoolExecutor(options.max_concurrency, thread_name_prefix="sendgrid-upload") as uploads:
        job = _Job(export, storage, options, buffers, uploads)
        names = [f"SendGrid export {export.id} file {index + 1} of {total}" for index in range(total)]
        return [job.store(partial(source.open_file, index, name), index) for index, name in enumerate(names)]


@dataclass(frozen=True, slots=True)
class _Job:
    """What the files of one delivery share."""

    export: ContactExport
    storage: Storage
    options: DeliveryOptions
    buffers: PartBuffers
    uploads: Executor

    def store(self, open_file: Callable[[], FileDownload], index: int) -> _StoredFile:
        """Fetch one file whole and publish it; anew from its start where it changes on the way."""
        for _ in range(_FETCHES_OF_A_CHANGING_FILE - 1):
            try:
                return self._store_once(open_file(), index)
            except FileChangedError as error:
                log.warning("%s It is fetched anew from its start.", error)
        return self._store_once(open_file(), index)

    def _store_once(self, download: FileDownload, index: int) -> _StoredFile:
        started = time.monotonic()
        with download.open() as reader:
            plan = _Plan.of(_read_head(reader), download.path, self.options)
            name = f"{self.export.id}-{index + 1:05d}-of-{len(self.export.urls):05d}{plan.ending}"
            with closing(_Counting(plan, self.options)) as counting:
                writer = self._writer(name, plan, download, counting)
                with _published(writer):
                    _transfer(plan, reader, writer, counting)
                    writer.finish()
                    count = counting.finish()
        _log_stored(download, writer, time.monotonic() - started)
        return _StoredFile(name, writer.size, writer.sha256, count)

    def _writer(self, name: str, plan: _Plan, download: FileDownload, counting: _Counting) -> PartWriter:
        metadata = {"sendgrid-export-id": self.export.id, "sendgrid-etag": (download.etag or "").strip('"')}
        return PartWriter(
            self.storage,
            name,
            ObjectInfo(plan.content_type, metadata),
            buffers=self.buffers,
            executor=self.uploads,
            part_bytes=self.options.part_bytes,
            expected_bytes=download.length if plan.passes_through else None,
            tap=counting.tap if plan.passes_through else None,
        )


@dataclass(frozen=True, slots=True)
class _Plan:
    """What becomes of one file, decided by its first bytes.

    Attributes:
        head: its first bytes as they came, two or more unless it is shorter.
        file_type: ``csv`` or ``json``.
        came_gzip: whether it came as gzip.
        wants_gzip: whether it is stored as gzip.
    """

    head: bytes
    file_type: str
    came_gzip: bool
    wants_gzip: bool

    @classmethod
    def of(cls, head: bytes, path: str, options: DeliveryOptions) -> _Plan:
        came_gzip = is_gzip(head)
        plain = b"".join(Gunzip().feed(memoryview(head))) if came_gzip else head
        is_json = plain.lstrip()[:1] == b"{" or (not plain and ".json" in path)
        return cls(head, "json" if is_json else "csv", came_gzip, options.compression == "gzip")

    @property
    def passes_through(self) -> bool:
        return self.came_gzip == self.wants_gzip

    @property
    def ending(self) -> str:
        return f".{self.file_type}{'.gz' if self.wants_gzip else ''}"

    @property
    def content_type(self) -> str:
        return _CONTENT_TYPES[self.ending]


def _read_head(reader: RangeReader) -> bytes:
    """The first bytes; more than one, unless the file is shorter."""
    buffer = memoryview(bytearray(_PIECE_BYTES))
    filled = 0
    while filled < 2 and (count := reader.readinto(buffer[filled:])):
        filled += count
    return bytes(buffer[:filled])


def _transfer(plan: _Plan, reader: RangeReader, writer: PartWriter, counting: _Counting) -> None:
    """Move every byte of the file, changed where it is stored differently from how it came."""
    if plan.passes_through:
        writer.write(plan.head)
        while not reader.is_done:
            writer.advance(reader.readinto(writer.room()))
        return
    pieces = _pieces(plan.head, reader)
    if plan.came_gzip:
        gunzip = Gunzip()
        for piece in pieces:
            for plain in gunzip.feed(piece):
                counting.count(plain)
                writer.write(plain)
        gunzip.close()
    else:
        gzip = Gzip()
        for piece in pieces:
            counting.count(bytes(piece))
            for compressed in gzip.feed(piece):
                writer.write(compressed)
        writer.write(gzip.close())


def _pieces(head: bytes, reader: RangeReader) -> Iterator[memoryview]:
    yield memoryview(head)
    buffer = memoryview(bytearray(_PIECE_BYTES))
    while count := reader.readinto(buffer):
        yield buffer[:count]


@contextmanager
def _published(writer: PartWriter) -> Iterator[None]:
    """Publish what was written in the block, or leave nothing behind."""
    try:
        yield
        writer.complete()
    except BaseException:
        try:
            writer.abort()
        except Exception as error:  # noqa: BLE001 - what went wrong first is what must be told
            log.error(
                "The upload of %s could not be aborted (%s): a rule of the bucket that aborts incomplete "
                "multipart uploads removes what is left of it.",
                writer.name,
                type(error).__name__,
            )
        raise


class _Counting:
    """Counts a file's rows: parts that pass through on a thread of its own, while the next ones arrive."""

    def __init__(self, plan: _Plan, options: DeliveryOptions) -> None:
        self._counter = record_counter(plan.file_type) if options.verify_row_count else None
        self._gunzip = Gunzip() if plan.passes_through and plan.came_gzip else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sendgrid-count")

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(cancel_futures=True)

    def tap(self, part: memoryview) -> Future[None] | None:
        """Count a part as it is stored; the future is done when its bytes may be used again."""
        return self._thread.submit(self._count_stored, part) if self._counter else None

    def count(self, plain: bytes) -> None:
        """Count plain bytes at once."""
        if self._counter is not None:
            self._counter.feed(plain)

    def finish(self) -> RecordCount | None:
        """What was counted; None where rows are not counted."""
        if self._counter is None:
            return None
        if self._gunzip is not None:
            self._gunzip.close()
        return self._counter.finish()

    def _count_stored(self, part: memoryview) -> None:
        if self._gunzip is None:
            self.count(bytes(part))
            return
        for plain in self._gunzip.feed(part):
            self.count(plain)


def _log_stored(download: FileDownload, writer: PartWriter, seconds: float) -> None:
    log.info(
        "%s: stored %s, %.1f MiB from %.1f MiB, in %.1f s (%.0f MB/s, %s connections).",
        download.name,
        writer.name,
        writer.size / MIB,
        download.length / MIB,
        seconds,
        download.length / 1e6 / max(seconds, 1e-3),
        download.connections,
    )


# After the last byte


def _counted(stored: Sequence[_StoredFile], storage: Storage) -> tuple[DeliveredFile, ...]:
    """The files with their rows: the first record of the first CSV file is the header of all."""
    first = stored[0].count if stored else None
    header = first.first_record_sha256 if first else ""
    return tuple(
        DeliveredFile(
            file.name,
            storage.uri(file.name),
            file.size,
            file.count.rows(header) if file.count else None,
            file.sha256,
        )
        for file in stored
    )


def _verify_rows(files: Sequence[DeliveredFile], export: ContactExport) -> None:
    rows = sum(file.rows or 0 for file in files)
    if export.contact_count is None:
        log.warning("SendGrid names no count for export %s; its %s rows cannot be compared.", export.id, rows)
    elif rows != export.contact_count:
        raise ExportIncompleteError(
            f"SendGrid export {export.id}: its files hold {rows} rows, SendGrid counted {export.contact_count} "
            "contacts. What was stored was removed again. Run the task again; if the counts still differ, start "
            "another export, or set verify_row_count=False to take the files as they are."
        )


def _delete_replaced(before: KnownManifest | None, files: Sequence[DeliveredFile], storage: Storage) -> None:
    """Remove the objects that only the manifest before names, and nothing that is not ours."""
    kept = {file.uri for file in files}
    prefix = storage.uri("")
    for uri in before.uris if before else ():
        name = uri.removeprefix(prefix)
        if uri.startswith(prefix) and uri not in kept and _OBJECT_NAME.fullmatch(name):
            log.info("Deleting %s, which this export replaces.", uri)
            storage.delete(name)
