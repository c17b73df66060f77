"""What S3Storage promises, against independent S3 servers.

SeaweedFS compares checksums and knows conditional writes. Ceph RGW, in `make test-ceph`, does neither throughout.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import json
import os
import uuid
import zlib
from urllib.parse import urlsplit

import pytest

from airflow_provider_sendgrid.exceptions import DestinationChangedError, DestinationError, DestinationRefusedError
from airflow_provider_sendgrid.storage.base import MIB, ObjectInfo
from airflow_provider_sendgrid.storage.multipart import crc32
from airflow_provider_sendgrid.storage.s3 import S3Storage
from airflow_provider_sendgrid.transfers.sendgrid_to_s3 import SendGridToS3Operator
from tests.support.ceph import IS_WANTED as IS_CEPH
from tests.support.flipping_proxy import FlippingProxy
from tests.support.seaweedfs import LOGIN, PASSWORD, WRITER, client_of
from tests.support.storage_proxy import StorageFault, StorageProxy

INFO = ObjectInfo("text/csv", {"sendgrid-export-id": "6f"})
MARK = b"the-byte-that-is-flipped"
CONTENT = b"a,b\n" + MARK + b"\n"
PARTS = [bytearray(b"x" * 5 * MIB), bytearray(CONTENT)]


@pytest.fixture
def server(request):
    """The URL of one of them."""
    return request.getfixturevalue("ceph" if IS_CEPH else "seaweedfs")


@pytest.fixture
def client(server):
    return client_of(server)


@pytest.fixture
def bucket(client):
    name = f"lake-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)
    return name


@pytest.fixture
def storage(client, bucket):
    return S3Storage(client, bucket, "in/")


def port_of(url):
    return urlsplit(url).port


def url_of(proxy):
    return f"http://127.0.0.1:{proxy.port}"


def read(client, bucket, key, **arguments):
    return client.get_object(Bucket=bucket, Key=key, **arguments)["Body"].read()


def impatient(url, **config):
    """A client that does not retry."""
    return client_of(url, retries={"max_attempts": 0}, **config)


def put(storage, over):
    storage.put("a.csv", CONTENT, INFO, over)


def put_in_parts(storage, over):
    upload = storage.begin("a.csv", INFO, over)
    for number, part in enumerate(PARTS, 1):
        upload.write_part(number, part, crc32(part))
    upload.complete()


WHOLE = {put: CONTENT, put_in_parts: b"".join(PARTS)}
SEAWEEDFS_ALONE = pytest.mark.skipif(IS_CEPH, reason="Ceph RGW has neither checksums nor SeaweedFS's users")
WAYS = pytest.mark.parametrize("store", WHOLE, ids=["at once", "in parts"])


@WAYS
def test_an_object_is_stored_only_over_its_version(storage, client, bucket, store):
    """None means that there is no object; each write changes its version."""
    store(storage, None)
    first = storage.head("a.csv").version
    with pytest.raises(DestinationChangedError, match=f"s3://{bucket}/in/a.csv: another run changed it"):
        store(storage, None)
    second = storage.put("a.csv", b"other", INFO, first)
    with pytest.raises(DestinationChangedError):
        store(storage, first)
    assert b"other" == read(client, bucket, "in/a.csv")
    store(storage, second)
    assert WHOLE[store] == read(client, bucket, "in/a.csv")


@WAYS
@pytest.mark.parametrize("over_none", [True, False])
def test_the_server_refuses_what_changed_after_the_last_look(server, client, bucket, store, over_none):
    """Another run writes between the check and the write."""
    bent = client_of(server)
    storage = S3Storage(bent, bucket, "in/")
    version = None if over_none else storage.put("a.csv", b"before", INFO)

    def write_first(**_):
        client.put_object(Bucket=bucket, Key="in/a.csv", Body=b"theirs")

    if IS_CEPH and store is put_in_parts:
        pytest.skip("Ceph RGW knows no condition when an upload ends: the last write stays")
    for operation in ("PutObject", "CompleteMultipartUpload"):
        bent.meta.events.register(f"before-call.s3.{operation}", write_first)
    with pytest.raises(DestinationChangedError):
        store(storage, version)
    assert b"theirs" == read(client, bucket, "in/a.csv")


def test_an_object_that_another_run_stored_is_not_deleted(server, client, bucket):
    """Neither if it was found before, nor if it is stored between the check and the request."""
    bent = client_of(server)
    storage = S3Storage(bent, bucket, "in/")
    version = storage.put("a.csv", CONTENT, INFO)
    client.put_object(Bucket=bucket, Key="in/a.csv", Body=b"theirs")
    storage.delete("a.csv", version)
    assert b"theirs" == read(client, bucket, "in/a.csv")
    if IS_CEPH:
        pytest.skip("Ceph RGW knows no condition of a delete: what comes after the look is deleted")

    def write_first(**_):
        client.put_object(Bucket=bucket, Key="in/a.csv", Body=b"theirs again")

    bent.meta.events.register("before-call.s3.DeleteObject", write_first)
    storage.delete("a.csv", storage.head("a.csv").version)
    assert b"theirs again" == read(client, bucket, "in/a.csv")


def test_an_object_of_this_version_is_deleted(storage):
    storage.delete("a.csv", storage.put("a.csv", CONTENT, INFO))
    assert storage.head("a.csv") is None
    storage.delete("a.csv")
    storage.delete("a.csv", "gone 1")


def test_versions_are_those_that_put_head_and_read_return(storage, client, bucket):
    """Of the objects right at the prefix, however many pages the listing has."""

    def small_pages(params, **_):
        params["MaxKeys"] = 2

    client.meta.events.register("before-parameter-build.s3.ListObjectsV2", small_pages)
    expected = {f"{number}.csv": storage.put(f"{number}.csv", b"x%d" % number, INFO) for number in range(5)}
    put_in_parts(storage, None)
    expected["a.csv"] = storage.head("a.csv").version
    storage.put("_receipts/0.csv.json", b"{}", INFO)
    client.put_object(Bucket=bucket, Key="elsewhere.csv", Body=b"x")
    assert expected == storage.versions()
    assert expected["0.csv"] == storage.read("0.csv").version == storage.head("0.csv").version


@SEAWEEDFS_ALONE
def test_without_the_permission_to_list_there_are_no_versions(server, bucket, caplog):
    storage = S3Storage(client_of(server, WRITER), bucket, "in/")
    storage.put("a.csv", CONTENT, INFO, None)
    assert (None, None) == (storage.versions(), storage.versions())
    assert 1 == caplog.text.count("Objects cannot be listed: list_objects_v2 of s3://")


@WAYS
def test_a_write_whose_response_is_lost_is_recognised(server, client, bucket, store):
    """boto3 sends it again; the condition then fails because of the object itself."""
    with StorageProxy(server) as proxy:
        proxy.inject(
            StorageFault("lost", "PutObject", first=1), StorageFault("lost", "CompleteMultipartUpload", first=1)
        )
        storage = S3Storage(client_of(proxy.url), bucket, "in/")
        store(storage, None)
        assert 1 == proxy.applied["lost"]
    assert WHOLE[store] == read(client, bucket, "in/a.csv")


@SEAWEEDFS_ALONE
def test_a_wrong_crc32_is_refused(server, bucket):
    """And sent again a few times, because it may have been damaged in transit."""
    storage = S3Storage(impatient(server), bucket, "in/")
    upload = storage.begin("a.csv", INFO)
    with pytest.raises(DestinationError, match=r"BadDigest .*damaged in transit"):
        upload.write_part(1, bytearray(CONTENT), zlib.crc32(b"as it was"))
    upload.abort()
    assert storage.head("a.csv") is None


@WAYS
@pytest.mark.parametrize("calculation", ["when_supported", "when_required"])
def test_a_byte_flipped_on_its_way_is_sent_again(server, client, bucket, store, calculation):
    """By its CRC32, or, where checksum headers are off, by the body's signature."""
    with FlippingProxy(port_of(server), MARK).running() as proxy:
        storage = S3Storage(client_of(url_of(proxy), request_checksum_calculation=calculation), bucket, "in/")
        store(storage, None)
        assert 1 == proxy.flipped
    assert WHOLE[store] == read(client, bucket, "in/a.csv")


