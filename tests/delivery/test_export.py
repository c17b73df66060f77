"""Every file of one export fetched, checked, stored, written down: SendGrid's emulator to a real S3 protocol."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import re
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_sendgrid.delivery.export import Delivery, DeliveryOptions, deliver_export
from airflow_provider_sendgrid.emulator import Emulator, Fault, Settings
from airflow_provider_sendgrid.exceptions import (
    DestinationConflictError,
    ExportExpiredError,
    ExportFailedError,
    ExportIncompleteError,
)
from airflow_provider_sendgrid.exports.connection import SendGridConnection
from airflow_provider_sendgrid.exports.export import ContactExport
from airflow_provider_sendgrid.exports.sessions import new_download_session
from airflow_provider_sendgrid.files.rows import record_counter
from airflow_provider_sendgrid.files.source import ExportFiles
from airflow_provider_sendgrid.storage.base import MIB
from airflow_provider_sendgrid.storage.s3 import S3Storage
from tests.support.file_server import FileServer
from tests.support.s3_client import with_own_client
from tests.support.sendgrid_source import LIMITS, SendGrid

REPOSITORY = Path(__file__).parents[2]
DEADLINE_SECONDS = 30.0
PART = 5 * MIB
LARGE = 25_000  # contacts in a plain file of some 6 MB: more than one part
OPTIONS = {"part_bytes": PART, "max_concurrency": 4}
LARGE_FILES = Settings(encoding="plain", contacts_per_file=LARGE)


@pytest.fixture
def sendgrid():
    with Emulator(Settings(contacts_per_file=100), populate=False) as emulator:
        yield SendGrid(emulator)


@pytest.fixture(scope="module")
def large_files():
    """An emulator whose exports have files of several parts; started once, because the contacts are the same."""
    with Emulator(LARGE_FILES, populate=False) as emulator:
        yield emulator, emulator.add_list("Many", contacts=5 * LARGE)


@pytest.fixture
def large(large_files):
    """Five large files, and the id of their export."""
    emulator, list_id = large_files
    emulator._log.clear()
    export_id = emulator.start_export([list_id])
    emulator.export_files(export_id)
    yield SendGrid(emulator), export_id
    emulator.clear_faults()


def storage_of(s3, **extra_args) -> S3Storage:
    return S3Storage(s3.client, s3.bucket, "in/", extra_args)


def deliver(sendgrid: SendGrid, s3, export_id: str, file_index: int | None = None, **options) -> Delivery:
    with sendgrid.source(export_id) as source:
        return deliver_export(source, storage_of(s3), DeliveryOptions(**OPTIONS | options), file_index)


def names(export_id: str, count: int, ending: str = ".csv.gz") -> list[str]:
    return [f"in/{export_id}-{number:05}-of-{count:05}{ending}" for number in range(1, count + 1)]


def truth(sendgrid: SendGrid, export_id: str) -> list[bytes]:
    return [file.read() for file in sendgrid.emulator.export_files(export_id)]


def manifest(s3) -> dict:
    return json.loads(s3.read("in/_manifest.json"))


def files_asked_for(sendgrid: SendGrid) -> set[int]:
    """The numbers of the files that were requested."""
    paths = [request.path for request in sendgrid.emulator.requests(listener="files")]
    return {int(re.search(r"-(\d{5})\.", path)[1]) for path in paths}


def objects(s3) -> list[str]:
    """All keys but those of receipts and pinned orders, which only retries read."""
    return [key for key in s3.stored_keys() if "_receipts" not in key]


def assert_nothing_stored(s3) -> None:
    assert ([], []) == (objects(s3), s3.open_uploads())


@contextmanager
def calls_to(s3):
    """The calls of a delivery to S3, as (operation, key)."""
    calls = []

    def note(params, model, **_) -> None:
        calls.append((model.name, params.get("Key")))

    s3.client.meta.events.register("provide-client-params.s3", note)
    yield calls


@contextmanager
def source_with(content: bytes, count: int | None, path: str = "/file.csv.gzip", export_id: str = "6f"):
    """An export of one file with this content."""
    with FileServer({path: content}) as server, new_download_session(SendGridConnection("SG.key")) as session:
        export = ContactExport(export_id, "ready", urls=(server.url + path,), contact_count=count)
        yield ExportFiles(lambda: export, session, allow_http=True)


# --- complete


def test_every_file_arrives_and_is_written_down(sendgrid, s3):
    """Objects are named by SendGrid's order; gzip is stored unchanged; metadata and manifest describe it."""
    export_id = sendgrid.export(250)
    delivery = deliver(sendgrid, s3, export_id)
    expected = names(export_id, 3)
    assert {*expected, "in/_manifest.json"} == set(s3.stored_keys())
    assert [f"s3://{s3.bucket}/{name}" for name in expected] == [file.uri for file in delivery.files]
    for index, name in enumerate(expected):
        stored, head = s3.read(name), s3.head(name)
        assert sendgrid.stored(export_id, index) == stored
        assert export_id == head["Metadata"]["sendgrid-export-id"]
        assert hashlib.sha256(stored).hexdigest() == head["Metadata"]["sha256"] == delivery.files[index].sha256
        assert urlsplit(sendgrid.urls(export_id)[index]).path == head["Metadata"]["sendgrid-file"]
        assert "application/gzip" == head["ContentType"]
    assert ([100, 100, 50], 250) == ([file.rows for file in delivery.files], delivery.rows)
    assert 3 == delivery.connections
    assert sendgrid.fetched_bytes() == delivery.fetched_bytes
    assert [] == sendgrid.emulator.leaks()
    assert f"3 files, 250 rows, {delivery.fetched_bytes} bytes stored" in delivery.describe()
    assert f"Manifest: s3://{s3.bucket}/in/_manifest.json." in delivery.describe()


