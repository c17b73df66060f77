"""The story of a delivery: every file of one export fetched, checked, stored, written down.

The only file that knows both SendGrid's exports and a storage. For each file that is not stored yet: ask for it, look
at its first bytes, stream it, through gunzip or gzip where what is stored differs from what came, count its rows on
the way, and publish it when its length and checksums agree. When all are there, their rows must agree with
SendGrid's count. The manifest comes last: where it stands, the export is whole.

A file that is whole stays when a later one fails, so that a task tried again fetches only what is missing. What was
found out about it lies beside it: in its metadata, or, where that had to be sent before the last byte was known, in a
receipt below ``_receipts/`` that goes when the manifest comes.
"""

from __future__ import annotations

import json
import logging
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Executor, Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from urllib.parse import urlsplit

from airflow_provider_sendgrid.exceptions import (
    DestinationConflictError,
    ExportExpiredError,
    ExportIncompleteError,
)
from airflow_provider_sendgrid.exports.download import FileChangedError, FileDownload, RangeReader
from airflow_provider_sendgrid.exports.export import ContactExport
from airflow_provider_sendgrid.exports.fetch import fetch_parts
from airflow_provider_sendgrid.exports.gunzip import Gunzip, Gzip, is_gzip
from airflow_provider_sendgrid.exports.rows import RecordCount, record_counter
from airflow_provider_sendgrid.exports.urls import SignedUrls
from airflow_provider_sendgrid.exports.watch import Outcome, look_at
from airflow_provider_sendgrid.manifest import (
    MANIFEST_NAME,
    DeliveredFile,
    FileFacts,
    KnownManifest,
    manifest_content,
)
from airflow_provider_sendgrid.progress import FileProgress, Progress
from airflow_provider_sendgrid.storage.multipart import MIB, ObjectInfo, PartBuffers, PartWriter, Storage

log = logging.getLogger(__name__)

_PIECE_BYTES = 256 * 1024
_FETCHES_OF_A_CHANGING_FILE = 3
_LEAST_TIME_LEFT = timedelta(seconds=60)
_EXPORT_ID_KEY = "sendgrid-export-id"
_SAFE_ID = re.compile(r"[A-Za-z0-9](?:\.?[A-Za-z0-9_-])*")
_OBJECT_NAME = re.compile(_SAFE_ID.pattern + r"-\d{5,}-of-\d{5,}\.(csv|json)(\.gz)?")
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
        max_concurrency: parts on their way at once; memory is about this many times `part_bytes`. Also how many
            connections one large file, and how many small files, may use at once.
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
        if not 1 <= self.max_concurrency <= 64:
            raise ValueError(f"max_concurrency must be from 1 to 64, not {self.max_concurrency!r}.")


@dataclass(frozen=True, slots=True)
class Source:
    """Where an export's files come from.

    Attributes:
        urls: the signed URLs of its files, and the export itself.
        open_file: prepares the download of a file: ``open_file(index, name)``, the index from 0.
    """

    urls: SignedUrls
    open_file: Callable[[int, str], FileDownload]


@dataclass(frozen=True, slots=True)
class Delivery:
    """What was delivered.

    Attributes:
        files: those that this delivery was about, in SendGrid's order.
        export: as SendGrid described it before the first file.
        manifest_uri: of the manifest, None where none was written.
        fetched_bytes: received from SendGrid's storage this time.
        seconds: that it took.
        connections: opened to SendGrid's storage.
    """

    files: tuple[DeliveredFile, ...]
    export: ContactExport
    manifest_uri: str | None
    fetched_bytes: int
    seconds: float
    connections: int

    @property
    def rows(self) -> int | None:
        """Contacts in all files; None where they were not counted."""
        counts = [file.rows for file in self.files if file.rows is not None]
        return sum(counts) if len(counts) == len(self.files) else None

    def describe(self) -> str:
        """One line for a person: what was delivered, what it cost, where the proof stands."""
        rows = "rows not counted" if self.rows is None else f"{self.rows} rows"
        size = sum(file.size for file in self.files)
        proof = f" Manifest: {self.manifest_uri}." if self.manifest_uri else ""
        return (
            f"Delivered SendGrid export {self.export.id}: {len(self.files)} files, {rows}, {size} bytes stored; "
            f"{self.fetched_bytes} bytes fetched over {self.connections} connections in {self.seconds:.1f} s.{proof}"
        )


