"""Several runs at one prefix, files in any order, and a delivery that is stopped: what the manifest names is there."""

from __future__ import annotations

import gzip
import hashlib
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import pytest

from airflow_provider_sendgrid.compression import GZIP_MAGIC
from airflow_provider_sendgrid.delivery.export import ArgumentError, Delivery, DeliveryOptions, deliver_export
from airflow_provider_sendgrid.exceptions import (
    HOPELESS_ERRORS,
    DestinationConflictError,
    DestinationError,
    DestinationRefusedError,
    ExportIncompleteError,
)
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.export import ContactExport
from airflow_provider_sendgrid.exports.sessions import new_download_session
from airflow_provider_sendgrid.files.download import DownloadLimits
from airflow_provider_sendgrid.files.source import ExportFiles
from airflow_provider_sendgrid.stopping import StoppedError, StopSignal
from airflow_provider_sendgrid.storage.base import MIB, ObjectInfo
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


# --- order


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_retry_finds_files_that_are_listed_in_another_order(size):
    make = large_csv if size == "large" else lambda tag: csv(tag, 10)
    files = {"/x/one.csv": make("a"), "/x/two.csv": make("b")}
    rows = sum(content.count(b"\n") - 1 for content in files.values())
    storage = MemoryStorage()
    with exports(files) as source:
        deliver(source("6f", list(files), rows), storage, 0, compression="none")
        delivery = deliver(source("6f", list(files)[::-1], rows), storage, compression="none")
    assert list(files.values()) == [storage.objects[file.name].content for file in delivery.files]
    assert 1 == len(delivery.new_files)
    assert rows == delivery.rows
    assert {*named(storage), "_manifest.json"} == set(storage.objects), "neither receipts nor the order remain"
    assert list(files) == [facts["path"] for facts in manifest(storage)["facts"].values()]


def test_a_cleared_task_numbers_files_by_its_manifest():
    files = {"/x/one.csv": csv("a", 10), "/x/two.csv": csv("b", 20)}
    storage = MemoryStorage()
    with exports(files) as source:
        first = deliver(source("6f", list(files), 30), storage)
        again = deliver(source("6f", list(files)[::-1], 30), storage)
    assert (first.files, 0) == (again.files, again.fetched_bytes)


def test_a_url_that_is_listed_twice_is_one_file():
    files = {"/x/one.csv": csv("a", 10), "/x/two.csv": csv("b", 20)}
    storage = MemoryStorage()
    with exports(files) as source:
        delivery = deliver(source("6f", ["/x/one.csv", "/x/two.csv", "/x/one.csv"], 30), storage)
    assert (2, 30) == (len(delivery.files), delivery.rows)
    assert 2 == manifest(storage)["sendgrid_export"]["file_count"]


def test_mapped_tasks_with_different_orders_deliver_all_files():
    files = {f"/x/{letter}.csv": csv(letter, 10) for letter in "abc"}
    orders = [list("abc"), list("cab"), list("bca")]
    storage = MemoryStorage()
    with exports(files) as source:
        for index, order in enumerate(orders):
            deliver(source("6f", [f"/x/{letter}.csv" for letter in order], 30), storage, index)
        delivery = deliver(source("6f", list(files)[::-1], 30), storage)
    assert 0 == delivery.fetched_bytes
    stored = [gzip.decompress(storage.objects[file.name].content) for file in delivery.files]
    assert list(files.values()) == stored


def test_a_file_whose_path_changed_keeps_its_number():
    files = {"/x/a": csv("a", 10), "/x/b": csv("b", 10), "/x/c": csv("c", 10)}
    storage = MemoryStorage()
    with exports(files) as source:
        deliver(source("6f", ["/x/a", "/x/b"], 20), storage, 0, compression="none")
        delivery = deliver(source("6f", ["/x/c", "/x/a"], 20), storage, compression="none")
    assert [files["/x/a"], files["/x/c"]] == [storage.objects[file.name].content for file in delivery.files]


@pytest.mark.parametrize("path", ["/é/a.csv", "/x/" + "a" * 600, "/a b.csv"])
def test_a_path_that_is_no_plain_text_is_kept_as_a_digest(path):
    from urllib.parse import quote

    storage = MemoryStorage()
    with exports({quote(path): csv("a", 1)}) as source:
        deliver(source("6f", [path if "é" not in path and " " not in path else quote(path)], 1), storage)
    [name] = named(storage)
    key = storage.objects[name].info.metadata["sendgrid-file"]
    assert key.isascii()
    assert len(key) <= 512


def test_an_object_of_an_earlier_version_without_a_path_counts():
    storage = MemoryStorage()
    with exports({"/x/a": csv("a", 10)}) as source:
        deliver(source("6f", ["/x/a"], 10), storage, 0)
        [name] = data(storage)
        kept = storage.objects[name]
        metadata = {key: value for key, value in kept.info.metadata.items() if key != "sendgrid-file"}
        storage.objects[name] = replace(kept, info=replace(kept.info, metadata=metadata))
        assert 0 == deliver(source("6f", ["/x/a"], 10), storage).fetched_bytes


# --- two runs


def test_an_export_that_was_stored_meanwhile_is_not_replaced():
    """The error names the other, and nothing is deleted: another run of that export may have found its file."""
    files = {"/a": csv("a", 10), "/b": csv("b", 20)}
    with exports(files) as source:
        storage = Paused(lambda *_: None)
        storage.before = once("put", "_manifest.json", lambda: deliver(source("aa", ["/a"], 10), storage))
        with pytest.raises(DestinationConflictError, match="the manifest of export aa"):
            deliver(source("bb", ["/b"], 20), storage)
        assert "aa" == manifest(storage)["sendgrid_export"]["id"]
        assert data(storage) == {"bb-00001-of-00001.csv.gz", *named(storage)}
        assert_proves(storage)
        assert 0 == deliver(source("bb", ["/b"], 20), storage, replace=True).fetched_bytes
    assert data(storage) == set(named(storage)) == {"bb-00001-of-00001.csv.gz"}
    assert_proves(storage)