def test_the_manifest_is_the_one_that_redshift_reads(sendgrid, s3):
    """`COPY ... MANIFEST` needs url, mandatory and content_length of each; the rest is added."""
    export_id = sendgrid.export(150)
    delivery = deliver(sendgrid, s3, export_id)
    written = manifest(s3)
    assert [
        {
            "url": file.uri,
            "mandatory": True,
            "meta": {"content_length": len(s3.read(file.uri)), "record_count": rows, "sha256": file.sha256},
        }
        for file, rows in zip(delivery.files, [100, 50], strict=True)
    ] == written["entries"]
    assert {"content_length": sum(file.size for file in delivery.files), "record_count": 150} == written["meta"]
    assert (export_id, 150, 2) == tuple(
        written["sendgrid_export"][key] for key in ("id", "contact_count", "file_count")
    )
    assert "application/json" == s3.head("in/_manifest.json")["ContentType"]


@pytest.mark.parametrize("file_type", ["csv", "json"])
@pytest.mark.parametrize("compression", ["gzip", "none"])
@pytest.mark.parametrize("encoding", ["x-gzip", "bare", "plain"])
def test_each_encoding_is_stored_with_the_compression_asked_for(sendgrid, s3, encoding, compression, file_type):
    """Its first bytes show what it is; it is recompressed only if needed; rows are always counted."""
    sendgrid.emulator.configure(encoding=encoding, contacts_per_file=1_500)
    export_id = sendgrid.export(2_500, file_type=file_type)
    delivery = deliver(sendgrid, s3, export_id, compression=compression)
    ending = f".{file_type}" + (".gz" if compression == "gzip" else "")
    assert {*names(export_id, 2, ending), "in/_manifest.json"} == set(s3.stored_keys())
    assert truth(sendgrid, export_id) == [s3.read_plain(file.uri) for file in delivery.files]
    assert (2_500, 2_500) == (delivery.rows, manifest(s3)["meta"]["record_count"])
    types = {".csv": "text/csv; charset=utf-8", ".json": "application/x-ndjson"}
    assert types.get(ending, "application/gzip") == s3.head(delivery.files[0].uri)["ContentType"]


@pytest.mark.parametrize("repeat_header", [True, False])
def test_rows_are_right_if_later_files_repeat_the_header_or_not(sendgrid, s3, repeat_header):
    """It is not known which of the two SendGrid does."""
    sendgrid.emulator.configure(repeat_header=repeat_header)
    assert [100, 100, 50] == [file.rows for file in deliver(sendgrid, s3, sendgrid.export(250)).files]


@pytest.mark.parametrize("compression", ["gzip", "none"])
@pytest.mark.parametrize("encoding", ["x-gzip", "plain"])
@pytest.mark.parametrize("file_type", ["csv", "json"])
def test_an_empty_export_is_a_success_with_no_rows(sendgrid, s3, encoding, compression, file_type):
    """SendGrid may send it as plain text, whatever its name says; an empty JSON file has no bytes."""
    sendgrid.emulator.configure(empty_encoding=encoding)
    export_id = sendgrid.export(0, file_type=file_type)
    delivery = deliver(sendgrid, s3, export_id, compression=compression)
    assert 0 == delivery.rows
    assert truth(sendgrid, export_id) == [s3.read_plain(file.uri) for file in delivery.files]
    assert 0 == manifest(s3)["meta"]["record_count"]


def test_an_export_of_no_contacts_may_have_no_file(s3):
    """Then only the manifest shows it."""
    export = ContactExport("6f", "ready", contact_count=0)
    source = ExportFiles(lambda: export, session=None)
    assert () == deliver_export(source, storage_of(s3), DeliveryOptions()).files
    assert [] == manifest(s3)["entries"]


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_a_file_of_several_gzip_members_is_one_file(s3, compression):
    """As parallel compressors write them."""
    lines = [b'"EMAIL"\n', *(b'"a%d@example.com"\n' % number for number in range(500))]
    content = b"".join(gzip.compress(line) for line in lines)
    with source_with(content, 500) as source:
        delivery = deliver_export(source, storage_of(s3), DeliveryOptions(compression=compression))
    assert 500 == delivery.rows
    assert b"".join(lines) == gzip.decompress(content) == s3.read_plain(delivery.files[0].uri)


def test_a_large_file_is_stored_in_parts_and_is_identical(large, s3):
    """Each connection downloads a part."""
    sendgrid, export_id = large
    delivery = deliver(sendgrid, s3, export_id, compression="none")
    assert 5 * LARGE == delivery.rows
    assert {*names(export_id, 5, ".csv"), "in/_manifest.json"} == set(s3.stored_keys())
    for index, file in enumerate(delivery.files):
        assert sendgrid.stored(export_id, index) == s3.read(file.uri)
        assert s3.head(file.uri)["ETag"].endswith('-2"')


def test_large_files_are_complete_after_recompression(large, s3):
    """From plain text to gzip, over one connection, because the CPU is the bottleneck."""
    sendgrid, export_id = large
    delivery = deliver(sendgrid, s3, export_id, 0)
    assert sendgrid.stored(export_id, 0) == s3.read_plain(delivery.files[0].uri)


