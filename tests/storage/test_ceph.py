"""What Ceph RGW does, by boto3 alone: it is why the tests of S3 run against it, too (`make test-ceph`)."""

from __future__ import annotations

import base64
import uuid

import pytest

from tests.support.seaweedfs import client_of

OTHER_CRC32 = base64.b64encode(b"none").decode()


@pytest.fixture
def client(ceph):
    return client_of(ceph)


@pytest.fixture
def bucket(client):
    name = f"lake-{uuid.uuid4().hex[:12]}"
    client.create_bucket(Bucket=name)
    return name


def test_this_server_accepts_a_body_with_a_wrong_crc32(client, bucket):
    """Its response shows only that it confirms no checksum."""
    answer = client.put_object(Bucket=bucket, Key="a", Body=b"content", ChecksumCRC32=OTHER_CRC32)
    assert "ChecksumCRC32" not in answer
    assert b"content" == client.get_object(Bucket=bucket, Key="a")["Body"].read()


def test_this_server_accepts_a_part_with_a_wrong_crc32(client, bucket):
    upload = client.create_multipart_upload(Bucket=bucket, Key="a", ChecksumAlgorithm="CRC32")["UploadId"]
    place = {"Bucket": bucket, "Key": "a", "UploadId": upload}
    etag = client.upload_part(**place, PartNumber=1, Body=b"content", ChecksumCRC32=OTHER_CRC32)["ETag"]
    part = {"PartNumber": 1, "ETag": etag, "ChecksumCRC32": OTHER_CRC32}
    client.complete_multipart_upload(**place, MultipartUpload={"Parts": [part]})
    assert b"content" == client.get_object(Bucket=bucket, Key="a")["Body"].read()