def deliver_export(
    source: Source, storage: Storage, options: DeliveryOptions, file_index: int | None = None
) -> Delivery:
    """Bring every file of a ready export into a storage, then write the manifest.

    Args:
        source: where the files come from.
        storage: where they go.
        options: how.
        file_index: only this file (from 0), and no manifest: for tasks that share an export. A delivery of all files
            afterwards finds them stored, compares the rows and writes the manifest.

    Raises:
        ExportFailedError: SendGrid says ``failure``.
        ExportExpiredError: the files are no longer kept.
        ExportIncompleteError: it is not ready yet, a file could not be had whole, or the rows disagree.
        DestinationConflictError: another export's manifest stands there and `options.replace` is off.
        SendGridError: SendGrid could not be asked.
    """
    export = _ready_export(source.urls.export())
    indexes = _indexes(export, file_index)
    before = _known_manifest(storage, export, options)
    job = _Job(source, storage, options, export, indexes)
    stored = job.store_all()
    files = _with_rows(stored, storage, options)
    manifest_uri = None
    if file_index is None:
        try:
            _verify_rows(files, export, options)
        except ExportIncompleteError:
            _delete_all(stored, before, export, storage)
            raise
        if options.write_manifest:
            manifest_uri = _write_manifest(files, export, before, storage)
        _delete_receipts(stored, storage)
    connections = sum(file.connections for file in stored)
    return Delivery(files, export, manifest_uri, job.progress.fetched_bytes, job.progress.seconds, connections)


# Before the first byte


def _ready_export(export: ContactExport) -> ContactExport:
    now = datetime.now(timezone.utc)
    sighting = look_at(export, now=now.timestamp(), started_at=now.timestamp(), polls=1)
    if (error := sighting.error()) is not None:
        raise error
    if export.is_expired_at(now + _LEAST_TIME_LEFT):
        raise ExportExpiredError(
            f"SendGrid export {export.id} expires at {export.expires_at}, too soon to bring its files over; "
            "nothing was downloaded. Start another export."
        )
    if sighting.outcome is not Outcome.READY:
        raise ExportIncompleteError(
            f"SendGrid export {export.id} is not ready to be delivered: its status is {export.status!r}, with "
            f"{len(export.urls)} files. Wait for it with a SendGridExportSensor before this task."
        )
    if len(export.id) > 200 or not _SAFE_ID.fullmatch(export.id):
        raise ValueError(f"export_id {export.id!r} cannot be part of an object's name; is it really an export's?")
    return export


def _indexes(export: ContactExport, file_index: int | None) -> Sequence[int]:
    count = len(export.urls)
    if file_index is None:
        return range(count)
    if not 0 <= file_index < count:
        raise ValueError(f"file_index {file_index} of SendGrid export {export.id}: it has files 0 to {count - 1}.")
    return [file_index]


def _known_manifest(storage: Storage, export: ContactExport, options: DeliveryOptions) -> KnownManifest | None:
    if not options.write_manifest or (content := storage.read(MANIFEST_NAME)) is None:
        return None
    known = KnownManifest.from_content(content)
    if known.export_id != export.id and not options.replace:
        owner = f"the manifest of export {known.export_id}" if known.export_id else "not a manifest of ours"
        raise DestinationConflictError(
            f"SendGrid export {export.id}: {storage.uri(MANIFEST_NAME)} stands there already and is {owner}; nothing "
            "was downloaded or changed. Choose another prefix, or set replace=True to put this export in its place."
        )
    return known


# File by file


@dataclass(frozen=True, slots=True)
class _StoredFile:
    name: str
    facts: FileFacts
    has_receipt: bool
    connections: int = 0


