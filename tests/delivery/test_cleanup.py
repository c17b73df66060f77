"""What is deleted: replaced objects, and what killed runs of other exports left."""

from __future__ import annotations

import gzip

import pytest

from airflow_provider_sendgrid.exceptions import (
    DestinationError,
    DestinationRefusedError,
)
from airflow_provider_sendgrid.storage.base import ObjectInfo
from tests.support.delivery_runs import (
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
    """If the order were deleted, the second task would number the files differently and store the wrong one."""
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
    assert "Leftovers of other runs may remain at memory://lake/in/: list: S3 answered InternalError" in caplog.text


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
