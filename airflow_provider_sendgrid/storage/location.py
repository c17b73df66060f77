"""Parses the path of an `ObjectStoragePath`: connection, bucket and folder.

Makes no storages: that needs Airflow's connections.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit

from airflow_provider_sendgrid.storage.s3_arguments import split_s3_uri


class Provider(Enum):
    """The kind of storage."""

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
        provider: the kind of storage.
        address: address of the bucket, for messages and query engines: ``gs://bucket/``; without the connection.
        bucket: its name, on Azure the container's; empty for a folder of this machine.
        prefix: what all names begin with: empty, or a path that ends in a slash; a local one also begins with a slash.
        conn_id: Airflow's connection in the path, None without one.
    """

    provider: Provider
    address: str
    bucket: str
    prefix: str
    conn_id: str | None

    @classmethod
    def of(cls, path: str) -> Location:
        """Parse a path: ``gs://conn_id@bucket/folder``, ``file:///folder``, ``abfss://container@account.host/folder``.

        Slashes at the folder's start and end are ignored: ``s3://lake//lead/`` is ``s3://lake/lead``. So are spaces and
        line breaks around the path, which a template may leave; in S3's paths they are part of the key, as in the
        operator for S3.

        Raises:
            ValueError: it cannot be parsed; the message says what it should be.
        """
        if path.lower().startswith("s3://"):
            return cls._of_s3(path)
        path = path.strip()
        if any(character < " " for character in path):  # `urlsplit` would leave some of them out
            raise _unreadable(path)
        try:
            url = urlsplit(path, allow_fragments=False)
        except ValueError:
            raise _unreadable(path) from None
        provider = _SCHEMES.get(url.scheme)
        folder = url.path.strip("/") + (f"?{url.query}" if url.query else "")
        # HTTP clients remove "." from Azure's URLs, so that the blob would get another name.
        odd = {".", ".."} if provider is Provider.AZURE else {".."}
        if provider is None or not odd.isdisjoint(folder.split("/")):
            raise _unreadable(path)
        prefix = f"{folder}/" if folder else ""
        conn_id, at, bucket = url.netloc.rpartition("@")
        if provider is Provider.LOCAL:
            if bucket or not url.path.startswith("/") or not folder:
                raise ValueError(f"A folder needs an absolute path, file:///folder, not {_shown(path)!r}.")
            return cls(provider, "file://", "", f"/{prefix}", _conn_id(conn_id, at, path))
        # Azure's own form has the container before the account's host; names of containers have no dots.
        if provider is Provider.AZURE and at and "." in bucket:
            return cls(provider, f"{url.scheme}://{url.netloc}/", _bucket(conn_id, path), prefix, None)
        return cls(provider, f"{url.scheme}://{bucket}/", _bucket(bucket, path), prefix, _conn_id(conn_id, at, path))

    def require_account(self, hostname: str) -> None:
        """Check that a path in Azure's own form names the account of the connection.

        Args:
            hostname: host of the connection's account. Hosts outside Azure are not compared.

        Raises:
            ValueError: it names another, so the URIs in the manifest would not lead to the files.
        """
        _, at, named = self.address.removesuffix("/").rpartition("@")
        if not at or ".core." not in named or ".core." not in hostname:
            return
        accounts = [host.partition(".")[0].lower() for host in (named, hostname)]
        if accounts[0] != accounts[1]:
            raise ValueError(
                f"path names the storage account {accounts[0]!r}, but the connection uses {accounts[1]!r}. Correct "
                "one of them, or name the connection in the path: abfs://conn_id@container/folder."
            )

    @classmethod
    def _of_s3(cls, path: str) -> Location:
        """Parse an S3 path as the operator for S3 does; the bucket may be an access point's ARN, which has slashes."""
        rest = path.partition("://")[2]
        before_slash, slash, after_slash = rest.partition("/")
        conn_id, at, bucket = before_slash.rpartition("@")
        bucket, prefix = split_s3_uri(f"s3://{_bucket(bucket, path)}{slash}{after_slash}")
        if ".." in prefix.split("/"):
            raise _unreadable(path)
        return cls(Provider.S3, f"s3://{bucket}/", bucket, prefix, _conn_id(conn_id, at, path))


# What a template renders if its value is missing.
_MISSING = ("", "None")


def _bucket(bucket: str, path: str) -> str:
    if bucket in _MISSING:
        raise ValueError(f"path names no bucket: {_shown(path)!r}.")
    return bucket


def _conn_id(conn_id: str, at: str, path: str) -> str | None:
    """None if the path names no connection."""
    if at and conn_id in _MISSING:
        raise ValueError(f"path names no connection before the @: {_shown(path)!r}. Name one, or leave out the @.")
    return conn_id or None


def _shown(path: str) -> str:
    """A path for a message, without the query, which may be a signature."""
    return path.partition("?")[0]


def _unreadable(path: str) -> ValueError:
    return ValueError(
        f"path must be s3://bucket/folder, gs://bucket/folder, abfs://container/folder or file:///folder, "
        f"not {_shown(path)!r}."
    )
