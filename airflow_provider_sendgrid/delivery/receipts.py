"""What is known of a large object while no manifest names it: a small object beside it, below ``_receipts/``."""

from __future__ import annotations

import hashlib
import json

from airflow_provider_sendgrid.delivery.manifest import FileFacts, to_json
from airflow_provider_sendgrid.exceptions import (
    DestinationChangedError,
)
from airflow_provider_sendgrid.storage.base import ObjectInfo, Storage, StoredContent

RECEIPTS = "_receipts/"
_KNOWN_UPLOADS = 8  # in one receipt


def receipt_name(name: str) -> str:
    """The name of the receipt of an object."""
    return f"{RECEIPTS}{name}.json"


def write_receipt(storage: Storage, name: str, facts: FileFacts) -> None:
    """Add facts to a receipt, beside those of other uploads: which of them publishes the object is not known yet."""
    for _ in range(_KNOWN_UPLOADS):
        stored = storage.read(receipt_name(name))
        known = {upload: each.to_json() for upload, each in read_receipt(stored).items() if upload != facts.upload}
        uploads = [*known.items(), (facts.upload, facts.to_json())][-_KNOWN_UPLOADS:]
        content = to_json({"uploads": dict(uploads), "digest": _digest(dict(uploads))})
        try:
            over = stored.version if stored else None
            storage.put(receipt_name(name), content, ObjectInfo("application/json", {}), over)
        except DestinationChangedError:
            continue
        return
    raise DestinationChangedError(f"Other runs keep changing {storage.uri(receipt_name(name))}. Run the task again.")


def _digest(uploads: object) -> str:
    """What shows that a receipt was damaged: what it says of a file becomes the manifest's SHA-256."""
    return hashlib.sha256(json.dumps(uploads, sort_keys=True).encode()).hexdigest()


def read_receipt(stored: StoredContent | None) -> dict[str, FileFacts]:
    """Facts by the ids of uploads; those of earlier versions have the id ''. None if the receipt is damaged."""
    try:
        receipt = json.loads(stored.content) if stored else None
    except (ValueError, RecursionError):
        return {}
    if not isinstance(receipt, dict) or ("uploads" in receipt and receipt.get("digest") != _digest(receipt["uploads"])):
        return {}
    uploads = receipt.get("uploads") if "uploads" in receipt else {"": receipt}
    found = {
        str(upload): FileFacts.from_metadata(facts)
        for upload, facts in (uploads.items() if isinstance(uploads, dict) else ())
        if isinstance(facts, dict)
    }
    return {upload: facts for upload, facts in found.items() if facts is not None and facts.upload == upload}