def test_a_deleted_order_is_not_replaced_by_another_one():
    """The second run read that there is no manifest before the first wrote it, and lists the files in another order."""
    files = {"/a": csv("a", 10), "/b": csv("b", 20)}
    with exports(files) as source:
        storage = Paused(lambda *_: None)
        first = once("read", "_receipts/6f.json", lambda: deliver(source("6f", ["/b", "/a"], 30), storage))

        def before(operation: str, name: str) -> None:
            first(operation, name)
            if "_manifest.json" in storage.objects:
                assert_proves(storage)

        storage.before = before
        deliver(source("6f", ["/a", "/b"], 30), storage)
    assert ["/b", "/a"] == [facts["path"] for facts in manifest(storage)["facts"].values()]
    assert_proves(storage)


def test_a_rollback_leaves_what_another_run_stored():
    """That run may write its manifest at any time; the rows disagree with the count of this one alone."""
    with exports({"/a": csv("a", 10)}) as source:
        storage = MemoryStorage()
        deliver(source("6f", ["/a"], 10), storage, write_manifest=False)
        stored = dict(storage.objects)
        with pytest.raises(ExportIncompleteError, match="its files hold 10 rows, SendGrid counted 11"):
            deliver(source("6f", ["/a"], 11), storage)
        assert stored.items() <= storage.objects.items()


def test_replaced_files_are_deleted_after_a_lost_response():
    """The storage's client repeated the request, and the response was that the manifest has changed."""

    class Repeating(MemoryStorage):
        def put(self, name, content, info, over="*"):
            version = super().put(name, content, info, over)
            return super().put(name, content, info, over) if name == "_manifest.json" else version

    files = {"/a": csv("a", 10), "/b": csv("b", 20)}
    with exports(files) as source:
        storage = Repeating()
        deliver(source("aa", ["/a"], 10), storage)
        deliver(source("bb", ["/b"], 20), storage, replace=True)
    assert data(storage) == set(named(storage)) == {"bb-00001-of-00001.csv.gz"}


@pytest.mark.parametrize("size", ["small", "large"])
def test_of_two_exports_with_replace_only_the_last_remains(size):
    """The first lists the second's objects as to be deleted; the second stores them again."""
    make = large_csv if size == "large" else lambda tag: csv(tag, 10)
    files = {"/o": csv("o", 5), "/a": make("a"), "/b": make("b")}
    options = {"replace": True, "compression": "none"}
    with exports(files) as source:
        storage = Paused(lambda *_: None)
        deliver(source("oo", ["/o"], 5), storage)
        storage.before = once("put", "_manifest.json", lambda: deliver(source("aa", ["/a"], None), storage, **options))
        deliver(source("bb", ["/b"], None), storage, **options)
    assert "bb" == manifest(storage)["sendgrid_export"]["id"]
    assert data(storage) == set(named(storage))
    assert_proves(storage)


def by_another_name(storage: MemoryStorage) -> MemoryStorage:
    """The same place, such as a bucket by its access point."""
    other = MemoryStorage("memory://arn:aws:s3:eu-west-1:1:accesspoint/lake/in/")
    other.objects, other.uploads, other.lock = storage.objects, storage.uploads, storage.lock
    return other


@pytest.mark.parametrize("replace", [False, True])
def test_files_of_a_manifest_are_found_at_another_uri(replace):
    """It is neither downloaded again nor overwritten."""
    files = {"/a": large_csv("a"), "/b": csv("b", 20)}
    options = {"compression": "none", "replace": replace}
    with exports(files) as source:
        storage = MemoryStorage()
        deliver(source("aa", ["/a", "/b"], 250_020), storage, **options)
        before, requests = dict(storage.objects), len(source.server.headers_seen)
        source.server.files = {"/a": large_csv("c"), "/b": b"<html>"}
        other = by_another_name(storage)
        deliver(source("aa", ["/a", "/b"], 250_020), other, **options)
        assert requests == len(source.server.headers_seen)
    assert all(before[name] is other.objects[name] for name in named(other))
    assert_proves(other)


def test_replaced_files_are_recognized_at_another_uri():
    files = {"/a": csv("a", 10), "/b": csv("b", 20)}
    with exports(files) as source:
        storage = Locked()  # as if killed before it deleted anything
        deliver(source("aa", ["/a"], 10), storage)
        deliver(source("bb", ["/b"], 20), storage, replace=True)
        [doomed] = [name for name in data(storage) if name.startswith("aa")]
        version = storage.objects[doomed].version
        deliver(source("aa", ["/a"], 10), by_another_name(storage), replace=True)
        assert version != storage.objects[doomed].version


def test_a_manifest_is_withdrawn_if_another_run_deletes_its_file():
    """Between its look and its delete the object was stored again with the same bytes, which have the same ETag.

    Both exports would be gone then: the run that withdraws the other's manifest delivers its own again.
    """

    class Late(MemoryStorage):
        def delete(self, name, version="*"):
            if name.startswith("aa") and not started:
                started.append(name)
                deliver(source("aa", ["/a"], 10), self, replace=True)
                version = "*"
            super().delete(name, version)

    files = {"/a": csv("a", 10), "/b": csv("b", 20)}
    started: list[str] = []
    with exports(files) as source:
        storage = Late()
        deliver(source("aa", ["/a"], 10), storage)
        deliver(source("bb", ["/b"], 20), storage, replace=True)
        assert started
        assert {"bb-00001-of-00001.csv.gz"} == data(storage) == set(named(storage))
        assert_proves(storage)
        deliver(source("aa", ["/a"], 10), storage, replace=True)
    assert data(storage) == set(named(storage))
    assert_proves(storage)


def test_objects_that_a_killed_run_would_delete_are_stored_again():
    """The run wrote its manifest and was killed before it deleted the other's objects."""
    files = {"/a": csv("a", 10), "/b": csv("b", 20)}
    with exports(files) as source:
        storage = Paused(lambda *_: None)
        deliver(source("bb", ["/b"], 20), storage, 0)

        def kill(operation: str, _name: str) -> None:
            if operation == "delete":
                raise KeyboardInterrupt

        storage.before = kill
        with pytest.raises(KeyboardInterrupt):
            deliver(source("aa", ["/a"], 10), storage, replace=True)
        storage.before = lambda *_: None
        [doomed] = [name for name in data(storage) if name.startswith("bb")]
        version = storage.objects[doomed].version
        deliver(source("bb", ["/b"], 20), storage, replace=True)
        assert version != storage.objects[doomed].version
    assert data(storage) == set(named(storage)) == {doomed}
    assert_proves(storage)


