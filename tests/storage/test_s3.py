"""Parts and objects in S3's words, against a real S3 protocol."""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass, field
from typing import Any

import pytest

from airflow_provider_sendgrid.exceptions import DestinationRefusedError
from airflow_provider_sendgrid.storage.multipart import MIB, ObjectInfo, StoredInfo
from airflow_provider_sendgrid.storage.s3 import S3Storage
from tests.s3_client import with_own_client

INFO = ObjectInfo("text/csv", {"sendgrid-export-id": "6f"})
CONTENT = b'"EMAIL"\n"ada@example.com"\n'
EXTRA_ARGS = {
    "ACL": "bucket-owner-full-control",
    "StorageClass": "STANDARD_IA",
    "Tagging": "team=crm&pii=yes",
    "ServerSideEncryption": "aws:kms",
    "SSEKMSKeyId": "arn:aws:kms:us-east-1:123456789012:key/1",
    "BucketKeyEnabled": True,
    "CacheControl": "no-store",
    "Metadata": {"owner": "crm"},
    "ExpectedBucketOwner": "123456789012",
    "RequestPayer": "requester",
}
FOR_OBJECTS = {
    "ACL", "StorageClass", "Tagging", "ServerSideEncryption", "SSEKMSKeyId", "BucketKeyEnabled", "CacheControl",
}  # fmt: skip
FOR_ALL = {"ExpectedBucketOwner", "RequestPayer"}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@dataclass
class Calls:
    """What boto3 was asked for, and what it then sent."""

    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    sent: list[dict[str, Any]] = field(default_factory=list)

    def ask(self, params: dict[str, Any], model: Any, **_: Any) -> None:
        self.asked.append((model.name, dict(params)))

    def send(self, request: Any, **_: Any) -> None:
        self.sent.append({name.lower(): _text(value) for name, value in request.headers.items()})


@pytest.fixture
def s3(s3):
    return with_own_client(s3)


@pytest.fixture
def calls(s3):
    calls = Calls()
    s3.client.meta.events.register("provide-client-params.s3", calls.ask)
    s3.client.meta.events.register("before-send.s3", calls.send)
    return calls


@pytest.fixture
def storage(s3):
    return S3Storage(s3.client, s3.bucket, "in/")


def base64_crc32(content: bytes) -> str:
    return base64.b64encode(zlib.crc32(content).to_bytes(4, "big")).decode()


def test_a_small_object_is_what_was_put(s3, storage):
    storage.put("a.csv", CONTENT, INFO)
    head = s3.head("in/a.csv")
    assert CONTENT == s3.read("in/a.csv") == storage.read("a.csv")
    assert ("text/csv", {"sendgrid-export-id": "6f"}) == (head["ContentType"], head["Metadata"])
    assert StoredInfo(len(CONTENT), {"sendgrid-export-id": "6f"}) == storage.head("a.csv")
    assert f"s3://{s3.bucket}/in/a.csv" == storage.uri("a.csv")


def test_what_is_not_there_is_none(storage):
    """And can be deleted all the same."""
    storage.delete("a.csv")
    assert (None, None) == (storage.head("a.csv"), storage.read("a.csv"))


def test_an_object_in_parts_is_seen_when_it_is_complete(s3, storage):
    """Parts may be written in any order."""
    upload = storage.begin("a.csv", INFO)
    upload.write_part(2, bytearray(b"end"), zlib.crc32(b"end"))
    upload.write_part(1, bytearray(5 * MIB), zlib.crc32(bytes(5 * MIB)))
    assert None is storage.head("a.csv")
    upload.complete()
    assert bytes(5 * MIB) + b"end" == s3.read("in/a.csv")
    assert INFO.metadata == s3.head("in/a.csv")["Metadata"]


def test_an_aborted_upload_leaves_nothing(s3, storage):
    upload = storage.begin("a.csv", INFO)
    upload.write_part(1, bytearray(b"x"), zlib.crc32(b"x"))
    upload.abort()
    assert ([], []) == (s3.stored_keys(), s3.open_uploads())


