"""What is known of the stored files of an export."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_sendgrid.files.rows import RecordCount
from airflow_provider_sendgrid.storage.base import UPLOAD_KEY, StoredInfo


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of an export, as it is stored or as a manifest, a receipt or an object's metadata describe it.

    Two are equal if the attributes from `name` to `path` are: only these are written to manifests and receipts.

    Attributes:
        name: name of the object, below the prefix.
        size: stored bytes.
        sha256: of the stored bytes, in hexadecimal.
        count: its records; None if they were not counted.
        upload: ID of the upload that stored it, also in the object's metadata; empty in earlier versions.
        path: path of the file's URL at SendGrid, which identifies the file; empty in earlier versions.
        uri: full address of the object.
        version: version of the object.
        rows: contacts, without a header; None if they were not counted, or if it is not known which record is the
            header.
        has_receipt: whether the object has a receipt.
        is_new: whether it was stored just now.
        is_only_counted: whether it was downloaded only to count its rows. Its name and version are those of the
            object that a manifest names, which is unchanged.
    """

    name: str
    size: int
    sha256: str
    count: RecordCount | None = None
    upload: str = ""
    path: str = ""
    uri: str = field(default="", compare=False)
    version: str = field(default="", compare=False)
    rows: int | None = field(default=None, compare=False)
    has_receipt: bool = field(default=False, compare=False)
    is_new: bool = field(default=False, compare=False)
    is_only_counted: bool = field(default=False, compare=False)

    def to_metadata(self) -> dict[str, str]:
        """What an object's metadata holds, as short texts."""
        metadata = {"size": str(self.size), "sha256": self.sha256}
        if self.count is None:
            return metadata
        metadata |= {"records": str(self.count.records), "first-record-sha256": self.count.first_record_sha256}
        return metadata | ({"has-header": "true"} if self.count.has_header else {})

    def to_json(self) -> dict[str, str]:
        """What the manifest and receipts hold."""
        texts = {"upload": self.upload, "path": self.path}
        return self.to_metadata() | {key: text for key, text in texts.items() if text}

    @classmethod
    def parse(cls, name: str, metadata: Mapping[str, Any]) -> StoredFile | None:
        """Read what `to_metadata` or `to_json` returned; None if it is missing or incomplete."""
        try:
            upload, path = (str(metadata.get(key) or "") for key in ("upload", "path"))
            return cls(name, int(metadata["size"]), str(metadata["sha256"]), _parse_count(metadata), upload, path)
        except (KeyError, TypeError, ValueError, OverflowError):
            return None

    def describes(self, info: StoredInfo) -> bool:
        """Whether this describes the very object that is stored."""
        return self.size == info.size and self.upload == info.metadata.get(UPLOAD_KEY, "")

    def has_same_bytes(self, other: StoredFile) -> bool:
        """Whether the content of both is the same."""
        return (self.size, self.sha256) == (other.size, other.sha256)

    def rows_below(self, header_sha256: str | None) -> int | None:
        """Contacts in the file; None if they were not counted, or if its first record may be a header.

        Args:
            header_sha256: digest of the export's header; None if it is not known.
        """
        if self.count is None:
            return None
        if header_sha256 is None:
            return self.count.records if not self.count.records or not self.count.first_record_sha256 else None
        return self.count.rows(header_sha256)


def _parse_count(metadata: Mapping[str, Any]) -> RecordCount | None:
    if (records := metadata.get("records")) is None:
        return None
    first_record_sha256 = str(metadata.get("first-record-sha256") or "")
    return RecordCount(int(records), first_record_sha256, has_header=metadata.get("has-header") == "true")


def total_rows(files: Sequence[StoredFile]) -> int | None:
    """Contacts in all files; None if any of them was not counted."""
    counts = [file.rows for file in files if file.rows is not None]
    return sum(counts) if len(counts) == len(files) else None


@dataclass(slots=True)
class DeliveryState:
    """What one delivery has done and learned, over all its rounds; shared by its threads.

    Attributes:
        stored: files that it stored, by name.
        distrusted: versions of objects that do not count as stored, by name: the rows of all files disagreed.
        counted: files that it downloaded only to count them, by name: with these the rows of all files agree.
    """

    stored: dict[str, StoredFile] = field(default_factory=dict)
    distrusted: dict[str, str] = field(default_factory=dict)
    counted: dict[str, StoredFile] = field(default_factory=dict)