def test_replace_deletes_unnamed_files_of_its_own_prefix_only():
    """A prefix without a trailing slash is the beginning of other prefixes."""
    files = {"/a": csv("a", 10), "/b": csv("b", 20)}
    storage, longer = MemoryStorage(), MemoryStorage("memory://lake/in/old")
    with exports(files) as source:
        deliver(source("bb", ["/b"], 20), storage, 0)
        deliver(source("bb", ["/b"], 20), longer, 0)
        others = {f"old{name}": stored for name, stored in longer.objects.items() if not name.startswith("_")}
        storage.objects |= others
        deliver(source("aa", ["/a"], 10), storage, replace=True)
    assert {*named(storage), *others} == data(storage)


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_two_runs_of_one_export_end_with_one_delivery(size, compression):
    make = large_csv if size == "large" else lambda tag: csv(tag, 10)
    files = {"/a": make("a"), "/b": make("b")}
    storage, together = MemoryStorage(), threading.Barrier(2, timeout=DEADLINE_SECONDS)
    with exports(files) as source, ThreadPoolExecutor(2) as threads:

        def run() -> Delivery:
            together.wait()
            return deliver(source("6f", list(files), None), storage, compression=compression)

        runs = [threads.submit(run) for _ in range(2)]
        deliveries = [each.result(DEADLINE_SECONDS) for each in runs]
    assert deliveries[0].files == deliveries[1].files
    assert data(storage) == set(named(storage))
    assert {} == storage.uploads
    assert_proves(storage)


@pytest.mark.parametrize("write_manifest", [True, False])
def test_without_the_permission_to_delete_a_delivery_succeeds(write_manifest, caplog):
    files = {"/a": csv("a", 10), "/b": csv("b", 20)}
    storage = Locked()
    with exports(files) as source:
        deliver(source("aa", ["/a"], 10), storage)
        deliver(source("bb", ["/b", "/a"], 30), storage, replace=True, write_manifest=write_manifest)
    assert_proves(storage)
    warnings = [record for record in caplog.records if "no longer needed" in record.getMessage()]
    assert write_manifest == len(warnings)


def test_without_a_manifest_receipts_remain_for_retries():
    files = {"/a": large_csv("a"), "/b": large_csv("b")}
    storage = MemoryStorage()
    with exports(files) as source:
        for fetches in (True, False):
            delivery = deliver(source("6f", list(files), None), storage, compression="none", write_manifest=False)
            assert fetches == bool(delivery.fetched_bytes)


# --- what a manifest of the same export names


@pytest.mark.parametrize("verify_row_count", [True, False])
@pytest.mark.parametrize("paths", [[], ["/a"], ["/a", "/b", "/c"]])
def test_files_that_the_manifest_names_are_not_dropped(paths, verify_row_count):
    files = {"/a": csv("a", 10), "/b": csv("b", 20), "/c": csv("c", 30)}
    storage = MemoryStorage()
    with exports(files) as source:
        deliver(source("6f", ["/a", "/b"], 30), storage)
        stored = dict(storage.objects)
        count = None if paths else 0
        with pytest.raises(DestinationConflictError, match=r"_manifest.json names 2 files .* set replace=True"):
            deliver(source("6f", paths, count), storage, verify_row_count=verify_row_count)
        assert stored == storage.objects
        deliver(source("6f", paths, count), storage, replace=True, verify_row_count=verify_row_count)
    assert data(storage) == set(named(storage))
    assert len(paths) == len(named(storage))


@pytest.mark.parametrize(("rows", "is_replaced"), [(10, True), (9, False), (None, False)])
def test_another_compression_replaces_only_the_same_rows(rows, is_replaced):
    storage = MemoryStorage()
    with exports({"/a": csv("a", 10)}) as source:
        deliver(source("6f", ["/a"], 10), storage, compression="none")
        source.server.files["/a"] = csv("a", rows or 10)
        retry = {"verify_row_count": rows is not None}
        if is_replaced:
            deliver(source("6f", ["/a"], rows), storage, **retry)
        else:
            with pytest.raises(DestinationConflictError, match="with 10 rows"):
                deliver(source("6f", ["/a"], rows), storage, **retry)
    assert ["6f-00001-of-00001.csv.gz" if is_replaced else "6f-00001-of-00001.csv"] == named(storage)
    assert_proves(storage)


@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("storage_type", [MemoryStorage, Locked])
@pytest.mark.parametrize("options", [{"file_index": 0}, {"write_manifest": False}, {"replace": True}, {}])
def test_a_manifest_written_while_a_file_changed_is_withdrawn(options, storage_type, size):
    """SendGrid compresses again for each download. Only the run that replaces the object counts rows."""
    content = large_csv("a") if size == "large" else csv("a", 10)
    level = 0 if size == "large" else 9
    is_done = []

    def other_run(name):
        if name.startswith("6f") and not is_done:
            is_done.append(True)
            deliver(source("6f", ["/a"], None), storage, verify_row_count=False)
            assert_proves(storage)

    class Slow(storage_type):
        def put(self, name, *rest):
            self.before(name)
            return super().put(name, *rest)

        def begin(self, name, *rest):
            upload = super().begin(name, *rest)
            complete = upload.complete
            upload.complete = lambda: (self.before(name), complete())
            return upload

    storage = Slow()
    storage.before = lambda _: None
    with exports({"/a": gzip.compress(content, level, mtime=1)}) as source:
        deliver(source("6f", ["/a"], None), storage, 0, verify_row_count=False)
        source.server.files["/a"] = gzip.compress(content, level, mtime=2)
        storage.before = other_run
        deliver(source("6f", ["/a"], None), storage, **options)
        assert is_done
        if "_manifest.json" in storage.objects and "entries" in manifest(storage):
            assert_proves(storage)
        deliver(source("6f", ["/a"], None), storage)
    assert_proves(storage)


def test_replace_withdraws_a_manifest_that_it_may_not_delete():
    storage = Locked()
    with exports({"/a": gzip.compress(csv("a", 10), mtime=1)}) as source:
        deliver(source("6f", ["/a"], 10), storage, verify_row_count=False)
        source.server.files["/a"] = gzip.compress(csv("a", 10), mtime=2)
        deliver(source("6f", ["/a"], 10), storage, replace=True)
    assert_proves(storage)


