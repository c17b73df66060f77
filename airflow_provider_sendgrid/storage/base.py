"""The protocols of a storage and of an upload, what is known of objects, and the limits of parts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

MIB = 1024 * 1024

# S3's limits, which the other clouds accept, too: up to 10,000 parts of 5 MiB to 5 GiB; the last may be smaller.
MIN_PART_BYTES = 5 * MIB
MAX_PART_BYTES = 5 * 1024 * MIB
MAX_PARTS = 10_000
# For objects of unknown size: so many parts of one size, then the size doubles after each so many.
_EQUAL_PARTS, _PARTS_PER_SIZE = 6_000, 360


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What an object carries besides its bytes.

    Attributes:
        content_type: its media type.
        metadata: short texts, with names in lower case.
    """

    content_type: str
    metadata: Mapping[str, str]


# The key of the metadata that identifies the upload which stored an object.
UPLOAD_KEY: Final = "sendgrid-upload"
# Instead of an object's version: any version, or no object.
ANY_VERSION: Final = "*"


@dataclass(frozen=True, slots=True)
class StoredInfo:
    """What is known of a stored object.

    Attributes:
        size: in bytes.
        metadata: see `ObjectInfo`.
        version: changes whenever the object is stored again; the storage's own token, such as an ETag or a generation.
    """

    size: int
    metadata: Mapping[str, str]
    version: str = ""


@dataclass(frozen=True, slots=True)
class StoredContent:
    """A small object.

    Attributes:
        content: all of its bytes.
        version: see `StoredInfo`.
    """

    content: bytes
    version: str


class Upload(Protocol):
    """An upload: the object is invisible until `complete`; `abort` leaves nothing behind."""

    def write_part(self, number: int, part: bytearray, crc32: int) -> None:
        """Store part `number` (from 1); several threads call this at once, starting in the order of the numbers."""

    def complete(self) -> None:
        """Publish the object: all parts were written.

        Raises:
            DestinationChangedError: the object's version is not the one passed to `Storage.begin`.
        """

    def abort(self) -> None:
        """Leave nothing behind; safe after a failure of any kind, and while other threads still write parts."""


class Storage(Protocol):
    """Objects below one prefix.

    `over` is the version that an object may replace: None if there must be no object, `ANY_VERSION` if it does not
    matter. Storages without conditional writes check the object right before they write.
    """

    def uri(self, name: str) -> str:
        """The full URI of an object."""

    def put(self, name: str, content: bytes | bytearray, info: ObjectInfo, over: str | None = ANY_VERSION) -> str:
        """Store a small object at once; return its version.

        Raises:
            DestinationChangedError: the object's version is not `over`.
        """

    def begin(self, name: str, info: ObjectInfo, over: str | None = ANY_VERSION) -> Upload:
        """Start to store an object in parts; `over` is compared when it is published."""

    def read(self, name: str) -> StoredContent | None:
        """A small object, None if there is none."""

    def head(self, name: str) -> StoredInfo | None:
        """What is known of an object without reading it, None if there is none."""

    def versions(self, beginning: str = "") -> Mapping[str, str] | None:
        """The versions of all objects whose names begin like this, without a slash after that; see `is_version`.

        A version is empty if the listing does not show it. None if the credentials may not list objects.
        """

    def abort_uploads(self, names: Collection[str]) -> int:
        """Abort all other uploads of these objects, such as those of a killed worker; return how many there were.

        Without the permission to list or to abort uploads it does nothing, and logs that once.
        """

    def delete(self, name: str, version: str = ANY_VERSION) -> None:
        """Delete an object if it still has this version; does nothing if it has another or does not exist.

        Raises:
            DestinationRefusedError: the credentials may not delete it.
        """


def is_version(listed: str | None, version: str) -> bool:
    """Whether a listing shows this version; S3's listings lack the upload's id and may lack the version."""
    return bool(listed) and f"{version} ".startswith(f"{listed} ")


def part_size(number: int, part_bytes: int, max_bytes: int | None = None) -> int:
    """The size of part `number` (from 1), in bytes.

    Some storages, such as Cloudflare R2, require one size for all parts but the last. If the maximum size of the object
    is known, all parts have one size. Otherwise the first 6,000 parts have one size (30 GiB at 5 MiB each). Then the
    size doubles every 360 parts, so that an object of up to 5 TiB fits into 10,000 parts.

    Args:
        number: number of the part, from 1.
        part_bytes: the preferred size; parts are larger only if 10,000 would not suffice.
        max_bytes: the object is not larger; None if that is not known.
    """
    wanted = max(part_bytes, MIN_PART_BYTES)
    if max_bytes is not None:
        return min(max(wanted, -(-max_bytes // MAX_PARTS)), MAX_PART_BYTES)
    doublings = 0 if number <= _EQUAL_PARTS else (number - _EQUAL_PARTS - 1) // _PARTS_PER_SIZE + 1
    return min(wanted << doublings, MAX_PART_BYTES)
