"""Storages of every kind for the tests: created from plain JSON, in this process or in another, and inspected."""

from __future__ import annotations

import gzip
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_provider_sendgrid.storage.azure import AzureStorage
from airflow_provider_sendgrid.storage.base import ObjectInfo, Storage
from airflow_provider_sendgrid.storage.gcs import GcsStorage
from airflow_provider_sendgrid.storage.local import LocalStorage
from airflow_provider_sendgrid.storage.s3 import S3Storage
from dev.services.gcs import gcs_client
from tests.support.memory_storage import MemoryStorage

PREFIX = "in/"
_MEMORIES: dict[str, MemoryStorage] = {}


def no_sleep(_seconds: float) -> None:
    return None


def container_client(server: str, container: str) -> Any:
    from azure.storage.blob import BlobServiceClient

    return BlobServiceClient.from_connection_string(server).get_container_client(container)


def s3_client(server: str) -> Any:
    import boto3

    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    return boto3.client("s3", endpoint_url=server, region_name="us-east-1", **keys)


@dataclass(frozen=True)
class Destination:
    """A fresh place of one kind; `server` is a URL, a connection string, or a folder."""

    kind: str
    server: str
    bucket: str

    @classmethod
    def fresh(cls, kind: str, server: str) -> Destination:
        place = cls(kind, server, f"lake-{uuid.uuid4().hex[:12]}")
        if kind == "s3":
            s3_client(server).create_bucket(Bucket=place.bucket)
        elif kind == "gs":
            gcs_client(server).create_bucket(place.bucket)
        elif kind == "abfs":
            container_client(server, place.bucket).create_container()
        return place

    @property
    def root(self) -> str:
        """What all URIs begin with."""
        return f"file://{self.server}/{self.bucket}/" if self.kind == "file" else f"{self.kind}://{self.bucket}/"

    @property
    def memory(self) -> MemoryStorage:
        """The one of this bucket, in this process; it knows the prefix alone."""
        return _MEMORIES.setdefault(self.bucket, MemoryStorage(f"{self.root}{PREFIX}"))

    def storage(self, prefix: str = PREFIX) -> Storage:
        if self.kind == "memory":
            return self.memory
        if self.kind == "s3":
            return S3Storage(s3_client(self.server), self.bucket, prefix)
        if self.kind == "gs":
            return GcsStorage(gcs_client(self.server), self.bucket, prefix, sleep=no_sleep)
        if self.kind == "abfs":
            return AzureStorage(container_client(self.server, self.bucket), self.root, prefix, sleep=no_sleep)
        return LocalStorage(Path(self.server, self.bucket, prefix))

    def stored_keys(self) -> list[str]:
        """All that is there under a name of its own; of a folder without what it knows of its files."""
        if self.kind == "memory":
            return sorted(PREFIX + name for name in self.memory.objects)
        if self.kind == "file":
            folder = Path(self.server, self.bucket)
            files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
            return sorted(str(path) for path in files if "_metadata" not in path.parts and not is_hidden(path))
        if self.kind == "s3":
            listed = s3_client(self.server).list_objects_v2(Bucket=self.bucket)
            return sorted(item["Key"] for item in listed.get("Contents", []))
        if self.kind == "gs":
            return sorted(blob.name for blob in gcs_client(self.server).list_blobs(self.bucket))
        return sorted(blob.name for blob in container_client(self.server, self.bucket).list_blobs())

    def unfinished(self) -> list[str]:
        """What an upload that was not finished left behind, as far as the storage shows."""
        if self.kind == "memory":
            return [upload.name for upload in self.memory.uploads.values()]
        if self.kind == "file":
            return [str(path) for path in Path(self.server, self.bucket).rglob("*") if is_hidden(path)]
        if self.kind == "s3":
            uploads = s3_client(self.server).list_multipart_uploads(Bucket=self.bucket).get("Uploads", [])
            return [upload["Key"] for upload in uploads]
        if self.kind == "abfs":
            blobs = container_client(self.server, self.bucket).list_blobs(include=["uncommittedblobs"])
            return [blob.name for blob in blobs if blob.name not in self.stored_keys()]
        return []

    def write(self, key: str, content: bytes) -> None:
        """Write as another program does."""
        if self.kind == "memory":
            self.memory.put(key.removeprefix(PREFIX), content, ObjectInfo("text/plain", {}))
            return
        if self.kind == "file":
            path = Path(self.server, self.bucket, key)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        elif self.kind == "s3":
            s3_client(self.server).put_object(Bucket=self.bucket, Key=key, Body=content)
        elif self.kind == "gs":
            gcs_client(self.server).bucket(self.bucket).blob(key).upload_from_string(content)
        else:
            container_client(self.server, self.bucket).upload_blob(key, content, overwrite=True)

    def read(self, key_or_uri: str) -> bytes:
        """With other code than the package's."""
        key = key_or_uri.removeprefix(self.root)
        if self.kind == "memory":
            return self.memory.objects[key.removeprefix(PREFIX)].content
        if self.kind == "file":
            return Path(self.server, self.bucket, key).read_bytes()
        if self.kind == "s3":
            return s3_client(self.server).get_object(Bucket=self.bucket, Key=key)["Body"].read()
        if self.kind == "gs":
            return gcs_client(self.server).bucket(self.bucket).blob(key).download_as_bytes()
        return container_client(self.server, self.bucket).download_blob(key).readall()

    def read_plain(self, key_or_uri: str) -> bytes:
        content = self.read(key_or_uri)
        return gzip.decompress(content) if key_or_uri.endswith(".gz") else content


def is_hidden(path: Path) -> bool:
    return path.name.startswith(".")