class _Job:
    """What the files of one delivery share, and how each is stored."""

    def __init__(
        self,
        source: Source,
        storage: Storage,
        options: DeliveryOptions,
        export: ContactExport,
        indexes: Sequence[int],
    ) -> None:
        self.progress = Progress(len(export.urls))
        self._source = source
        self._storage = storage
        self._options = options
        self._export = export
        self._buffers = PartBuffers(options.max_concurrency * options.part_bytes)
        self._indexes = indexes
        self._turns = _Turns(indexes)
        self._downloads: dict[int, FileDownload] = {}
        self._is_stopped = False

    def store_all(self) -> list[_StoredFile]:
        """Store files, several small ones at once and large ones one after the other."""
        most = self._options.max_concurrency
        with (
            ThreadPoolExecutor(most, thread_name_prefix="sendgrid-upload") as uploads,
            ThreadPoolExecutor(min(most, max(len(self._indexes), 1)), thread_name_prefix="sendgrid-file") as threads,
        ):
            files = [threads.submit(self._store, index, uploads) for index in self._indexes]
            try:
                wait(files, return_when=FIRST_EXCEPTION)
                for file in files:
                    if file.done():
                        file.result()
                return [file.result() for file in files]
            except BaseException:
                self._stop()
                threads.shutdown(cancel_futures=True)
                raise

    def _stop(self) -> None:
        self._is_stopped = True
        self._turns.stop()
        for download in list(self._downloads.values()):
            download.stop()

    def _store(self, index: int, uploads: Executor) -> _StoredFile:
        stored = self._store_unless_stored(index, uploads)
        self._turns.finish(index)
        return stored

    def _store_unless_stored(self, index: int, uploads: Executor) -> _StoredFile:
        """Store one file, unless it is; anew from its start where it changes on the way."""
        if (stored := self._already_stored(index)) is not None:
            log.info("%s is stored already, as %s.", self._title(index), stored.name)
            return stored
        for fetches_left in reversed(range(_FETCHES_OF_A_CHANGING_FILE)):
            try:
                return self._fetch_and_store(index, uploads)
            except FileChangedError as error:
                if not fetches_left:
                    raise
                log.warning("%s It is fetched anew from its start.", error)
        raise RuntimeError("a loop that returns or raises has ended")

    def _already_stored(self, index: int) -> _StoredFile | None:
        """What an earlier try, or another task, stored of this export: whole, for only what is whole is published."""
        is_json = ".json" in urlsplit(self._export.urls[index]).path
        name = self._name(index, _ending("json" if is_json else "csv", self._options.compression == "gzip"))
        info = self._storage.head(name)
        if info is None or info.metadata.get(_EXPORT_ID_KEY) != self._export.id:
            return None
        in_metadata = FileFacts.from_metadata(info.metadata)
        facts = in_metadata or _read_receipt(self._storage, name)
        if facts is None or facts.size != info.size or (facts.records is None and self._options.verify_row_count):
            return None
        return _StoredFile(name, facts, has_receipt=in_metadata is None)

    def _fetch_and_store(self, index: int, uploads: Executor) -> _StoredFile:
        with _named(self._title(index)):
            return self._transfer_in_turn(index, self._download(index), uploads)

    def _transfer_in_turn(self, index: int, download: FileDownload, uploads: Executor) -> _StoredFile:
        with download.open() as reader:
            if download.length <= self._options.part_bytes:
                return self._transfer(index, download, reader, uploads)
        self._turns.wait_for(index)
        with download.open() as reader:
            return self._transfer(index, download, reader, uploads)

    def _download(self, index: int) -> FileDownload:
        download = self._source.open_file(index, self._title(index))
        self._downloads[index] = download
        if self._is_stopped:
            download.stop()
        return download

    def _transfer(self, index: int, download: FileDownload, reader: RangeReader, uploads: Executor) -> _StoredFile:
        progress = self.progress.file(index, download.length)
        plan = _Plan.of(_read_head(reader), download.path, self._options)
        name = self._name(index, plan.ending)
        if abandoned := self._storage.abort_uploads(name):
            log.info("%s: %s uploads that an earlier try left open were ended.", name, abandoned)
        with closing(_Counting(plan, self._options)) as counting:
            writer = self._writer(name, plan, download, counting, uploads)
            with _nothing_left_behind(writer):
                _move(plan, download, reader, writer, counting, progress, self._options.max_concurrency)
                writer.finish()
                facts = _facts(writer, counting.finish())
                has_receipt = not writer.is_small
                writer.complete(facts.to_metadata())
        if has_receipt:
            _write_receipt(self._storage, name, facts)
        self._downloads.pop(index)
        _log_stored(download, name, facts, progress)
        return _StoredFile(name, facts, has_receipt, download.connections)

    def _writer(
        self, name: str, plan: _Plan, download: FileDownload, counting: _Counting, uploads: Executor
    ) -> PartWriter:
        metadata = {_EXPORT_ID_KEY: self._export.id, "sendgrid-etag": (download.etag or "").strip('"')}
        return PartWriter(
            self._storage,
            name,
            ObjectInfo(plan.content_type, metadata),
            buffers=self._buffers,
            executor=uploads,
            part_bytes=self._options.part_bytes,
            expected_bytes=download.length if plan.passes_through else None,
            tap=counting.tap if plan.passes_through else None,
        )

    def _title(self, index: int) -> str:
        return f"SendGrid export {self._export.id} file {index + 1} of {len(self._export.urls)}"

    def _name(self, index: int, ending: str) -> str:
        return f"{self._export.id}-{index + 1:05d}-of-{len(self._export.urls):05d}{ending}"