def test_every_byte_is_sent_with_its_crc32(storage, calls):
    """S3 compares it with what came. The server of these tests only keeps it, so what was sent is looked at."""
    storage.put("a.csv", CONTENT, INFO)
    upload = storage.begin("b.csv", INFO)
    upload.write_part(1, bytearray(CONTENT), zlib.crc32(CONTENT))
    upload.complete()
    put, begin, part, _complete = calls.sent
    assert base64_crc32(CONTENT) == put["x-amz-checksum-crc32"] == part["x-amz-checksum-crc32"]
    assert "CRC32" == begin["x-amz-checksum-algorithm"]
    [completed] = [params for name, params in calls.asked if name == "CompleteMultipartUpload"]
    assert [base64_crc32(CONTENT)] == [each["ChecksumCRC32"] for each in completed["MultipartUpload"]["Parts"]]


def test_the_crc32_given_is_the_one_sent(storage, calls):
    """So that a byte that changed in memory is noticed by S3, not covered up."""
    storage.begin("a.csv", INFO).write_part(1, bytearray(CONTENT), zlib.crc32(b"as it was"))
    assert base64_crc32(b"as it was") == calls.sent[-1]["x-amz-checksum-crc32"]


def test_extra_args_reach_the_calls_that_know_them_and_no_other(s3, calls):
    """What is for objects goes where they begin; what is for requests goes with all."""
    storage = S3Storage(s3.client, s3.bucket, "in/", EXTRA_ARGS)
    storage.put("a.csv", CONTENT, INFO)
    upload = storage.begin("b.csv", INFO)
    upload.write_part(1, bytearray(CONTENT), zlib.crc32(CONTENT))
    storage.abort_uploads("b.csv")
    storage.read("a.csv")
    storage.head("a.csv")
    storage.delete("a.csv")
    given = {name: EXTRA_ARGS.keys() & params.keys() - {"Metadata"} for name, params in calls.asked}
    assert {
        "PutObject": FOR_OBJECTS | FOR_ALL,
        "CreateMultipartUpload": FOR_OBJECTS | FOR_ALL,
        "UploadPart": FOR_ALL,
        "ListMultipartUploads": FOR_ALL,
        "AbortMultipartUpload": FOR_ALL,
        "GetObject": FOR_ALL,
        "HeadObject": FOR_ALL,
        "DeleteObject": FOR_ALL,
    } == given


@pytest.mark.parametrize("in_parts", [False, True])
def test_extra_args_are_seen_in_the_bucket(s3, in_parts):
    """Encryption, storage class, tags and metadata of the user, beside ours."""
    storage = S3Storage(s3.client, s3.bucket, "in/", EXTRA_ARGS)
    if in_parts:
        upload = storage.begin("a.csv", INFO)
        upload.write_part(1, bytearray(CONTENT), zlib.crc32(CONTENT))
        upload.complete()
    else:
        storage.put("a.csv", CONTENT, INFO)
    head = s3.head("in/a.csv")
    assert ("aws:kms", "STANDARD_IA") == (head["ServerSideEncryption"], head["StorageClass"])
    assert {"owner": "crm", "sendgrid-export-id": "6f"} == head["Metadata"]
    tags = s3.client.get_object_tagging(Bucket=s3.bucket, Key="in/a.csv")["TagSet"]
    assert {"team": "crm", "pii": "yes"} == {tag["Key"]: tag["Value"] for tag in tags}


def test_extra_args_can_point_neither_elsewhere_nor_at_other_bytes(s3):
    """Bucket, key, body and our metadata are ours."""
    bent = {"Bucket": "elsewhere", "Key": "other", "Body": b"x", "Metadata": {"sendgrid-export-id": "7a"}}
    S3Storage(s3.client, s3.bucket, "in/", bent).put("a.csv", CONTENT, INFO)
    assert CONTENT == s3.read("in/a.csv")
    assert INFO.metadata == s3.head("in/a.csv")["Metadata"]