def test_a_withdrawn_manifest_has_no_entries_and_the_same_export():
    """A try that was killed then leaves it; a try without replace continues, too."""
    storage = Locked()
    with exports({"/a": gzip.compress(csv("a", 10), mtime=1)}) as source:
        deliver(source("6f", ["/a"], 10), storage, verify_row_count=False)
        source.server.files["/a"] = gzip.compress(csv("a", 10), mtime=2)
        deliver(source("6f", ["/a"], 10), storage, 0, replace=True)
        assert "entries" not in manifest(storage)
        assert 0 == deliver(source("6f", ["/a"], 10), storage).fetched_bytes
    assert_proves(storage)


def test_the_last_task_deletes_other_objects_of_its_export():
    """Mapped tasks stored two files; then SendGrid lists a third."""
    files = {"/a": csv("a", 10), "/b": csv("b", 20), "/c": csv("c", 30)}
    storage = MemoryStorage()
    with exports(files) as source:
        deliver(source("other", ["/a"], 10), storage, 0)
        for index in (0, 1):
            deliver(source("6f", ["/a", "/b"], 30), storage, index)
        deliver(source("6f", list(files), 60), storage)
    assert {*named(storage), "other-00001-of-00001.csv.gz"} == data(storage)
    assert 3 == len(named(storage))


def test_an_old_object_without_a_path_counts_for_no_file():
    """It does not say which file it is, and SendGrid lists them in another order now."""
    files = {"/a": csv("a", 10), "/b": csv("b", 10)}
    storage = MemoryStorage()
    with exports(files) as source:
        deliver(source("6f", ["/a", "/b"], 20), storage, 0, compression="none")
        [name] = data(storage)
        kept = storage.objects.pop(name)
        storage.objects.clear()
        metadata = {key: value for key, value in kept.info.metadata.items() if key != "sendgrid-file"}
        storage.objects[name] = replace(kept, info=replace(kept.info, metadata=metadata))
        delivery = deliver(source("6f", ["/b", "/a"], 20), storage, compression="none")
    assert [files["/b"], files["/a"]] == [storage.objects[file.name].content for file in delivery.files]


def test_a_changed_manifest_causes_at_most_one_more_download():
    """Another export's manifest is written while a file is downloaded that replaces an older object."""
    files = {"/a": csv("a", 10), "/b": csv("b", 20)}
    storage = MemoryStorage()
    storage.put("6f-00001-of-00001.csv.gz", b"old", ObjectInfo("", {"sendgrid-export-id": "6f"}))
    is_done = []

    def bend(status, headers):
        if not is_done:
            is_done.append(True)
            deliver(source("other", ["/b"], 20), storage)
        return status, headers

    with exports(files, bend=bend) as source:
        deliver(source("6f", ["/a"], 10), storage, replace=True)
        assert 3 == len(source.server.headers_seen)
    assert ["6f-00001-of-00001.csv.gz"] == named(storage)


def test_a_changed_manifest_is_seen_before_the_download_begins():
    storage = Paused(lambda *_: None)
    storage.put("6f-00001-of-00001.csv.gz", b"old", ObjectInfo("", {"sendgrid-export-id": "6f"}))
    files = {"/a": csv("a", 10), "/b": csv("b", 20)}
    with exports(files) as source:
        receipt = "_receipts/6f-00001-of-00001.csv.gz.json"
        storage.before = once("read", receipt, lambda: deliver(source("other", ["/b"], 20), storage))
        deliver(source("6f", ["/a"], 10), storage, replace=True)
        assert 2 == len(source.server.headers_seen)


def test_a_file_of_an_ended_round_is_not_fetched_twice_at_once():
    storage = MemoryStorage()
    storage.put("6f-00001-of-00002.csv.gz", b"old", ObjectInfo("", {"sendgrid-export-id": "6f"}))
    files = {"/a": csv("a", 10), "/b": csv("b", 20), "/c": csv("c", 30)}
    is_done = []

    def bend(status, headers):
        if not is_done:
            is_done.append(True)
            deliver(source("other", ["/c"], 30), storage)
        return status, headers

    with exports(files, bend=bend) as source:
        delivery = deliver(source("6f", ["/a", "/b"], 30), storage, replace=True)
    assert delivery.fetched_bytes <= 2 * len(files["/a"]) + len(files["/b"])
    assert_proves(storage)


# --- rows that disagree


def test_replace_downloads_named_files_again_if_the_rows_differ():
    """A plain file was cut between two rows while SendGrid named no count."""
    storage = MemoryStorage()
    with exports({"/a": csv("a", 6)}) as source:
        deliver(source("6f", ["/a"], None), storage)
        source.server.files["/a"] = csv("a", 10)
        with pytest.raises(ExportIncompleteError, match=r"This task stored nothing\. .*_manifest.json .*replace=True"):
            deliver(source("6f", ["/a"], 10), storage)
        assert 10 == deliver(source("6f", ["/a"], 10), storage, replace=True).rows
    assert_proves(storage)


def test_an_error_about_rows_says_what_could_not_be_deleted():
    with exports({"/a": csv("a", 6), "/b": csv("b", 6)}) as source:
        for storage, what in (
            (Locked(), "remains, .*: memory://lake/in/6f-00001.*, memory://lake/in/6f-00002"),
            (MemoryStorage(), "was deleted"),
        ):
            with pytest.raises(ExportIncompleteError, match=f"What this task stored {what}") as raised:
                deliver(source("6f", ["/a", "/b"], 10), storage)
            assert not isinstance(raised.value, HOPELESS_ERRORS)


@pytest.mark.parametrize("content", [csv("a", 6), large_csv("a")], ids=["small", "large"])
@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_the_only_file_is_not_published_if_its_rows_disagree(content, compression):
    """It is never published, so nothing has to be deleted."""
    storage = Locked()
    is_refused = pytest.raises(ExportIncompleteError, match=r"SendGrid counted 10 contacts\. This task stored nothing")
    with exports({"/a": content}) as source, is_refused:
        deliver(source("6f", ["/a"], 10), storage, compression=compression)
    assert {} == storage.objects
    assert {} == storage.uploads