class _Turns:
    """Large files go one at a time, in order: a task that is killed has whole files behind it."""

    def __init__(self, indexes: Sequence[int]) -> None:
        self._unfinished = set(indexes)
        self._is_stopped = False
        self._changed = threading.Condition()

    def wait_for(self, index: int) -> None:
        """Wait until every earlier file is finished, or until all are stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_stopped or min(self._unfinished) == index)

    def finish(self, index: int) -> None:
        """Say that a file is stored."""
        with self._changed:
            self._unfinished.discard(index)
            self._changed.notify_all()

    def stop(self) -> None:
        """Let all who wait go on, to find out that it was stopped."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()


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
        plain = next(Gunzip().feed(memoryview(head)), b"") if came_gzip else head
        is_json = plain.lstrip()[:1] == b"{" or (not plain and ".json" in path)
        return cls(head, "json" if is_json else "csv", came_gzip, options.compression == "gzip")

    @property
    def passes_through(self) -> bool:
        return self.came_gzip == self.wants_gzip

    @property
    def ending(self) -> str:
        return _ending(self.file_type, self.wants_gzip)

    @property
    def content_type(self) -> str:
        return _CONTENT_TYPES[self.ending]


def _ending(file_type: str, is_compressed: bool) -> str:
    return f".{file_type}.gz" if is_compressed else f".{file_type}"


def _read_head(reader: RangeReader) -> bytes:
    """The first bytes; more than one, unless the file is shorter."""
    buffer = memoryview(bytearray(_PIECE_BYTES))
    filled = 0
    while filled < 2 and (count := reader.readinto(buffer[filled:])):
        filled += count
    return bytes(buffer[:filled])


def _move(
    plan: _Plan,
    download: FileDownload,
    reader: RangeReader,
    writer: PartWriter,
    counting: _Counting,
    progress: FileProgress,
    max_connections: int,
) -> None:
    """Move every byte of the file; through gunzip or gzip over one connection, for there the CPU is the bound."""
    progress.advance(len(plan.head))
    if plan.passes_through:
        writer.write(plan.head)
        with closing(fetch_parts(download, reader, writer.take, max_connections)) as parts:
            for part in parts:
                progress.advance(len(part.room))
                writer.send(part)
        return
    for chunk in _recoded(plan, _pieces(plan.head, reader, progress), counting):
        writer.write(chunk)


def _pieces(head: bytes, reader: RangeReader, progress: FileProgress) -> Iterator[memoryview]:
    yield memoryview(head)
    buffer = memoryview(bytearray(_PIECE_BYTES))
    while count := reader.readinto(buffer):
        progress.advance(count)
        yield buffer[:count]


def _recoded(plan: _Plan, pieces: Iterator[memoryview], counting: _Counting) -> Iterator[bytes]:
    """The bytes to store, with the plain ones counted on the way."""
    if plan.came_gzip:
        gunzip = Gunzip()
        for piece in pieces:
            for plain in gunzip.feed(piece):
                counting.count(plain)
                yield plain
        gunzip.close()
        return
    gzip = Gzip()
    for piece in pieces:
        counting.count(bytes(piece))
        yield from gzip.feed(piece)
    yield gzip.close()


class _Counting:
    """Counts a file's rows: of parts that pass through on a thread of its own, while the next ones arrive."""

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


@contextmanager
def _named(title: str) -> Iterator[None]:
    """Say which file it was that is damaged or has no end."""
    try:
        yield
    except ExportIncompleteError as error:
        if "SendGrid export" in str(error):
            raise
        raise ExportIncompleteError(f"{title}: {error} Nothing of it was stored; run the task again.") from None