def test_another_checksum_asked_for_does_not_quarrel_with_ours(s3, calls):
    """S3 refuses a request that names one algorithm and carries the other's checksum."""
    storage = S3Storage(s3.client, s3.bucket, "in/", {"ChecksumAlgorithm": "SHA256", "ChecksumSHA256": "x"})
    storage.put("a.csv", CONTENT, INFO)
    storage.begin("b.csv", INFO).abort()
    put, begin, _abort = calls.sent
    assert "x-amz-checksum-sha256" not in put
    assert "CRC32" == put.get("x-amz-sdk-checksum-algorithm", "CRC32") == begin["x-amz-checksum-algorithm"]


def test_uploads_left_open_are_ended_for_that_key_alone(s3, storage):
    """Others may be somebody else's, and on their way."""
    for key in ("in/a.csv", "in/a.csv", "in/a.csv.gz", "a.csv"):
        s3.client.create_multipart_upload(Bucket=s3.bucket, Key=key)
    assert 2 == storage.abort_uploads("a.csv")
    assert {"in/a.csv.gz", "a.csv"} == {upload["Key"] for upload in s3.open_uploads()}
    assert 0 == storage.abort_uploads("a.csv")


def test_an_upload_that_ended_meanwhile_is_no_error(s3, storage):
    """Between the listing and the abort, its owner may have ended it."""
    s3.client.create_multipart_upload(Bucket=s3.bucket, Key="in/a.csv")

    ended: list[str] = []

    def end_it_first(params: dict[str, Any], **_: Any) -> None:
        if s3.open_uploads():
            s3.client.meta.events.unregister("before-parameter-build.s3.AbortMultipartUpload", end_it_first)
            s3.client.abort_multipart_upload(**params)
            ended.append(params["UploadId"])

    s3.client.meta.events.register("before-parameter-build.s3.AbortMultipartUpload", end_it_first)
    storage.abort_uploads("a.csv")
    assert 1 == len(ended)


def refuse(s3, operation: str) -> None:
    """Have S3 deny an operation, as without the permission for it."""

    def deny(**_: Any) -> Any:
        answer = type("Answer", (), {"status_code": 403, "headers": {}})()
        return answer, {"Error": {"Code": "AccessDenied", "Message": "Access Denied"}}

    s3.client.meta.events.register(f"before-call.s3.{operation}", deny)


def test_without_the_permission_to_look_for_uploads_the_delivery_goes_on(s3, storage, caplog):
    """It says so, and a rule of the bucket has to do."""
    caplog.set_level("INFO")
    refuse(s3, "ListMultipartUploads")
    assert 0 == storage.abort_uploads("a.csv")
    assert "in/a.csv cannot be looked for (AccessDenied)" in caplog.text


@pytest.mark.parametrize(
    ("operation", "ask", "method"), [("HeadObject", "head", "head_object"), ("GetObject", "read", "get_object")]
)
def test_a_refusal_is_not_taken_for_absence(s3, storage, operation, ask, method):
    """What cannot be seen may be there: nothing is to be written over it."""
    refuse(s3, operation)
    with pytest.raises(
        DestinationRefusedError, match=f"{method} of s3://{s3.bucket}/in/a.csv: S3 answered AccessDenied"
    ):
        getattr(storage, ask)("a.csv")


def test_a_bucket_that_is_not_there_is_an_error(s3):
    storage = S3Storage(s3.client, "no-such-bucket", "in/")
    with pytest.raises(DestinationRefusedError, match=r"NoSuchBucket .*Check the bucket's name"):
        storage.read("_manifest.json")
    with pytest.raises(DestinationRefusedError, match=r"NoSuchBucket .*Check the bucket's name"):
        storage.begin("a.csv", INFO)


def test_any_bytes_of_any_length_are_put_as_they_are(s3, storage):
    for content in (b"", b"\0", bytearray(b"\xff" * 10)):
        storage.put("a.csv", content, INFO)
        assert bytes(content) == s3.read("in/a.csv")
