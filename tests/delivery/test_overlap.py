"""Several runs at one prefix: what the manifest names is there."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from airflow_provider_sendgrid.delivery.export import Delivery
from airflow_provider_sendgrid.exceptions import (
    DestinationConflictError,
    ExportIncompleteError,
)
from tests.support.delivery_runs import (
    DEADLINE_SECONDS,
    Locked,
    Paused,
    assert_proves,
    csv,
    data,
    deliver,
    exports,
    large_csv,
    manifest,
    named,
    once,
)
from tests.support.memory_storage import MemoryStorage


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
        [replaced] = [name for name in data(storage) if name.startswith("aa")]
        version = storage.objects[replaced].version
        deliver(source("aa", ["/a"], 10), by_another_name(storage), replace=True)
        assert version != storage.objects[replaced].version


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
        [replaced] = [name for name in data(storage) if name.startswith("bb")]
        version = storage.objects[replaced].version
        deliver(source("bb", ["/b"], 20), storage, replace=True)
        assert version != storage.objects[replaced].version
    assert data(storage) == set(named(storage)) == {replaced}
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