@pytest.mark.parametrize("encoding", ["x-gzip", "plain"])
@pytest.mark.parametrize("file_type", ["csv", "json"])
def test_rows_are_counted_in_small_pieces_of_large_parts(sendgrid, s3, monkeypatch, encoding, file_type):
    """A counter may copy its input, and a part may have 1 GiB."""
    sendgrid.emulator.configure(encoding=encoding, contacts_per_file=LARGE)
    export_id = sendgrid.export(LARGE, file_type=file_type)
    counter, fed = record_counter(file_type), []
    monkeypatch.setattr(counter, "feed", lambda plain, feed=counter.feed: (fed.append(len(plain)), feed(plain))[1])
    monkeypatch.setattr("airflow_provider_sendgrid.delivery.verification.record_counter", lambda _: counter)
    compression = "gzip" if encoding == "x-gzip" else "none"
    assert LARGE == deliver(sendgrid, s3, export_id, compression=compression).rows
    assert max(fed) <= 1024 * 1024


def test_rows_need_not_be_counted(sendgrid, s3):
    """Then no count is given."""
    delivery = deliver(sendgrid, s3, sendgrid.export(150), verify_row_count=False)
    assert None is delivery.rows
    assert "rows not counted" in delivery.describe()
    assert {"content_length"} == manifest(s3)["meta"].keys()


def test_a_missing_count_is_logged(s3, caplog):
    with source_with(gzip.compress(b'"EMAIL"\n"a@b.c"\n'), None) as source:
        assert 1 == deliver_export(source, storage_of(s3), DeliveryOptions()).rows
    assert "SendGrid reports no count for export 6f; its 1 rows cannot be compared." in caplog.text


def test_no_manifest_is_written_where_none_is_wanted(sendgrid, s3):
    export_id = sendgrid.export(10)
    assert None is deliver(sendgrid, s3, export_id, write_manifest=False).manifest_uri
    assert names(export_id, 1) == s3.stored_keys()


# --- nothing incomplete


def test_a_count_that_disagrees_leaves_nothing(large, s3):
    """Neither objects, nor receipts, nor uploads, nor the order of the files."""
    sendgrid, export_id = large
    with sendgrid.source(export_id) as source:
        short = ExportFiles(lambda: replace(source.export(), contact_count=7), source.session, allow_http=True)
        with pytest.raises(ExportIncompleteError, match=r"hold 125000 rows, SendGrid counted 7 contacts"):
            deliver_export(short, storage_of(s3), DeliveryOptions(**OPTIONS, compression="none"))
    assert ([], []) == (s3.stored_keys(), s3.open_uploads())