@contextmanager
def _nothing_left_behind(writer: PartWriter) -> Iterator[None]:
    """Abort the upload on every way out but the right one."""
    try:
        yield
    except BaseException:
        try:
            writer.abort()
        except Exception as error:  # noqa: BLE001 - what went wrong first is what must be told
            log.error(
                "The upload of %s could not be aborted (%s): the next try ends it, or a rule of the bucket that aborts "
                "incomplete multipart uploads.",
                writer.name,
                type(error).__name__,
            )
        raise


def _facts(writer: PartWriter, count: RecordCount | None) -> FileFacts:
    if count is None:
        return FileFacts(writer.size, writer.sha256)
    return FileFacts(writer.size, writer.sha256, count.records, count.first_record_sha256)


def _log_stored(download: FileDownload, name: str, facts: FileFacts, progress: FileProgress) -> None:
    seconds = progress.seconds
    log.info(
        "%s: stored as %s, %s bytes from %s, %s records, in %.1f s (%.0f MB/s) over %s connections.",
        download.name,
        name,
        facts.size,
        download.length,
        "uncounted" if facts.records is None else facts.records,
        seconds,
        download.length / 1e6 / max(seconds, 1e-3),
        download.connections,
    )


# Receipts


def _receipt_name(name: str) -> str:
    return f"_receipts/{name}.json"


def _write_receipt(storage: Storage, name: str, facts: FileFacts) -> None:
    content = json.dumps(facts.to_metadata()).encode()
    storage.put(_receipt_name(name), content, ObjectInfo("application/json", {}))


def _read_receipt(storage: Storage, name: str) -> FileFacts | None:
    try:
        receipt = json.loads(storage.read(_receipt_name(name)) or b"null")
    except ValueError:
        return None
    return FileFacts.from_metadata(receipt) if isinstance(receipt, dict) else None


def _delete_receipts(stored: Sequence[_StoredFile], storage: Storage) -> None:
    for file in stored:
        if file.has_receipt:
            storage.delete(_receipt_name(file.name))


def _delete_all(
    stored: Sequence[_StoredFile], before: KnownManifest | None, export: ContactExport, storage: Storage
) -> None:
    """Delete what was stored; first the manifest that an earlier delivery of the same export wrote about it."""
    if before is not None and before.export_id == export.id:
        storage.delete(MANIFEST_NAME)
    _delete_receipts(stored, storage)
    for file in stored:
        storage.delete(file.name)


# After the last byte


def _with_rows(stored: Sequence[_StoredFile], storage: Storage, options: DeliveryOptions) -> tuple[DeliveredFile, ...]:
    """The files with their rows: the first record of the first CSV file is the header of all."""
    header = stored[0].facts.first_record_sha256 if stored else ""
    return tuple(
        DeliveredFile(
            file.name,
            storage.uri(file.name),
            file.facts.size,
            _rows(file.facts, header) if options.verify_row_count else None,
            file.facts.sha256,
        )
        for file in stored
    )


def _rows(facts: FileFacts, header: str) -> int | None:
    return None if facts.records is None else RecordCount(facts.records, facts.first_record_sha256).rows(header)


def _verify_rows(files: Sequence[DeliveredFile], export: ContactExport, options: DeliveryOptions) -> None:
    if not options.verify_row_count:
        return
    rows = sum(file.rows or 0 for file in files)
    if export.contact_count is None:
        log.warning("SendGrid names no count for export %s; its %s rows cannot be compared.", export.id, rows)
    elif rows != export.contact_count:
        raise ExportIncompleteError(
            f"SendGrid export {export.id}: its files hold {rows} rows, SendGrid counted {export.contact_count} "
            "contacts. What was stored was removed again. Run the task again; if the counts still differ, start "
            "another export, or set verify_row_count=False to take the files as they are."
        )


def _write_manifest(
    files: Sequence[DeliveredFile], export: ContactExport, before: KnownManifest | None, storage: Storage
) -> str:
    info = ObjectInfo("application/json", {_EXPORT_ID_KEY: export.id})
    storage.put(MANIFEST_NAME, manifest_content(files, export.summary()), info)
    kept = {file.uri for file in files}
    for uri in before.uris if before and before.export_id else ():
        name = uri.removeprefix(storage.uri(""))
        if uri not in kept and name != uri and _OBJECT_NAME.fullmatch(name):
            log.info("Deleting %s, which this export replaces.", uri)
            storage.delete(name)
    return storage.uri(MANIFEST_NAME)
