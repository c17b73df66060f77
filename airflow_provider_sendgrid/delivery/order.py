"""The order of an export's files, by which they are numbered: stored when the export is first seen.

A file is identified by the path of its URL. SendGrid does not promise to list the files in the same order each time, or
each of them once. So the first task that delivers a file of an export with several files stores their order, in
``_receipts/<export id>.json``; every retry and every mapped task numbers the files by it. It is deleted when the
manifest is written, which contains the paths too.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence

from airflow_provider_sendgrid.delivery.manifest import KnownManifest, to_json
from airflow_provider_sendgrid.delivery.object_names import order_name
from airflow_provider_sendgrid.exceptions import DestinationChangedError
from airflow_provider_sendgrid.exports.export import ContactExport
from airflow_provider_sendgrid.storage.base import ObjectInfo, Storage

log = logging.getLogger(__name__)

_MAX_ATTEMPTS = 5


def pinned_order(storage: Storage, export: ContactExport, own_manifest: KnownManifest | None) -> list[str]:
    """The paths of an export's files, in the order that all its tasks number them by.

    Args:
        storage: where the order is stored.
        export: the export, as SendGrid describes it now.
        own_manifest: the manifest of this export, if there is one.

    Raises:
        DestinationChangedError: other runs keep storing other orders.
    """
    paths = list(export.paths)
    if len(paths) < 2:
        return paths
    if own_manifest is not None and set(own_manifest.paths) == set(paths):
        return own_manifest.paths
    name = order_name(export.id)
    for _ in range(_MAX_ATTEMPTS):
        stored = storage.read(name)
        pinned = _parse(stored.content) if stored else []
        if set(pinned) == set(paths):
            return pinned
        if pinned:
            log.warning("SendGrid export %s: the paths of its files changed; downloading the new ones.", export.id)
        order = _merged(pinned, paths)
        content = to_json({"files": order})
        try:
            storage.put(name, content, ObjectInfo("application/json", {}), stored.version if stored else None)
        except DestinationChangedError:
            continue
        return order
    raise DestinationChangedError(
        f"SendGrid export {export.id}: other runs keep changing {storage.uri(name)}. Run the task again."
    )


def _merged(pinned: Sequence[str], paths: Sequence[str]) -> list[str]:
    """Keep the numbers of files that still exist, if there are as many files as before."""
    new = iter([path for path in paths if path not in pinned])
    if len(pinned) == len(paths):
        return [path if path in paths else next(new) for path in pinned]
    return [*(path for path in pinned if path in paths), *new]


def _parse(content: bytes) -> list[str]:
    try:
        files = json.loads(content)["files"]
    except (ValueError, RecursionError, KeyError, TypeError):
        return []
    is_order = isinstance(files, list) and all(isinstance(path, str) for path in files)
    return files if is_order and len(set(files)) == len(files) else []
