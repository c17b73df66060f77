"""The delivery of one export: every file downloaded, verified and stored, then the manifest.

The steps are: check the export, store all files, compare their rows with SendGrid's count, write the manifest. Files
that are stored completely already are found and not stored again. The manifest is written last: if it exists, the
export is complete. `publication` describes how several runs share one prefix.

A complete file stays when a later one fails, so that a retry downloads only what is missing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

from airflow_provider_sendgrid.delivery.checks import ArgumentError, file_indexes, require_deliverable
from airflow_provider_sendgrid.delivery.cleanup import clean_up_after_others, delete_all
from airflow_provider_sendgrid.delivery.file import FileTransfer
from airflow_provider_sendgrid.delivery.lookup import FileLookup
from airflow_provider_sendgrid.delivery.manifest import manifest_content
from airflow_provider_sendgrid.delivery.object_names import MANIFEST_NAME, order_name, receipt_name
from airflow_provider_sendgrid.delivery.options import DeliveryOptions
from airflow_provider_sendgrid.delivery.order import pinned_order
from airflow_provider_sendgrid.delivery.progress import Progress
from airflow_provider_sendgrid.delivery.publication import Publication
from airflow_provider_sendgrid.delivery.queue import FileQueue
from airflow_provider_sendgrid.delivery.row_check import RowCheck
from airflow_provider_sendgrid.delivery.stored_file import DeliveryState, StoredFile, total_rows
from airflow_provider_sendgrid.delivery.uploads import Uploads
from airflow_provider_sendgrid.exceptions import DestinationChangedError
from airflow_provider_sendgrid.exports.export import ContactExport, file_path
from airflow_provider_sendgrid.files.source import ExportFiles
from airflow_provider_sendgrid.stopping import StopSignal
from airflow_provider_sendgrid.storage.base import ANY_VERSION, Storage
from airflow_provider_sendgrid.storage.stoppable import StoppableStorage

__all__ = ["ArgumentError", "Delivery", "DeliveryOptions", "deliver_export"]

log = logging.getLogger(__name__)

_MAX_ROUNDS = 5  # if other runs interfere
# Share of a stop's grace period that threads have to abort their uploads; then `abort` aborts those that remain.
_THREADS_SHARE = 0.4


@dataclass(frozen=True, slots=True)
class Delivery:
    """What was delivered.

    Attributes:
        files: the files of this delivery, in SendGrid's order.
        new_files: those of them that were not stored before.
        export: as SendGrid described it before the first download.
        manifest_uri: URI of the manifest, None if none was written.
        fetched_bytes: bytes received from SendGrid's storage.
        seconds: how long it took.
        connections: how many were opened to SendGrid's storage.
    """

    files: tuple[StoredFile, ...]
    new_files: tuple[StoredFile, ...]
    export: ContactExport
    manifest_uri: str | None
    fetched_bytes: int
    seconds: float
    connections: int

    @property
    def rows(self) -> int | None:
        """Contacts in all files; None if they were not counted."""
        return total_rows(self.files)

    def describe(self) -> str:
        """One line for the log: what was delivered, what it cost, and where the manifest is."""
        rows = "rows not counted" if self.rows is None else f"{self.rows} rows"
        size = sum(file.size for file in self.files)
        manifest = f" Manifest: {self.manifest_uri}." if self.manifest_uri else ""
        return (
            f"Delivered SendGrid export {self.export.id}: {len(self.files)} files, {rows}, {size} bytes stored; "
            f"{self.fetched_bytes} bytes fetched over {self.connections} connections in {self.seconds:.1f} s.{manifest}"
        )


def deliver_export(
    source: ExportFiles,
    storage: Storage,
    options: DeliveryOptions,
    file_index: int | None = None,
    stop: StopSignal | None = None,
) -> Delivery:
    """Store every file of an export that is ready, then write the manifest.

    Args:
        source: where the files come from.
        storage: where they are stored.
        options: how they are stored.
        file_index: store only this file (from 0), and write no manifest: for tasks that share an export. A delivery of
            all files afterwards finds them stored, compares the rows and writes the manifest.
        stop: ends the delivery within seconds; no upload stays open.

    Raises:
        ExportFailedError: SendGrid says ``failure``.
        ExportExpiredError: SendGrid no longer keeps the files.
        ExportIncompleteError: it is not ready, a file could not be downloaded completely, or the rows disagree.
        DestinationConflictError: there is another export's manifest, or one of this export that names other files, and
            `options.replace` is off.
        DestinationChangedError: other runs kept changing what is stored.
        ArgumentError: there is no such file, or the export's ID cannot be part of a name.
        StoppedError: `stop` was set.
        SendGridError: SendGrid could not be reached.
    """
    stop = stop or StopSignal()
    export = require_deliverable(source.export())
    for url in export.urls:
        source.require_encrypted(url)
    delivery = _ExportDelivery(source, storage, options, export, file_index, stop)
    try:
        return delivery.run()
    except BaseException:
        delivery.abort()
        raise
    finally:
        delivery.close()


class _ExportDelivery:
    """One delivery, in as many rounds as other runs at the same prefix make necessary."""

    def __init__(
        self,
        source: ExportFiles,
        storage: Storage,
        options: DeliveryOptions,
        export: ContactExport,
        file_index: int | None,
        stop: StopSignal,
    ) -> None:
        self._source = source
        self._storage = StoppableStorage(storage, stop)
        self._options = options
        by_path = {file_path(url): url for url in reversed(export.urls)}
        self._export = replace(export, urls=tuple(by_path[path] for path in export.paths))  # each file once
        self._indexes = file_indexes(export, file_index)
        self._is_mapped = file_index is not None  # a mapped task delivers one file and no manifest
        self._has_all_files = len(self._indexes) == len(self._export.urls)
        self._stop = stop
        self._state = DeliveryState()
        self._progress = Progress(export.id, len(self._export.urls))
        self._uploads = Uploads(self._storage, options, stop)
        thread_count = min(options.max_concurrency, max(len(self._indexes), 1))
        self._queue = FileQueue(thread_count, options.part_bytes, self._progress, stop)

    def run(self) -> Delivery:
        """Deliver; again if another run changed the manifest or an object meanwhile."""
        for round_number in range(1, _MAX_ROUNDS + 1):
            try:
                if (delivery := self._run_round()) is not None:
                    return delivery
            except DestinationChangedError as error:
                if round_number == _MAX_ROUNDS:
                    raise
                log.warning("%s Trying again.", error)
        raise DestinationChangedError(
            f"SendGrid export {self._export.id}: its files kept changing. Run the task again."
        )

    def abort(self) -> None:
        """Stop all threads, and abort the uploads that are left."""
        self._stop.set()
        if running := self._queue.running(self._stop.seconds_left(_THREADS_SHARE)):
            self._uploads.abort_all(running)

    def close(self) -> None:
        """End the threads without waiting for them, and close what is open."""
        self._queue.close()
        self._uploads.close()

    def _run_round(self) -> Delivery | None:
        """The steps of a delivery; None if files must be stored again."""
        publication = self._check_prefix()
        order = self._pinned_order(publication)
        files = self._store_all(publication, order)
        files = self._count_rows(files, publication, order)
        if self._has_all_files and self._must_store_again(files, publication):
            return None
        manifest_uri = None
        if self._options.write_manifest and not self._is_mapped:
            manifest_uri = self._write_manifest(files, publication)
        return Delivery(
            files=tuple(files),
            new_files=tuple(file for file in files if file.name in self._state.stored),
            export=self._export,
            manifest_uri=manifest_uri,
            fetched_bytes=sum(download.fetched_bytes for download in self._source.downloads),
            seconds=self._progress.seconds,
            connections=sum(download.connections for download in self._source.downloads),
        )

    # Check

    def _check_prefix(self) -> Publication:
        publication = Publication(
            self._storage,
            self._export.id,
            replace=self._options.replace,
            writes_manifest=self._options.write_manifest,
            head_all=self._uploads.head_all,
        )
        if self._options.write_manifest and not self._is_mapped:
            publication.require_files_kept(len(self._export.urls))
        return publication

    def _pinned_order(self, publication: Publication) -> Sequence[str]:
        order = pinned_order(self._storage, self._export, publication.own)
        if len(order) > 1:
            # A run of this export that ended meanwhile may have deleted the order that it used.
            publication.raise_if_changed()
        return order

    # Store all files

    def _store_all(self, publication: Publication, order: Sequence[str]) -> list[StoredFile]:
        listed = self._storage.versions(f"{self._export.id}-") if len(self._indexes) > 1 else None
        transfers = [
            FileTransfer(
                lookup=self._lookup(index, publication, order),
                contact_count=self._export.contact_count,
                compares_rows=self._has_all_files and self._options.verify_row_count,
                open_file=self._source.download,
                storage=self._storage,
                options=self._options,
                publication=publication,
                uploads=self._uploads,
                progress=self._progress,
                state=self._state,
                listed=listed,
            )
            for index in self._indexes
        ]
        files = self._queue.store_all(transfers)
        new = [file for file in files if file.is_new]
        publication.withdraw_if_outdated(new)
        # Uploads of files that others stored may be those of another run that is active.
        if new and (aborted := self._storage.abort_uploads([file.name for file in new])):
            log.info("Aborted %s uploads that other tries of this export left open.", aborted)
        return files

    def _lookup(self, index: int, publication: Publication, order: Sequence[str]) -> FileLookup:
        return FileLookup(
            export_id=self._export.id,
            order=order,
            index=index,
            storage=self._storage,
            options=self._options,
            publication=publication,
            distrusted=self._state.distrusted,
        )

    # Compare

    def _count_rows(
        self, files: Sequence[StoredFile], publication: Publication, order: Sequence[str]
    ) -> list[StoredFile]:
        """The files with their rows: records without the header."""
        if not self._options.verify_row_count:
            return list(files)
        header = self._header(files, publication, order)
        return [replace(file, rows=file.rows_below(header)) for file in files]

    def _header(self, files: Sequence[StoredFile], publication: Publication, order: Sequence[str]) -> str | None:
        """The digest of the header; None if that depends on other files that are not stored.

        It is the first record of any file whose first field is ``EMAIL``: SendGrid may list the files in any order, and
        only one of them may have it. If none has, it is the first record of the first file that has any.
        """
        counts = [file.count for file in files if file.count is not None]
        for count in counts:
            if count.has_header:
                return count.first_record_sha256
        if not self._is_mapped or len(order) == 1:
            return next((count.first_record_sha256 for count in counts if count.records), "")
        for index in range(self._indexes[0]):
            earlier = self._lookup(index, publication, order).find()
            if earlier is None or earlier.count is None:
                return None
            if earlier.count.has_header:
                return earlier.count.first_record_sha256
        return None

    def _must_store_again(self, files: Sequence[StoredFile], publication: Publication) -> bool:
        """Compare the rows; return whether files must be stored again, which are then noted in the state.

        Raises:
            ExportIncompleteError: the rows disagree, and storing files again does not help.
        """
        check = RowCheck(self._export, self._storage, self._options, publication, self._state)
        if difference := check.difference(files):
            check.distrust_or_refuse(difference, files)
            return True
        if counted := {file.name: file for file in files if file.is_only_counted}:
            self._state.counted = counted
        return bool(counted)

    # Manifest

    def _write_manifest(self, files: Sequence[StoredFile], publication: Publication) -> str:
        """Write the manifest, then delete what it replaces. It lists these too, in case the task is killed."""
        names = [file.name for file in files]
        publication.require_files_kept(len(files), names, total_rows(files))
        replaced = publication.replaced(names)
        content = manifest_content(files, self._export.summary(), replaced)
        versions = {}
        for uri, version in publication.write(content, files, replaced).items():
            log.info("Deleting %s, which this export replaces.", uri)
            versions[uri.removeprefix(self._storage.uri(""))] = version
        if publication.delete(versions):
            receipts = [receipt_name(file.name) for file in files if file.has_receipt]
            orders = [order_name(self._export.id)] if len(self._export.urls) > 1 else []
            delete_all(self._storage, dict.fromkeys([*receipts, *orders], ANY_VERSION))
            if self._options.replace:
                clean_up_after_others(self._storage, self._export.id, versions)
        return self._storage.uri(MANIFEST_NAME)
