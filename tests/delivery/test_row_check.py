"""Rows that disagree with SendGrid's count, and which record is the header."""

from __future__ import annotations

import gzip
import json

import pytest

from airflow_provider_sendgrid.exceptions import (
    NON_RETRYABLE_ERRORS,
    DestinationError,
    ExportIncompleteError,
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
            (Locked(), "remains because .*: memory://lake/in/6f-00001.*, memory://lake/in/6f-00002"),
            (MemoryStorage(), "was deleted"),
        ):
            with pytest.raises(ExportIncompleteError, match=f"What this task stored {what}") as raised:
                deliver(source("6f", ["/a", "/b"], 10), storage)
            assert not isinstance(raised.value, NON_RETRYABLE_ERRORS)


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
    is_refused = pytest.raises(ExportIncompleteError, match="It has 6 records, but had 7 in the previous download")
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
