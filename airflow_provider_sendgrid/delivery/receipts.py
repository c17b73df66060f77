"""Receipts: small objects that describe large ones while no manifest names them."""

from __future__ import annotations

import hashlib
import json

from airflow_provider_sendgrid.delivery.manifest import to_json
from airflow_provider_sendgrid.delivery.object_names import receipt_name
from airflow_provider_sendgrid.delivery.stored_file import StoredFile
from airflow_provider_sendgrid.exceptions import DestinationChangedError
from airflow_provider_sendgrid.storage.base import ObjectInfo, Storage, StoredContent

_MAX_UPLOADS = 8  # in one receipt


def write_receipt(storage: Storage, file: StoredFile) -> None:
    """Add a file to its receipt, beside other uploads of it: it is not known yet which of them publishes the object.

    Raises:
        DestinationChangedError: other runs keep changing the receipt.
    """
    name = receipt_name(file.name)
    for _ in range(_MAX_UPLOADS):
        stored = storage.read(name)
        known = {each.upload: each.to_json() for each in read_receipt(file.name, stored) if each.upload != file.upload}
        uploads = dict([*known.items(), (file.upload, file.to_json())][-_MAX_UPLOADS:])
        content = to_json({"uploads": uploads, "digest": _digest(uploads)})
        try:
            storage.put(name, content, ObjectInfo("application/json", {}), stored.version if stored else None)
        except DestinationChangedError:
            continue
        return
    raise DestinationChangedError(f"Other runs keep changing {storage.uri(name)}. Run the task again.")


def read_receipt(name: str, stored: StoredContent | None) -> list[StoredFile]:
    """Read the receipt of an object, a file for each upload; none if there is no receipt or it is damaged."""
    try:
        receipt = json.loads(stored.content) if stored else None
    except (ValueError, RecursionError):
        return []
    if not isinstance(receipt, dict) or ("uploads" in receipt and receipt.get("digest") != _digest(receipt["uploads"])):
        return []
    # Earlier versions kept a single file.
    uploads = receipt.get("uploads") if "uploads" in receipt else {"": receipt}
    return [
        file
        for upload, texts in (uploads.items() if isinstance(uploads, dict) else ())
        if isinstance(texts, dict) and (file := StoredFile.parse(name, texts)) is not None and file.upload == upload
    ]


def _digest(uploads: object) -> str:
    """Detects a damaged receipt, because the SHA-256 in it is copied to the manifest."""
    return hashlib.sha256(json.dumps(uploads, sort_keys=True).encode()).hexdigest()
