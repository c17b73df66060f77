"""What every storage promises: S3, a folder, Google Cloud Storage, Azure Blob Storage.

Each is a real server, but for the folder and the tests' own storage in memory. All are tested by `make test-clouds`,
which installs Azure's and a second one of Google's; the quick tests know what S3 does from elsewhere. Of Google's two,
gcp-storage-emulator ("gs") is what a server that ignores conditions would be, and fake-gcs-server ("gs-fake") refuses
small writes whose conditions do not hold. `make test-ceph` runs them against Ceph RGW alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from airflow_provider_sendgrid.delivery.export import Delivery, DeliveryOptions, deliver_export
from airflow_provider_sendgrid.emulator import Emulator, Fault, Settings
from airflow_provider_sendgrid.exceptions import (
    DestinationChangedError,
    DestinationConflictError,
    DestinationError,
    DestinationRefusedError,
    ExportIncompleteError,
)
from airflow_provider_sendgrid.files.source import ExportFiles
from airflow_provider_sendgrid.storage.base import ANY_VERSION, MIB, ObjectInfo
from airflow_provider_sendgrid.storage.multipart import crc32
from dev.services.azurite import azurite
from dev.services.gcs import fake_gcs_server, gcs_server
from tests.support.ceph import IS_WANTED as IS_CEPH
from tests.support.destinations import Destination
from tests.support.sendgrid_source import SendGrid

REPOSITORY = Path(__file__).parents[2]
DEADLINE_SECONDS = 30.0
PART = 5 * MIB
LARGE = 25_000  # contacts in a plain file of some 6 MB: more than one part
OPTIONS = {"part_bytes": PART, "max_concurrency": 4}
NOT_QUICK = pytest.mark.skipif(not os.environ.get("TEST_CLOUDS"), reason="make test-clouds runs it")
KINDS = ["file", "gs", *(pytest.param(kind, marks=NOT_QUICK) for kind in ("s3", "gs-fake", "abfs"))]
if IS_CEPH:
    KINDS = ["s3"]


@pytest.fixture(scope="module")
def servers(tmp_path_factory, request):
    """Each is started when it is first used."""
    with ExitStack() as stack:
        started: dict[str, str] = {}

        def server_of(kind: str) -> str:
            if kind not in started:
                started[kind] = {
                    "s3": lambda: request.getfixturevalue("s3_server"),
                    "file": lambda: str(tmp_path_factory.mktemp("folders")),
                    "gs": lambda: stack.enter_context(gcs_server()),
                    "gs-fake": lambda: stack.enter_context(fake_gcs_server()),
                    "memory": lambda: "",
                    "abfs": lambda: stack.enter_context(azurite(tmp_path_factory.mktemp("azurite"))),
                }[kind]()
            return started[kind]

        yield server_of


@pytest.fixture(params=KINDS)
def place(request, servers) -> Destination:
    return Destination.fresh(request.param.partition("-")[0], servers(request.param))


@pytest.fixture(params=[*KINDS, "memory"])
def any_place(request, servers) -> Destination:
    """The tests' own storage in memory, too, which keeps what the others promise."""
    return Destination.fresh(request.param.partition("-")[0], servers(request.param))


@pytest.fixture(scope="module")
def sendgrid_of_small_files():
    with Emulator(Settings(contacts_per_file=100), populate=False) as emulator:
        yield SendGrid(emulator)


@pytest.fixture
def sendgrid(sendgrid_of_small_files):
    emulator = sendgrid_of_small_files.emulator
    emulator.clear_faults()
    emulator._log.clear()
    emulator.configure(encoding="x-gzip", contacts_per_file=100)
    return sendgrid_of_small_files


@pytest.fixture(scope="module")
def large_files():
    with Emulator(Settings(encoding="plain", contacts_per_file=LARGE), populate=False) as emulator:
        yield emulator, emulator.add_list("Many", contacts=3 * LARGE)


@pytest.fixture
def large(large_files):
    """Three large files, and the id of their export."""
    emulator, list_id = large_files
    emulator._log.clear()
    export_id = emulator.start_export([list_id])
    emulator.export_files(export_id)
    yield SendGrid(emulator), export_id
    emulator.clear_faults()


