"""Azure Blob Storage, and Data Lake Storage Gen2 through it: blocks are staged, then committed as one blob.

The client is azure-storage-blob's, made by Airflow's WasbHook; nothing of it is imported before it is used. Azure
checks the MD5 that each block carries. Blocks that are not committed are invisible. The next commit of the same blob
discards them, and otherwise Azure does within a week; there is no call for that. Writes and deletes name the ETag they
expect. Each blob carries a random token of its upload, which identifies a write whose response was lost.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

from airflow_provider_sendgrid.exceptions import (
    DestinationChangedError,
    DestinationError,
    DestinationRefusedError,
    SendGridError,
)
from airflow_provider_sendgrid.storage.azure_errors import DamagedError, retried_calls
from airflow_provider_sendgrid.storage.base import ANY_VERSION, ObjectInfo, StoredContent, StoredInfo
from airflow_provider_sendgrid.storage.errors import Failure, RetriedCalls

log = logging.getLogger(__name__)

_TOKEN = "sendgrid-write"  # noqa: S105  metadata, no secret
# `RetriedCalls` retries, and can be stopped between two attempts; the client cannot.
_ONCE = {"retry_total": 0}


class AzureStorage:
    """The blobs of one container below one prefix.

    Args:
        container: azure-storage-blob's ``ContainerClient``; shared by all threads.
        address: the container's address, such as ``abfs://container/``, for URIs.
        prefix: what all names begin with, ``path/to/`` or empty.
        sleep: waits between attempts of a request, seconds.
    """

    def __init__(
        self, container: Any, address: str, prefix: str, *, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._container = container
        self._address = address
        self._prefix = prefix
        self._calls = retried_calls(sleep)
        self._is_listing_refused = False

    def uri(self, name: str) -> str:
        """The blob's URI."""
        return f"{self._address}{self._prefix}{name}"

    def put(self, name: str, content: bytes | bytearray, info: ObjectInfo, over: str | None = ANY_VERSION) -> str:
        """Store a small blob at once; return its ETag."""
        md5 = _md5(content)
        # For a wrong MD5 in the response, the client would report no response. Larger blobs take several requests.
        is_one_request = len(content) <= getattr(getattr(self._container, "_config", None), "max_single_put_size", 0)
        if is_one_request:
            checked: dict[str, Any] = {"headers": {"Content-MD5": base64.b64encode(md5).decode()}}
        else:
            checked = {"validate_content": True}

        def send(arguments: Mapping[str, Any]) -> Any:
            checks = copy.deepcopy(checked)
            response = self._blob(name).upload_blob(bytes(content), overwrite=True, **checks, **arguments)
            return response if is_one_request else None

        return self._publish("put", name, info, over, len(content), send, md5)

    def begin(self, name: str, info: ObjectInfo, over: str | None = ANY_VERSION) -> AzureUpload:
        """Start an upload; this sends no request."""

        def commit(blocks: list[Any], size: int) -> None:
            def send(arguments: Mapping[str, Any]) -> Any:
                return self._blob(name).commit_block_list(blocks, **arguments)

            self._publish("commit", name, info, over, size, send)

        return AzureUpload(self._blob(name), self.uri(name), self._calls, commit)

    def read(self, name: str) -> StoredContent | None:
        """A small blob, None if there is none."""

        def send() -> StoredContent:
            stream = self._blob(name).download_blob(max_concurrency=1, **_ONCE)
            content = bytes(stream.readall())
            if _has_other_md5(stream.properties.content_settings, _md5(content)):
                raise DamagedError
            return StoredContent(content, _etag(stream.properties.etag))

        stored = self._calls.find("read", self.uri(name), send)
        if stored is not None and not stored.version:
            raise self._calls.unverified("read", self.uri(name), "the response has no ETag")
        return stored

    def head(self, name: str) -> StoredInfo | None:
        """What is known of a blob without reading it, None if there is none."""
        properties = self._find(name)
        if properties is None:
            return None
        metadata = {key: value for key, value in _metadata(properties).items() if key != _TOKEN}
        return StoredInfo(properties.size, metadata, _etag(properties.etag))

    def versions(self, beginning: str = "") -> Mapping[str, str] | None:
        """The ETags of all blobs whose names begin like this; None if they may not be listed."""
        from azure.storage.blob import BlobPrefix

        def send() -> dict[str, str]:
            listed = self._container.walk_blobs(
                name_starts_with=self._prefix + beginning or None, delimiter="/", **_ONCE
            )
            blobs = (blob for blob in listed if not isinstance(blob, BlobPrefix))
            return {blob.name.removeprefix(self._prefix): _etag(blob.etag) for blob in blobs}

        try:
            return {name: version for name, version in self._calls.write("list", self.uri(""), send).items() if name}
        except DestinationRefusedError as error:
            if not self._is_listing_refused:
                log.warning("The blobs cannot be listed: %s", error)
            self._is_listing_refused = True
            return None

    def abort_uploads(self, names: Collection[str]) -> int:
        """Does nothing: the next commit discards staged blocks."""
        return 0

    def delete(self, name: str, version: str = ANY_VERSION) -> None:
        """Delete a blob if it has this ETag."""
        with suppress(DestinationChangedError):
            self._calls.find(
                "delete",
                self.uri(name),
                lambda: self._blob(name).delete_blob(delete_snapshots="include", **_condition(version), **_ONCE),
            )

    def _blob(self, name: str) -> Any:
        return self._container.get_blob_client(self._prefix + name)

    def _find(self, name: str) -> Any:
        """Azure's properties of a blob, with an ETag and a size; None if there is no blob."""
        properties = self._calls.find("head", self.uri(name), lambda: self._blob(name).get_blob_properties(**_ONCE))
        if properties is not None and (not properties.etag or properties.size is None):
            raise self._calls.unverified("head", self.uri(name), "the response has no ETag or no size")
        return properties

    def _publish(
        self,
        operation: str,
        name: str,
        info: ObjectInfo,
        over: str | None,
        size: int,
        send: Callable[[Mapping[str, Any]], Any],
        md5: bytes | None = None,
    ) -> str:
        """Store the blob with our token in its metadata; return its ETag.

        The response does not prove that the blob is stored, and the response to an earlier attempt may be lost.
        Therefore the blob is requested and must have the token.
        """
        token = secrets.token_hex(8)
        arguments = {**_arguments_of(info, token), **_condition(over), **_ONCE}
        try:
            response = self._calls.write(operation, self.uri(name), lambda: send(arguments))
        except (DestinationChangedError, DestinationError):
            with suppress(SendGridError):
                return self._confirm(operation, name, token, size, md5)
            raise
        return self._confirm(operation, name, token, size, md5, response)

    def _confirm(
        self, operation: str, name: str, token: str, size: int, md5: bytes | None, response: Any = None
    ) -> str:
        """Check that the stored blob is the one that was sent; return its ETag.

        Raises:
            DestinationChangedError: another run stored the blob.
            DestinationError: it is not there, or its bytes are not those that were sent; such a blob is deleted.
        """
        properties = self._find(name)
        if properties is None or properties.size != size:
            what = "the storage accepted the blob, but does not have all of it"
            raise self._calls.unverified(operation, self.uri(name), what)
        if _metadata(properties).get(_TOKEN) != token:
            raise self._calls.error(operation, self.uri(name), Failure(("412",), "another run stored the blob"))
        etag = _etag(properties.etag)
        if md5 is not None and (_has_other_md5(response, md5) or _has_other_md5(properties.content_settings, md5)):
            self._discard(name, etag)
            what = "the MD5 of the stored blob differs from that of the bytes sent; they were damaged in transit"
            raise self._calls.unverified(operation, self.uri(name), what)
        return etag

    def _discard(self, name: str, etag: str) -> None:
        """Delete a damaged blob; without the permission for that, empty it, so that its metadata proves nothing."""
        arguments = {**_condition(etag), **_ONCE}
        with suppress(SendGridError):
            try:
                self.delete(name, etag)
            except DestinationRefusedError:
                self._calls.write(
                    "put", self.uri(name), lambda: self._blob(name).upload_blob(b"", overwrite=True, **arguments)
                )