@pytest.mark.parametrize("options", [{"verify_row_count": False}, {"file_index": 0}, {}])
def test_an_empty_file_of_an_export_with_contacts_is_refused(options):
    """A proxy answers 200 without a body; the rows need not be compared to notice that."""
    storage = MemoryStorage()
    with exports({"/a": csv("a", 6)}) as source:
        deliver(source("6f", ["/a"], 6), storage)
        before = dict(storage.objects)
        source.server.files["/a"] = b""
        for export_id in ("6f", "other"):
            again = {"compression": "none", "replace": True}
            with pytest.raises(ExportIncompleteError, match="The content is empty, but SendGrid counted 6 contacts"):
                deliver(source(export_id, ["/a"], 6), storage, **again, **options)
        assert before == storage.objects
        empty = MemoryStorage()
        deliver(source("6f", ["/a"], 0), empty, **options)
        assert 1 == len(data(empty))


def test_a_mapped_task_compares_the_rows_of_an_only_file():
    storage = MemoryStorage()
    with exports({"/a": csv("a", 6)}) as source:
        with pytest.raises(ExportIncompleteError, match="its files hold 6 rows, SendGrid counted 7"):
            deliver(source("6f", ["/a"], 7), storage, file_index=0)
        assert set() == data(storage)
        assert 6 == deliver(source("6f", ["/a"], 6), storage, file_index=0).rows
    assert {"6f-00001-of-00001.csv.gz"} == data(storage)


@pytest.mark.parametrize("nth", range(2, 6))
def test_wrong_rows_are_reported_without_a_readable_manifest(nth):
    """Whichever read fails after the comparison, the error names what remains."""
    reads = []

    def fail(operation: str, name: str) -> None:
        if (operation, name) == ("read", "_manifest.json") and len(data(storage)) == 2:
            reads.append(name)
            if len(reads) >= nth:  # the first one comes before the rows are compared
                raise DestinationError("read of _manifest.json: SlowDown. Run the task again.")

    storage = Paused(fail)
    is_refused = pytest.raises(ExportIncompleteError, match="its files hold 12 rows, SendGrid counted 10")
    with exports({"/a": csv("a", 6), "/b": csv("b", 6)}) as source, is_refused as raised:
        deliver(source("6f", ["/a", "/b"], 10), storage)
    for name in data(storage):
        assert storage.uri(name) in str(raised.value)


@pytest.mark.parametrize("options", [{"verify_row_count": False}, {}], ids=["not counted", "counted"])
def test_a_manifest_is_withdrawn_if_a_rollback_deletes_its_file(options):
    """The other run found the files, and wrote its manifest after the refused run had looked for one."""
    files = {"/a": csv("a", 6), "/b": csv("b", 6)}
    with exports(files) as source:
        storage = Paused(lambda *_: None)
        others = once(
            "delete", "6f-00001-of-00002.csv.gz", lambda: deliver(source("6f", list(files), 12), storage, **options)
        )
        storage.before = others
        with pytest.raises(ExportIncompleteError, match="its files hold 12 rows, SendGrid counted 10"):
            deliver(source("6f", list(files), 10), storage)
    assert "_manifest.json" not in storage.objects
    assert set() == data(storage)


@pytest.mark.parametrize("is_counted", [True, False])
@pytest.mark.parametrize("change", ["made again", "cut"])
def test_with_replace_a_wrong_count_loses_no_earlier_delivery(is_counted, change):
    """SendGrid compresses again for each download, or a plain file is cut between two rows."""
    plain = {"/a": csv("a", 6), "/b": csv("b", 6)}
    storage = MemoryStorage()
    with exports({path: gzip.compress(text, mtime=1) for path, text in plain.items()}) as source:
        deliver(source("6f", list(plain), 12), storage, verify_row_count=is_counted)
        before = dict(storage.objects)
        made_again = {path: gzip.compress(text, mtime=2) for path, text in plain.items()}
        source.server.files = made_again if change == "made again" else {**plain, "/b": csv("b", 5)}
        with pytest.raises(ExportIncompleteError, match=r"SendGrid counted 13 contacts\. This task stored nothing"):
            deliver(source("6f", list(plain), 13), storage, replace=True)
        assert before.items() <= storage.objects.items()
        source.server.files = made_again
        deliver(source("6f", list(plain), 12), storage, replace=True)
    assert_proves(storage)
    assert data(storage) == set(named(storage))


def test_files_are_replaced_only_by_the_rows_that_were_counted():
    """All rows agreed; then a plain file is cut between two rows when it is downloaded to be stored."""
    files, cut = {"/a": csv("a", 6), "/b": csv("b", 6)}, csv("b", 5)
    storage, requests = MemoryStorage(), []

    def bend(status, headers):
        requests.append(headers)
        if len(requests) == 3:  # both were counted, and the first is stored now
            source.server.files["/b"] = cut
        return status, headers

    with exports({path: gzip.compress(text, mtime=1) for path, text in files.items()}) as source:
        deliver(source("6f", list(files), 12), storage, verify_row_count=False)
    before = dict(storage.objects)
    is_refused = pytest.raises(ExportIncompleteError, match="It has 6 records, but had 7 in the download before")
    with exports(dict(files), bend=bend) as source, is_refused:
        deliver(source("6f", list(files), 12), storage, replace=True, max_concurrency=1)
    assert before["6f-00002-of-00002.csv.gz"] is storage.objects["6f-00002-of-00002.csv.gz"]


def test_a_rollback_ignores_the_manifest_of_another_export():
    """It was written while the files were stored, where `replace` is off."""
    other = json.dumps({"entries": [], "sendgrid_export": {"id": "other"}}).encode()
    storage = Paused(
        once("put", "6f-00002-of-00002.csv.gz", lambda: storage.put("_manifest.json", other, ObjectInfo("", {})))
    )
    is_refused = pytest.raises(ExportIncompleteError, match="What this task stored was deleted")
    with exports({"/a": csv("a", 6), "/b": csv("b", 6)}) as source, is_refused:
        deliver(source("6f", ["/a", "/b"], 10), storage)
    assert set() == data(storage)


# --- odd texts