def deliver(sendgrid, place, export_id, file_index=None, **options) -> Delivery:
    with sendgrid.source(export_id) as source:
        return deliver_export(source, place.storage(), DeliveryOptions(**OPTIONS | options), file_index)


def names(export_id, count, ending=".csv.gz"):
    return [f"in/{export_id}-{number:05}-of-{count:05}{ending}" for number in range(1, count + 1)]


def truth(sendgrid, export_id):
    return [file.read() for file in sendgrid.emulator.export_files(export_id)]


def manifest(place):
    return json.loads(place.read("in/_manifest.json"))


def files_asked_for(sendgrid):
    paths = [request.path for request in sendgrid.emulator.requests(listener="files")]
    return {int(re.search(r"-(\d{5})\.", path)[1]) for path in paths}


# --- complete


@pytest.mark.parametrize("compression", ["gzip", "none"])
@pytest.mark.parametrize("encoding", ["x-gzip", "plain"])
def test_every_file_arrives_and_is_in_the_manifest(place, sendgrid, encoding, compression):
    """Byte for byte, with rows, sizes and hashes in the manifest, under URIs that name no connection."""
    sendgrid.emulator.configure(encoding=encoding)
    export_id = sendgrid.export(250)

    delivery = deliver(sendgrid, place, export_id, compression=compression)

    expected = names(export_id, 3, ".csv.gz" if compression == "gzip" else ".csv")
    assert sorted([*expected, "in/_manifest.json"]) == place.stored_keys()
    assert [place.root + name for name in expected] == [file.uri for file in delivery.files]
    assert truth(sendgrid, export_id) == [place.read_plain(file.uri) for file in delivery.files]
    contents = [place.read(file.uri) for file in delivery.files]
    metas = [entry["meta"] for entry in manifest(place)["entries"]]
    assert [(len(each), hashlib.sha256(each).hexdigest()) for each in contents] == [
        (meta["content_length"], meta["sha256"]) for meta in metas
    ]
    assert ([100, 100, 50], 250) == ([meta["record_count"] for meta in metas], delivery.rows)
    assert f"{place.root}in/_manifest.json" == delivery.manifest_uri
    assert [] == place.unfinished()


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_a_file_of_several_parts_arrives_identical(place, large, compression):
    sendgrid, export_id = large

    delivery = deliver(sendgrid, place, export_id, compression=compression)

    assert truth(sendgrid, export_id) == [place.read_plain(file.uri) for file in delivery.files]
    assert 3 * LARGE == manifest(place)["meta"]["record_count"]
    assert ([], 4) == (place.unfinished(), len(place.stored_keys())), "no receipt may be left"


@pytest.mark.parametrize("contacts", [10, LARGE])
def test_each_object_has_its_content_type_and_metadata(place, large, contacts):
    """A retry reads all that it needs from the storage."""
    sendgrid, _ = large
    export_id = sendgrid.export(contacts)
    [file] = deliver(sendgrid, place, export_id, compression="none").files

    info = place.storage().head(file.name)

    assert (file.size, export_id) == (info.size, info.metadata["sendgrid-export-id"])
    assert info.metadata["sendgrid-file"].endswith("-00001.csv.gzip")
    if contacts == 10:
        assert (file.sha256, "11") == (info.metadata["sha256"], info.metadata["records"])


# --- nothing incomplete


def test_a_file_that_stays_cut_leaves_nothing(place, large):
    """Its first part was uploaded already; the next try finds only the order of the files."""
    sendgrid, export_id = large
    sendgrid.emulator.inject(
        Fault("cut", path="*-00001.*", nth=1, at=PART + 1_000),
        *(Fault("refuse", path="*-00001.*", nth=number) for number in range(2, 30)),
    )

    with pytest.raises(ExportIncompleteError, match="file 1 of 3"):
        deliver(sendgrid, place, export_id, 0, compression="none")

    assert [f"in/_receipts/{export_id}.json"] == place.stored_keys()
    assert place.kind == "abfs" or [] == place.unfinished(), "Azure alone forgets blocks by itself, later"


