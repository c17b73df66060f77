"""Google Cloud Storage: the objects of a bucket.

The client is google-cloud-storage's, made by Airflow's GCSHook. It starts an upload; the bytes go to the URL in
Google's response. That URL is a secret, because anyone who has it can write for a week; it is never logged, and no
error message contains it. Writes and deletes name the generation they expect. Each object carries a random token of its
upload, which identifies a write whose response was lost. Its CRC32C is compared with that of the bytes sent.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from airflow_provider_sendgrid.exceptions import (
    DestinationChangedError,
    DestinationError,
    DestinationRefusedError,
    SendGridError,
)
from airflow_provider_sendgrid.storage.base import ANY_VERSION, ObjectInfo, StoredContent, StoredInfo
from airflow_provider_sendgrid.storage.errors import ATTEMPTS, Failure
from airflow_provider_sendgrid.storage.gcs_errors import retried_calls
from airflow_provider_sendgrid.storage.gcs_object import WRITE_KEY, StoredObject, crc32c_of
from airflow_provider_sendgrid.storage.gcs_upload import GcsUpload

log = logging.getLogger(__name__)


class GcsStorage:
    """The objects of one bucket below one prefix.

    Args:
        client: google-cloud-storage's ``Client``; shared by all threads.
        bucket: name of the bucket.
        prefix: what all names begin with, ``path/to/`` or empty.
        sleep: waits between attempts of a request, seconds.
    """

    def __init__(self, client: Any, bucket: str, prefix: str, *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._bucket = client.bucket(bucket)
        self._address = f"gs://{bucket}/"
        self._prefix = prefix
        self._sleep = sleep
        self._calls = retried_calls(sleep)
        self._is_listing_refused = False

    def uri(self, name: str) -> str:
        """The object's ``gs://`` URI."""
        return f"{self._address}{self._prefix}{name}"

    def put(self, name: str, content: bytes | bytearray, info: ObjectInfo, over: str | None = ANY_VERSION) -> str:
        """Store a small object at once; return its generation."""
        self._raise_if_changed("put", name, over)
        token, checksum = secrets.token_hex(8), crc32c_of(bytes(content))

        def send() -> StoredObject:
            blob = self._blob(name, info, token)
            blob.upload_from_string(
                bytes(content),
                content_type=info.content_type,
                checksum="crc32c",
                retry=None,
                if_generation_match=_generation(over),
            )
            return StoredObject.of_blob(blob)

        try:
            stored = self._calls.write("put", self.uri(name), send)
        except (DestinationChangedError, DestinationError):
            # The response to an earlier attempt may be lost although the object is stored.
            with suppress(SendGridError):
                return self._confirm("put", name, token, checksum, StoredObject())
            raise
        return self._confirm("put", name, token, checksum, stored)

    def begin(self, name: str, info: ObjectInfo, over: str | None = ANY_VERSION) -> GcsUpload:
        """Start a resumable upload."""
        token = secrets.token_hex(8)

        def send() -> Any:
            return self._blob(name, info, token).create_resumable_upload_session(
                content_type=info.content_type, checksum=None, retry=None, if_generation_match=_generation(over)
            )

        def confirm(checksum: str, stored: StoredObject) -> None:
            self._confirm("upload", name, token, checksum, stored)

        session_url = self._calls.write("begin", self.uri(name), send)
        if not session_url:
            raise self._calls.unverified("begin", self.uri(name), "the response names no upload")
        return GcsUpload(
            session_url,
            self.uri(name),
            self._sleep,
            check=lambda: self._raise_if_changed("upload", name, over),
            confirm=confirm,
        )

    def read(self, name: str) -> StoredContent | None:
        """A small object, None if there is none."""
        for _ in range(ATTEMPTS):
            stored = self._find(name)
            if stored is None:
                self._raise_without_bucket()
                return None
            blob = self._bucket.blob(self._prefix + name, generation=int(stored.generation))
            content = self._calls.find("read", self.uri(name), partial(blob.download_as_bytes, retry=None))
            if content is not None:
                return StoredContent(bytes(content), stored.generation)
        raise self._calls.unverified("read", self.uri(name), "the object changes at each attempt")

    def head(self, name: str) -> StoredInfo | None:
        """What is known of an object without reading it, None if there is none."""
        stored = self._find(name)
        if stored is None:
            return None
        metadata = {key.lower(): value for key, value in stored.metadata.items() if key.lower() != WRITE_KEY}
        return StoredInfo(stored.size, metadata, stored.generation)

    def versions(self, beginning: str = "") -> Mapping[str, str] | None:
        """The generations of all objects whose names begin like this; None if they may not be listed."""

        def send() -> dict[str, str]:
            listed = self._bucket.list_blobs(
                prefix=self._prefix + beginning or None,
                delimiter="/",
                fields="items(name,generation),prefixes,nextPageToken",
                retry=None,
            )
            return {blob.name.removeprefix(self._prefix): str(blob.generation) for blob in listed}

        try:
            return {name: version for name, version in self._calls.write("list", self.uri(""), send).items() if name}
        except DestinationRefusedError as error:
            if not self._is_listing_refused:
                log.warning("The objects cannot be listed: %s", error)
            self._is_listing_refused = True
            return None

    def abort_uploads(self, names: Collection[str]) -> int:
        """Does nothing: Google does not list uploads, and deletes them within a week."""
        return 0

    def delete(self, name: str, version: str = ANY_VERSION) -> None:
        """Delete an object if it has this generation."""
        with suppress(DestinationChangedError):
            self._raise_if_changed("delete", name, version)
            self._calls.find(
                "delete",
                self.uri(name),
                lambda: self._blob(name).delete(retry=None, if_generation_match=_generation(version)),
            )

    def _blob(self, name: str, info: ObjectInfo | None = None, token: str = "") -> Any:
        blob = self._bucket.blob(self._prefix + name)
        if info is not None:
            blob.metadata = {**info.metadata, WRITE_KEY: token}
        return blob

    def _find(self, name: str) -> StoredObject | None:
        def send() -> StoredObject:
            blob = self._blob(name)
            blob.reload(retry=None)
            return StoredObject.of_blob(blob)

        stored = self._calls.find("head", self.uri(name), send)
        if stored is not None and not stored.generation:
            raise self._calls.unverified("head", self.uri(name), "the response names no generation")
        return stored

    def _raise_if_changed(self, operation: str, name: str, expected: str | None) -> None:
        """Check the object right before a write, for servers that ignore conditions."""
        if expected == ANY_VERSION:
            return
        stored = self._find(name)
        if expected != (None if stored is None else stored.generation):
            raise self._calls.error(operation, self.uri(name), Failure(("412",), "the object was changed"))

    def _confirm(self, operation: str, name: str, token: str, checksum: str, response: StoredObject) -> str:
        """Check that the stored object is the one that was sent; return its generation.

        Raises:
            DestinationChangedError: another run stored the object.
            DestinationError: it is not there, or its bytes are not those that were sent; such an object is deleted.
        """
        uri = self.uri(name)
        stored = response if response.is_complete else self._find(name)
        if stored is None:
            raise self._calls.unverified(operation, uri, "the storage accepted the object, but it is not there")
        if stored.metadata.get(WRITE_KEY) != token:
            raise self._calls.error(operation, uri, Failure(("412",), "another run stored the object"))
        if stored.crc32c != checksum:
            with suppress(SendGridError):
                self.delete(name, stored.generation)
            what = f"the stored object's CRC32C is {stored.crc32c}, not {checksum}; the bytes were damaged in transit"
            raise self._calls.unverified(operation, uri, what)
        return stored.generation

    def _raise_without_bucket(self) -> None:
        """A missing bucket is an error, not an empty one. Without the permission to look, it is taken to exist.

        Raises:
            DestinationRefusedError: the bucket does not exist.
        """
        from google.api_core.exceptions import Forbidden

        def exists() -> bool:
            try:
                return bool(self._bucket.exists(retry=None))
            except Forbidden:
                return True

        if not self._calls.find("head", self._address, exists):
            raise DestinationRefusedError(f"There is no bucket {self._address}; create it, or correct the path.")


def _generation(version: str | None) -> int | None:
    """The condition of a request: 0 if there must be no object, None for any version."""
    return None if version == ANY_VERSION else int(version or 0)
