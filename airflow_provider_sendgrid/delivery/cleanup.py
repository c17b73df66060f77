"""Deletes objects that are no longer needed, and what killed runs of other exports left."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

from airflow_provider_sendgrid.delivery.object_names import RECEIPTS, FileName, receipt_name
from airflow_provider_sendgrid.exceptions import DestinationError, DestinationRefusedError
from airflow_provider_sendgrid.storage.base import Storage

log = logging.getLogger(__name__)

# Refused deletes after which no further one is tried.
_MAX_REFUSALS = 10


def delete_all(storage: Storage, versions: Mapping[str, str], *, must_succeed: bool = False) -> bool:
    """Delete objects, by name, at these versions; if the storage refuses or fails, log it once and return False.

    Raises:
        DestinationError: the storage failed and `must_succeed` is set; a missing permission is never raised.
    """
    refused = 0
    for name, version in versions.items():
        try:
            storage.delete(name, version)
        except (DestinationRefusedError, DestinationError) as error:
            if must_succeed and isinstance(error, DestinationError):
                raise DestinationError(
                    f"{error} The manifest is written, but objects that it replaces remain, such as "
                    f"{storage.uri(name)}. Run the task again to delete them."
                ) from error
            if not refused:
                log.warning(
                    "Objects that are no longer needed remain, such as %s: %s Nothing else depends on them.",
                    storage.uri(name),
                    error,
                )
            refused += 1
            # A single object may be on hold.
            if not must_succeed or refused == _MAX_REFUSALS:
                return False
    return not refused


def clean_up_after_others(storage: Storage, export_id: str, deleted: Collection[str]) -> None:
    """Delete what killed runs of other exports left beside their objects, see `publication`.

    Nothing depends on it, so errors are only logged. `deleted` are the names of the objects that were replaced.
    """
    try:
        listed = storage.versions(RECEIPTS) or {}
        receipts = _receipts_of_others(export_id, listed)
        existing = storage.versions() if receipts else {}
        if existing is None:
            return
        orphaned = {receipt: name for receipt, name in receipts.items() if name not in existing}
        delete_all(storage, {receipt: listed[receipt] for receipt in orphaned})
        siblings = _siblings(export_id, {*deleted, *orphaned.values()})
        if siblings and (aborted := storage.abort_uploads(siblings)):
            log.info("Aborted %s uploads that runs of other exports left open.", aborted)
    except (DestinationError, DestinationRefusedError) as error:
        log.warning("Leftovers of other runs may remain at %s: %s", storage.uri(""), error)


def _receipts_of_others(export_id: str, listed: Collection[str]) -> dict[str, str]:
    """The receipts of other exports, each with the name of its object."""
    found = dict[str, str]()
    for receipt in listed:
        name = receipt.removeprefix(RECEIPTS).removesuffix(".json")
        parts = FileName.parse(name)
        if parts and parts.export_id != export_id and receipt == receipt_name(name):
            found[receipt] = name
    return found


def _siblings(export_id: str, names: Collection[str]) -> set[str]:
    """The names of all files of the other exports to which these belong."""
    files = {parts for name in names if (parts := FileName.parse(name)) and parts.export_id != export_id}
    return {name for parts in files for name in parts.of_all_files()}