@pytest.mark.parametrize("contacts", [250, LARGE])
def test_a_wrong_count_loses_no_earlier_delivery(sendgrid, s3, contacts):
    """The manifest of a delivery that did not count, and the files that it names, are unchanged."""
    sendgrid.emulator.configure(encoding="plain", contacts_per_file=max(100, contacts // 2))
    export_id = sendgrid.export(contacts)
    deliver(sendgrid, s3, export_id, compression="none", verify_row_count=False)
    before = {key: s3.read(key) for key in objects(s3)}
    with sendgrid.source(export_id) as source:
        short = ExportFiles(lambda: replace(source.export(), contact_count=7), source.session, allow_http=True)
        with pytest.raises(ExportIncompleteError, match=r"SendGrid counted 7 contacts"):
            deliver_export(short, storage_of(s3), DeliveryOptions(**OPTIONS, compression="none"))
    assert before == {key: s3.read(key) for key in objects(s3)}


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_files_of_earlier_tries_are_checked_if_the_rows_differ(sendgrid, s3, caplog, compression):
    """A plain file that was cut between two rows looks complete until the rows of all files are compared."""
    sendgrid.emulator.configure(encoding="plain")
    export_id = sendgrid.export(250)
    cut_at = sendgrid.stored(export_id).index(b'"\n"', 5_000) + 2
    sendgrid.emulator.inject(Fault("truncate", listener="files", at=cut_at))
    assert 20 < deliver(sendgrid, s3, export_id, 0, compression=compression).files[0].rows < 100
    sendgrid.emulator.clear_faults()

    delivery = deliver(sendgrid, s3, export_id, compression=compression)

    assert 250 == delivery.rows
    assert truth(sendgrid, export_id) == [s3.read_plain(file.uri) for file in delivery.files]
    assert "disagree with files that an earlier try stored" in caplog.text
    objects = names(export_id, 3, ".csv.gz" if compression == "gzip" else ".csv")
    assert {*objects, "in/_manifest.json"} == set(s3.stored_keys())


@pytest.mark.parametrize("compression", ["gzip", "none"])
@pytest.mark.parametrize("at", [0, 20, 1_000, -5])
def test_a_damaged_file_is_not_stored(sendgrid, s3, compression, at):
    """The checksum in the gzip trailer shows it, and the error names the file."""
    export_id = sendgrid.export(100)
    at = len(sendgrid.stored(export_id)) + at if at < 0 else at
    sendgrid.emulator.inject(Fault("corrupt", listener="files", at=at))
    with pytest.raises(ExportIncompleteError) as caught:
        deliver(sendgrid, s3, export_id, compression=compression)
    assert_nothing_stored(s3)
    if at > 0:
        assert str(caught.value).startswith(f"SendGrid export {export_id} file 1 of 1: The file is ")


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_a_truncated_gzip_file_is_not_stored(sendgrid, s3, compression):
    """Even if the storage's length is that of the truncated file."""
    export_id = sendgrid.export(100)
    sendgrid.emulator.inject(Fault("truncate", listener="files", at=len(sendgrid.stored(export_id)) - 4))
    with pytest.raises(ExportIncompleteError, match="file 1 of 1: The file is truncated"):
        deliver(sendgrid, s3, export_id, compression=compression)
    assert_nothing_stored(s3)


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_a_truncated_plain_file_is_not_stored(sendgrid, s3, compression):
    """The storage's length is that of the truncated file, and only the last row is incomplete."""
    sendgrid.emulator.configure(encoding="plain")
    export_id = sendgrid.export(100)
    content = sendgrid.stored(export_id)
    at = content.rindex(b'"') - 1
    assert content[:at].count(b"\n") == content.count(b"\n") - 1
    sendgrid.emulator.inject(Fault("truncate", listener="files", at=at))
    with pytest.raises(ExportIncompleteError, match="file 1 of 1: The file is truncated: it ends within a quoted"):
        deliver(sendgrid, s3, export_id, compression=compression)
    assert_nothing_stored(s3)


@pytest.mark.parametrize("contacts", [0, 100])
@pytest.mark.parametrize("compression", ["gzip", "none"])
@pytest.mark.parametrize("verify_row_count", [True, False])
def test_a_page_instead_of_a_file_is_not_stored(sendgrid, s3, contacts, compression, verify_row_count):
    """Its one line would pass for the header of an empty export, or for anything if rows are not counted."""
    export_id = sendgrid.export(contacts)
    sendgrid.emulator.inject(Fault("html", listener="files"))
    with pytest.raises(ExportIncompleteError, match="file 1 of 1: The content is an HTML or XML page"):
        deliver(sendgrid, s3, export_id, compression=compression, verify_row_count=verify_row_count)
    assert_nothing_stored(s3)


def test_a_file_cut_for_good_leaves_no_upload(large, s3):
    """Its first part was uploaded already."""
    sendgrid, export_id = large
    sendgrid.emulator.inject(
        Fault("cut", path="*-00001.*", nth=1, at=PART + 1_000),
        *(Fault("refuse", path="*-00001.*", nth=number) for number in range(2, 30)),
    )
    with pytest.raises(ExportIncompleteError, match=r"file 1 of 5: failed after 6 attempts in a row"):
        deliver(sendgrid, s3, export_id, 0, compression="none")
    assert_nothing_stored(s3)


def test_a_file_that_changes_is_downloaded_again_from_its_start(sendgrid, s3, caplog):
    """What was read of the old file is discarded."""
    export_id = sendgrid.export(100)
    sendgrid.emulator.inject(Fault("cut", listener="files", nth=1), Fault("changed", listener="files", nth=2))
    delivery = deliver(sendgrid, s3, export_id)
    assert truth(sendgrid, export_id) == [s3.read_plain(file.uri) for file in delivery.files]
    assert "the file changed while it was read" in caplog.text
    assert "Restarting the download." in caplog.text


def test_a_file_that_keeps_changing_fails(sendgrid, s3):
    export_id = sendgrid.export(100)
    sendgrid.emulator.inject(
        *(Fault("cut", listener="files", nth=number) for number in range(1, 20, 2)),
        *(Fault("changed", listener="files", nth=number) for number in range(2, 20, 2)),
    )
    with pytest.raises(ExportIncompleteError, match="changed while it was read"):
        deliver(sendgrid, s3, export_id)
    assert 6 == sendgrid.emulator.count(listener="files")
    assert_nothing_stored(s3)


@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload", "PutObject"])
@pytest.mark.parametrize("error", [OSError("S3 is gone"), KeyboardInterrupt()], ids=repr)
def test_after_any_error_of_s3_nothing_is_left_and_nothing_hangs(large, s3, operation, error):
    """The other files of the pool wait for memory that the failed one must release."""
    sendgrid, export_id = large
    s3 = with_own_client(s3)

    def fail(**_) -> None:
        raise error

    s3.client.meta.events.register(f"before-call.s3.{operation}", fail)
    with pytest.raises(type(error)):
        deliver(sendgrid, s3, export_id, compression="none", max_concurrency=1)
    assert [] == s3.open_uploads()
    assert "in/_manifest.json" not in s3.stored_keys()


def test_one_file_that_fails_stops_all(sendgrid, s3):
    """Running transfers are stopped, waiting ones are not begun."""
    s3 = with_own_client(s3)
    sendgrid.emulator.configure(encoding="x-gzip", contacts_per_file=1_000)
    export_id = sendgrid.export(5_000)
    sendgrid.emulator.inject(Fault("trickle", path="*-00003.*", bytes_per_second=5_000))

    def fail(params, **_) -> None:
        if "-00002-of-" in params["Key"]:
            raise OSError("S3 is gone")

    s3.client.meta.events.register("provide-client-params.s3.PutObject", fail)
    with pytest.raises(OSError, match="S3 is gone"):
        deliver(sendgrid, s3, export_id)
    assert names(export_id, 5)[2] not in s3.stored_keys()
    third = [request for request in sendgrid.emulator.requests(listener="files") if "-00003." in request.path]
    assert sum(request.bytes_sent for request in third) < len(sendgrid.stored(export_id, 2))


def test_earlier_files_are_stored_if_a_later_one_fails(sendgrid, s3):
    """The third file fails while the second is being stored; the second is stored nevertheless."""
    export_id = sendgrid.export(500)
    s3 = with_own_client(s3)
    sendgrid.emulator.inject(Fault("refuse", path="*-00003.*"))
    third = f"/sg-contact-exports/8315072/{sendgrid.emulator.export_files(export_id)[2].name}"

    def wait_for_the_last_try(params, **_) -> None:
        if params["Key"] == names(export_id, 5)[1]:
            assert sendgrid.emulator.wait_for_requests(LIMITS.attempts, "GET", third, "files", DEADLINE_SECONDS)

    s3.client.meta.events.register("provide-client-params.s3.PutObject", wait_for_the_last_try)
    with pytest.raises(ExportIncompleteError, match="file 3 of 5"):
        deliver(sendgrid, s3, export_id)
    assert set(names(export_id, 5)[:2]) <= set(s3.stored_keys())
    assert [] == s3.open_uploads()


# --- order


def test_large_files_are_stored_one_after_the_other(large, s3):
    """A task that is killed leaves complete files, not five halves."""
    sendgrid, export_id = large
    s3 = with_own_client(s3)
    with calls_to(s3) as calls:
        deliver(sendgrid, s3, export_id, compression="none")
    story = [(name, key) for name, key in calls if name in ("CreateMultipartUpload", "CompleteMultipartUpload")]
    expected = names(export_id, 5, ".csv")
    assert [(name, key) for key in expected for name in ("CreateMultipartUpload", "CompleteMultipartUpload")] == story


def test_small_files_go_several_at_once(s3):
    """The first is opened alone; then four are requested before any response."""
    together = threading.Barrier(4, timeout=DEADLINE_SECONDS)

    def wait_for_others(request) -> None:
        if request.listener == "files" and "-00001." not in request.path:
            together.wait()

    with Emulator(Settings(contacts_per_file=10), populate=False, observe=wait_for_others) as emulator:
        sendgrid = SendGrid(emulator)
        assert 90 == deliver(sendgrid, s3, sendgrid.export(90)).rows
    assert not together.broken


# --- retries


def test_a_task_tried_again_fetches_only_what_is_missing(sendgrid, s3):
    """Complete files remained when a later one failed; no byte of them is requested again."""
    export_id = sendgrid.export(450)
    sendgrid.emulator.inject(*(Fault("status", path=f"*-0000{number}.*", status=503) for number in (4, 5)))
    with pytest.raises(ExportIncompleteError, match="file 4 of 5"):
        deliver(sendgrid, s3, export_id, max_concurrency=1)
    assert names(export_id, 5)[:3] == objects(s3)
    sendgrid.emulator.clear_faults()
    sendgrid.emulator._log.clear()
    delivery = deliver(sendgrid, s3, export_id)
    assert {4, 5} == files_asked_for(sendgrid)
    assert 450 == delivery.rows
    assert truth(sendgrid, export_id) == [s3.read_plain(file.uri) for file in delivery.files]


def test_large_files_have_a_receipt_until_there_is_a_manifest(large, s3, caplog):
    """Their metadata were sent before their last byte was known."""
    caplog.set_level(logging.INFO)
    sendgrid, export_id = large
    sendgrid.emulator.inject(Fault("status", path="*-00003.*", status=503))
    with pytest.raises(ExportIncompleteError, match="file 3 of 5"):
        deliver(sendgrid, s3, export_id, compression="none", max_concurrency=1)
    stored = names(export_id, 5, ".csv")[:2]
    receipts = [f"in/_receipts/{name.removeprefix('in/')}.json" for name in stored]
    assert sorted([*stored, *receipts, f"in/_receipts/{export_id}.json"]) == sorted(s3.stored_keys())
    sendgrid.emulator.clear_faults()
    sendgrid.emulator._log.clear()
    delivery = deliver(sendgrid, s3, export_id, compression="none")
    assert {3, 4, 5} == files_asked_for(sendgrid)
    assert 5 * LARGE == delivery.rows
    assert {*names(export_id, 5, ".csv"), "in/_manifest.json"} == set(s3.stored_keys())
    for file in delivery.files:
        assert hashlib.sha256(s3.read(file.uri)).hexdigest() == file.sha256
    assert f"file 1 of 5 is stored already, as {export_id}-00001-of-00005.csv." in caplog.text


def test_a_task_that_is_cleared_after_its_end_downloads_nothing(large, s3):
    """The receipts were deleted; the manifest has the same facts."""
    sendgrid, export_id = large
    first = deliver(sendgrid, s3, export_id, compression="none")
    sendgrid.emulator._log.clear()
    second = deliver(sendgrid, s3, export_id, compression="none")
    assert set() == files_asked_for(sendgrid)
    assert (first.files, first.rows) == (second.files, second.rows)


def test_a_leftover_receipt_is_deleted_by_the_next_try(large, s3):
    """The delivery was killed between the manifest and the last receipt."""
    sendgrid, export_id = large
    deliver(sendgrid, s3, export_id, compression="none")
    whole = s3.stored_keys()
    [name, *_] = names(export_id, 5, ".csv")
    s3.client.put_object(Bucket=s3.bucket, Key=f"in/_receipts/{name.removeprefix('in/')}.json", Body=b"{}")
    deliver(sendgrid, s3, export_id, compression="none")
    assert whole == s3.stored_keys()


@pytest.mark.parametrize(
    "receipt", [b"", b"{", b"[]", b'{"size": "1", "sha256": "x", "records": "1"}', b'{"size": "x"}']
)
def test_a_receipt_that_does_not_fit_is_not_believed(large, s3, receipt):
    """The file is downloaded again."""
    sendgrid, export_id = large
    deliver(sendgrid, s3, export_id, 0, compression="none")
    [key] = [key for key in s3.stored_keys() if "_receipts" in key and "-00001-of-" in key]
    s3.client.put_object(Bucket=s3.bucket, Key=key, Body=receipt)
    sendgrid.emulator._log.clear()
    deliver(sendgrid, s3, export_id, 0, compression="none")
    assert {1} == files_asked_for(sendgrid)


def test_a_receipt_that_was_damaged_is_not_believed(large, s3):
    """Its SHA-256 would become the manifest's."""
    sendgrid, export_id = large
    deliver(sendgrid, s3, export_id, 0, compression="none")
    [key] = [key for key in s3.stored_keys() if "_receipts" in key and "-00001-of-" in key]
    [facts] = json.loads(s3.read(key))["uploads"].values()
    digit = "1" if facts["sha256"][0] == "0" else "0"
    damaged = s3.read(key).replace(facts["sha256"].encode(), (digit + facts["sha256"][1:]).encode())
    s3.client.put_object(Bucket=s3.bucket, Key=key, Body=damaged)
    sendgrid.emulator._log.clear()
    [file] = deliver(sendgrid, s3, export_id, 0, compression="none").files
    assert {1} == files_asked_for(sendgrid)
    assert facts["sha256"] == file.sha256


def test_an_object_of_another_export_is_not_a_stored_file(sendgrid, s3):
    """It has the same name and is complete, but its metadata name another export."""
    export_id = sendgrid.export(100)
    [name] = names(export_id, 1)
    theirs = {"sendgrid-export-id": "another", "size": "1", "sha256": "2d", "records": "101"}
    s3.client.put_object(Bucket=s3.bucket, Key=name, Body=b"x", Metadata=theirs)
    deliver(sendgrid, s3, export_id)
    assert sendgrid.stored(export_id) == s3.read(name)


def test_uncounted_files_are_downloaded_again_to_be_counted(sendgrid, s3):
    export_id = sendgrid.export(100)
    deliver(sendgrid, s3, export_id, verify_row_count=False)
    assert 100 == deliver(sendgrid, s3, export_id).rows
    assert 2 == sendgrid.emulator.count(listener="files")


def test_a_delivery_of_what_is_delivered_fetches_nothing(sendgrid, s3):
    """And writes the same manifest."""
    export_id = sendgrid.export(150)
    first = deliver(sendgrid, s3, export_id)
    written = s3.read("in/_manifest.json")
    again = deliver(sendgrid, s3, export_id)
    assert first.files == again.files
    assert written == s3.read("in/_manifest.json")
    assert (2, 0) == (sendgrid.emulator.count(listener="files"), again.fetched_bytes)


def test_a_worker_killed_in_the_third_file_keeps_the_first_two(large, s3):
    """SIGKILL when part of file 3 is uploaded: the second try downloads only files 3 to 5."""
    sendgrid, export_id = large
    sendgrid.emulator.inject(
        Fault("cut", path="*-00003.*", nth=1, at=PART + 500_000), Fault("hang", path="*-00003.*", nth=2)
    )
    arguments = {
        "url": sendgrid.emulator.url,
        "api_key": sendgrid.emulator.api_key,
        "export_id": export_id,
        "s3_url": s3.url,
        "bucket": s3.bucket,
        "options": OPTIONS | {"compression": "none"},
    }
    command = [sys.executable, "-m", "tests.support.deliver_alone", json.dumps(arguments)]
    third = sendgrid.emulator.export_files(export_id)[2].name
    with subprocess.Popen(command, cwd=REPOSITORY) as worker:
        try:
            path = f"/sg-contact-exports/8315072/{third}"
            assert sendgrid.emulator.wait_for_requests(2, "GET", path, "files", DEADLINE_SECONDS)
            give_up_at = time.monotonic() + DEADLINE_SECONDS
            while not s3.open_uploads() and time.monotonic() < give_up_at:
                pass  # the first part is on its way up; each look is a request
        finally:
            worker.kill()
    assert -signal.SIGKILL == worker.returncode
    assert 1 == len(s3.open_uploads())
    assert names(export_id, 5, ".csv")[:2] == [key for key in s3.stored_keys() if "_receipts" not in key]
    sendgrid.emulator.clear_faults()
    sendgrid.emulator._log.clear()
    delivery = deliver(sendgrid, s3, export_id, compression="none")
    assert {3, 4, 5} == files_asked_for(sendgrid)
    assert [] == s3.open_uploads()
    assert 5 * LARGE == delivery.rows
    for index, file in enumerate(delivery.files):
        assert sendgrid.stored(export_id, index) == s3.read(file.uri)


# --- shared among tasks


def test_after_mapped_tasks_a_delivery_downloads_nothing(large, s3):
    """Each stores one file and no manifest; the last task compares the rows and writes it."""
    sendgrid, export_id = large
    for index in (3, 0, 4, 1, 2):
        delivery = deliver(sendgrid, s3, export_id, index, compression="none")
        assert [names(export_id, 5, ".csv")[index]] == [
            file.uri.removeprefix(f"s3://{s3.bucket}/") for file in delivery.files
        ]
        assert None is delivery.manifest_uri
    assert "in/_manifest.json" not in s3.stored_keys()
    sendgrid.emulator._log.clear()
    last = deliver(sendgrid, s3, export_id, compression="none")
    assert 0 == sendgrid.emulator.count(listener="files")
    assert (5, 5 * LARGE) == (len(manifest(s3)["entries"]), last.rows)
    assert {*names(export_id, 5, ".csv"), "in/_manifest.json"} == set(s3.stored_keys())


@pytest.mark.parametrize("index", [-1, 2])
def test_a_file_that_the_export_does_not_have_is_a_mistake(sendgrid, s3, index):
    with pytest.raises(ValueError, match=f"file_index {index} .* it has files 0 to 1"):
        deliver(sendgrid, s3, sendgrid.export(150), index)
    assert 0 == sendgrid.emulator.count(listener="files")


# --- existing objects


def test_without_replace_another_export_is_not_touched(sendgrid, s3):
    """It is refused before any download, and the error says what exists."""
    first, second = sendgrid.export(10), sendgrid.export(20)
    deliver(sendgrid, s3, first)
    before = s3.stored_keys(), sendgrid.emulator.count(listener="files")
    for file_index in (None, 0):
        with pytest.raises(
            DestinationConflictError, match=f"the manifest of export {first}; nothing of it was changed"
        ):
            deliver(sendgrid, s3, second, file_index)
    assert before == (s3.stored_keys(), sendgrid.emulator.count(listener="files"))
    assert first == manifest(s3)["sendgrid_export"]["id"]


@pytest.mark.parametrize("content", [b"", b"[]", b"null", b'{"entries": 1}', b"\xff", b"[" * 100_000])
def test_a_manifest_of_other_software_is_not_overwritten(sendgrid, s3, content):
    s3.client.put_object(Bucket=s3.bucket, Key="in/_manifest.json", Body=content)
    with pytest.raises(DestinationConflictError, match="not a manifest of this provider"):
        deliver(sendgrid, s3, sendgrid.export(10))
    assert content == s3.read("in/_manifest.json")


def test_replace_swaps_new_for_old_and_touches_nothing_else(sendgrid, s3):
    """New objects, then the manifest, then what only the old manifest names is deleted."""
    first, second = sendgrid.export(150), sendgrid.export(50)
    deliver(sendgrid, s3, first)
    foreign = ["in/notes.txt", "in/_receipts/mine", f"other/{first}-00001-of-00002.csv.gz"]
    for key in foreign:
        s3.client.put_object(Bucket=s3.bucket, Key=key, Body=b"x")
    s3 = with_own_client(s3)
    with calls_to(s3) as calls:
        deliver(sendgrid, s3, second, replace=True)
    changes = [call for call in calls if call[0] in ("PutObject", "DeleteObject")]
    assert [
        *(("PutObject", name) for name in names(second, 1)),
        ("PutObject", "in/_manifest.json"),
        *(("DeleteObject", name) for name in names(first, 2)),
    ] == list(dict.fromkeys(changes)), "a server that compares the ETag in another form is sent the manifest twice"
    assert {*names(second, 1), "in/_manifest.json", *foreign} == set(s3.stored_keys())


def test_replace_deletes_nothing_that_a_bent_manifest_points_at(sendgrid, s3):
    """Other prefixes, buckets and names, and all that a foreign manifest names."""
    first, second = sendgrid.export(10), sendgrid.export(20)
    deliver(sendgrid, s3, first)
    tempting = [
        "in/precious.csv.gz",
        "precious-00001-of-00001.csv.gz",
        f"other/{first}-00001-of-00001.csv.gz",
        "in/sub/precious-00001-of-00001.csv.gz",
    ]
    for key in tempting:
        s3.client.put_object(Bucket=s3.bucket, Key=key, Body=b"x")
    bent = manifest(s3)
    uris = [f"s3://{s3.bucket}/{key}" for key in tempting]
    uris += [f"s3://{s3.bucket}/in/../precious-00001-of-00001.csv.gz", f"s3://{s3.bucket}-2/in/x-00001-of-00001.csv"]
    bent["entries"] += [{"url": uri} for uri in uris] + [{"url": 7}, "x", None]
    s3.client.put_object(Bucket=s3.bucket, Key="in/_manifest.json", Body=json.dumps(bent).encode())
    deliver(sendgrid, s3, second, replace=True)
    assert {*tempting, "in/_manifest.json", *names(second, 1)} == set(s3.stored_keys())


def test_replace_deletes_nothing_that_a_foreign_manifest_names(sendgrid, s3):
    key, uri = "in/unload-00001-of-00001.csv.gz", f"s3://{s3.bucket}/in/unload-00001-of-00001.csv.gz"
    s3.client.put_object(Bucket=s3.bucket, Key=key, Body=b"x")
    theirs = json.dumps({"entries": [{"url": uri}]}).encode()
    s3.client.put_object(Bucket=s3.bucket, Key="in/_manifest.json", Body=theirs)
    deliver(sendgrid, s3, sendgrid.export(10), replace=True)
    assert key in s3.stored_keys()


def test_a_swap_that_fails_leaves_the_old_export_as_it_was(sendgrid, s3):
    """Until the new manifest is written, the old one is true."""
    first, second = sendgrid.export(150), sendgrid.export(250)
    deliver(sendgrid, s3, first)
    sendgrid.emulator.inject(Fault("status", path=f"{second}-00003.*", status=503))
    with pytest.raises(ExportIncompleteError, match="file 3 of 3"):
        deliver(sendgrid, s3, second, replace=True)
    assert first == manifest(s3)["sendgrid_export"]["id"]
    assert set(names(first, 2)) <= set(s3.stored_keys())


def test_an_interrupted_replacement_is_completed_by_the_next_try(sendgrid, s3, monkeypatch):
    """The new manifest is written and the old objects still exist: the manifest lists them as replaced."""
    first, second = sendgrid.export(150), sendgrid.export(50)
    deliver(sendgrid, s3, first)
    monkeypatch.setattr(S3Storage, "delete", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        deliver(sendgrid, s3, second, replace=True)
    monkeypatch.undo()
    assert {*names(first, 2), *names(second, 1), "in/_manifest.json"} == set(s3.stored_keys())
    deliver(sendgrid, s3, second)
    assert {*names(second, 1), "in/_manifest.json"} == set(s3.stored_keys())


def test_the_same_export_in_another_form_replaces_its_files(sendgrid, s3):
    export_id = sendgrid.export(10)
    deliver(sendgrid, s3, export_id)
    deliver(sendgrid, s3, export_id, compression="none")
    assert {*names(export_id, 1, ".csv"), "in/_manifest.json"} == set(s3.stored_keys())


# --- what is refused


@given(
    export_id=st.one_of(
        st.sampled_from(
            ["", ".", "..", "../6f", "6f/7a", "6f\n", "a..b", "-a", "_receipts", "a b", "a%2fb", "é", "a" * 201]
        ),
        st.text(max_size=20).filter(lambda text: not re.fullmatch(r"[A-Za-z0-9](\.?[\w-])*", text, re.ASCII)),
        st.text("a-_.", min_size=30, max_size=200).map(lambda text: f"{text}/"),
    )
)
def test_an_id_that_would_leave_the_prefix_is_refused(export_id):
    """At once, however long it is, before any request to the storage."""
    export = ContactExport(export_id, "ready", urls=("https://files/1",))
    source = ExportFiles(lambda: export, session=None)
    with pytest.raises(ValueError, match="cannot be part of an object's name"):
        deliver_export(source, S3Storage(None, "bucket", "in/"), DeliveryOptions())


@pytest.mark.parametrize(
    ("export", "error", "message"),
    [
        (ContactExport("6f", "failure", message="no contacts"), ExportFailedError, "no contacts"),
        (ContactExport("6f", "pending"), ExportIncompleteError, "its status is 'pending'"),
        (ContactExport("6f", "odd", urls=("https://f/1",)), ExportIncompleteError, "its status is 'odd'"),
        (ContactExport("6f", "ready"), ExportIncompleteError, "with 0 files"),
        (
            ContactExport("6f", "ready", urls=("https://f/1",), expires_at=datetime(2020, 1, 1, tzinfo=timezone.utc)),
            ExportExpiredError,
            "expired at 2020-01-01",
        ),
    ],
    ids=["failure", "pending", "unknown", "without files", "expired"],
)
def test_what_is_not_ready_is_not_delivered(export, error, message):
    source = ExportFiles(lambda: export, session=None)
    with pytest.raises(error, match=message):
        deliver_export(source, S3Storage(None, "bucket", "in/"), DeliveryOptions())


@pytest.mark.parametrize("hours", [-20, 20])
def test_expiry_is_compared_with_sendgrids_clock(s3, hours):
    """This worker's clock is hours ahead or behind."""
    with Emulator(clock=lambda: time.time() + hours * 3600) as emulator:
        sendgrid = SendGrid(emulator)
        assert sum(file.rows for file in deliver(sendgrid, s3, sendgrid.export(3)).files) == 3


def test_an_export_expired_by_sendgrids_clock_is_not_delivered():
    now = datetime.now(timezone.utc)
    export = ContactExport(
        "6f", "ready", urls=("https://f/1",), expires_at=now + timedelta(hours=1), as_of=now + timedelta(hours=2)
    )
    source = ExportFiles(lambda: export, session=None)
    with pytest.raises(ExportExpiredError):
        deliver_export(source, S3Storage(None, "bucket", "in/"), DeliveryOptions())


def test_an_export_about_to_expire_is_not_begun():
    """Half of it would expire before it is downloaded."""
    soon = datetime.now(timezone.utc) + timedelta(seconds=30)
    export = ContactExport("6f", "ready", urls=("https://f/1",), expires_at=soon)
    source = ExportFiles(lambda: export, session=None)
    with pytest.raises(ExportExpiredError, match="too soon"):
        deliver_export(source, S3Storage(None, "bucket", "in/"), DeliveryOptions())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compression": "zip"}, "compression must be 'gzip' or 'none', not 'zip'"),
        ({"part_bytes": 5 * MIB - 1}, "part_size must be from 5 MiB"),
        ({"part_bytes": 1024 * MIB + 1}, "part_size must be from 5 MiB to 1 GiB"),
        ({"max_concurrency": 0}, "max_concurrency must be from 1 to 64"),
        ({"max_concurrency": 65}, "max_concurrency must be from 1 to 64"),
    ],
)
def test_options_that_cannot_be_right_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        DeliveryOptions(**options)


# --- secrets


def test_neither_key_nor_signature_is_left_anywhere(sendgrid, s3, caplog):
    """Not in a log of any level, an error, the manifest or an object's metadata."""
    caplog.set_level(logging.DEBUG)
    export_id = sendgrid.export(250)
    sendgrid.emulator.inject(
        Fault("expire", listener="files", nth=2), *(Fault("refuse", path="*-00003.*", nth=n) for n in range(1, 7))
    )
    with pytest.raises(ExportIncompleteError) as caught:
        deliver(sendgrid, s3, export_id)
    deliver(sendgrid, s3, export_id)
    headers = [str(s3.head(key)["ResponseMetadata"]["HTTPHeaders"]) for key in s3.stored_keys()]
    contents = [s3.read("in/_manifest.json").decode()]
    # boto3 logs its own requests to S3, with their signatures.
    ours = "\n".join(record.getMessage() for record in caplog.records if not record.name.startswith("botocore"))
    for text in (ours, str(caught.value), *headers, *contents):
        assert None is re.search("X-Amz-(Signature|Credential)=[^*]", text)
        assert sendgrid.emulator.api_key not in text
    assert [] == sendgrid.emulator.leaks()