@pytest.mark.parametrize("number", ["1e999", "-1e999", "NaN", "[]", '"x"'])
def test_a_manifest_with_odd_numbers_is_replaced(number):
    storage = MemoryStorage()
    facts = f'{{"x": {{"size": {number}, "sha256": "", "records": {number}}}}}'
    content = f'{{"sendgrid_export": {{"id": "6f"}}, "entries": [], "facts": {facts}}}'
    storage.put("_manifest.json", content.encode(), ObjectInfo("", {}))
    with exports({"/a": csv("a", 10)}) as source:
        deliver(source("6f", ["/a"], 10), storage)
    assert_proves(storage)


@pytest.mark.parametrize("url", ["https://[bad/x", "https://a\u2100b/x", "https://a/\ud800", "https://a:x/b"])
def test_an_unreadable_url_is_reported_before_any_download(url):
    storage = MemoryStorage()
    with exports({"/a": csv("a", 10)}) as source:
        given = source("6f", ["/a"], 10)
        export = replace(given.export(), urls=(given.export().urls[0], url))
        with pytest.raises(ExportIncompleteError, match="the URL of file 2 of 2 cannot be parsed"):
            deliver(ExportFiles(lambda: export, given.session, allow_http=True), storage)
    assert {} == storage.objects


@pytest.mark.parametrize(
    ("one", "other", "are_same"),
    [
        ("https://a/x?X-Amz-Signature=1&X-Amz-Date=1", "https://a/x?X-Amz-Signature=2&X-Amz-Date=2", True),
        ("https://a/x?Signature=1&Expires=1&Key-Pair-Id=1", "https://A/x?Signature=2", True),
        ("https://a/x?sig=1&se=1", "https://a/x?se=2&sig=2", True),
        ("https://a/x?X-Goog-Signature=1", "https://a/x", True),
        ("https://a/x?file=1", "https://a/x?file=2", False),
        ("https://a/x?file=", "https://a/x", False),
        ("https://a/x", "https://b/x", False),
        ("https://a/x", "https://a:8443/x", False),
    ],
)
def test_urls_that_differ_only_in_the_signature_are_one_file(one, other, are_same):
    export = ContactExport("6f", "ready", urls=(one, other), contact_count=10)
    source = ExportFiles(lambda: export, session=None)
    if are_same:
        assert one == source.url("/x")
        return
    with pytest.raises(ExportIncompleteError, match="two different URLs have the same path") as raised:
        source.url("/x")
    assert "=1" not in str(raised.value)
    with pytest.raises(ExportIncompleteError, match="two different URLs have the same path"):
        deliver(source, MemoryStorage())


# --- verified


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("/x.csv.gzip", b'{"message": "Service Unavailable"}'),
        ("/x.json.gzip", b"upstream connect error"),
        ("/x.json", b'[{"email": "a@b.c"}]'),
    ],
)
@pytest.mark.parametrize("is_gzip", [True, False])
def test_content_of_another_type_than_the_name_is_refused(path, content, is_gzip):
    storage = MemoryStorage()
    sent = gzip.compress(content) if is_gzip else content
    with exports({path: sent}) as source, pytest.raises(ExportIncompleteError, match=r"place of the (CSV|JSON) file"):
        deliver(source("6f", [path], None), storage, verify_row_count=False)
    assert {} == storage.objects


@pytest.mark.parametrize("content", [gzip.compress(csv("a", 3)), b"\0\0\0", csv("a", 3).decode().encode("utf-16")])
@pytest.mark.parametrize("is_gzip", [True, False])
def test_binary_data_instead_of_text_is_refused(content, is_gzip):
    """For example by a proxy that compresses gzip again."""
    sent = gzip.compress(content) if is_gzip else content
    if not is_gzip and content.startswith(GZIP_MAGIC):
        pytest.skip("this is what SendGrid sends")
    storage = MemoryStorage()
    with exports({"/a.csv": sent}) as source, pytest.raises(ExportIncompleteError, match="binary data"):
        deliver(source("6f", ["/a.csv"], None), storage, verify_row_count=False)
    assert {} == storage.objects


def test_a_file_index_of_an_export_without_files_says_so():
    with (
        exports({}) as source,
        pytest.raises(ArgumentError, match=r"file_index 0 of .*: it has no files"),
    ):
        deliver(source("6f", [], 0), MemoryStorage(), 0)


@pytest.mark.parametrize("verify_row_count", [True, False])
@pytest.mark.parametrize("compression", ["gzip", "none"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "followed"])
def test_gzip_is_verified_even_if_rows_are_not_counted(damage, compression, verify_row_count):
    good = gzip.compress(csv("a", 5_000))
    at = len(good) // 2
    bad = {
        "truncated": good[:-4],
        "flipped": good[:at] + bytes([good[at] ^ 255]) + good[at + 1 :],
        "followed": good + b"<html>502 Bad Gateway</html>",
    }[damage]
    storage = MemoryStorage()
    with exports({"/a": bad}) as source, pytest.raises(ExportIncompleteError):
        deliver(source("6f", ["/a"], 5_000), storage, compression=compression, verify_row_count=verify_row_count)
    assert {} == storage.objects


# --- rows


def test_rows_of_one_later_file_are_known_only_if_the_header_is():
    files = {"/a": csv("a", 10), "/b": csv("b", 20), "/c": csv("c", 30).partition(b"\n")[2]}
    storage = MemoryStorage()
    with exports(files) as source:
        rows = [deliver(source("6f", list(files), 60), storage, index).files[0].rows for index in (1, 0, 1, 2)]
    assert [20, 10, 20, 30] == rows


def test_rows_without_a_header_are_known_once_the_header_is():
    files = {"/a": csv("a", 10), "/b": csv("b", 20).partition(b"\n")[2]}
    storage = MemoryStorage()
    with exports(files) as source:
        rows = [deliver(source("6f", list(files), 30), storage, index).files[0].rows for index in (1, 0, 1)]
    assert [None, 10, 20] == rows


def test_the_file_with_the_header_may_be_listed_anywhere():
    """The sum would be right in any case."""
    files = {"/b": csv("b", 20).partition(b"\n")[2], "/a": csv("a", 10)}
    storage = MemoryStorage()
    with exports(files) as source:
        assert [20, 10] == [file.rows for file in deliver(source("6f", list(files), 30), storage).files]
        rows = [deliver(source("6f", list(files), 30), MemoryStorage(), index).files[0].rows for index in (0, 1)]
    assert [20, 10] == [entry["meta"]["record_count"] for entry in manifest(storage)["entries"]]
    assert [None, 10] == rows


