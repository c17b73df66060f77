"""Deliveries of small exports from a file server in this process to a storage in memory."""

from __future__ import annotations

import hashlib
import json
from contextlib import contextmanager

from airflow_provider_sendgrid.delivery.export import Delivery, DeliveryOptions, deliver_export
from airflow_provider_sendgrid.exceptions import (
    DestinationRefusedError,
)
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.export import ContactExport
from airflow_provider_sendgrid.exports.sessions import new_download_session
from airflow_provider_sendgrid.files.download import DownloadLimits
from airflow_provider_sendgrid.files.source import ExportFiles
from airflow_provider_sendgrid.stopping import StopSignal
from airflow_provider_sendgrid.storage.base import MIB
from tests.support.file_server import FileServer
from tests.support.memory_storage import MemoryStorage

DEADLINE_SECONDS = 30.0
PART = 5 * MIB
LIMITS = DownloadLimits(jitter=lambda: 0.0, first_wait_seconds=0.0)


def csv(tag: str, rows: int) -> bytes:
    return b'"EMAIL"\n' + b"".join(b'"%s%d@example.com"\n' % (tag.encode(), number) for number in range(rows))


def large_csv(tag: str) -> bytes:
    """More than one part, also as gzip."""
    return csv(tag, 250_000)


@contextmanager
def exports(files: dict[str, bytes], stop: StopSignal | None = None, bend=None):
    """Makes sources of exports of these files: ``source(id, paths, count)``."""
    with (
        FileServer(files, *([bend] if bend else [])) as server,
        new_download_session(SendGridConnection("SG.key")) as session,
    ):

        def source(export_id: str, paths: list[str], count: int | None) -> ExportFiles:
            export = ContactExport(
                export_id, "ready", urls=tuple(f"{server.url}{path}?X=1" for path in paths), contact_count=count
            )
            return ExportFiles(lambda: export, session, allow_http=True, limits=LIMITS, stop=stop)

        source.server = server
        yield source


def deliver(source: ExportFiles, storage, file_index=None, stop=None, **options) -> Delivery:
    given = {"part_bytes": PART, "max_concurrency": 3} | options
    return deliver_export(source, storage, DeliveryOptions(**given), file_index, stop)


def manifest(storage: MemoryStorage) -> dict:
    return json.loads(storage.objects["_manifest.json"].content)


def named(storage: MemoryStorage) -> list[str]:
    return [entry["url"].removeprefix(storage.prefix) for entry in manifest(storage)["entries"]]


def assert_proves(storage: MemoryStorage) -> None:
    """All objects that the manifest names exist, with its sizes and SHA-256."""
    for entry in manifest(storage)["entries"]:
        content = storage.objects[entry["url"].removeprefix(storage.prefix)].content
        assert entry["meta"]["content_length"] == len(content)
        assert entry["meta"]["sha256"] == hashlib.sha256(content).hexdigest()


def data(storage: MemoryStorage) -> set[str]:
    return {name for name in storage.objects if not name.startswith("_")}


class Locked(MemoryStorage):
    """Its credentials may not delete objects."""

    def delete(self, name, version="*"):
        raise DestinationRefusedError(f"delete of {name}: AccessDenied.")


class Paused(MemoryStorage):
    """Calls `before` with the operation and the name before each change, and before an object is read."""

    def __init__(self, before) -> None:
        super().__init__()
        self.before = before

    def put(self, name, content, info, over="*"):
        self.before("put", name)
        return super().put(name, content, info, over)

    def delete(self, name, version="*"):
        self.before("delete", name)
        super().delete(name, version)

    def read(self, name):
        self.before("read", name)
        return super().read(name)


def once(operation: str, name: str, act):
    """Calls `act` before the first such operation."""
    is_done = []

    def before(each: str, other: str) -> None:
        if (each, other) == (operation, name) and not is_done:
            is_done.append(True)
            act()

    return before