def test_a_count_that_disagrees_leaves_nothing(place, large):
    """Neither objects, nor receipts, nor a manifest."""
    sendgrid, export_id = large
    with sendgrid.source(export_id) as source:
        short = ExportFiles(lambda: replace(source.export(), contact_count=7), source.session, allow_http=True)
        with pytest.raises(ExportIncompleteError, match="SendGrid counted 7 contacts"):
            deliver_export(short, place.storage(), DeliveryOptions(**OPTIONS))
    assert ([], []) == (place.stored_keys(), place.unfinished())


def test_a_worker_killed_in_the_second_file_publishes_none_of_it(place, large):
    """SIGKILL when a part is uploaded; the next try downloads only files 2 and 3, and cleans up."""
    sendgrid, export_id = large
    sendgrid.emulator.inject(
        Fault("cut", path="*-00002.*", nth=1, at=PART + 500_000), Fault("hang", path="*-00002.*", nth=2)
    )
    given = {
        "url": sendgrid.emulator.url,
        "api_key": sendgrid.emulator.api_key,
        "export_id": export_id,
        "destination": asdict(place),
        "options": OPTIONS | {"compression": "none"},
    }
    second = sendgrid.emulator.export_files(export_id)[1].name
    command = [sys.executable, "-m", "tests.support.deliver_somewhere", json.dumps(given)]
    with subprocess.Popen(command, cwd=REPOSITORY) as worker:
        try:
            path = f"/sg-contact-exports/8315072/{second}"
            assert sendgrid.emulator.wait_for_requests(2, "GET", path, "files", DEADLINE_SECONDS)
        finally:
            worker.kill()
    assert -signal.SIGKILL == worker.returncode
    assert names(export_id, 3, ".csv")[:1] == [key for key in place.stored_keys() if "_receipts" not in key]
    sendgrid.emulator.clear_faults()
    sendgrid.emulator._log.clear()

    delivery = deliver(sendgrid, place, export_id, compression="none")

    assert {2, 3} == files_asked_for(sendgrid)
    assert truth(sendgrid, export_id) == [place.read(file.uri) for file in delivery.files]
    assert ([], 4) == (place.unfinished(), len(place.stored_keys()))


# --- once


def test_a_retried_task_fetches_only_what_is_missing(place, large):
    """After a failure in the second file, and after its end."""
    sendgrid, export_id = large
    sendgrid.emulator.inject(*(Fault("refuse", path="*-00002.*", nth=number) for number in range(1, 30)))
    with pytest.raises(ExportIncompleteError, match="file 2 of 3"):
        deliver(sendgrid, place, export_id, compression="none")
    sendgrid.emulator.clear_faults()
    sendgrid.emulator._log.clear()

    first = deliver(sendgrid, place, export_id, compression="none")

    assert {2, 3} == files_asked_for(sendgrid)
    sendgrid.emulator._log.clear()
    again = deliver(sendgrid, place, export_id, compression="none")
    assert set() == files_asked_for(sendgrid)
    assert (first.files, 3 * LARGE) == (again.files, again.rows)


def test_after_mapped_tasks_a_delivery_downloads_nothing(place, large):
    """Each stores one file and no manifest, at once; the last task compares the rows and writes it."""
    sendgrid, export_id = large
    tasks = [
        threading.Thread(target=deliver, args=(sendgrid, place, export_id, index), kwargs={"compression": "none"})
        for index in range(3)
    ]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join()
    assert "in/_manifest.json" not in place.stored_keys()
    sendgrid.emulator._log.clear()

    last = deliver(sendgrid, place, export_id, compression="none")

    assert 0 == sendgrid.emulator.count(listener="files")
    assert (3, 3 * LARGE) == (len(manifest(place)["entries"]), last.rows)
    assert sorted([*names(export_id, 3, ".csv"), "in/_manifest.json"]) == place.stored_keys()


def test_an_object_of_another_program_is_not_ours(place, sendgrid):
    export_id = sendgrid.export(100)
    [name] = names(export_id, 1)
    place.write(name, b"theirs")

    deliver(sendgrid, place, export_id)

    assert sendgrid.stored(export_id) == place.read(name)