def test_the_mark_of_a_header_survives_in_receipts_and_metadata():
    """A retry finds them, and downloads nothing."""
    files = {"/b": large_csv("b").partition(b"\n")[2], "/a": csv("a", 10)}
    storage = MemoryStorage()
    with exports(files) as source:
        for index in (0, 1):
            deliver(source("6f", list(files), 250_010), storage, index)
        delivery = deliver(source("6f", list(files), 250_010), storage)
    assert ([250_000, 10], 0) == ([file.rows for file in delivery.files], delivery.fetched_bytes)


def test_the_header_is_the_first_record_of_the_first_file():
    files = {"/a": b"", "/b": csv("b", 20), "/c": csv("c", 30)}
    with exports(files) as source:
        assert [0, 20, 30] == [file.rows for file in deliver(source("6f", list(files), 50), MemoryStorage()).files]


def test_json_is_detected_whatever_its_path_and_found_by_a_retry():
    files = {"/a": gzip.compress(b'\n \n{"email": "a@b.c"}\n'), "/b": b'\xef\xbb\xbf{"email": "a@b.c"}\n'}
    storage = MemoryStorage()
    with exports(files) as source:
        delivery = deliver(source("6f", list(files), 2), storage)
        assert ["json.gz"] * 2 == [file.name.partition(".")[2] for file in delivery.files]
        assert 0 == deliver(source("6f", list(files), 2), storage).fetched_bytes


# --- what killed runs of other exports leave


class Killed(BaseException):
    """The process ended here."""


def kill_at(storage: Paused, operation: str, name: str):
    def kill() -> None:
        raise Killed

    storage.before = once(operation, name, kill)


FILES = {"/a": csv("a", 10), "/b": large_csv("b"), "/c": csv("c", 20)}
ROWS = 250_030


def leave_behind(source, storage, at: str, **options) -> None:
    """A run of export old is killed right before it puts this; its thread ends no upload."""
    kill_at(storage, "put", at)
    with pytest.raises((Killed, RuntimeError, DestinationError)):
        deliver(source("old", list(FILES), ROWS), storage, compression="none", **options)
    storage.before = lambda *_: None
    storage.begin("old-00002-of-00003.csv", ObjectInfo("", {}))
    assert storage.uploads


@pytest.mark.parametrize("write_manifest", [True, False])
@pytest.mark.parametrize("at", ["old-00002-of-00003.csv", "old-00003-of-00003.csv", "_manifest.json"])
def test_replace_cleans_up_after_killed_runs_of_other_exports(at, write_manifest):
    storage = Paused(lambda *_: None)
    with exports(FILES) as source:
        if write_manifest or at != "_manifest.json":
            leave_behind(source, storage, at, write_manifest=write_manifest)
        else:
            deliver(source("old", list(FILES), ROWS), storage, compression="none", write_manifest=False)
            storage.begin("old-00001-of-00003.csv", ObjectInfo("", {}))
        assert "_receipts/old.json" in storage.objects
        deliver(source("new", ["/a", "/c"], 30), storage, replace=True)
    assert {*named(storage), "_manifest.json", "_receipts/old.json"} == set(storage.objects)
    assert {} == storage.uploads
    assert_proves(storage)


def test_mapped_tasks_keep_their_order_despite_a_replacement():
    """Without the order that the first task pinned, the second would store another file instead of its own."""
    files = {"/a": csv("a", 10), "/b": csv("b", 20), "/c": csv("c", 30)}
    storage = Paused(lambda *_: None)
    with exports(files) as source:
        deliver(source("old", ["/a", "/b"], 30), storage, file_index=0)
        deliver(source("new", ["/c"], 30), storage, replace=True)
        for index in (0, 1):
            deliver(source("old", ["/b", "/a"], 30), storage, file_index=index, replace=True)
    for number, path in ((1, "/a"), (2, "/b")):
        stored = storage.objects[f"old-0000{number}-of-00002.csv.gz"].content
        assert files[path] == gzip.decompress(stored)


def test_a_receipt_without_its_object_is_deleted_with_a_replace():
    """The run was killed between the two."""
    storage = MemoryStorage()
    storage.put("_receipts/old-00002-of-00003.csv.gz.json", b"{}", ObjectInfo("", {}))
    storage.begin("old-00003-of-00003.csv.gz", ObjectInfo("", {}))
    with exports(FILES) as source:
        deliver(source("new", ["/a"], 10), storage, replace=True)
    assert {*named(storage), "_manifest.json"} == set(storage.objects)
    assert {} == storage.uploads


def test_a_replace_leaves_what_is_not_surely_left_over():
    """Mapped tasks that still run may need an order; other names are not of this provider."""
    storage = MemoryStorage()
    kept = {
        "_receipts/other.json",
        "_receipts/notes.txt",
        "_receipts/old-1-of-1.csv.json",
        "_receipts/old-00001-of-00001.csv.txt",
        "_receipts/deeper/old-00001-of-00001.csv.json",
        "_receipts/new-00001-of-00001.csv.json",
        "_receipts/kept-00001-of-00001.csv.json",
        "kept-00001-of-00001.csv",  # by its metadata it is another's
    }
    for name in kept:
        storage.put(name, b"{}", ObjectInfo("", {}))
    storage.begin("other-00001-of-00001.csv", ObjectInfo("", {}))
    storage.begin("kept-00001-of-00001.csv", ObjectInfo("", {}))
    with exports(FILES) as source:
        deliver(source("new", ["/a"], 10), storage, replace=True)
    assert kept == set(storage.objects) - {*named(storage), "_manifest.json"}
    assert 2 == len(storage.uploads)


def test_without_replace_receipts_and_uploads_of_others_remain():
    storage = MemoryStorage()
    storage.put("_receipts/old-00001-of-00001.csv.json", b"{}", ObjectInfo("", {}))
    storage.begin("old-00001-of-00001.csv", ObjectInfo("", {}))
    with exports(FILES) as source:
        deliver(source("new", ["/a"], 10), storage)
    assert "_receipts/old-00001-of-00001.csv.json" in storage.objects
    assert 1 == len(storage.uploads)


