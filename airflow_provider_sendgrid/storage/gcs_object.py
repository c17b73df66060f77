"""What Google Cloud Storage says of an object, and the checksum that it is compared with."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# The key of the metadata that identifies one write.
WRITE_KEY = "sendgrid-write"


@dataclass(frozen=True, slots=True)
class StoredObject:
    """Google's description of an object; what a response does not contain is empty."""

    generation: str = ""
    crc32c: str = ""
    size: int = 0
    metadata: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_blob(cls, blob: Any) -> StoredObject:
        """From google-cloud-storage's ``Blob``."""
        return cls(str(blob.generation or ""), blob.crc32c or "", int(blob.size or 0), dict(blob.metadata or {}))

    @classmethod
    def from_json(cls, payload: Any) -> StoredObject:
        """From the JSON of a response; empty if it has another shape."""
        try:
            return cls(str(payload["generation"]), payload["crc32c"], int(payload["size"]), dict(payload["metadata"]))
        except (KeyError, TypeError, ValueError):
            return cls()

    @property
    def is_complete(self) -> bool:
        """Whether it has everything that is compared."""
        return bool(self.generation and self.crc32c and WRITE_KEY in self.metadata)


def crc32c_of(content: bytes) -> str:
    """The CRC32C as Google writes it, in base64."""
    import google_crc32c

    return encoded(google_crc32c.Checksum(content))


def encoded(checksum: Any) -> str:
    """The value of google_crc32c's ``Checksum``, in base64."""
    return base64.b64encode(checksum.digest()).decode()
