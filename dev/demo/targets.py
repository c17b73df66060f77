"""The demo's storages: S3, a folder, Google Cloud Storage or Azure, each on this machine."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dev.services.azurite import azurite
from dev.services.azurite import connection as azure_connection
from dev.services.gcs import CONNECTION as GCS_CONNECTION
from dev.services.gcs import gcs_client, gcs_server
from dev.services.s3 import S3, s3_server

BUCKET = "lake"
TO_S3, TO_ANY = "sendgrid_contacts_to_s3", "sendgrid_contacts_to_object_storage"
DAG_OF = {"s3": TO_S3, "file": TO_ANY, "gcs": TO_ANY, "azure": TO_ANY}


class ObjectStore(Protocol):
    """A bucket, container or folder, for reading."""

    @property
    def bucket(self) -> str: ...

    def sizes(self, prefix: str) -> dict[str, int]:
        """The bytes of each object under a prefix, by its key."""

    def open(self, key: str) -> Any:
        """The object as a stream."""


@dataclass(frozen=True)
class Target:
    """A store, and what Airflow needs to write to it.

    Attributes:
        store: for reading.
        address: its description.
        connections: Airflow's connections, by id.
        environment: variables for Airflow's processes.
        dag_id: the example that delivers to it.
    """

    store: ObjectStore
    address: str
    connections: Mapping[str, dict[str, Any]]
    environment: Mapping[str, str]
    dag_id: str


@dataclass(frozen=True)
class Folder:
    """A local folder; keys are absolute paths without the first slash, as in `file://` URIs."""

    path: Path

    @property
    def bucket(self) -> str:
        return str(self.path)

    def sizes(self, prefix: str) -> dict[str, int]:
        files = [path for path in Path("/", prefix).rglob("*") if path.is_file()]
        return {str(path).lstrip("/"): path.stat().st_size for path in sorted(files)}

    def open(self, key: str) -> Any:
        return Path("/", key).open("rb")


@dataclass(frozen=True)
class GcsBucket:
    url: str
    bucket: str = BUCKET

    def sizes(self, prefix: str) -> dict[str, int]:
        blobs = gcs_client(self.url).list_blobs(self.bucket, prefix=prefix)
        return {blob.name: int(blob.size) for blob in blobs}

    def open(self, key: str) -> Any:
        return io.BytesIO(gcs_client(self.url).bucket(self.bucket).blob(key).download_as_bytes())


@dataclass(frozen=True)
class AzureContainer:
    connection_string: str
    bucket: str = BUCKET

    def client(self) -> Any:
        from azure.storage.blob import BlobServiceClient

        return BlobServiceClient.from_connection_string(self.connection_string).get_container_client(self.bucket)

    def sizes(self, prefix: str) -> dict[str, int]:
        return {blob.name: blob.size for blob in self.client().list_blobs(name_starts_with=prefix)}

    def open(self, key: str) -> Any:
        return io.BytesIO(self.client().download_blob(key).readall())


@contextmanager
def s3(folder: Path) -> Iterator[Target]:
    with s3_server(BUCKET, folder) as server:
        yield s3_target(server, f"an S3 server at {server.endpoint}")


def s3_target(store: S3, address: str) -> Target:
    environment = {"SENDGRID_EXPORT_BUCKET": store.bucket}
    return Target(store, address, {"aws_default": store.connection}, environment, TO_S3)


@contextmanager
def local(folder: Path) -> Iterator[Target]:
    store = Folder(folder / BUCKET)
    store.path.mkdir()
    yield Target(store, "a local folder", {}, {"SENDGRID_EXPORT_PATH": f"file://{store.path}"}, TO_ANY)


@contextmanager
def gcs(_folder: Path) -> Iterator[Target]:
    with gcs_server() as url:
        store = GcsBucket(url)
        gcs_client(url).create_bucket(store.bucket)
        yield Target(
            store,
            f"a server of Google Cloud Storage at {url}",
            {"google_cloud_default": GCS_CONNECTION},
            {"SENDGRID_EXPORT_PATH": f"gs://{BUCKET}", "STORAGE_EMULATOR_HOST": url},
            TO_ANY,
        )


@contextmanager
def azure(folder: Path) -> Iterator[Target]:
    with azurite(folder) as connection_string:
        store = AzureContainer(connection_string)
        store.client().create_container()
        yield Target(
            store,
            "a server of Azure Blob Storage (azurite)",
            {"wasb_default": azure_connection(connection_string)},
            {"SENDGRID_EXPORT_PATH": f"abfs://{BUCKET}"},
            TO_ANY,
        )


TARGETS: Mapping[str, Callable[[Path], Any]] = {"s3": s3, "file": local, "gcs": gcs, "azure": azure}
