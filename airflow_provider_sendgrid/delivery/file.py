"""One file of an export: found, or downloaded, recompressed if needed, counted, and published complete.

The stored bytes differ from the downloaded ones only in their compression. The first bytes of a file decide how it is
stored. An object is published when its length and checksums agree. The metadata of a small object describe it. Those of
a large object are sent before its last byte is known; a receipt describes it, stored right before it is published.

Knows one file and one storage. Knows nothing of other files, nor when the export is complete: see `export`.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace

from airflow_provider_sendgrid.compression import Gunzip, Gzip
from airflow_provider_sendgrid.delivery.first_bytes import MAX_MESSAGE_LINES, PIECE_BYTES, FilePlan
from airflow_provider_sendgrid.delivery.lookup import FileLookup
from airflow_provider_sendgrid.delivery.options import DeliveryOptions
from airflow_provider_sendgrid.delivery.progress import Progress, speed
from airflow_provider_sendgrid.delivery.publication import ManifestChangedError, Publication
from airflow_provider_sendgrid.delivery.receipts import write_receipt
from airflow_provider_sendgrid.delivery.row_check import rows_difference, rows_message
from airflow_provider_sendgrid.delivery.stored_file import DeliveryState, StoredFile
from airflow_provider_sendgrid.delivery.uploads import Uploads
from airflow_provider_sendgrid.delivery.verification import Verification
from airflow_provider_sendgrid.exceptions import (
    DestinationChangedError,
    DestinationRefusedError,
    ExportIncompleteError,
)
from airflow_provider_sendgrid.files.download import FileChangedError, FileDownload
from airflow_provider_sendgrid.files.parallel import fetch_parts
from airflow_provider_sendgrid.files.range_reader import RangeReader
from airflow_provider_sendgrid.files.rows import RecordCount
from airflow_provider_sendgrid.storage.base import UPLOAD_KEY, ObjectInfo, Storage, StoredInfo
from airflow_provider_sendgrid.storage.multipart import PartWriter

log = logging.getLogger(__name__)

_MAX_ATTEMPTS = 3  # if the file or its object changes meanwhile


@dataclass(slots=True, kw_only=True, eq=False, repr=False)
class FileTransfer:
    """Transfers one file: call `store_if_small` or `store`, and `close` at the end.

    Attributes:
        lookup: which file it is, and what is stored of it.
        contact_count: SendGrid's count of the rows of all files; None if there is none.
        compares_rows: whether the rows of all files are compared with that.
        open_file: prepares the download of a file, by the path of its URL and a title for messages.
        listed: see `FileLookup.find`; used for the first look only.
    """

    lookup: FileLookup
    contact_count: int | None
    compares_rows: bool
    open_file: Callable[[str, str], FileDownload]
    storage: Storage
    options: DeliveryOptions
    publication: Publication
    uploads: Uploads
    progress: Progress
    state: DeliveryState
    listed: Collection[str] | None = None
    _download: FileDownload | None = field(default=None, init=False)
    _reader: RangeReader | None = field(default=None, init=False)

    @property
    def index(self) -> int:
        """Which file of the export it is, from 0."""
        return self.lookup.index

    @property
    def is_open(self) -> bool:
        """Whether a download is open."""
        return self._reader is not None

    def store_if_small(self) -> StoredFile | None:
        """Store the file unless it is stored already; a large one is only opened, and None is returned."""
        if (stored := self._find_or_open()) is not None:
            return stored
        return None if self._is_large else self._store_opened()

    def store(self) -> StoredFile:
        """Store the file unless it is stored already.

        Raises:
            ExportIncompleteError: it could not be downloaded completely, is damaged, or is the only file and its rows
                disagree with SendGrid's count; nothing of it remains.
            DestinationChangedError: another run stored it meanwhile.
        """
        if not self.is_open and (stored := self._find_or_open()) is not None:
            return stored
        return self._store_opened()

    def close(self) -> None:
        """Close the download."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        self.progress.end(self.index)

    # Before the download

    @property
    def _is_large(self) -> bool:
        return self._download is not None and self._download.length > self.options.part_bytes

    def _find_or_open(self) -> StoredFile | None:
        if (stored := self._find_and_log(self.listed)) is not None:
            return stored
        self._open()
        # The listing may be old by now, and there is much to send.
        if self._is_large and self.listed is not None and (stored := self._find_and_log()) is not None:
            self.close()
            return stored
        return None

    def _find_and_log(self, listed: Collection[str] | None = None) -> StoredFile | None:
        if (stored := self.lookup.find(listed)) is not None:
            log.info("%s is stored already, as %s.", self.lookup.title, stored.name)
        return stored

    def _open(self) -> None:
        if self.lookup.objects:
            # Whether they may be replaced was decided by the manifest as it was read.
            self.publication.raise_if_changed()
        self._download = self.open_file(self.lookup.path, self.lookup.title)
        self.progress.begin(self.index, self._download)
        try:
            self._reader = RangeReader(self._download).open()
        except BaseException:
            self.close()
            raise

    # From the first byte to the published object

    def _store_opened(self) -> StoredFile:
        """Store the opened file; again from its start if it, or the object, changes meanwhile."""
        attempt = 1
        while True:
            try:
                stored = self._transfer()
            except FileChangedError as error:
                if attempt == _MAX_ATTEMPTS:
                    raise FileChangedError(
                        f"{error} It changed in {attempt} attempts; nothing of it was stored. Run the task again."
                    ) from None
                log.warning("%s Restarting the download.", error)
            except DestinationChangedError as error:
                if attempt == _MAX_ATTEMPTS or isinstance(error, ManifestChangedError):
                    raise
                log.warning("%s Trying again.", error)
            else:
                return stored
            finally:
                self.close()
            if (found := self._find_and_log()) is not None:
                return found
            self._open()
            attempt += 1

    def _transfer(self) -> StoredFile:
        download, reader = self._download, self._reader
        if download is None or reader is None:
            raise RuntimeError("a file must be opened before it is stored")
        with _error_with_title(self.lookup.title):
            plan = self._plan(download, reader)
            name, upload = self.lookup.stem + plan.extension, secrets.token_hex(8)
            before = self._info_before(name)
            with (
                closing(Verification(plan, self.options)) as verification,
                self.uploads.open(
                    name,
                    ObjectInfo(plan.content_type, self.lookup.metadata(upload)),
                    max_bytes=plan.max_bytes(download.length),
                    over=before.version if before else None,
                    tap=verification.tap,
                ) as writer,
            ):
                if plan.passes_through:
                    self._pass_through(plan, download, reader, writer)
                else:
                    _recode(plan, reader, writer, verification)
                writer.finish()
                count = verification.finish()
                self._raise_if_rows_differ(count)
                file = StoredFile(
                    name, writer.size, writer.sha256, count, upload, self.lookup.path, uri=self.storage.uri(name)
                )
                stored = self._publish(writer, file, before)
        if stored.is_new:
            self.state.stored[name] = stored
            if before is not None:
                self.publication.withdraw_if_outdated([stored])
            self._log_stored(stored, download)
        return stored

    def _plan(self, download: FileDownload, reader: RangeReader) -> FilePlan:
        # A count that is compared later proves more than the content type and the header do.
        contact_count = (self.compares_rows and self.contact_count) or 0
        plan = FilePlan.of(
            reader,
            self.lookup.path,
            self.options,
            "" if contact_count else download.content_type,
            needs_header=self.lookup.is_only_file and contact_count <= MAX_MESSAGE_LINES,
        )
        if self.lookup.is_only_file and not plan.head and self.contact_count:
            raise ExportIncompleteError(f"The content is empty, but SendGrid counted {self.contact_count} contacts.")
        return plan

    def _info_before(self, name: str) -> StoredInfo | None:
        """The object that is replaced; one that another run may delete at any time is deleted first."""
        info = self.lookup.objects.get(name)
        if info is None or not self.publication.may_be_deleted(name, info):
            return info
        with suppress(DestinationRefusedError):
            self.storage.delete(name, info.version)
        return self.storage.head(name)

    def _pass_through(self, plan: FilePlan, download: FileDownload, reader: RangeReader, writer: PartWriter) -> None:
        """Store the bytes as they come."""
        writer.write(plan.head)
        with closing(fetch_parts(download, reader, writer.next_part, self.options.max_concurrency)) as parts:
            for part in parts:
                writer.submit(part)

    def _raise_if_rows_differ(self, count: RecordCount | None) -> None:
        """The rows of an only file are all rows: they are compared before it is published."""
        if count is None or not self.lookup.is_only_file or not self.compares_rows:
            return
        if difference := rows_difference(count.rows(count.first_record_sha256), self.contact_count):
            raise ExportIncompleteError(rows_message(self.lookup.export_id, difference, "This task stored nothing."))

    def _publish(self, writer: PartWriter, file: StoredFile, before: StoredInfo | None) -> StoredFile:
        """Publish the object, unless the one before it has the same bytes or must stay for now."""
        if before is not None:
            if (same := self.lookup.find_same(file, before)) is not None:
                writer.abort()
                same = replace(file, upload=same.upload, version=before.version, has_receipt=True)
                write_receipt(self.storage, same)
                return same
            if self._must_be_counted_first(file, before):
                writer.abort()
                return replace(file, version=before.version, is_only_counted=True)
            self.publication.prepare_overwrite(file.name, before)
        if has_receipt := not writer.is_small:
            write_receipt(self.storage, file)
        version = writer.complete(file.to_metadata()) or self._version_of(file)
        return replace(file, version=version, has_receipt=has_receipt, is_new=True)

    def _must_be_counted_first(self, file: StoredFile, before: StoredInfo) -> bool:
        """Whether an object that the manifest names must stay until the rows of all files are known to agree.

        Raises:
            ExportIncompleteError: they agreed when the file was downloaded before, and it has other rows now.
        """
        is_kept = self.options.replace and self.publication.find(file.name, before) is not None
        if not self.compares_rows or self.contact_count is None or self.lookup.is_only_file or not is_kept:
            return False
        if (counted := self.state.counted.get(file.name)) is None:
            log.info(
                "%s differs from what the manifest names: all rows are compared before it is replaced.",
                self.lookup.title,
            )
            return True
        if file.count != counted.count:
            now, then = (each.count.records if each.count else 0 for each in (file, counted))
            raise ExportIncompleteError(f"It has {now} records, but had {then} in the previous download.")
        return False

    def _version_of(self, file: StoredFile) -> str:
        info = self.storage.head(file.name)
        if info is None or info.metadata.get(UPLOAD_KEY) != file.upload:
            raise DestinationChangedError(f"{file.uri} was changed by another run as soon as it was stored.")
        return info.version

    def _log_stored(self, file: StoredFile, download: FileDownload) -> None:
        seconds = self.progress.seconds_of(self.index)
        log.info(
            "%s: stored as %s, %s bytes from %s, %s records, in %.1f s (%s) over %s connections.",
            self.lookup.title,
            file.name,
            file.size,
            download.length,
            "uncounted" if file.count is None else file.count.records,
            seconds,
            speed(download.length / max(seconds, 1e-3)),
            download.connections,
        )


def _recode(plan: FilePlan, reader: RangeReader, writer: PartWriter, verification: Verification) -> None:
    """Store the bytes through gunzip or gzip, over one connection: the CPU is the bottleneck."""
    pieces = _pieces(plan.head, reader)
    if plan.is_sent_as_gzip:
        gunzip = Gunzip()
        for piece in pieces:
            for plain in gunzip.feed(piece):
                writer.write(plain)
        gunzip.close()
        return
    gzip = Gzip()
    for piece in pieces:
        verification.count(piece)
        for chunk in gzip.feed(piece):
            writer.write(chunk)
    writer.write(gzip.close())


def _pieces(head: bytes, reader: RangeReader) -> Iterator[memoryview]:
    yield memoryview(head)
    buffer = memoryview(bytearray(PIECE_BYTES))
    while count := reader.readinto(buffer):
        yield buffer[:count]


@contextmanager
def _error_with_title(title: str) -> Iterator[None]:
    """Add the title of the file to an error without one."""
    try:
        yield
    except ExportIncompleteError as error:
        if "SendGrid export" in str(error):
            raise
        raise ExportIncompleteError(f"{title}: {error} Nothing of it was stored; run the task again.") from None