class AzureUpload:
    """Blocks that are staged for one blob.

    Args:
        blob: the client of the blob.
        uri: the URI of the blob, for messages.
        calls: the calls of Azure's client.
        commit: publishes a list of blocks; called with that and their size in bytes.
    """

    def __init__(self, blob: Any, uri: str, calls: RetriedCalls, commit: Callable[[list[Any], int], None]) -> None:
        self._blob = blob
        self._uri = uri
        self._calls = calls
        self._commit = commit
        # Keeps our blocks apart from those that another run may have staged for the same blob.
        self._token = secrets.token_hex(8)
        self._blocks: dict[int, tuple[str, int]] = {}
        self._lock = threading.Lock()

    def write_part(self, number: int, part: bytearray, crc32: int) -> None:
        """Stage part `number` (from 1); Azure refuses it if its MD5 differs, or returns the MD5 it has."""
        block_id = f"{self._token}-{number:06d}"
        md5 = _md5(part)

        def send() -> None:
            headers = {"Content-MD5": base64.b64encode(md5).decode()}
            if _has_other_md5(self._blob.stage_block(block_id, part, length=len(part), headers=headers, **_ONCE), md5):
                raise DamagedError

        self._calls.write("upload", self._uri, send)
        with self._lock:
            self._blocks[number] = block_id, len(part)

    def complete(self) -> None:
        """Commit the blocks, in their order."""
        from azure.storage.blob import BlobBlock

        blocks = [BlobBlock(block_id=self._blocks[number][0]) for number in sorted(self._blocks)]
        self._commit(blocks, sum(size for _, size in self._blocks.values()))

    def abort(self) -> None:
        """Does nothing: blocks that are not committed are invisible."""


def _arguments_of(info: ObjectInfo, token: str) -> dict[str, Any]:
    from azure.storage.blob import ContentSettings

    # Keys of Azure's metadata are identifiers, which have no hyphens.
    metadata = {key.replace("-", "_"): value for key, value in {**info.metadata, _TOKEN: token}.items()}
    return {"content_settings": ContentSettings(content_type=info.content_type), "metadata": metadata}


def _metadata(properties: Any) -> dict[str, str]:
    return {key.lower().replace("_", "-"): value for key, value in (properties.metadata or {}).items()}


def _md5(content: bytes | bytearray) -> bytes:
    return hashlib.md5(content, usedforsecurity=False).digest()


def _has_other_md5(described: Any, md5: bytes) -> bool:
    """Whether a response, or the settings of a blob, has another MD5; many have none."""
    known = described.get("content_md5") if isinstance(described, Mapping) else getattr(described, "content_md5", None)
    if isinstance(known, str):
        with suppress(ValueError):
            known = base64.b64decode(known)
    return isinstance(known, bytes | bytearray) and bool(known) and bytes(known) != md5


def _condition(version: str | None) -> dict[str, Any]:
    """The arguments for the version that a request expects."""
    from azure.core import MatchConditions

    if version == ANY_VERSION:
        return {}
    if version is None:
        return {"match_condition": MatchConditions.IfMissing}
    return {"match_condition": MatchConditions.IfNotModified, "etag": f'"{version}"'}


def _etag(value: str | None) -> str:
    """An ETag without quotes; headers have them, listings do not."""
    return (value or "").strip('"')
