"""Azure Blob Storage, and Data Lake Storage Gen2 through it: blocks are staged, then committed as one blob.

The client is azure-storage-blob's, made by Airflow's WasbHook; nothing of it is imported before it is used. Each block
carries its MD5, which Azure checks before it takes it. Blocks that are never committed are invisible; the next commit
of the same blob discards them, else Azure does within a week: there is no call that does.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from airflow_provider_sendgrid.exceptions import DestinationError, DestinationRefusedError
from airflow_provider_sendgrid.storage.multipart import ObjectInfo, StoredInfo


class AzureStorage:
    """The blobs of one container below one prefix.

    Args:
        container: azure-storage-blob's ``ContainerClient``; shared by all threads.
        address: of the container, such as ``abfs://container/``, for URIs.
        prefix: what all names begin with, ``path/to/`` or empty.
    """

    def __init__(self, container: Any, address: str, prefix: str) -> None:
        self._container = container
        self._address = address
        self._prefix = prefix

    def uri(self, name: str) -> str:
        """The blob's URI."""
        return f"{self._address}{self._prefix}{name}"

    def put(self, name: str, content: bytes | bytearray, info: ObjectInfo) -> None:
        """Store a small blob at once."""
        with _told("put", self.uri(name)):
            self._blob(name).upload_blob(bytes(content), overwrite=True, validate_content=True, **_described(info))

    def begin(self, name: str, info: ObjectInfo) -> AzureUpload:
        """Start to stage blocks; Azure is not asked yet."""
        return AzureUpload(self._blob(name), self.uri(name), info)

    def read(self, name: str) -> bytes | None:
        """The content of a small blob, None where there is none."""
        with _told("read", self.uri(name)):
            return bytes(self._blob(name).download_blob(max_concurrency=1).readall())
        return None

    def head(self, name: str) -> StoredInfo | None:
        """What is known of a blob without reading it, None where there is none."""
        properties = None
        with _told("look", self.uri(name)):
            properties = self._blob(name).get_blob_properties()
        if properties is None:
            return None
        metadata = {key.lower().replace("_", "-"): value for key, value in (properties.metadata or {}).items()}
        return StoredInfo(properties.size, metadata)

    def abort_uploads(self, name: str) -> int:
        """Nothing to end: staged blocks are discarded by the next commit."""
        return 0

    def delete(self, name: str) -> None:
        """Remove a blob; nothing happens where there is none."""
        with _told("delete", self.uri(name)):
            self._blob(name).delete_blob(delete_snapshots="include")

    def _blob(self, name: str) -> Any:
        return self._container.get_blob_client(self._prefix + name)


class AzureUpload:
    """Blocks that are staged for one blob."""

    def __init__(self, blob: Any, uri: str, info: ObjectInfo) -> None:
        self._blob = blob
        self._uri = uri
        self._info = info
        # Another try may have staged blocks of the same blob: none of its numbers is mistaken for one of ours.
        self._token = secrets.token_hex(8)
        self._block_ids: dict[int, str] = {}
        self._lock = threading.Lock()

    def write_part(self, number: int, part: bytearray, crc32: int) -> None:
        """Stage part `number` (from 1); Azure refuses it where its MD5 differs."""
        block_id = f"{self._token}-{number:06d}"
        checksum = base64.b64encode(hashlib.md5(part, usedforsecurity=False).digest()).decode()
        with _told("upload", self._uri):
            self._blob.stage_block(block_id, part, length=len(part), headers={"Content-MD5": checksum})
        with self._lock:
            self._block_ids[number] = block_id

    def complete(self) -> None:
        """Commit the blocks, in their order."""
        from azure.storage.blob import BlobBlock

        blocks = [BlobBlock(block_id=self._block_ids[number]) for number in sorted(self._block_ids)]
        with _told("commit", self._uri):
            self._blob.commit_block_list(blocks, **_described(self._info))

    def abort(self) -> None:
        """Nothing is to be seen of blocks that are not committed."""


def _described(info: ObjectInfo) -> dict[str, Any]:
    from azure.storage.blob import ContentSettings

    return {"content_settings": ContentSettings(content_type=info.content_type), "metadata": _named(info.metadata)}


def _named(metadata: Mapping[str, str]) -> dict[str, str]:
    """Azure's names of metadata are identifiers: they have no hyphens."""
    return {key.replace("-", "_"): value for key, value in metadata.items()}


@contextmanager
def _told(operation: str, uri: str) -> Iterator[None]:
    """Tell of Azure's errors as ours; that a blob is not there is none."""
    from azure.core.exceptions import AzureError, HttpResponseError

    try:
        yield
    except HttpResponseError as error:
        code = getattr(error, "error_code", None)
        if code == "BlobNotFound" or (error.status_code == 404 and code is None):
            return
        said = f"{operation} of {uri}: Azure answered {error.status_code} ({code}: {error.reason})."
        if error.status_code in (401, 403, 404):
            raise DestinationRefusedError(
                f"{said} Mend the container's name, its permissions or the connection."
            ) from error
        raise DestinationError(f"{said} Run the task again.") from error
    except AzureError as error:
        raise DestinationError(
            f"{operation} of {uri}: Azure could not be asked ({type(error).__name__}). Run the task again."
        ) from error
