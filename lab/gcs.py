"""Google Cloud Storage on this machine: PyPI's gcp-storage-emulator, in a process of its own or in this one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lab.ports import LOCALHOST, free_port


@contextmanager
def gcs_server() -> Iterator[str]:
    """In this process, in memory; its URL, for the variable STORAGE_EMULATOR_HOST."""
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


def gcs_client(url: str) -> Any:
    """A client of the server; it needs no credentials."""
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    return storage.Client(project="test", credentials=AnonymousCredentials(), client_options={"api_endpoint": url})


CONNECTION = {"conn_type": "google_cloud_platform", "extra": {"is_anonymous": True, "project": "test"}}