# --- existing objects


def test_files_of_another_export_are_refused_before_any_download(place, sendgrid):
    first, second = sendgrid.export(10), sendgrid.export(20)
    deliver(sendgrid, place, first)
    before = place.stored_keys(), sendgrid.emulator.count(listener="files")

    with pytest.raises(DestinationConflictError, match=f"the manifest of export {first}; nothing"):
        deliver(sendgrid, place, second)

    assert before == (place.stored_keys(), sendgrid.emulator.count(listener="files"))


def test_replace_changes_only_the_files_of_the_export(place, sendgrid):
    first, second = sendgrid.export(150), sendgrid.export(50)
    deliver(sendgrid, place, first)
    foreign = ["in/notes.txt", "in/_receipts/mine", f"other/{first}-00001-of-00002.csv.gz"]
    for key in foreign:
        place.write(key, b"x")

    deliver(sendgrid, place, second, replace=True)

    assert sorted([*names(second, 1), "in/_manifest.json", *foreign]) == place.stored_keys()


# --- the storage itself


def test_a_missing_object_is_none_and_may_be_deleted(place):
    storage = place.storage()
    assert (None, None) == (storage.head("nothing"), storage.read("nothing"))
    storage.delete("nothing")
    assert 0 == storage.abort_uploads(["nothing"])


def test_a_missing_bucket_is_not_an_empty_one(place):
    """A retry does not help: the task fails at once."""
    if place.kind == "file":
        pytest.skip("folders are made")
    storage = replace(place, bucket="never-created").storage()
    for use in (lambda: storage.read("x"), lambda: storage.put("x", b"x", ObjectInfo("text/plain", {}))):
        with pytest.raises(DestinationRefusedError, match=r"bucket|container"):
            use()


def test_small_objects_are_put_read_and_deleted(place):
    storage = place.storage()
    for content in (b"first", b"", "the last, é".encode()):
        storage.put("sub/small.json", content, ObjectInfo("application/json", {"made-by": "us"}))
        assert content == storage.read("sub/small.json").content == place.read("in/sub/small.json")
        info = storage.head("sub/small.json")
        assert (len(content), "us") == (info.size, info.metadata["made-by"])
    storage.delete("sub/small.json")
    assert [] == place.stored_keys()


@pytest.mark.parametrize("sizes", [[PART, 1], [PART, PART], [PART + 77, PART + 77, 3], [1], [2 * MIB]])
def test_parts_written_by_several_threads_arrive_in_their_order(place, sizes):
    """Of any size; each storage has its own unit."""
    if place.kind == "s3" and any(size < PART for size in sizes[:-1]):
        pytest.skip("S3 takes no smaller ones")
    storage = place.storage()
    parts = [bytearray([number]) * size for number, size in enumerate(sizes, 1)]
    upload = storage.begin("parts.bin", ObjectInfo("application/gzip", {"made-by": "us"}))
    threads = [
        threading.Thread(target=upload.write_part, args=(number, part, crc32(part)))
        for number, part in enumerate(parts, 1)
    ]
    for thread in reversed(threads):
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    assert [] == place.stored_keys(), "nothing may be visible before it is complete"

    upload.complete()

    assert b"".join(parts) == place.read("in/parts.bin")
    assert "us" == storage.head("parts.bin").metadata["made-by"]


def test_an_aborted_upload_keeps_the_previous_file(place):
    storage = place.storage()
    storage.put("parts.bin", b"old", ObjectInfo("text/plain", {"made-by": "them"}))
    upload = storage.begin("parts.bin", ObjectInfo("text/plain", {"made-by": "us"}))
    part = bytearray(PART)
    upload.write_part(1, part, crc32(part))

    upload.abort()

    assert b"old" == place.read("in/parts.bin")
    assert "them" == storage.head("parts.bin").metadata["made-by"]
    assert [] == place.unfinished()


# --- versions

INFO = ObjectInfo("text/plain", {"made-by": "us"})


