"""Where an `ObjectStoragePath` points to: which connection, which bucket, which folder.

Knows addresses alone; the storages are made where Airflow's connections are known.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit


class Provider(Enum):
    """Who keeps the objects."""

    S3 = "s3"
    GCS = "gs"
    AZURE = "abfs"
    LOCAL = "file"


_SCHEMES = {
    "s3": Provider.S3,
    "gs": Provider.GCS,
    "gcs": Provider.GCS,
    "abfs": Provider.AZURE,
    "abfss": Provider.AZURE,
    "az": Provider.AZURE,
    "file": Provider.LOCAL,
    "": Provider.LOCAL,
}


@dataclass(frozen=True, slots=True)
class Location:
    """A folder in a storage.

    Attributes:
        provider: who keeps it.
        address: of the bucket, for people and engines: ``gs://bucket/``; it names no connection.
        bucket: its name, on Azure the container's; empty for a folder of this machine.
        prefix: what all names begin with: empty, or a path that ends in a slash; on this machine it begins with one.
        conn_id: Airflow's connection that the path names, None where it names none.
    """

    provider: Provider
    address: str
    bucket: str
    prefix: str
    conn_id: str | None

    @classmethod
    def of(cls, path: str) -> Location:
        """Read a path: ``gs://conn_id@bucket/folder``, ``file:///folder``, ``abfss://container@account.host/folder``.

        Raises:
            ValueError: it cannot be read; says what it should be.
        """
        url = urlsplit(path, allow_fragments=False)
        provider = _SCHEMES.get(url.scheme)
        folder = url.path.strip("/") + (f"?{url.query}" if url.query else "")
        if provider is None or ".." in folder.split("/"):
            raise ValueError(
                f"path must be s3://bucket/folder, gs://bucket/folder, abfs://container/folder or file:///folder, "
                f"not {path!r}."
            )
        prefix = f"{folder}/" if folder else ""
        conn_id, at, bucket = url.netloc.rpartition("@")
        if provider is Provider.LOCAL:
            if bucket or not url.path.startswith("/"):
                raise ValueError(f"A folder needs an absolute path, file:///folder, not {path!r}.")
            return cls(provider, "file://", "", f"/{prefix}", conn_id or None)
        # Azure's own form names the container before the account's host; containers' names have no dots.
        if provider is Provider.AZURE and at and "." in bucket:
            return cls(provider, f"{url.scheme}://{url.netloc}/", conn_id, prefix, None)
        if not bucket:
            raise ValueError(f"path names no bucket: {path!r}.")
        return cls(provider, f"{url.scheme}://{bucket}/", bucket, prefix, conn_id or None)
