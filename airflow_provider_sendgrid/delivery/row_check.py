"""Compares the rows of all files with SendGrid's count, and undoes a delivery whose rows disagree."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from airflow_provider_sendgrid.delivery.cleanup import delete_all
from airflow_provider_sendgrid.delivery.manifest import KnownManifest
from airflow_provider_sendgrid.delivery.object_names import MANIFEST_NAME, order_name, receipt_name
from airflow_provider_sendgrid.delivery.options import DeliveryOptions
from airflow_provider_sendgrid.delivery.publication import Publication
from airflow_provider_sendgrid.delivery.stored_file import DeliveryState, StoredFile
from airflow_provider_sendgrid.exceptions import ExportIncompleteError, SendGridError
from airflow_provider_sendgrid.exports.export import ContactExport
from airflow_provider_sendgrid.storage.base import ANY_VERSION, Storage

log = logging.getLogger(__name__)

_MAX_NAMED = 10  # objects in one message


def rows_difference(rows: int, contact_count: int | None) -> str:
    """How the rows of all files disagree with SendGrid's count; empty if they agree, or if there is no count."""
    if contact_count in (None, rows):
        return ""
    return f"its files hold {rows} rows, SendGrid counted {contact_count} contacts"


def rows_message(export_id: str, difference: str, what_is_stored: str) -> str:
    """Why the delivery is refused, what is stored now, and what to do."""
    return (
        f"SendGrid export {export_id}: {difference}. {what_is_stored} Run the task again; if the counts still differ, "
        "start another export, or set verify_row_count=False to take the files as they are."
    )


@dataclass(frozen=True, slots=True)
class RowCheck:
    """Compares the rows of all files of one round with SendGrid's count."""

    export: ContactExport
    storage: Storage
    options: DeliveryOptions
    publication: Publication
    state: DeliveryState

    def difference(self, files: Sequence[StoredFile]) -> str:
        """How the rows disagree; empty if they do not."""
        if not self.options.verify_row_count:
            return ""
        rows = sum(file.rows or 0 for file in files)
        if self.export.contact_count is None:
            log.warning(
                "SendGrid reports no count for export %s; its %s rows cannot be compared.", self.export.id, rows
            )
        return rows_difference(rows, self.export.contact_count)

    def distrust_or_refuse(self, difference: str, files: Sequence[StoredFile]) -> None:
        """Distrust files that earlier tries stored, so that they are downloaded again; if they were, roll back.

        Raises:
            ExportIncompleteError: why the delivery is refused, and what is stored now.
        """
        try:
            others = self._stored_by_others(files)
            if others and not self.state.distrusted:
                self.state.distrusted = others
                # A plain file that was cut between two rows looks complete to the try that stores it.
                log.warning(
                    "SendGrid export %s: its rows disagree with files that an earlier try stored; downloading these "
                    "again.",
                    self.export.id,
                )
                return
            kept, named = self._rollback(is_complete=not others), self._named(files)
        except SendGridError as error:
            log.warning("What this task stored is not deleted because %s may name it: %s", MANIFEST_NAME, error)
            kept, named = list(self.state.stored), []
        what = self._what_is_stored(kept)
        if named and not self.options.replace:
            manifest = self.storage.uri(MANIFEST_NAME)
            what += (
                f" {manifest} names files of it, which were not downloaded again; set replace=True to download them."
            )
        raise ExportIncompleteError(rows_message(self.export.id, difference, what))

    def _what_is_stored(self, kept: Sequence[str]) -> str:
        if kept:
            uris = ", ".join(map(self.storage.uri, kept[:_MAX_NAMED]))
            more = f" and {len(kept) - _MAX_NAMED} more" if len(kept) > _MAX_NAMED else ""
            return (
                f"What this task stored remains because it could not be deleted or a manifest names it: {uris}{more}."
            )
        return "What this task stored was deleted." if self.state.stored else "This task stored nothing."

    def _stored_by_others(self, files: Sequence[StoredFile]) -> dict[str, str]:
        """The versions of the files that this task did not store, by name.

        Without `replace`, files that a manifest of this export names are left out: they must not be changed.
        """
        named = () if self.options.replace else self._named(files)
        others = (file for file in files if file.name not in self.state.stored and not file.is_only_counted)
        return {file.name: file.version for file in others if file.name not in named}

    def _named(self, files: Sequence[StoredFile]) -> list[str]:
        """The names of the files that a manifest of this export names."""
        manifest = self._read_manifest()
        return [file.name for file in files if manifest.export_id == self.export.id and file.name in manifest.names]

    def _read_manifest(self) -> KnownManifest:
        stored = self.storage.read(MANIFEST_NAME)
        return KnownManifest.from_content(stored.content if stored else b"")

    def _rollback(self, *, is_complete: bool) -> list[str]:
        """Delete what this task stored, except what a manifest names by now. Objects of other tasks are kept.

        Another run may write its manifest right before an object of this task is deleted: that manifest is withdrawn.

        Args:
            is_complete: whether this task stored all files, so that their order is deleted too.

        Returns:
            The names of the objects of this task that remain.

        Raises:
            SendGridError: the manifest cannot be read.
        """
        kept, named = list[str](), set[str]()
        for file in self.state.stored.values():
            named = self._read_manifest().names
            receipts = {receipt_name(file.name): ANY_VERSION} if file.has_receipt else {}
            if file.name in named or not delete_all(self.storage, {file.name: file.version, **receipts}):
                kept.append(file.name)
            else:
                self.publication.withdraw_if_deleted({file.name: file.version})
        if is_complete and not named and len(self.export.urls) > 1:
            delete_all(self.storage, {order_name(self.export.id): ANY_VERSION})
        return kept
