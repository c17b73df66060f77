"""Multipart uploads: one that is written, and those that others left open."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from airflow_provider_sendgrid.exceptions import DestinationChangedError, DestinationError, DestinationRefusedError
from airflow_provider_sendgrid.storage.base import ANY_VERSION, ObjectInfo
from airflow_provider_sendgrid.storage.s3_calls import S3Calls, listing_prefix
from airflow_provider_sendgrid.storage.s3_checksums import bare_etag, etag_of_parts
from airflow_provider_sendgrid.storage.s3_errors import NO_UPLOAD, is_not_allowed, was_sent_before
from airflow_provider_sendgrid.storage.s3_objects import S3Objects, etag_of

log = logging.getLogger(__name__)


class OpenUploads:
    """The open multipart uploads of a bucket.

    Attributes:
        own: the ids of this task's uploads.
    """

    def __init__(self, calls: S3Calls) -> None:
        self._calls = calls
        self.own: set[str] = set()

    def names_by_id(self, names: Collection[str]) -> dict[str, str] | None:
        """The open uploads of objects; None if uploads cannot be listed."""
        keys = {self._calls.prefix + name: name for name in names}
        found, following = dict[str, str](), dict[str, Any]()
        # The common prefix of texts, not of paths.
        prefix = listing_prefix(self._calls, os.path.commonprefix(list(keys)))  # noqa: RUF071
        try:
            while True:
                response = self._calls.call("list_multipart_uploads", None, **prefix, **following)
                uploads = [each for each in response.get("Uploads") or [] if each.get("Key") in keys]
                found |= {str(each["UploadId"]): keys[each["Key"]] for each in uploads if "UploadId" in each}
                markers = {"KeyMarker": "NextKeyMarker", "UploadIdMarker": "NextUploadIdMarker"}
                after = {marker: response[field] for marker, field in markers.items() if response.get(field)}
                if not response.get("IsTruncated") or not after or after == following:
                    break
                following = after
        except (DestinationError, DestinationRefusedError) as error:
            self._calls.log_once("uploads", logging.INFO, "Unfinished uploads cannot be listed: %s", error)
            return None
        if len(keys) > 1 and _is_minio(response):
            # It lists the uploads of one whole name only.
            for name in names:
                found |= self.names_by_id([name]) or {}
        return found

    def ids(self, name: str) -> set[str] | None:
        """The open uploads of an object, None if uploads cannot be listed."""
        found = self.names_by_id([name])
        return None if found is None else set(found)

    def may_be_open(self, name: str, upload_id: str) -> bool:
        """Whether an upload has not ended; if uploads cannot be listed, it may be open."""
        found = self.ids(name)
        return found is None or upload_id in found


class S3Upload:
    """A multipart upload.

    Args:
        objects: the objects of the bucket.
        uploads: the open uploads of the bucket.
        name: name of the object.
        upload_id: S3's ID of the upload.
        info: what the object carries.
        over: the version that may be replaced, see `Storage`.
    """

    def __init__(
        self,
        objects: S3Objects,
        uploads: OpenUploads,
        name: str,
        upload_id: str,
        info: ObjectInfo | None = None,
        over: str | None = ANY_VERSION,
    ) -> None:
        self._objects = objects
        self._calls = objects.calls
        self._uploads = uploads
        self._name = name
        self._upload_id = upload_id
        self._info = info or ObjectInfo("", {})
        self._over = over
        self._size = 0
        self._parts: dict[int, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self._is_aborted = False

    def write_part(self, number: int, part: bytearray, crc32: int) -> None:
        """Store part `number` (from 1); S3 refuses it if its CRC32 is not `crc32`."""
        checksums = self._objects.checksums
        sent = checksums.arguments(part, crc32)
        try:
            response = self._calls.send(
                "upload_part",
                self._name,
                {"UploadId": self._upload_id, "PartNumber": number, "Body": part, **sent},
                lambda response: checksums.is_damaged(response, part, sent, is_part=True),
            )
        finally:
            # S3 keeps a part that arrives while its upload is aborted, until it is aborted again.
            if self._is_aborted:
                with suppress(DestinationError):
                    self.end()
        etag = self._calls.field(response, "ETag", "upload_part", self._name)
        stored = {"ETag": etag, "ChecksumCRC32": sent.get("ChecksumCRC32")}
        with self._lock:
            self._parts[number] = {"PartNumber": number, **{key: value for key, value in stored.items() if value}}
            self._size += len(part)

    def complete(self) -> None:
        """Publish the object."""
        parts = [self._parts[number] for number in sorted(self._parts)]
        method, upload = "complete_multipart_upload", {"UploadId": self._upload_id, "MultipartUpload": {"Parts": parts}}
        try:
            response = self._objects.change(method, self._name, self._over, **upload)
        except (DestinationError, DestinationChangedError) as error:
            has_ended = isinstance(error, DestinationError) and self._has_ended(error)
            if not (has_ended or was_sent_before(error)) or not self._is_published():
                if has_ended:
                    raise DestinationChangedError(f"{error} Another run ended this upload.") from error
                raise
            log.info("%s was published already; only the response was lost.", self._calls.uri(self._name))
        else:
            # Ceph RGW 16 returns an empty one.
            returned = response.get("ETag") or etag_of_parts(self.part_etags())
            etag = returned or self._calls.field(response, "ETag", method, self._name)
            self._objects.verify_stored(self._name, self._size, self._info, etag)
        self._uploads.own.discard(self._upload_id)

    def abort(self) -> None:
        """Leave nothing behind; does nothing after the upload has ended."""
        self._is_aborted = True
        self.end()

    def end(self) -> bool:
        """End the upload; return whether it has ended, for the credentials may not allow it."""
        self._uploads.own.discard(self._upload_id)
        try:
            self._calls.call("abort_multipart_upload", self._name, UploadId=self._upload_id)
        except (DestinationError, DestinationRefusedError) as error:
            if is_not_allowed(error):
                self._calls.log_once("abort", logging.WARNING, "Unfinished uploads cannot be aborted: %s", error)
                return False
            if error.code not in NO_UPLOAD:
                raise
        return True

    def part_etags(self) -> list[str]:
        """The ETags of the parts, in their order."""
        return [bare_etag(self._parts[number]["ETag"]) for number in sorted(self._parts)]

    def _has_ended(self, error: DestinationError) -> bool:
        """Whether the upload no longer exists: Ceph RGW reports that as an internal error."""
        is_gone = error.code == "InternalError" and not self._uploads.may_be_open(self._name, self._upload_id)
        return error.code in NO_UPLOAD or is_gone

    def _is_published(self) -> bool:
        """Whether this very object is there: if a response is lost, boto3 asks again, and S3 has published it."""
        stored = self._objects.find_stored(self._name, self._size, self._info)
        return stored is not None and etag_of(stored.version) == etag_of_parts(self.part_etags())


def _is_minio(response: Mapping[str, Any]) -> bool:
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return "minio" in str(headers.get("server", "")).lower()