def test_an_object_is_stored_only_over_the_expected_version(any_place):
    storage = any_place.storage()
    first = storage.put("a.txt", b"first", INFO, None)
    with pytest.raises(DestinationChangedError, match=r"a\.txt"):
        storage.put("a.txt", b"rival", INFO, None)
    second = storage.put("a.txt", b"second", INFO, first)
    with pytest.raises(DestinationChangedError, match=r"a\.txt"):
        storage.put("a.txt", b"rival", INFO, first)
    assert (b"second", second) == (storage.read("a.txt").content, storage.read("a.txt").version)
    assert INFO.metadata == storage.head("a.txt").metadata

    third = storage.put("a.txt", b"third", INFO)

    assert 3 == len({first, second, third})
    assert b"third" == any_place.read("in/a.txt")


def test_nothing_is_stored_over_an_object_that_was_deleted(any_place):
    storage = any_place.storage()
    version = storage.put("a.txt", b"first", INFO, None)
    storage.delete("a.txt")
    with pytest.raises(DestinationChangedError):
        storage.put("a.txt", b"second", INFO, version)
    assert [] == any_place.stored_keys()


def upload_to(storage, content, over):
    """Two parts of an object that is not published yet."""
    upload = storage.begin("parts.bin", INFO, over)
    for number, part in enumerate((bytearray(content * PART), bytearray(content)), 1):
        upload.write_part(number, part, crc32(part))
    return upload


@pytest.mark.parametrize("is_there", [False, True])
def test_an_upload_is_published_only_over_the_expected_version(any_place, is_there):
    """What another run stored since is kept."""
    storage = any_place.storage()
    over = storage.put("parts.bin", b"old", INFO, None) if is_there else None
    upload_to(storage, b"1", over).complete()
    upload = upload_to(storage, b"2", storage.head("parts.bin").version)
    storage.put("parts.bin", b"of another run", INFO)

    with pytest.raises(DestinationChangedError, match=r"parts\.bin"):
        upload.complete()
    upload.abort()

    assert b"of another run" == any_place.read("in/parts.bin")
    assert [] == any_place.unfinished()


@pytest.mark.parametrize("are_others_aborted", [False, True])
def test_of_two_uploads_of_one_object_the_first_is_kept(any_place, are_others_aborted):
    """The other upload fails with an error that says so; the objects are never mixed."""
    first_run, second_run = any_place.storage(), any_place.storage()
    first, second = upload_to(first_run, b"1", None), upload_to(second_run, b"2", None)
    first.complete()
    if are_others_aborted:
        first_run.abort_uploads(["parts.bin"])

    with pytest.raises((DestinationChangedError, DestinationError)) as caught:
        second.complete()
    second.abort()

    assert isinstance(caught.value, DestinationChangedError) or caught.value.code == "NoSuchUpload"
    assert b"1" * (PART + 1) == any_place.read("in/parts.bin")
    assert [] == any_place.unfinished()


def test_an_object_is_deleted_only_at_the_expected_version(any_place):
    storage = any_place.storage()
    first = storage.put("a.txt", b"first", INFO)
    second = storage.put("a.txt", b"second", INFO)
    storage.delete("a.txt", first)
    assert b"second" == any_place.read("in/a.txt")
    storage.delete("a.txt", second)
    storage.delete("a.txt", second)
    assert [] == any_place.stored_keys()


def test_all_methods_return_the_same_version(any_place):
    """From a write, a head, a read, and the listing of the prefix, which has no objects of subfolders."""
    storage = any_place.storage()
    assert {} == storage.versions()
    version = storage.put("a.txt", b"1", INFO, None)
    upload_to(storage, b"1", ANY_VERSION).complete()
    in_folder = storage.put("sub/c.txt", b"1", INFO)
    storage.put("sub/sub/d.txt", b"1", INFO)
    if any_place.kind not in ("file", "memory"):
        any_place.write("index.txt", b"beside the prefix")

    assert {"a.txt": version, "parts.bin": storage.head("parts.bin").version} == storage.versions()
    assert {"sub/c.txt": in_folder} == storage.versions("sub/") == storage.versions("sub/c")
    assert {} == storage.versions("nowhere/") == storage.versions("sub/x")
    assert version == storage.head("a.txt").version == storage.read("a.txt").version
