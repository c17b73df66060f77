"""Amazon S3, and servers that speak its protocol: parts and objects in S3's terms and limits.

The client is boto3's, made by Airflow's S3Hook; nothing of boto3 is imported here.

Bytes are checked in transit: each part and each small object carries its CRC32, which S3 compares. Over plain http, or
without checksum headers, the body is signed too. Over plain http, ETags are compared as well if they are MD5s. If one
is not, a test object with known bytes shows whether this server's ETags are MD5s.

No object is overwritten without a check of its version, see `s3_objects`.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Collection, Mapping
from contextlib import suppress
from copy import copy
from typing import Any

from airflow_provider_sendgrid.exceptions import DestinationChangedError, DestinationError, DestinationRefusedError
from airflow_provider_sendgrid.stopping import StoppedError, StopSignal
from airflow_provider_sendgrid.storage.base import ANY_VERSION, UPLOAD_KEY, ObjectInfo, StoredContent, StoredInfo
from airflow_provider_sendgrid.storage.multipart import crc32
from airflow_provider_sendgrid.storage.s3_arguments import folder_prefix, split_s3_uri
from airflow_provider_sendgrid.storage.s3_calls import (
    ATTEMPTS_IF_DAMAGED,
    DAMAGE_MESSAGE,
    S3Calls,
    client_config,
    list_objects,
)
from airflow_provider_sendgrid.storage.s3_checksums import EtagTrial, S3Checksums, bare_etag, md5_of
from airflow_provider_sendgrid.storage.s3_errors import NO_LISTING, is_not_allowed, was_sent_before
from airflow_provider_sendgrid.storage.s3_objects import S3Objects, etag_of
from airflow_provider_sendgrid.storage.s3_uploads import OpenUploads, S3Upload

__all__ = ["S3Storage", "S3Upload", "client_config", "folder_prefix", "split_s3_uri"]

log = logging.getLogger(__name__)

_TRIALS = "_receipts/etag-"


class S3Storage:
    """The objects of one bucket below one prefix.

    Args:
        client: boto3's client for S3; shared by all threads.
        bucket: name of the bucket, or the ARN of an access point.
        prefix: what all names begin with, ``path/to/`` or empty.
        extra_args: further arguments of S3's calls, see `ExtraArguments`.
        stop: once it is set, no upload is started and no part is sent, also not by boto3's own retries.
    """

    def __init__(
        self,
        client: Any,
        bucket: str,
        prefix: str,
        extra_args: Mapping[str, Any] | None = None,
        stop: StopSignal | None = None,
    ) -> None:
        self._calls = S3Calls(client, bucket, prefix, extra_args, stop)
        self._objects = S3Objects(self._calls, S3Checksums(self._calls, self._try_etag))
        self._uploads = OpenUploads(self._calls)

    def uri(self, name: str) -> str:
        """The object's ``s3://`` URI."""
        return self._calls.uri(name)

    def put(self, name: str, content: bytes | bytearray, info: ObjectInfo, over: str | None = ANY_VERSION) -> str:
        """Store a small object at once; return its version."""
        checksums = self._objects.checksums
        described, sent = self._described(name, info), checksums.arguments(content, crc32(content))
        version = ""
        for _ in range(ATTEMPTS_IF_DAMAGED):
            try:
                response = self._objects.change("put_object", name, over, Body=content, **described, **sent)
            except (DestinationError, DestinationChangedError) as error:
                found = self._find_put(name, content, info) if was_sent_before(error) else None
                if found is None:
                    raise
                return found
            etag = self._calls.field(response, "ETag", "put_object", name)
            version = self._objects.verify_stored(name, len(content), info, etag, content)
            # With another ETag than in the response, the content was compared.
            if etag_of(version) != bare_etag(etag) or not checksums.is_damaged(response, content, sent):
                return version
            log.warning("%s was damaged in transit to S3; sending it again.", self.uri(name))
            over = version
        self._objects.discard(name, version)
        raise self._calls.damage_error("put_object", name, DAMAGE_MESSAGE)

    def begin(self, name: str, info: ObjectInfo, over: str | None = ANY_VERSION) -> S3Upload:
        """Start a multipart upload."""
        known = self._uploads.ids(name)
        described = self._described(name, info)
        algorithm = {"ChecksumAlgorithm": "CRC32"} if self._calls.sends_checksums else {}
        self._calls.stop.raise_if_set()
        try:
            response = self._calls.call("create_multipart_upload", name, **described, **algorithm)
            upload_id = self._calls.field(response, "UploadId", "create_multipart_upload", name)
        except (DestinationError, StoppedError):
            self._abort_unanswered(name, known)
            raise
        self._uploads.own.add(upload_id)
        if response.get("ResponseMetadata", {}).get("RetryAttempts"):
            self._abort_unanswered(name, known)
        return self._upload(name, upload_id, info, over)

    def read(self, name: str) -> StoredContent | None:
        """A small object, None if there is none."""
        return self._objects.read(name)

    def head(self, name: str) -> StoredInfo | None:
        """What is known of an object without reading it, None if there is none."""
        return self._objects.head(name)

    def versions(self, beginning: str = "") -> Mapping[str, str] | None:
        """The versions of all objects whose names begin like this; None if the credentials may not list them."""
        prefix, found = self._calls.prefix, dict[str, str]()
        try:
            for entry in list_objects(self._calls, beginning):
                key = str(entry.get("Key", ""))
                name = key.removeprefix(prefix)
                if name and key.startswith(prefix + beginning) and "/" not in name.removeprefix(beginning):
                    # Some servers list no ETags: then each object gets a HEAD request.
                    has_version = entry.get("ETag") and entry.get("LastModified")
                    found[name] = self._objects.version(entry, "list_objects_v2", name) if has_version else ""
        except (DestinationError, DestinationRefusedError) as error:
            if error.code not in NO_LISTING and not is_not_allowed(error):
                raise
            self._calls.log_once("list", logging.WARNING, "Objects cannot be listed: %s", error)
            return None
        return found

    def abort_uploads(self, names: Collection[str]) -> int:
        """Abort the multipart uploads of objects that others left open; return how many there were."""
        found = self._uploads.names_by_id(names) or {}
        left_open = sorted((name, upload_id) for upload_id, name in found.items() if upload_id not in self._uploads.own)
        return sum(self._upload(name, upload_id).end() for name, upload_id in left_open)

    def delete(self, name: str, version: str = ANY_VERSION) -> None:
        """Delete an object if it still has this version."""
        self._objects.delete(name, version)

    def _upload(
        self, name: str, upload_id: str, info: ObjectInfo | None = None, over: str | None = ANY_VERSION
    ) -> S3Upload:
        return S3Upload(self._objects, self._uploads, name, upload_id, info, over)

    def _find_put(self, name: str, content: bytes | bytearray, info: ObjectInfo) -> str | None:
        """The version of a small object if it is stored already: the response to an earlier attempt may be lost."""
        with suppress(DestinationError, DestinationRefusedError):
            is_found = self._objects.find_stored(name, len(content), info)
            if is_found and (found := self.read(name)) is not None and found.content == content:
                log.info("%s was stored already; only the response was lost.", self.uri(name))
                return found.version
        return None

    def _abort_unanswered(self, name: str, known: set[str] | None) -> None:
        """Abort uploads that began after `known` was listed, and whose ID was lost with the response."""
        if known is None:
            return
        for upload_id in (self._uploads.ids(name) or set()) - known - self._uploads.own:
            try:
                self._upload(name, upload_id).end()
            except DestinationError as error:
                log.info("An upload that may have been started could not be aborted: %s", error)

    def _described(self, name: str, info: ObjectInfo) -> dict[str, Any]:
        ours, extra_args = info.metadata, self._calls.extra_args
        theirs = {key: value for key, value in extra_args.get("Metadata", {}).items() if key.lower() not in ours}
        return {
            "ContentType": extra_args.known(("ContentType",), name).get("ContentType", info.content_type),
            "Metadata": {**theirs, **ours},
        }

    def _try_etag(self, is_part: bool) -> EtagTrial:
        """Store, read and delete an object, to learn what this server's ETags are."""
        name, info = f"{_TRIALS}{secrets.token_hex(8)}", ObjectInfo("text/plain", {UPLOAD_KEY: secrets.token_hex(8)})
        content = bytearray(os.urandom(32).hex().encode() * 1024)  # so large that a server that compresses does
        trial = self._without_etag_comparison()
        try:
            if is_part:
                upload = trial.begin(name, info)
                try:
                    upload.write_part(1, content, crc32(content))
                    upload.complete()
                finally:
                    upload.abort()
                [etag] = upload.part_etags()
            else:
                etag = etag_of(trial.put(name, content, info))
            stored = trial.read(name)
            return EtagTrial(etag, md5_of(content).hexdigest(), stored is not None and stored.content == content)
        finally:
            with suppress(DestinationError, DestinationRefusedError, DestinationChangedError):
                self.delete(name)

    def _without_etag_comparison(self) -> S3Storage:
        storage = copy(self)
        storage._objects = copy(self._objects)  # noqa: SLF001 - of this class
        storage._objects.checksums = copy(self._objects.checksums)  # noqa: SLF001
        storage._objects.checksums.compares_etags = False  # noqa: SLF001
        return storage
