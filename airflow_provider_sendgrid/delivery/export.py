"""The delivery of one export: every file fetched, verified and stored, then the manifest.

With `file_delivery` the only place that knows both SendGrid's exports and a storage. Files that are whole already are
found and left alone. When all are there, their rows must agree with SendGrid's count. The manifest comes last: if there
is one, the export is whole. How several runs at one prefix keep out of each other's way is described in `publication`.

A file that is whole stays when a later one fails, so that a task tried again fetches only what is missing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, timezone
from typing import Any

from airflow_provider_sendgrid.delivery.file import (
    WHO_ENDS_UPLOADS,
    Context,
    FilePlace,
    StoredFile,
    abort_quietly,
    find_stored,
    rows_difference,
    rows_message,
    store_file,
)
from airflow_provider_sendgrid.delivery.manifest import (
    MANIFEST_NAME,
    DeliveredFile,
    FileFacts,
    KnownManifest,
    manifest_content,
)
from airflow_provider_sendgrid.delivery.options import DeliveryOptions
from airflow_provider_sendgrid.delivery.order import order_name, pinned_order, unique_paths
from airflow_provider_sendgrid.delivery.progress import FileProgress, Progress
from airflow_provider_sendgrid.delivery.publication import (
    SAFE_ID,
    FileName,
    ManifestChangedError,
    Publication,
    delete_all,
)
from airflow_provider_sendgrid.delivery.receipts import RECEIPTS, receipt_name
from airflow_provider_sendgrid.exceptions import (
    DestinationChangedError,
    DestinationError,
    DestinationRefusedError,
    ExportExpiredError,
    ExportIncompleteError,
    SendGridError,
)
from airflow_provider_sendgrid.exports.export import ContactExport, file_path
from airflow_provider_sendgrid.exports.polling import Outcome, look_at
from airflow_provider_sendgrid.files.download import FileChangedError, FileDownload
from airflow_provider_sendgrid.files.range_reader import RangeReader
from airflow_provider_sendgrid.files.rows import RecordCount
from airflow_provider_sendgrid.files.source import ExportFiles, require_distinct_paths
from airflow_provider_sendgrid.stopping import StopSignal
from airflow_provider_sendgrid.storage.base import ANY_VERSION, Storage, StoredInfo
from airflow_provider_sendgrid.storage.buffers import PartBuffers
from airflow_provider_sendgrid.storage.stoppable import StoppableStorage
from airflow_provider_sendgrid.threads import DaemonExecutor

__all__ = ["ArgumentError", "Delivery", "DeliveryOptions", "deliver_export"]

log = logging.getLogger(__name__)

# How often a file is fetched that changes on the way, and how often all is done again when another run interferes.
_FETCHES, _ROUNDS = 3, 5
_LEAST_TIME_LEFT = timedelta(seconds=60)
_LOOK_AGAIN_SECONDS = 0.2
_MOST_NAMED = 10  # objects in one message
# Shares of a stop's grace period: how long a delivery waits for its threads, which abort their uploads, before it does
# so itself; and how long it waits for that at least.
_THREADS_SHARE, _ABORTS_SHARE = 0.4, 0.3
_LOOK_AGAIN_AT_END_SECONDS = 0.05


class ArgumentError(ValueError):
    """An argument that does not fit this export; no further try helps."""


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
    source: ExportFiles,
    storage: Storage,
    options: DeliveryOptions,
    file_index: int | None = None,
    stop: StopSignal | None = None,
) -> Delivery:
    """Bring every file of a ready export into a storage, then write the manifest.

    Args:
        source: where the files come from.
        storage: where they go.
        options: how.
        file_index: only this file (from 0), and no manifest: for tasks that share an export. A delivery of all files
            afterwards finds them stored, compares the rows and writes the manifest.
        stop: ends the delivery within seconds; no upload stays open.

    Raises:
        ExportFailedError: SendGrid says ``failure``.
        ExportExpiredError: the files are no longer kept.
        ExportIncompleteError: it is not ready yet, a file could not be fetched whole, or the rows disagree.
        DestinationConflictError: another export's manifest is there, or one of this export that names other files, and
            `options.replace` is off.
        DestinationChangedError: another run kept changing what is there.
        ArgumentError: there is no such file, or `export_id` cannot be part of a name.
        StoppedError: `stop` was set.
        SendGridError: SendGrid could not be asked.
    """
    stop = stop or StopSignal()
    export = _ready_export(source.export())
    for url in export.urls:
        source.require_encrypted(url)
    run = _Run(source, storage, options, export, file_index, stop)
    try:
        return run.deliver()
    except BaseException:
        run.end()
        raise
    finally:
        run.close()


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
    if len(export.id) > 200 or not SAFE_ID.fullmatch(export.id):
        raise ArgumentError(f"export_id {export.id!r} cannot be part of an object's name; is it really an export's?")
    require_distinct_paths(export.id, export.urls)
    return export


def _indexes(export: ContactExport, file_index: int | None) -> Sequence[int]:
    count = len(unique_paths(export))
    if file_index is None:
        return range(count)
    if not 0 <= file_index < count:
        known = f"it has files 0 to {count - 1}" if count else "it has no files"
        raise ArgumentError(f"file_index {file_index} of SendGrid export {export.id}: {known}.")
    return [file_index]


# All files, then the manifest


class _Run:
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
        self.source = source
        self._storage = StoppableStorage(storage, stop)
        self._options = options
        self._indexes = _indexes(export, file_index)
        self._is_whole = file_index is None
        by_path = {file_path(url): url for url in reversed(export.urls)}
        self._export = replace(export, urls=tuple(by_path[path] for path in unique_paths(export)))
        self._has_all = len(self._indexes) == len(self._export.urls)  # so that rows can be compared
        self._stop = stop
        self.progress = Progress(export.id, len(self._export.urls))
        self._opened: list[_File] = []
        self._stored_here: dict[str, StoredFile] = {}
        self._distrusted: dict[str, str] = {}
        self._agreed: dict[str, FileFacts] = {}
        most = options.max_concurrency
        self._uploads = DaemonExecutor(most, "sendgrid-upload")
        self._threads = DaemonExecutor(min(most, max(len(self._indexes), 1)), "sendgrid-file")
        self._buffers = PartBuffers((most + 1) * options.part_bytes, stop)  # one is sent while the others are fetched
        self._context: Context | None = None
        self._underway: dict[Future[StoredFile | None], _File] = {}

    def deliver(self) -> Delivery:
        """Deliver; again if another run changed the manifest or an object meanwhile."""
        for round_number in range(1, _ROUNDS + 1):
            try:
                publication = self._publication()
                if self._is_whole and self._options.write_manifest:
                    publication.raise_if_dropped(len(self._export.urls))
                order = pinned_order(self._storage, self._export, publication.own)
                if len(order) > 1:
                    # A run that ended meanwhile may have deleted the order that it went by.
                    publication.raise_if_changed()
                stored = self._store_all(publication, order)
                delivered = self._with_rows(stored, order)
                if self._has_all:
                    if difference := self._difference(delivered):
                        self._fetch_again_or_refuse(difference, stored, publication)
                        continue
                    if counted := {file.name: file.facts for file in stored if file.is_only_counted}:
                        self._agreed = counted
                        continue
                manifest_uri = self._publish(publication, stored, delivered) if self._is_whole else None
                return self._delivery(stored, delivered, manifest_uri)
            except DestinationChangedError as error:
                if round_number == _ROUNDS:
                    raise
                log.warning("%s The delivery looks again.", error)
        raise DestinationChangedError(f"SendGrid export {self._export.id}: its rows never agreed. Run the task again.")

    def end(self) -> None:
        """Stop all threads, and abort the uploads that are left."""
        self._stop.set()
        if not wait(self._underway, self._stop.seconds_left(_THREADS_SHARE)).not_done:
            return
        writers = list(self._context.writers) if self._context is not None else []
        threads = DaemonExecutor(max(len(writers), 1), "sendgrid-abort")
        begun: list[Future[Any]] = [threads.submit(abort_quietly, writer, at_once=True) for writer in writers]
        # A file's own thread may have begun to abort its upload, or wait for the response to its begin.
        end = time.monotonic() + max(self._stop.seconds_left(), _ABORTS_SHARE * self._stop.grace_seconds)
        while time.monotonic() < end and any(writer.may_be_open for writer in writers):
            wait([*begun, *self._underway], _LOOK_AGAIN_AT_END_SECONDS)
        for writer in writers:
            if writer.may_be_open:
                log.error(
                    "The storage did not answer in time: an upload of %s may stay open. %s",
                    writer.uri,
                    WHO_ENDS_UPLOADS,
                )

    def close(self) -> None:
        """End the threads without waiting for them, and give up what is open."""
        for file in self._opened:
            file.close()
        for threads in (self._threads, self._uploads):
            threads.shutdown(wait=False, cancel_futures=True)

    def _publication(self) -> Publication:
        options = self._options
        return Publication(
            self._storage,
            self._export.id,
            replace=options.replace,
            is_written=options.write_manifest,
            look_all=self._look_all,
        )

    def _look_all(self, names: Collection[str]) -> list[StoredInfo | None]:
        looks = [self._uploads.submit(self._storage.head, name) for name in names]
        return [self._stop.result(look) for look in looks]

    def _store_all(self, publication: Publication, order: Sequence[str]) -> list[StoredFile]:
        """Store files: small ones side by side, large ones one after the other.

        The first file is opened alone. While files are small, several are opened at once; after a large one, each is
        opened when the one before it is stored. So each file is requested once, and a task that is killed has whole
        files behind it.
        """
        listed = self._storage.versions(f"{self._export.id}-") if len(self._indexes) > 1 else None
        waiting = self._files(publication, order, listed)
        stored = dict[int, StoredFile]()
        failed: tuple[int, ExportIncompleteError] | None = None
        at_once, large_was_seen = 1, False
        while failed is not None or waiting or self._opened or self._underway:
            begun = [*self._opened, *self._underway.values()]
            if failed is not None and not any(file.index < failed[0] for file in begun):
                raise failed[1]
            while waiting and failed is None and not self._opened and len(self._underway) < at_once:
                file = waiting.pop()
                self._underway[self._threads.submit(file.begin)] = file
            if not self._underway:
                file = self._opened.pop(0)
                self._underway[self._threads.submit(file.finish)] = file
            for future in self._wait():
                file = self._underway.pop(future)
                try:
                    result = future.result()
                except ExportIncompleteError as error:
                    # Another try may bring it: files before it are stored, instead of given up half-way.
                    failed = min(failed or (file.index, error), (file.index, error), key=lambda each: each[0])
                    continue
                except DestinationChangedError:
                    self._end_round()
                    raise
                if result is None:
                    self._opened = sorted([*self._opened, file], key=lambda each: each.index)
                else:
                    stored[file.index] = result
                is_large = result is None or result.facts.size > self._options.part_bytes
                large_was_seen = large_was_seen or is_large
                at_once = 1 if large_was_seen else self._options.max_concurrency
        new = {file.name: file.facts for file in stored.values() if file.is_new}
        publication.withdraw_if_false(new)
        # What others stored may still be on its way in another run.
        if new and (abandoned := self._storage.abort_uploads(new)):
            log.info("%s uploads that other tries of this export left open were ended.", abandoned)
        return [stored[index] for index in self._indexes]

    def _files(self, publication: Publication, order: Sequence[str], listed: Collection[str] | None) -> list[_File]:
        """All files of a round, the last first."""
        self._context = context = Context(
            self._export.id,
            self._storage,
            self._options,
            publication,
            self._buffers,
            self._uploads,
            self._stop,
            self._stored_here,
            self._distrusted,
            contact_count=self._export.contact_count if self._has_all and self._options.verify_row_count else None,
            expected_count=self._export.contact_count,
            agreed=self._agreed,
        )
        places = {index: _place(self._export.id, order, index) for index in reversed(self._indexes)}
        return [_File(self, context, index, place, listed) for index, place in places.items()]

    def _end_round(self) -> None:
        """Wait for the files that are underway, whatever becomes of them: the next round begins all again."""
        while self._opened:
            self._opened.pop().close()
        while self._underway:
            for future in self._wait():
                self._underway.pop(future).close()

    def _wait(self) -> Iterable[Future[StoredFile | None]]:
        """Those that are done next; says in between how far all are."""
        while True:
            done = wait(self._underway, _LOOK_AGAIN_SECONDS, FIRST_COMPLETED).done
            self.progress.report()
            if done:
                return done
            self._stop.raise_if_set()

    def _publish(
        self, publication: Publication, stored: Sequence[StoredFile], delivered: Sequence[DeliveredFile]
    ) -> str | None:
        """Write the manifest, then delete what it replaces: it names that too, should this be cut short."""
        if not self._options.write_manifest:
            return None
        prefix, names_now = self._storage.uri(""), [file.name for file in stored]
        counts = [file.rows for file in delivered if file.rows is not None]
        publication.raise_if_dropped(len(stored), names_now, sum(counts) if len(counts) == len(delivered) else None)
        replaced = publication.replaced(names_now)
        facts = {file.name: file.facts for file in stored}
        content = manifest_content(delivered, self._export.summary(), facts, replaced)
        objects = {file.name: (file.facts, file.version) for file in stored}
        doomed = publication.write(content, objects, replaced)
        for uri in doomed:
            log.info("Deleting %s, which this export replaces.", uri)
        receipts = [receipt_name(file.name) for file in stored if file.has_receipt]
        orders = [order_name(self._export.id)] if len(self._export.urls) > 1 else []
        names = {uri.removeprefix(prefix): version for uri, version in doomed.items()}
        if publication.delete(names):
            delete_all(self._storage, dict.fromkeys([*receipts, *orders], ANY_VERSION))
            if self._options.replace:
                self._clean_up_after_others(names)
        return self._storage.uri(MANIFEST_NAME)

    def _clean_up_after_others(self, deleted: Collection[str]) -> None:
        """Delete what killed runs of other exports left beside their objects, see `publication`.

        Nothing depends on it, so an error is logged only.
        """
        try:
            receipts = self._receipts_of_others()
            there = self._storage.versions() if receipts else {}
            if there is None:
                return
            doomed = {receipt: version for receipt, (name, version) in receipts.items() if name not in there}
            delete_all(self._storage, doomed)
            names = {*deleted, *(receipts[receipt][0] for receipt in doomed)}
            siblings = self._siblings(names)
            if siblings and (ended := self._storage.abort_uploads(siblings)):
                log.info("%s uploads that runs of other exports left open were ended.", ended)
        except (DestinationError, DestinationRefusedError) as error:
            log.warning("What runs of other exports left may remain at %s: %s", self._storage.uri(""), error)

    def _receipts_of_others(self) -> dict[str, tuple[str, str]]:
        """The receipts of other exports, each with the name of its object, and its version."""
        found = dict[str, tuple[str, str]]()
        for receipt, version in (self._storage.versions(RECEIPTS) or {}).items():
            name = receipt.removeprefix(RECEIPTS).removesuffix(".json")
            parts = FileName.parse(name)
            if parts and parts.export_id != self._export.id and receipt == receipt_name(name):
                found[receipt] = name, version
        return found

    def _siblings(self, names: Collection[str]) -> set[str]:
        """The names of all files of the other exports to which these belong."""
        files = {parts for name in names if (parts := FileName.parse(name)) and parts.export_id != self._export.id}
        return {name for parts in files for name in parts.of_all_files()}

    def _fetch_again_or_refuse(self, difference: str, stored: Sequence[StoredFile], publication: Publication) -> None:
        """Have files fetched again that others stored, once; after that, delete what this try stored.

        Raises:
            ExportIncompleteError: why the delivery is refused, and what is there now.
        """
        try:
            distrusted = self._stored_by_others(stored)
            if distrusted and not self._distrusted:
                self._distrusted = distrusted
                # A plain file that was cut between two rows looks whole to the try that stores it.
                log.warning(
                    "SendGrid export %s: its rows disagree with files that an earlier try stored; these are fetched "
                    "again.",
                    self._export.id,
                )
                return
            kept, named = self._rollback(publication, is_all=not distrusted), self._named(stored)
        except SendGridError as error:
            log.warning("What this task stored is not deleted, for %s may name it: %s", MANIFEST_NAME, error)
            kept, named = list(self._stored_here), []
        if kept:
            uris = ", ".join(map(self._storage.uri, kept[:_MOST_NAMED]))
            more = f" and {len(kept) - _MOST_NAMED} more" if len(kept) > _MOST_NAMED else ""
            what = f"What this task stored remains, for it could not be deleted, or a manifest names it: {uris}{more}."
        elif self._stored_here:
            what = "What this task stored was deleted."
        else:
            what = "This task stored nothing."
        if named and not self._options.replace:
            manifest = self._storage.uri(MANIFEST_NAME)
            what += f" {manifest} names files of it, which were not fetched again; set replace=True for that."
        raise ExportIncompleteError(rows_message(self._export.id, difference, what))

    def _stored_by_others(self, stored: Sequence[StoredFile]) -> dict[str, str]:
        """The versions of those files that this try did not store, by name.

        Without `replace`, files that a manifest of this export names are left out: they must stay as they are.
        """
        named = () if self._options.replace else self._named(stored)
        others = (file for file in stored if file.name not in self._stored_here and not file.is_only_counted)
        return {file.name: file.version for file in others if file.name not in named}

    def _named(self, stored: Sequence[StoredFile]) -> list[str]:
        """The names of those files that a manifest of this export names."""
        manifest = self._manifest()
        return [file.name for file in stored if manifest.export_id == self._export.id and file.name in manifest.names]

    def _manifest(self) -> KnownManifest:
        stored = self._storage.read(MANIFEST_NAME)
        return KnownManifest.from_content(stored.content if stored else b"")

    def _rollback(self, publication: Publication, *, is_all: bool) -> list[str]:
        """Delete what this try stored, except what a manifest names by now; what others stored they may still need.

        Another run may write its manifest right before an object of this try is deleted: it is withdrawn.

        Returns:
            The names of the objects of this try that remain.

        Raises:
            SendGridError: the manifest cannot be read.
        """
        kept, named = list[str](), set[str]()
        for file in self._stored_here.values():
            named = self._manifest().names
            receipts = {receipt_name(file.name): ANY_VERSION} if file.has_receipt else {}
            if file.name in named or not delete_all(self._storage, {file.name: file.version, **receipts}):
                kept.append(file.name)
            else:
                publication.withdraw_if_deleted({file.name: file.version})
        if is_all and not named and len(self._export.urls) > 1:
            delete_all(self._storage, {order_name(self._export.id): ANY_VERSION})
        return kept

    def _difference(self, files: Sequence[DeliveredFile]) -> str:
        """How the rows disagree with SendGrid's count; empty if they do not."""
        if not self._options.verify_row_count:
            return ""
        rows = sum(file.rows or 0 for file in files)
        if self._export.contact_count is None:
            log.warning("SendGrid names no count for export %s; its %s rows cannot be compared.", self._export.id, rows)
        return rows_difference(rows, self._export.contact_count)

    def _with_rows(self, stored: Sequence[StoredFile], order: Sequence[str]) -> tuple[DeliveredFile, ...]:
        """The files with their rows."""
        header = self._header(stored, order) if self._options.verify_row_count else None
        return tuple(
            DeliveredFile(
                file.name,
                self._storage.uri(file.name),
                file.facts.size,
                _rows(file.facts, header) if self._options.verify_row_count else None,
                file.facts.sha256,
            )
            for file in stored
        )

    def _header(self, stored: Sequence[StoredFile], order: Sequence[str]) -> str | None:
        """The digest of the header; None if that depends on other files that are not stored.

        It is the first record of any file whose first field is ``EMAIL``: SendGrid may list the files in any order, and
        only one of them may have it. If none has, it is the first record of the first file that has any.
        """
        files = list(stored)
        for file in files:
            if file.facts.has_header:
                return file.facts.first_record_sha256
        if self._context is not None:
            for index in range(self._indexes[0]) if stored else ():
                earlier = find_stored(self._context, _place(self._export.id, order, index)).file
                if earlier is None or earlier.facts.records is None:
                    return None
                if earlier.facts.has_header:
                    return earlier.facts.first_record_sha256
                files.insert(index, earlier)
        if not self._is_whole and len(order) > 1:
            return None
        return next((file.facts.first_record_sha256 for file in files if file.facts.records), "")

    def _delivery(
        self, stored: Sequence[StoredFile], delivered: tuple[DeliveredFile, ...], manifest_uri: str | None
    ) -> Delivery:
        return Delivery(
            files=delivered,
            new_files=tuple(file for file in delivered if file.name in self._stored_here),
            export=self._export,
            manifest_uri=manifest_uri,
            fetched_bytes=sum(download.fetched_bytes for download in self.source.downloads),
            seconds=self.progress.seconds,
            connections=sum(download.connections for download in self.source.downloads),
        )