@pytest.mark.parametrize("operation", ["receipt", "complete"])
def test_a_run_survives_the_cleanup_of_its_upload_and_receipts(operation):
    """It downloads that file once more, and its manifest describes what is stored."""

    class Overtaken(Paused):
        def begin(self, name, info, over="*"):
            upload = super().begin(name, info, over)
            original = upload.complete

            def complete() -> None:
                self.before("complete", name)
                original()

            upload.complete = complete
            return upload

    storage = Overtaken(lambda *_: None)
    name = "old-00002-of-00003.csv"
    at = ("complete", name) if operation == "complete" else ("put", f"_receipts/{name}.json")
    with exports(FILES) as source:
        storage.before = once(*at, lambda: deliver(source("new", ["/a"], 10), storage, replace=True))
        deliver(source("old", list(FILES), ROWS), storage, compression="none", replace=True)
        requests = len(source.server.headers_seen)
    assert {*named(storage), "_manifest.json"} == set(storage.objects)
    assert "old" == manifest(storage)["sendgrid_export"]["id"]
    assert {} == storage.uploads
    assert_proves(storage)
    assert requests <= 1 + 2 * len(FILES) + 1, "each file of the run that was overtaken at most twice, and one more"


def test_a_failed_listing_of_leftovers_fails_no_delivery(caplog):
    class Failing(MemoryStorage):
        def versions(self, beginning=""):
            if beginning == "_receipts/":
                raise DestinationError("list: S3 answered InternalError.")
            return super().versions(beginning)

    storage = Failing()
    with exports(FILES) as source:
        deliver(source("new", ["/a"], 10), storage, replace=True)
    assert_proves(storage)
    assert "left may remain at memory://lake/in/: list: S3 answered InternalError" in caplog.text


# --- requests


def test_a_large_file_is_requested_once():
    files = {"/a": large_csv("a"), "/b": large_csv("b"), "/c": csv("c", 1)}
    with exports(files) as source:
        deliver(source("6f", list(files), None), MemoryStorage(), compression="gzip", max_concurrency=1)
        assert 3 == len(source.server.headers_seen)


# --- stopped


def test_a_stopped_delivery_ends_soon_and_leaves_no_upload():
    """Even if the storage does not respond: a thread hangs in a request for a minute."""
    hang, is_writing = threading.Event(), threading.Event()
    stop = StopSignal()

    class Hanging(MemoryStorage):
        def begin(self, name, info, over="*"):
            upload = super().begin(name, info, over)

            def write_part(*_) -> None:
                is_writing.set()
                hang.wait(DEADLINE_SECONDS)

            upload.write_part = write_part
            return upload

    storage = Hanging()
    with exports({"/a": large_csv("a")}, stop) as source, ThreadPoolExecutor(1) as threads:
        running = threads.submit(deliver, source("6f", ["/a"], None), storage, None, stop, compression="none")
        assert is_writing.wait(DEADLINE_SECONDS)
        assert 1 == len(storage.uploads)
        began = time.monotonic()
        stop.set()
        with pytest.raises(StoppedError):
            running.result(DEADLINE_SECONDS)
        assert time.monotonic() - began < 5
        assert {} == storage.uploads
        hang.set()


def test_a_thread_that_waits_for_memory_is_stopped():
    from airflow_provider_sendgrid.storage.buffers import PartBuffers

    stop = StopSignal()
    buffers = PartBuffers(10, stop)
    buffers.acquire(10)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(buffers.acquire, 10)
        stop.set()
        with pytest.raises(StoppedError):
            waiting.result(DEADLINE_SECONDS)


def test_objects_that_cannot_be_deleted_now_fail_no_delivery(caplog):
    """Nothing depends on them; the manifest is written already."""

    class Failing(MemoryStorage):
        def delete(self, name, version="*"):
            raise DestinationError(f"delete of {name}: S3 answered InternalError.")

    with exports({"/a": large_csv("a"), "/b": csv("b", 5)}) as source:
        storage = Failing()
        deliver(source("6f", ["/a", "/b"], 250_005), storage)
    assert_proves(storage)
    assert 1 == caplog.text.count("no longer needed remain")


def test_an_object_on_hold_does_not_prevent_other_deletes():
    class Holding(MemoryStorage):
        def delete(self, name, version="*"):
            if name == "old-00001-of-00003.csv.gz":
                raise DestinationRefusedError(f"delete of {name}: the object is on hold.")
            super().delete(name, version)

    storage = Holding()
    with exports({f"/{letter}": csv(letter, 5) for letter in "abc"}) as source:
        deliver(source("old", ["/a", "/b", "/c"], 15), storage)
        deliver(source("6f", ["/a"], 5), storage, replace=True)
    assert {"old-00001-of-00003.csv.gz", *named(storage)} == data(storage)


def test_a_hanging_request_at_the_end_does_not_delay_a_stop():
    """Threads look at the objects once more when the manifest is written."""
    stop, is_released = StopSignal(), threading.Event()

    class Hanging(MemoryStorage):
        def head(self, name):
            if "_manifest.json" in self.objects and name.startswith("6f"):
                stop.set()
                is_released.wait(DEADLINE_SECONDS)
            return super().head(name)

    began = time.monotonic()
    with exports({"/a": csv("a", 5)}, stop) as source, pytest.raises(StoppedError):
        deliver(source("6f", ["/a"], 5), Hanging(), stop=stop)
    is_released.set()
    assert time.monotonic() - began < DEADLINE_SECONDS / 2


def test_a_delivery_fails_until_what_it_replaces_is_deleted():
    """A task that loads the whole prefix would load both exports."""

    class Failing(MemoryStorage):
        fails = False

        def delete(self, name, version="*"):
            if self.fails and "_receipts" not in name:
                raise DestinationError(f"delete of {name}: S3 answered InternalError.")
            super().delete(name, version)

    storage = Failing()
    with exports({"/a": csv("a", 5)}) as source:
        deliver(source("old", ["/a"], 5), storage)
        storage.fails = True
        with pytest.raises(DestinationError, match=r"remain, such as .*old-00001.*Run the task again to delete them"):
            deliver(source("6f", ["/a"], 5), storage, replace=True)
        assert_proves(storage)
        storage.fails = False
        deliver(source("6f", ["/a"], 5), storage, replace=True)
    assert_proves(storage)
    assert not [name for name in storage.objects if name.startswith("old")]
