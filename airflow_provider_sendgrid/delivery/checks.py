"""What is checked before the first download: whether an export can be delivered, and which of its files."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone

from airflow_provider_sendgrid.delivery.object_names import SAFE_ID
from airflow_provider_sendgrid.exceptions import ExportExpiredError, ExportIncompleteError
from airflow_provider_sendgrid.exports.export import ContactExport
from airflow_provider_sendgrid.exports.polling import Outcome, evaluate_poll
from airflow_provider_sendgrid.files.source import require_distinct_paths

_MIN_TIME_LEFT = timedelta(seconds=60)
_MAX_ID_LENGTH = 200


class ArgumentError(ValueError):
    """An argument does not fit this export; a retry does not help."""


def require_deliverable(export: ContactExport) -> ContactExport:
    """Return the export if it can be delivered.

    Raises:
        ExportFailedError: SendGrid says ``failure``.
        ExportExpiredError: SendGrid no longer keeps the files, or not long enough.
        ExportIncompleteError: it is not ready, or its files cannot be distinguished.
        ArgumentError: its id cannot be part of an object's name.
    """
    # SendGrid's times are compared with SendGrid's clock: a worker's may be wrong.
    now = export.as_of or datetime.now(timezone.utc)
    result = evaluate_poll(export, now=now.timestamp(), started_at=now.timestamp(), polls=1)
    if (error := result.error()) is not None:
        raise error
    if export.is_expired_at(now + _MIN_TIME_LEFT):
        raise ExportExpiredError(
            f"SendGrid export {export.id} expires at {export.expires_at}, too soon to deliver its files; "
            "nothing was downloaded. Start another export."
        )
    if result.outcome is not Outcome.READY:
        raise ExportIncompleteError(
            f"SendGrid export {export.id} is not ready to be delivered: its status is {export.status!r}, with "
            f"{len(export.urls)} files. Wait for it with a SendGridExportSensor before this task."
        )
    if len(export.id) > _MAX_ID_LENGTH or not SAFE_ID.fullmatch(export.id):
        raise ArgumentError(
            f"export_id {export.id!r} cannot be part of an object's name. Pass the id that the start task returned."
        )
    require_distinct_paths(export.id, export.urls)
    return export


def file_indexes(export: ContactExport, file_index: int | None) -> Sequence[int]:
    """The files to deliver, from 0: all of them, or the one that is given.

    Raises:
        ArgumentError: there is no such file.
    """
    count = len(export.paths)
    if file_index is None:
        return range(count)
    if not 0 <= file_index < count:
        known = f"it has files 0 to {count - 1}" if count else "it has no files"
        raise ArgumentError(f"file_index {file_index} of SendGrid export {export.id}: {known}.")
    return [file_index]
