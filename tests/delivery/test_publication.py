"""What a delivery does with the files that a manifest of the same export names."""

from __future__ import annotations

import gzip
from dataclasses import replace

import pytest

from airflow_provider_sendgrid.exceptions import (
    DestinationConflictError,
)
from airflow_provider_sendgrid.storage.base import ObjectInfo
from tests.support.delivery_runs import (
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
