"""The proxy in front of the S3 server: transparent, until told otherwise."""

from __future__ import annotations

import base64
import zlib

import pytest

from tests.faults.storage_proxy import ERRORS, StorageFault, StorageProxy


@pytest.fixture
def proxy(s3_server):
    with StorageProxy(s3_server) as proxy:
        yield proxy


@pytest.fixture
def client(proxy):
    import boto3
    from botocore.config import Config

    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    once = Config(retries={"max_attempts": 0})
    return boto3.client("s3", endpoint_url=proxy.url, region_name="us-east-1", config=once, **keys)


def put(client, s3, content=b"hello", crc32=None):
    checksum = base64.b64encode(zlib.crc32(content).to_bytes(4, "big")).decode()
    return client.put_object(Bucket=s3.bucket, Key="a", Body=content, ChecksumCRC32=crc32 or checksum)


def test_without_faults_it_is_as_if_it_were_not_there(client, proxy, s3):
    """Objects, objects in parts, and what is not there."""
    put(client, s3)
    upload = client.create_multipart_upload(Bucket=s3.bucket, Key="b")["UploadId"]
    named = {"Bucket": s3.bucket, "Key": "b", "UploadId": upload}
    part = client.upload_part(**named, PartNumber=1, Body=b"part")
    client.complete_multipart_upload(**named, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]})

    assert b"hello" == client.get_object(Bucket=s3.bucket, Key="a")["Body"].read() == s3.read("a")
    assert 4 == client.head_object(Bucket=s3.bucket, Key="b")["ContentLength"]
    with pytest.raises(client.exceptions.NoSuchKey):
        client.get_object(Bucket=s3.bucket, Key="c")
    client.delete_object(Bucket=s3.bucket, Key="a")
    assert ["b"] == s3.stored_keys()
    assert {
        "PutObject": 1,
        "CreateMultipartUpload": 1,
        "UploadPart": 1,
        "CompleteMultipartUpload": 1,
        "GetObject": 2,
        "HeadObject": 1,
        "DeleteObject": 1,
    } == dict(proxy.operations)


@pytest.mark.parametrize("kind", [kind for kind, (status, *_) in ERRORS.items() if status != 200])
def test_an_error_is_told_in_s3s_words_and_nothing_is_carried_out(client, proxy, s3, kind):
    proxy.inject(StorageFault(kind, nth=1))
    with pytest.raises(client.exceptions.ClientError, match=ERRORS[kind][1]):
        put(client, s3)
    assert [] == s3.stored_keys()
    put(client, s3)
    assert ["a"] == s3.stored_keys()


def test_a_completion_may_fail_inside_a_200(client, proxy, s3):
    upload = client.create_multipart_upload(Bucket=s3.bucket, Key="b")["UploadId"]
    named = {"Bucket": s3.bucket, "Key": "b", "UploadId": upload}
    part = client.upload_part(**named, PartNumber=1, Body=b"part")
    proxy.inject(StorageFault("error_in_200", "CompleteMultipartUpload"))
    with pytest.raises(client.exceptions.ClientError, match=r"InternalError|Unknown"):  # as older botocores tell it
        client.complete_multipart_upload(**named, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]})
    assert [] == s3.stored_keys()


@pytest.mark.parametrize(("kind", "stored"), [("reset", []), ("lost", ["a"])])
def test_a_reset_carries_nothing_out_and_a_lost_answer_does(client, proxy, s3, kind, stored):
    from botocore.exceptions import ConnectionClosedError, EndpointConnectionError

    proxy.inject(StorageFault(kind, "PutObject"))
    with pytest.raises((ConnectionClosedError, EndpointConnectionError)):
        put(client, s3)
    assert stored == s3.stored_keys()


@pytest.mark.parametrize("kind", ["corrupt", "wrong_crc32"])
def test_bytes_that_do_not_fit_their_crc32_are_refused(client, proxy, s3, kind):
    proxy.inject(StorageFault(kind, first=1))
    with pytest.raises(client.exceptions.ClientError, match="BadDigest"):
        put(client, s3)
    assert [] == s3.stored_keys()


def test_a_server_may_ignore_checksums(client, proxy, s3):
    proxy.inject(StorageFault("corrupt", first=1))
    proxy.ignores_checksums = True

    assert "ChecksumCRC32" not in put(client, s3)
    assert s3.read("a") != b"hello"


def test_it_says_what_is_about_to_happen(client, proxy, s3):
    seen = []
    proxy.before = lambda operation, path: seen.append((operation, path, s3.stored_keys()))
    put(client, s3)

    assert [("PutObject", f"/{s3.bucket}/a", [])] == seen


def test_a_fault_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match="there is no fault 'bad luck'"):
        StorageFault("bad luck")
