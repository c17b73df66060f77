"""The storage that exports are delivered to: moto's S3 server on this machine, or the real S3."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dev.services.ports import LOCALHOST, accepts_connections, free_port
from dev.services.processes import Process
from dev.waiting import wait_until

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

LOGIN = "made-up-login"
PASSWORD = "made-up-password"
REGION = "us-east-1"


@dataclass(frozen=True)
class S3:
    """One bucket to write to; `endpoint` is None for the real S3, with the credentials of the environment.

    With a `proxy` it is at Amazon's own addresses, and a server on this machine answers in its place.
    """

    bucket: str
    endpoint: str | None = None
    proxy: str | None = None

    @property
    def connection(self) -> dict[str, Any]:
        """Airflow's `aws_default` for it."""
        if self.proxy is not None:
            extra = {"region_name": REGION, "verify": proxys_authority(), "config_kwargs": {"proxies": self._proxies}}
            return {"conn_type": "aws", "login": LOGIN, "password": PASSWORD, "extra": extra}
        if self.endpoint is None:
            return {"conn_type": "aws"}
        extra = {"endpoint_url": self.endpoint, "region_name": REGION}
        return {"conn_type": "aws", "login": LOGIN, "password": PASSWORD, "extra": extra}

    def client(self) -> S3Client:
        import boto3
        from botocore.config import Config

        if self.endpoint is None and self.proxy is None:
            return boto3.client("s3")
        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            config=Config(proxies=self._proxies),
            verify=proxys_authority() if self.proxy else None,
            aws_access_key_id=LOGIN,
            aws_secret_access_key=PASSWORD,
            region_name=REGION,
        )

    @property
    def _proxies(self) -> dict[str, str] | None:
        return {"https": self.proxy} if self.proxy else None

    def sizes(self, prefix: str) -> dict[str, int]:
        """The bytes of each object under a prefix, by its key."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return {entry["Key"]: entry["Size"] for page in pages for entry in page.get("Contents", [])}

    def open(self, key: str) -> Any:
        """The object as a stream."""
        return self.client().get_object(Bucket=self.bucket, Key=key)["Body"]


@contextmanager
def s3_server(bucket: str, folder: Path, python: Path = Path(sys.executable)) -> Iterator[S3]:
    """An S3 server in a process of its own, with an empty bucket in it; all is gone when it ends."""
    port = free_port()
    command = [python, "-m", "moto.server", "-H", LOCALHOST, "-p", str(port)]
    server = Process("s3", command, environment(os.environ), folder / "s3.log")
    server.start()
    try:
        wait_until("S3 server listening", lambda: accepts_connections(port), seconds=60, evidence=server.tail)
        s3 = S3(bucket, f"http://{LOCALHOST}:{port}")
        s3.client().create_bucket(Bucket=bucket)
        yield s3
    finally:
        server.stop()


@contextmanager
def amazon_s3(bucket: str, folder: Path, python: Path = Path(sys.executable)) -> Iterator[S3]:
    """The same at Amazon's own addresses, as far as whoever goes by its proxy can tell: nothing leaves this machine."""
    port = free_port()
    command = [python.parent / "moto_proxy", "-H", LOCALHOST, "-p", str(port)]
    server = Process("s3", command, environment(os.environ), folder / "s3.log")
    server.start()
    try:
        wait_until("S3 proxy listening", lambda: accepts_connections(port), seconds=60, evidence=server.tail)
        s3 = S3(bucket, proxy=f"http://{LOCALHOST}:{port}")
        s3.client().create_bucket(Bucket=bucket)
        yield s3
    finally:
        server.stop()


def proxys_authority() -> str:
    """Who signs the certificates that the proxy shows in Amazon's name."""
    import moto.moto_proxy

    return str(Path(moto.moto_proxy.__file__).parent / "ca.crt")


def environment(shell: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in shell.items() if name != "PYTHONDONTWRITEBYTECODE"}


def bucket_and_key(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    return parts.netloc, parts.path.lstrip("/")
