"""moto's S3 server on this machine, or the real S3."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from dev import inherited_environment
from dev.services.ports import LOCALHOST, accepts_connections, free_port
from dev.services.processes import Process, running

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

LOGIN = "made-up-login"
PASSWORD = "made-up-password"
REGION = "us-east-1"


@dataclass(frozen=True)
class S3:
    """One bucket; without `endpoint` it is that of the real S3, with the environment's credentials.

    With a `proxy`, clients use Amazon's addresses, and the proxy, a local server, responds.
    """

    bucket: str
    endpoint: str | None = None
    proxy: str | None = None

    @property
    def connection(self) -> dict[str, Any]:
        """Airflow's connection to it."""
        if self.proxy is not None:
            extra = {"region_name": REGION, "verify": proxy_ca_file(), "config_kwargs": {"proxies": self._proxies}}
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
            verify=proxy_ca_file() if self.proxy else None,
            aws_access_key_id=LOGIN,
            aws_secret_access_key=PASSWORD,
            region_name=REGION,
        )

    @property
    def _proxies(self) -> dict[str, str] | None:
        return {"https": self.proxy} if self.proxy else None

    def sizes(self, prefix: str) -> dict[str, int]:
        """The size in bytes of each object with this prefix, by key."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return {entry["Key"]: entry["Size"] for page in pages for entry in page.get("Contents", [])}

    def open(self, key: str) -> Any:
        """The object as a stream."""
        return self.client().get_object(Bucket=self.bucket, Key=key)["Body"]


@contextmanager
def s3_server(bucket: str, folder: Path, python: Path = Path(sys.executable)) -> Iterator[S3]:
    """An S3 server in its own process, with an empty bucket; all data is deleted at the end."""
    port = free_port()
    with _moto([python, "-m", "moto.server"], port, folder):
        yield _with_bucket(S3(bucket, f"http://{LOCALHOST}:{port}"))


@contextmanager
def amazon_s3(bucket: str, folder: Path, python: Path = Path(sys.executable)) -> Iterator[S3]:
    """Like `s3_server`, but for clients that use Amazon's addresses and its proxy. No request leaves this machine."""
    port = free_port()
    with _moto([python.parent / "moto_proxy"], port, folder):
        yield _with_bucket(S3(bucket, proxy=f"http://{LOCALHOST}:{port}"))


def _moto(program: Sequence[str | Path], port: int, folder: Path) -> AbstractContextManager[Process]:
    command = [*program, "-H", LOCALHOST, "-p", str(port)]
    process = Process("s3", command, inherited_environment(), folder / "s3.log")
    return running(process, lambda: accepts_connections(port))


def _with_bucket(s3: S3) -> S3:
    s3.client().create_bucket(Bucket=s3.bucket)
    return s3


def proxy_ca_file() -> str:
    """The certificate authority of the proxy's certificates for Amazon's addresses."""
    import moto.moto_proxy

    return str(Path(moto.moto_proxy.__file__).parent / "ca.crt")


def bucket_and_key(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    return parts.netloc, parts.path.lstrip("/")