class _File:
    """One file on its way: opened by `begin`, and stored by it if it is small; else stored by `finish`."""

    def __init__(
        self, run: _Run, context: Context, index: int, place: FilePlace, listed: Collection[str] | None
    ) -> None:
        self.index = index
        self._listed = listed
        self._run = run
        self._context = context
        self._place = place
        self._objects: Mapping[str, StoredInfo] = {}
        self._download: FileDownload | None = None
        self._reader: RangeReader | None = None
        self._progress: FileProgress | None = None

    def begin(self) -> StoredFile | None:
        """Store the file unless that is done; None if it is large, and open now."""
        if (stored := self._find(self._listed)) is not None:
            return stored
        if self._open().length <= self._context.options.part_bytes:
            return self.finish()
        # The listing may be old by now, and there is much to send.
        if self._listed is not None and (stored := self._find()) is not None:
            self.close()
            return stored
        return None

    def finish(self) -> StoredFile:
        """Store the file; again from its start if it, or the object, changes on the way."""
        for attempt in range(1, _FETCHES + 1):
            if self._reader is None and attempt > 1:
                if (stored := self._find()) is not None:
                    return stored
                self._open()
            try:
                return self._store()
            except FileChangedError as error:
                if attempt == _FETCHES:
                    raise FileChangedError(
                        f"{error} So it did before; nothing of it was stored. Run the task again."
                    ) from None
                log.warning("%s It is fetched again from its start.", error)
            except DestinationChangedError as error:
                if attempt == _FETCHES or isinstance(error, ManifestChangedError):
                    raise
                log.warning("%s The delivery looks again.", error)
            finally:
                self.close()
        raise RuntimeError("a loop that always returns or raises has ended")

    def close(self) -> None:
        """Give the connection up."""
        if self._reader is not None:
            self._reader.close()
            self._reader = None
        if self._progress is not None:
            self._progress.end()

    def _find(self, listed: Collection[str] | None = None) -> StoredFile | None:
        look = find_stored(self._context, self._place, listed)
        self._objects = look.objects
        if look.file is not None:
            log.info("%s is stored already, as %s.", self._place.title, look.file.name)
        return look.file

    def _open(self) -> FileDownload:
        if self._objects:
            # What is there may be replaced only by this manifest.
            self._context.publication.raise_if_changed()
        download = self._run.source.download(self._place.path, self._place.title)
        self._download = download
        self._progress = self._run.progress.file(self.index, lambda: download.received_bytes)
        try:
            self._reader = RangeReader(download).open()
        except BaseException:
            self.close()
            raise
        self._progress.length = download.length
        return download

    def _store(self) -> StoredFile:
        if self._download is None or self._reader is None or self._progress is None:
            raise RuntimeError("a file must be opened before it is stored")
        return store_file(self._context, self._place, self._objects, self._download, self._reader, self._progress)


def _place(export_id: str, order: Sequence[str], index: int) -> FilePlace:
    return FilePlace(
        order[index],
        f"{export_id}-{index + 1:05d}-of-{len(order):05d}",
        f"SendGrid export {export_id} file {index + 1} of {len(order)}",
        is_only=len(order) == 1,
    )


# Rows


def _rows(facts: FileFacts, header: str | None) -> int | None:
    """None if they were not counted, or if it is not known whether the first record is a header."""
    if facts.records is None:
        return None
    if header is None:
        return facts.records if not facts.records or not facts.first_record_sha256 else None
    return RecordCount(facts.records, facts.first_record_sha256, has_header=facts.has_header).rows(header)
