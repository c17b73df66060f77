"""The story of a delivery: every file of one export fetched, checked, stored, written down.

With `file_delivery` the only place that knows both SendGrid's exports and a storage. Files that are whole already are
found and left alone. When all are there, their rows must agree with SendGrid's count. The manifest comes last: where it
stands, the export is whole.

A file that is whole stays when a later one fails, so that a task tried again fetches only what is missing.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from urllib.parse import urlsplit

from airflow_provider_sendgrid.exceptions import (
    DestinationConflictError,
    ExportExpiredError,
    ExportIncompleteError,
)
from airflow_provider_sendgrid.exports.download import FileChangedError, FileDownload
from airflow_provider_sendgrid.exports.export import ContactExport
from airflow_provider_sendgrid.exports.rows import RecordCount
from airflow_provider_sendgrid.exports.urls import SignedUrls
from airflow_provider_sendgrid.exports.watch import Outcome, look_at
from airflow_provider_sendgrid.file_delivery import (
    EXPORT_ID_KEY,
    DeliveryOptions,
    Desk,
    StoredFile,
    find_stored,
    store_file,
)
from airflow_provider_sendgrid.manifest import (
    MANIFEST_NAME,
    DeliveredFile,
    FileFacts,
    KnownManifest,
    manifest_content,
)
from airflow_provider_sendgrid.progress import Progress
from airflow_provider_sendgrid.storage.multipart import ObjectInfo, PartBuffers, Storage

__all__ = ["Delivery", "DeliveryOptions", "Source", "deliver_export"]

log = logging.getLogger(__name__)

_FETCHES_OF_A_CHANGING_FILE = 3
_LEAST_TIME_LEFT = timedelta(seconds=60)
_SAFE_ID = re.compile(r"[A-Za-z0-9](?:\.?[A-Za-z0-9_-])*")
_OBJECT_NAME = re.compile(_SAFE_ID.pattern + r"-\d{5,}-of-\d{5,}\.(csv|json)(\.gz)?")


@dataclass(frozen=True, slots=True)
class Source:
    """Where an export's files come from.

    Attributes:
        urls: the signed URLs of its files, and the export itself.
        open_file: prepares the download of a file: ``open_file(path, name)``, by the path of its URL.
    """

    urls: SignedUrls
    open_file: Callable[[str, str], FileDownload]


@dataclass(frozen=True, slots=True)
class Delivery:
    """What was delivered.

    Attributes:
        files: those that this delivery was about, in SendGrid's order.
        new_files: those of them that were not stored already.
        export: as SendGrid described it before the first file.
        manifest_uri: of the manifest, None where none was written.
        fetched_bytes: received from SendGrid's storage this time.
        seconds: that it took.
        connections: opened to SendGrid's storage.
    """

    files: tuple[DeliveredFile, ...]
    new_files: tuple[DeliveredFile, ...]
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
    stored, progress = _store_all(source, storage, options, export, indexes, before)
    files = _with_rows(stored, storage, options)
    manifest_uri = None
    if file_index is None:
        try:
            _verify_rows(files, export, options)
        except ExportIncompleteError:
            _take_back(stored, export, before, storage)
            if all(file.connections for file in stored):
                raise
            # A plain file that the storage cut outside quotes, and calls whole, looks so to the try that stores it.
            log.warning(
                "SendGrid export %s: its rows disagree with files that an earlier try stored; these were removed, and "
                "all are fetched anew.",
                export.id,
            )
            return deliver_export(source, storage, options)
        if options.write_manifest:
            manifest_uri = _write_manifest(stored, files, export, before, storage)
        for file in stored:
            file.delete_receipt(storage)
    connections = sum(file.connections for file in stored)
    new_files = tuple(file for file, what in zip(files, stored, strict=True) if what.connections)
    return Delivery(files, new_files, export, manifest_uri, progress.fetched_bytes, progress.seconds, connections)


# Before the first byte


def _ready_export(export: ContactExport) -> ContactExport:
    # SendGrid's times are compared with SendGrid's clock: a worker's may be wrong.
    now = export.as_of or datetime.now(timezone.utc)
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


def _store_all(
    source: Source,
    storage: Storage,
    options: DeliveryOptions,
    export: ContactExport,
    indexes: Sequence[int],
    before: KnownManifest | None,
) -> tuple[list[StoredFile], Progress]:
    """Store files, several small ones at once and large ones one after the other."""
    progress, most = Progress(len(export.urls)), options.max_concurrency
    with (
        ThreadPoolExecutor(most, thread_name_prefix="sendgrid-upload") as uploads,
        ThreadPoolExecutor(min(most, max(len(indexes), 1)), thread_name_prefix="sendgrid-file") as threads,
    ):
        buffers = PartBuffers((most + 1) * options.part_bytes)  # one is sent while the others are fetched
        desk = Desk(export.id, storage, options, buffers, uploads)
        job = _Job(source, desk, export, indexes, before, progress)
        files = [threads.submit(job.store, index) for index in indexes]
        try:
            wait(files, return_when=FIRST_EXCEPTION)
            for file in files:
                if file.done():
                    file.result()
            return [file.result() for file in files], progress
        except BaseException:
            job.stop()
            threads.shutdown(cancel_futures=True)
            raise


class _Job:
    """The files of one delivery, each stored by a thread."""

    def __init__(
        self,
        source: Source,
        desk: Desk,
        export: ContactExport,
        indexes: Sequence[int],
        before: KnownManifest | None,
        progress: Progress,
    ) -> None:
        self._source = source
        self._desk = desk
        self._export = export
        self._before = before if before is not None and before.export_id == export.id else None
        self._progress = progress
        self._turns = _Turns(indexes)
        self._downloads: dict[int, FileDownload] = {}
        self._is_stopped = False

    def store(self, index: int) -> StoredFile:
        """Store one file, unless it is; anew from its start where it changes on the way."""
        stem = f"{self._export.id}-{index + 1:05d}-of-{len(self._export.urls):05d}"
        stored = find_stored(self._desk, stem, urlsplit(self._export.urls[index]).path, self._before)
        if stored is not None:
            log.info("%s is stored already, as %s.", self._title(index), stored.name)
        else:
            try:
                stored = self._fetch_and_store(index, stem)
            except ExportIncompleteError:
                # Another try may bring it; the files before it are stored by then, instead of given up half-way.
                self._turns.wait_for(index)
                raise
        self._turns.finish(index)
        return stored

    def stop(self) -> None:
        """Have all files given up."""
        self._is_stopped = True
        self._turns.stop()
        for download in list(self._downloads.values()):
            download.stop.set()

    def _fetch_and_store(self, index: int, stem: str) -> StoredFile:
        for _ in range(_FETCHES_OF_A_CHANGING_FILE - 1):
            try:
                return self._store_in_turn(index, stem, self._download(index))
            except FileChangedError as error:
                log.warning("%s It is fetched anew from its start.", error)
        try:
            return self._store_in_turn(index, stem, self._download(index))
        except FileChangedError as error:
            raise FileChangedError(f"{error} So it did before; nothing of it was stored. Run the task again.") from None

    def _store_in_turn(self, index: int, stem: str, download: FileDownload) -> StoredFile:
        with download.open() as reader:
            progress = self._progress.file(index, download.length)
            if download.length <= self._desk.options.part_bytes:
                return store_file(self._desk, stem, download, reader, progress)
        self._turns.wait_for(index)
        with download.open() as reader:
            progress = self._progress.file(index, download.length)
            return store_file(self._desk, stem, download, reader, progress)

    def _download(self, index: int) -> FileDownload:
        download = self._source.open_file(urlsplit(self._export.urls[index]).path, self._title(index))
        self._downloads[index] = download
        if self._is_stopped:
            download.stop.set()
        return download

    def _title(self, index: int) -> str:
        return f"SendGrid export {self._export.id} file {index + 1} of {len(self._export.urls)}"


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


# After the last byte


def _with_rows(stored: Sequence[StoredFile], storage: Storage, options: DeliveryOptions) -> tuple[DeliveredFile, ...]:
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


def _take_back(
    stored: Sequence[StoredFile], export: ContactExport, before: KnownManifest | None, storage: Storage
) -> None:
    """Delete what was stored; first the manifest that an earlier delivery of the same export wrote about it."""
    if before is not None and before.export_id == export.id:
        storage.delete(MANIFEST_NAME)
    for file in stored:
        file.delete(storage)


def _write_manifest(
    stored: Sequence[StoredFile],
    files: Sequence[DeliveredFile],
    export: ContactExport,
    before: KnownManifest | None,
    storage: Storage,
) -> str:
    """Write the manifest, then delete what it replaces: it names that too, should this be cut short."""
    replaced = _replaced(before, files, storage)
    info = ObjectInfo("application/json", {EXPORT_ID_KEY: export.id})
    facts = {file.name: file.facts for file in stored}
    storage.put(MANIFEST_NAME, manifest_content(files, export.summary(), facts, replaced), info)
    for uri in replaced:
        log.info("Deleting %s, which this export replaces.", uri)
        storage.delete(uri.removeprefix(storage.uri("")))
    return storage.uri(MANIFEST_NAME)


def _replaced(before: KnownManifest | None, files: Sequence[DeliveredFile], storage: Storage) -> list[str]:
    """The objects that only the manifest before names, below our prefix and named as ours are; nothing else."""
    if before is None or not before.export_id:
        return []
    prefix, kept = storage.uri(""), {file.uri for file in files}
    return [
        uri
        for uri in (*before.uris, *before.replaced_uris)
        if uri not in kept and uri.startswith(prefix) and _OBJECT_NAME.fullmatch(uri.removeprefix(prefix))
    ]