@WAYS
@pytest.mark.parametrize("calculation", ["when_supported", "when_required"])
def test_a_byte_that_is_always_flipped_leaves_nothing(server, bucket, store, calculation):
    with FlippingProxy(port_of(server), MARK, times=None).running() as proxy:
        storage = S3Storage(impatient(url_of(proxy), request_checksum_calculation=calculation), bucket, "in/")
        with pytest.raises(DestinationError, match="damaged in transit"):
            store(storage, None)
    assert storage.head("a.csv") is None


def test_an_upload_that_another_run_ended_is_a_change(storage, client, bucket):
    upload = storage.begin("a.csv", INFO)
    upload.write_part(1, bytearray(CONTENT), crc32(CONTENT))
    [left_over] = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    client.abort_multipart_upload(Bucket=bucket, Key="in/a.csv", UploadId=left_over["UploadId"])
    with pytest.raises(DestinationChangedError, match="Another run ended this upload"):
        upload.complete()
    upload.abort()


def test_two_uploads_of_one_key_exist_until_one_is_published(server, bucket):
    """Only uploads of other tasks are aborted, and only on request."""
    storages = [S3Storage(client_of(server), bucket, "in/") for _ in range(2)]
    first, second = (each.begin("a.csv", INFO, None) for each in storages)
    for upload in (first, second):
        upload.write_part(1, bytearray(CONTENT), crc32(CONTENT))
    first.complete()
    assert 1 == storages[0].abort_uploads(["a.csv"])
    with pytest.raises(DestinationChangedError):
        second.complete()
    assert 0 == storages[1].abort_uploads(["a.csv"])
    third = storages[0].begin("a.csv", INFO)
    assert 0 == storages[0].abort_uploads(["a.csv"])
    third.abort()


