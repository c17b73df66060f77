"""The fault-injecting proxy in front of the S3 server."""

from __future__ import annotations

import base64
import zlib

import pytest

from tests.support.storage_proxy import ERRORS, StorageFault, StorageProxy


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


def test_without_faults_the_proxy_is_transparent(client, proxy, s3):
    """For objects, multipart uploads and missing objects."""
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
def test_an_injected_error_is_s3s_and_has_no_effect(client, proxy, s3, kind):
    proxy.inject(StorageFault(kind, nth=1))
    with pytest.raises(client.exceptions.ClientError, match=ERRORS[kind][1]):
        put(client, s3)
    assert [] == s3.stored_keys()
    put(client, s3)
    assert ["a"] == s3.stored_keys()


def test_a_completion_can_fail_inside_a_200(client, proxy, s3):
    upload = client.create_multipart_upload(Bucket=s3.bucket, Key="b")["UploadId"]
    named = {"Bucket": s3.bucket, "Key": "b", "UploadId": upload}
    part = client.upload_part(**named, PartNumber=1, Body=b"part")
    proxy.inject(StorageFault("error_in_200", "CompleteMultipartUpload"))
    with pytest.raises(client.exceptions.ClientError, match=r"InternalError|Unknown"):
        client.complete_multipart_upload(**named, MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]})
    assert [] == s3.stored_keys()


@pytest.mark.parametrize(("kind", "stored"), [("reset", []), ("lost", ["a"])])
def test_a_reset_has_no_effect_but_a_lost_response_has(client, proxy, s3, kind, stored):
    from botocore.exceptions import ConnectionClosedError, EndpointConnectionError

    proxy.inject(StorageFault(kind, "PutObject"))
    with pytest.raises((ConnectionClosedError, EndpointConnectionError)):
        put(client, s3)
    assert stored == s3.stored_keys()


@pytest.mark.parametrize("kind", ["corrupt", "wrong_crc32"])
def test_bytes_with_a_wrong_crc32_are_refused(client, proxy, s3, kind):
    proxy.inject(StorageFault(kind, first=1))
    with pytest.raises(client.exceptions.ClientError, match="BadDigest"):
        put(client, s3)
    assert [] == s3.stored_keys()


def test_a_server_can_ignore_checksums(client, proxy, s3):
    proxy.inject(StorageFault("corrupt", first=1))
    proxy.ignores_checksums = True

    assert "ChecksumCRC32" not in put(client, s3)
    assert s3.read("a") != b"hello"


def test_the_callback_runs_before_each_request(client, proxy, s3):
    seen = []
    proxy.before = lambda operation, path: seen.append((operation, path, s3.stored_keys()))
    put(client, s3)

    assert [("PutObject", f"/{s3.bucket}/a", [])] == seen


def test_an_unknown_fault_is_refused():
    with pytest.raises(ValueError, match="there is no fault 'unknown'"):
        StorageFault("unknown")