def test_a_lost_response_to_begin_aborts_no_upload_of_others(server, client, bucket):
    theirs = client.create_multipart_upload(Bucket=bucket, Key="in/a.csv")["UploadId"]
    with StorageProxy(server) as proxy:
        proxy.inject(StorageFault("lost", "CreateMultipartUpload", first=1))
        storage = S3Storage(client_of(proxy.url), bucket, "in/")
        upload = storage.begin("a.csv", INFO)
        assert 1 == proxy.applied["lost"]
    listed = {each["UploadId"] for each in client.list_multipart_uploads(Bucket=bucket)["Uploads"]}
    assert {theirs, upload._upload_id} == listed


@WAYS
@pytest.mark.parametrize("encryption", ["AES256", "customer"])
def test_objects_are_encrypted_as_asked_for(client, bucket, store, encryption):
    """Also those in parts, over plain http, and when they are read again."""
    key = os.urandom(32)
    customer = {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": key}
    extra_args = customer if encryption == "customer" else {"ServerSideEncryption": "AES256"}
    storage = S3Storage(client, bucket, "in/", extra_args)
    if IS_CEPH and encryption == "AES256":
        with pytest.raises(DestinationRefusedError, match="ignored ServerSideEncryption and stored it unencrypted"):
            store(storage, None)
        assert storage.head("a.csv") is None
        return
    store(storage, None)
    assert WHOLE[store] == storage.read("a.csv").content
    reading = customer if encryption == "customer" else {}
    assert WHOLE[store] == read(client, bucket, "in/a.csv", **reading)
    head = client.head_object(Bucket=bucket, Key="in/a.csv", **reading)
    assert "AES256" == head["SSECustomerAlgorithm" if reading else "ServerSideEncryption"]


@WAYS
@pytest.mark.parametrize("calculation", ["when_supported", "when_required"])
def test_object_lock_is_for_objects_and_not_for_receipts(server, client, store, calculation, caplog):
    """Receipts are deleted at the end of a delivery."""
    bucket = f"locked-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=bucket, ObjectLockEnabledForBucket=True)
    until = dt.datetime.now(dt.timezone.utc) + dt.timedelta(days=1)
    lock = {
        "ObjectLockMode": "GOVERNANCE",
        "ObjectLockRetainUntilDate": until,
        "ObjectLockLegalHoldStatus": "ON",
    }
    storage = S3Storage(client_of(server, request_checksum_calculation=calculation), bucket, "in/", lock)
    store(storage, None)
    storage.put("_receipts/a.csv.json", b"{}", INFO, None)
    heads = [client.head_object(Bucket=bucket, Key=f"in/{name}") for name in ("a.csv", "_receipts/a.csv.json")]
    if IS_CEPH and store is put_in_parts:
        assert "in/a.csv has no ObjectLockMode: it was ignored, or" in caplog.text
        return
    assert [("GOVERNANCE", "ON"), (None, None)] == [
        (head.get("ObjectLockMode"), head.get("ObjectLockLegalHoldStatus")) for head in heads
    ]
    storage.put("a.csv", b"replaced", INFO, storage.head("a.csv").version)
    assert b"replaced" == storage.read("a.csv").content


@pytest.mark.usefixtures("no_waiting")
@pytest.mark.parametrize("encoding", ["x-gzip", "plain"])
def test_the_manifest_has_the_hashes_of_what_is_stored(
    sendgrid_emulator, server, client, bucket, monkeypatch, encoding
):
    """A proxy on the way flips a byte twice; what is stored is what SendGrid sent."""
    sendgrid_emulator.configure(encoding=encoding, contacts_per_file=25_000)
    export_id = sendgrid_emulator.start_export([sendgrid_emulator.add_list("Some", contacts=50_000)])
    files = sendgrid_emulator.export_files(export_id)
    mark = files[0].read()[5_000:5_020] if encoding == "plain" else files[0].stored.path.read_bytes()[5_000:5_020]
    with FlippingProxy(port_of(server), mark, times=2).running() as proxy:
        extra = {"endpoint_url": url_of(proxy), "region_name": "us-east-1"}
        connection = {"conn_type": "aws", "login": LOGIN, "password": PASSWORD, "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_AWS_DEFAULT", json.dumps(connection))
        SendGridToS3Operator(
            task_id="store",
            export_id=export_id,
            s3_key_prefix=f"s3://{bucket}/in",
            compression="none" if encoding == "plain" else "gzip",
            part_size=5 * MIB,
        ).execute({})
        assert proxy.flipped > 0
    manifest = json.loads(read(client, bucket, "in/_manifest.json"))
    for entry, file in zip(manifest["entries"], files, strict=True):
        stored = read(client, bucket, entry["url"].removeprefix(f"s3://{bucket}/"))
        assert hashlib.sha256(stored).hexdigest() == entry["meta"]["sha256"]
        if encoding == "plain":
            assert file.read() == stored


@SEAWEEDFS_ALONE
def test_the_checksum_of_each_part_is_kept(storage, client, bucket):
    put_in_parts(storage, None)
    head = client.head_object(Bucket=bucket, Key="in/a.csv", ChecksumMode="ENABLED")
    whole = zlib.crc32(b"".join(zlib.crc32(part).to_bytes(4, "big") for part in PARTS)).to_bytes(4, "big")
    assert f"{base64.b64encode(whole).decode()}-2" == head["ChecksumCRC32"]
