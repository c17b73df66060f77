"""The storage in S3, against a server of the S3 protocol."""

from __future__ import annotations

import base64
import hashlib
import io
import zlib
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest

from airflow_provider_sendgrid.exceptions import DestinationChangedError, DestinationError, DestinationRefusedError
from airflow_provider_sendgrid.storage.base import ANY_VERSION, MIB, ObjectInfo, StoredInfo, is_version
from airflow_provider_sendgrid.storage.s3 import S3Storage, client_config, split_s3_uri
from airflow_provider_sendgrid.storage.s3_calls import S3Calls, listing_prefix
from tests.support.alike_server import ANSWERS, alike_server
from tests.support.ceph import IS_WANTED as IS_CEPH
from tests.support.destinations import s3_client
from tests.support.flipping_proxy import FlippingProxy
from tests.support.losing_proxy import LosingProxy
from tests.support.s3_client import with_own_client
from tests.support.seaweedfs import client_of

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
LEGAL_HOLD = "ObjectLockLegalHoldStatus"
FOR_ALL = {"ExpectedBucketOwner", "RequestPayer"}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


@dataclass
class Calls:
    """The calls of boto3, and what it then sent."""

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
    assert CONTENT == s3.read("in/a.csv") == storage.read("a.csv").content
    assert ("text/csv", {"sendgrid-export-id": "6f"}) == (head["ContentType"], head["Metadata"])
    version = f"{head['ETag'].strip(chr(34))} {int(head['LastModified'].timestamp())}"
    assert StoredInfo(len(CONTENT), {"sendgrid-export-id": "6f"}, version) == storage.head("a.csv")
    assert f"s3://{s3.bucket}/in/a.csv" == storage.uri("a.csv")


def test_two_uploads_of_the_same_bytes_are_two_versions(storage):
    """The ETag is the same, and so is the second."""
    first, second = (
        storage.put("a.csv", CONTENT, ObjectInfo("text/csv", {"sendgrid-upload": upload})) for upload in ("one", "two")
    )
    assert first != second == storage.head("a.csv").version == storage.read("a.csv").version
    storage.delete("a.csv", first)
    assert storage.head("a.csv") is not None
    storage.delete("a.csv", second)
    assert storage.head("a.csv") is None


def test_a_missing_object_is_none(storage):
    """And can be deleted nevertheless."""
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
    """S3 compares it with the body. The server of these tests only stores it, so the request is checked."""
    storage.put("a.csv", CONTENT, INFO)
    upload = storage.begin("b.csv", INFO)
    upload.write_part(1, bytearray(CONTENT), zlib.crc32(CONTENT))
    upload.complete()
    put, _look, _list, begin, part, _complete, _look_again = calls.sent
    assert base64_crc32(CONTENT) == put["x-amz-checksum-crc32"] == part["x-amz-checksum-crc32"]
    assert "CRC32" == begin["x-amz-checksum-algorithm"]
    [completed] = [params for name, params in calls.asked if name == "CompleteMultipartUpload"]
    assert [base64_crc32(CONTENT)] == [each["ChecksumCRC32"] for each in completed["MultipartUpload"]["Parts"]]


def test_the_crc32_given_is_the_one_sent(storage, calls):
    """So that S3 detects a byte that changed in memory."""
    storage.begin("a.csv", INFO).write_part(1, bytearray(CONTENT), zlib.crc32(b"as it was"))
    assert base64_crc32(b"as it was") == calls.sent[-1]["x-amz-checksum-crc32"]


def test_extra_args_reach_only_the_calls_that_take_them(s3, calls):
    """Arguments for objects are sent where those begin; arguments for requests are always sent."""
    storage = S3Storage(s3.client, s3.bucket, "in/", EXTRA_ARGS)
    storage.put("a.csv", CONTENT, INFO)
    upload = storage.begin("b.csv", INFO)
    upload.write_part(1, bytearray(CONTENT), zlib.crc32(CONTENT))
    upload.abort()
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
    """The user's encryption, storage class, tags and metadata, beside the provider's."""
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
    if IS_CEPH and in_parts:
        pytest.skip("Ceph RGW 16 keeps no tags of objects in parts")
    tags = s3.client.get_object_tagging(Bucket=s3.bucket, Key="in/a.csv")["TagSet"]
    assert {"team": "crm", "pii": "yes"} == {tag["Key"]: tag["Value"] for tag in tags}


@pytest.mark.parametrize(
    ("extra_args", "error", "message"),
    [
        ({"ServerSideEncrypton": "AES256"}, ValueError, "does not know. Did you mean ServerSideEncryption?"),
        ({"serverSideEncryption": "AES256"}, ValueError, "Did you mean ServerSideEncryption?"),
        ({"storage_class": "GLACIER_IR"}, ValueError, "Did you mean StorageClass?"),
        ({"CopySourceSSECustomerKey": "secret"}, ValueError, "Did you mean SSECustomerKey?"),
        ({"Quux": 1}, ValueError, "It knows ACL, "),
        ({"Bucket": "elsewhere"}, ValueError, "must not contain Bucket: the operator's own parameters say"),
        ({"Key": "other"}, ValueError, "must not contain Key"),
        ({"Body": b"x"}, ValueError, "must not contain Body: the delivery sends and checks the bytes"),
        ({"ContentMD5": "x"}, ValueError, "must not contain ContentMD5"),
        ({"IfNoneMatch": "*"}, ValueError, "must not contain IfNoneMatch: the delivery decides"),
        ({"UploadId": "1"}, ValueError, "must not contain UploadId"),
        ({"SSEKMSKeyId": ""}, ValueError, "SSEKMSKeyId was passed but is empty"),
        ({"SSEKMSKeyId": None}, ValueError, "SSEKMSKeyId was passed but is empty"),
        ({"ServerSideEncryption": "None"}, ValueError, "ServerSideEncryption was passed but is empty"),
        ({"ServerSideEncryption": " "}, ValueError, "ServerSideEncryption was passed but is empty"),
        ({"SSECustomerKey": b""}, ValueError, "SSECustomerKey was passed but is empty"),
        ({"Metadata": {"run": 20261127}}, TypeError, "Metadata must be a mapping of texts to texts"),
        ({"BucketKeyEnabled": "yes"}, TypeError, "BucketKeyEnabled must be a boolean, not a str"),
        ("StorageClass=GLACIER", TypeError, "must be a mapping"),
    ],
)
def test_invalid_extra_args_are_refused(s3, extra_args, error, message):
    """Before any download: a misspelled ServerSideEncryption would store unencrypted objects."""
    with pytest.raises(error) as caught:
        S3Storage(s3.client, s3.bucket, "in/", extra_args)
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_content_arguments_do_not_apply_to_the_manifest(s3):
    """It is plain JSON; labelled as gzip, a reader would try to unpack it."""
    storage = S3Storage(s3.client, s3.bucket, "in/", {"ContentEncoding": "gzip", "ContentType": "text/x-contacts"})
    for name in ("a.csv.gz", "_manifest.json", "_receipts/a.csv.gz.json"):
        storage.put(name, CONTENT, INFO)
    described = [s3.head(f"in/{name}") for name in ("a.csv.gz", "_manifest.json", "_receipts/a.csv.gz.json")]
    assert ["gzip", None, None] == [head.get("ContentEncoding") for head in described]
    assert ["text/x-contacts", INFO.content_type, INFO.content_type] == [head["ContentType"] for head in described]


def test_metadata_of_the_user_cannot_replace_ours(s3):
    """However it is capitalised."""
    S3Storage(s3.client, s3.bucket, "in/", {"Metadata": {"Sendgrid-Export-Id": "7a"}}).put("a.csv", CONTENT, INFO)
    assert INFO.metadata == s3.head("in/a.csv")["Metadata"]


def test_another_checksum_in_extra_args_is_ignored(s3, calls):
    """S3 refuses a request that names one algorithm and carries the other's checksum."""
    storage = S3Storage(s3.client, s3.bucket, "in/", {"ChecksumAlgorithm": "SHA256", "ChecksumSHA256": "x"})
    storage.put("a.csv", CONTENT, INFO)
    storage.begin("b.csv", INFO).abort()
    put, _look, _list, begin, _abort = calls.sent
    assert "x-amz-checksum-sha256" not in put
    assert "CRC32" == put.get("x-amz-sdk-checksum-algorithm", "CRC32") == begin["x-amz-checksum-algorithm"]


def test_open_uploads_are_ended_only_for_that_key(s3, storage):
    """Others may be active uploads of other software."""
    for key in ("in/a.csv", "in/a.csv", "in/a.csv.gz", "a.csv"):
        s3.client.create_multipart_upload(Bucket=s3.bucket, Key=key)
    assert 2 == storage.abort_uploads(["a.csv"])
    assert {"in/a.csv.gz", "a.csv"} == {upload["Key"] for upload in s3.open_uploads()}
    assert 0 == storage.abort_uploads(["a.csv"])


def test_uploads_are_aborted_if_only_exact_names_are_listed(s3, storage):
    """MinIO treats the prefix as the name of an object."""
    asked: list[str] = []

    def note(params, **_):
        asked.append(params.get("Prefix", ""))

    def answer_as_minio(parsed, **_):
        parsed["Uploads"] = [each for each in parsed.get("Uploads", []) if each["Key"] == asked[-1]]
        parsed["ResponseMetadata"]["HTTPHeaders"]["server"] = "MinIO"

    for key in ("in/a1.csv", "in/a2.csv", "in/a3.csv"):
        s3.client.create_multipart_upload(Bucket=s3.bucket, Key=key)
    s3.client.meta.events.register("provide-client-params.s3.ListMultipartUploads", note)
    s3.client.meta.events.register("after-call.s3.ListMultipartUploads", answer_as_minio)
    assert 2 == storage.abort_uploads(["a1.csv", "a2.csv"])
    assert ["in/a", "in/a1.csv", "in/a2.csv"] == asked
    s3.client.meta.events.unregister("after-call.s3.ListMultipartUploads", answer_as_minio)
    assert ["in/a3.csv"] == [upload["Key"] for upload in s3.open_uploads()]


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
    storage.abort_uploads(["a.csv"])
    assert 1 == len(ended)


def refuse(s3, operation: str, code: str = "AccessDenied", message: str = "Access Denied", only_if: str = "") -> None:
    """Make S3 deny an operation, as without the permission for it; with `only_if`, only requests with that header."""

    def deny(params: Any = None, **_: Any) -> Any:
        if only_if and only_if not in params["headers"]:
            return None
        answer = type("Answer", (), {"status_code": 403, "headers": {}})()
        return answer, {"Error": {"Code": code, "Message": message}, "ResponseMetadata": {}}

    s3.client.meta.events.register(f"before-call.s3.{operation}", deny)


def test_a_delivery_does_not_need_permission_to_list_uploads(s3, storage, caplog):
    """It is logged, and a lifecycle rule of the bucket must abort them."""
    caplog.set_level("INFO")
    refuse(s3, "ListMultipartUploads")
    assert (0, 0) == (storage.abort_uploads(["a.csv"]), storage.abort_uploads("a.csv"))
    storage.begin("a.csv", INFO).abort()
    assert 1 == caplog.text.count("Unfinished uploads cannot be listed: list_multipart_uploads of s3://")


@pytest.mark.parametrize(
    ("operation", "ask", "method"), [("HeadObject", "head", "head_object"), ("GetObject", "read", "get_object")]
)
def test_a_refusal_does_not_mean_absence(s3, storage, operation, ask, method):
    """An object that cannot be read may exist: it must not be overwritten."""
    refuse(s3, operation)
    with pytest.raises(
        DestinationRefusedError, match=f"{method} of s3://{s3.bucket}/in/a.csv: S3 answered AccessDenied"
    ):
        getattr(storage, ask)("a.csv")


def test_a_missing_bucket_is_an_error(s3):
    storage = S3Storage(s3.client, "no-such-bucket", "in/")
    with pytest.raises(DestinationRefusedError, match=r"NoSuchBucket .*Check the bucket's name"):
        storage.read("_manifest.json")
    with pytest.raises(DestinationRefusedError, match=r"NoSuchBucket .*Check the bucket's name"):
        storage.begin("a.csv", INFO)


def test_bytes_of_any_length_are_stored_unchanged(s3, storage):
    for content in (b"", b"\0", bytearray(b"\xff" * 10)):
        storage.put("a.csv", content, INFO)
        assert bytes(content) == s3.read("in/a.csv")


# Error codes


@pytest.mark.parametrize(
    ("code", "advice"),
    [
        ("KMS.NotFoundException", "Check SSEKMSKeyId"),
        ("KMS.DisabledException", "Check SSEKMSKeyId"),
        ("InvalidStorageClass", "Check StorageClass"),
        ("AccessControlListNotSupported", "leave out acl_policy"),
        ("InvalidArgument", "Check extra_args"),
        ("InvalidRequest", "Check extra_args"),
        ("InvalidTag", "Check Tagging"),
        ("MethodNotAllowed", "Check extra_args"),
        ("InvalidEncryptionAlgorithmError", "Check ServerSideEncryption"),
        ("AllAccessDisabled", "ask its administrator"),
        ("PermanentRedirect", "Set region_name"),
        ("AuthorizationHeaderMalformed", "Set region_name"),
        ("IllegalLocationConstraintException", "Set region_name"),
        ("NoSuchBucket", "Check the bucket's name"),
    ],
)
@pytest.mark.parametrize("operation", ["PutObject", "CreateMultipartUpload"])
def test_non_retryable_errors_name_the_next_step(s3, storage, operation, code, advice):
    refuse(s3, operation, code)
    with pytest.raises(DestinationRefusedError, match=f"S3 answered {code} .*{advice}"):
        storage.put("a.csv", CONTENT, INFO) if operation == "PutObject" else storage.begin("a.csv", INFO)


@pytest.mark.parametrize("code", ["404", "NoSuchKey", "NotFound"])
def test_a_404_means_absent_for_reads_and_an_error_for_writes(s3, storage, code):
    for operation in ("HeadObject", "GetObject", "DeleteObject", "PutObject", "CreateMultipartUpload"):
        refuse(s3, operation, code)
    storage.delete("a.csv")
    assert (None, None) == (storage.head("a.csv"), storage.read("a.csv"))
    for write in (lambda: storage.put("a.csv", CONTENT, INFO), lambda: storage.begin("a.csv", INFO)):
        with pytest.raises(DestinationError, match=f"S3 answered {code} .*Check the bucket and the endpoint_url"):
            write()


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_server_with_one_response_to_everything_is_refused(answer):
    """A wrong endpoint, or a gateway's page."""
    with alike_server(answer) as url:
        client = client_of(url, retries={"max_attempts": 0})
        storage = S3Storage(client, "lake", "in/")
        errors = (DestinationError, DestinationRefusedError, DestinationChangedError)
        for over in (ANY_VERSION, None):
            with pytest.raises(errors):
                storage.put("a.csv", CONTENT, INFO, over)
        with pytest.raises(errors):
            storage.begin("a.csv", INFO)
        upload = storage._upload("a.csv", "1", INFO)
        with pytest.raises(errors):
            upload.write_part(1, bytearray(CONTENT), zlib.crc32(CONTENT))
        with pytest.raises(errors):
            upload.complete()


@pytest.mark.parametrize(
    ("extra_args", "needs"),
    [
        ({"Tagging": "a=b"}, "s3:PutObjectTagging"),
        ({"ACL": "private"}, "s3:PutObjectAcl"),
        ({"ObjectLockLegalHoldStatus": "ON"}, "s3:PutObjectLegalHold"),
    ],
)
def test_a_refusal_names_the_permissions_of_the_arguments_in_use(s3, extra_args, needs):
    refuse(s3, "PutObject")
    with pytest.raises(DestinationRefusedError, match=needs):
        S3Storage(s3.client, s3.bucket, "in/", extra_args).put("a.csv", CONTENT, INFO)


def test_without_checksum_headers_the_error_names_the_setting(s3, storage):
    refuse(s3, "PutObject", "InvalidArgument", "Unsupported header 'x-amz-checksum-crc32' received for this API call.")
    with pytest.raises(DestinationRefusedError, match="when_required"):
        storage.put("a.csv", CONTENT, INFO)


# Conditions


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("NotImplemented", "A header you provided implies functionality that is not implemented"),
        ("InvalidArgument", "Unsupported header 'if-none-match'"),
        ("InvalidRequest", "If-None-Match is not supported"),
    ],
)
def test_without_conditions_a_head_precedes_each_write(s3, storage, caplog, calls, code, message):
    """It gets one request with a condition, and one line is logged."""
    caplog.set_level("INFO")
    refuse(s3, "PutObject", code, message, only_if="If-None-Match")
    for name in ("a.csv", "b.csv"):
        storage.put(name, CONTENT, INFO, None)
        with pytest.raises(DestinationChangedError):
            storage.put(name, CONTENT, INFO, None)
    assert ["*", None, None] == [params.get("IfNoneMatch") for name, params in calls.asked if name == "PutObject"]
    assert 1 == caplog.text.count("This server does not support conditional requests")


def lose_response(s3, method, act):
    """A proxy that loses the first response to `method`; before boto3 sends it again, `act` is called."""

    def is_lost(each, _target):
        if each != method:
            return False
        act()
        return True

    return LosingProxy(urlsplit(s3.url).port, is_lost)


def test_a_delete_is_not_repeated_over_what_another_run_stored(s3, storage):
    """Not even over the same bytes: their ETag is the same."""
    theirs = ObjectInfo("text/csv", {**INFO.metadata, "sendgrid-upload": "2"})
    version = storage.put("a.csv", CONTENT, INFO)
    with lose_response(s3, "DELETE", lambda: storage.put("a.csv", CONTENT, theirs)).running() as proxy:
        S3Storage(s3_client(proxy.url), s3.bucket, "in/").delete("a.csv", version)
    assert 1 == proxy.lost == [method for method, _ in proxy.requests].count("DELETE")
    assert theirs.metadata == storage.head("a.csv").metadata


@pytest.mark.parametrize("is_theirs", [False, True])
def test_without_conditions_a_head_precedes_each_retry(s3, monkeypatch, is_theirs):
    members = S3Calls.members
    monkeypatch.setattr(
        S3Calls,
        "members",
        lambda self, method: {key: shape for key, shape in members(self, method).items() if not key.startswith("If")},
    )
    act = (lambda: s3.client.put_object(Bucket=s3.bucket, Key="in/a.csv", Body=b"theirs")) if is_theirs else list
    expected = pytest.raises(DestinationChangedError) if is_theirs else nullcontext()
    with lose_response(s3, "PUT", act).running() as proxy:
        with expected:
            S3Storage(s3_client(proxy.url), s3.bucket, "in/").put("a.csv", CONTENT, INFO, None)
        assert 1 == proxy.lost == [method for method, _ in proxy.requests].count("PUT")
    assert (b"theirs" if is_theirs else CONTENT) == s3.read("in/a.csv")


@pytest.mark.parametrize("code", ["ConditionalRequestConflict", "OperationAborted", "409"])
def test_a_delete_refused_during_another_request_is_an_error(s3, storage, code):
    version = storage.put("a.csv", CONTENT, INFO)
    refuse(s3, "DeleteObject", code, "A conflicting operation is in progress")
    with pytest.raises(DestinationError, match=r"is not deleted: delete_object of .* S3 answered"):
        storage.delete("a.csv", version)
    storage.delete("a.csv", "another version")
    assert CONTENT == s3.read("in/a.csv")


@pytest.mark.parametrize("field", ["ETag", "LastModified"])
def test_a_listing_without_versions_still_names_the_objects(s3, storage, field):
    def leave_out(parsed, **_):
        for entry in parsed["Contents"]:
            del entry[field]

    version = storage.put("a.csv", CONTENT, INFO)
    s3.client.meta.events.register("after-call.s3.ListObjectsV2", leave_out)
    listed = storage.versions()
    assert {"a.csv": ""} == listed
    assert not is_version(listed["a.csv"], version)


@pytest.mark.parametrize("operation", ["HeadObject", "PutObject"])
def test_a_connection_that_is_always_reset_is_a_storage_error(s3, storage, operation):
    """This error of botocore has a response, which is None."""
    from botocore.exceptions import HTTPClientError

    def reset(**_):
        raise HTTPClientError(error=ConnectionResetError(104, "Connection reset by peer"))

    s3.client.meta.events.register(f"before-send.s3.{operation}", reset)
    with pytest.raises(DestinationError, match="reset"):
        storage.put("a.csv", CONTENT, INFO, None)


def test_an_object_deleted_right_after_its_write_was_changed(s3, storage):
    def delete(**_):
        s3.client.delete_object(Bucket=s3.bucket, Key="in/a.csv")

    s3.client.meta.events.register("after-call.s3.PutObject", delete)
    with pytest.raises(DestinationChangedError, match="another run has deleted it"):
        storage.put("a.csv", CONTENT, INFO)


def test_a_server_that_supports_one_condition_gets_that_one(s3, storage, calls):
    refuse(s3, "PutObject", "NotImplemented", "not implemented", only_if="If-Match")
    for name in ("a.csv", "b.csv"):
        version = storage.put(name, CONTENT, INFO, None)
        storage.put(name, b"other", INFO, version)
    puts = [params for name, params in calls.asked if name == "PutObject"]
    assert ["*", None, None, "*", None] == [params.get("IfNoneMatch") for params in puts]
    assert 1 == sum("IfMatch" in params for params in puts)


@pytest.mark.parametrize("refused", ['"', ""])
def test_an_etag_compared_in_another_form_is_no_change(s3, storage, calls, refused):
    """Older Ceph RGW compares its quotes, too; the other server of this test finds no ETag equal."""

    def refuse_if_match(params, **_):
        if not params["headers"].get("If-Match", "no").startswith(refused or ("'", '"', *"0123456789abcdef")):
            return None
        answer = type("Answer", (), {"status_code": 412, "headers": {}})()
        return answer, {"Error": {"Code": "PreconditionFailed", "Message": "no"}, "ResponseMetadata": {}}

    s3.client.meta.events.register("before-call.s3.PutObject", refuse_if_match)
    version = storage.put("a.csv", b"first", INFO, None)
    for content in (b"second", b"third"):
        before, version = version, storage.put("a.csv", content, INFO, version)
        with pytest.raises(DestinationChangedError, match="another run changed it"):
            storage.put("a.csv", b"rival", INFO, before)
    assert b"third" == s3.read("in/a.csv")
    sent = [headers.get("if-match", "none")[0] for headers in calls.sent if "if-none-match" not in headers]
    assert not any(each == '"' for each in sent), "what is sent is sent in the other form, or without a condition"


def test_a_boto3_without_conditions_looks_right_before_the_write(s3, storage, monkeypatch):
    """As the oldest one that Airflow 2.10 pins."""
    members = S3Calls.members
    monkeypatch.setattr(
        S3Calls,
        "members",
        lambda self, method: {name: shape for name, shape in members(self, method).items() if "Match" not in name},
    )
    version = storage.put("a.csv", CONTENT, INFO, None)
    with pytest.raises(DestinationChangedError):
        storage.put("a.csv", b"x", INFO, None)
    s3.client.put_object(Bucket=s3.bucket, Key="in/a.csv", Body=b"theirs")
    storage.delete("a.csv", version)
    assert b"theirs" == s3.read("in/a.csv")


# Checksums and signatures


def put(storage, in_parts):
    if not in_parts:
        storage.put("a.csv", CONTENT, INFO)
        return
    upload = storage.begin("a.csv", INFO)
    upload.write_part(1, bytearray(CONTENT), zlib.crc32(CONTENT))
    upload.complete()


def store(storage, in_parts, upload_id="1"):
    if in_parts:
        storage._upload("a.csv", upload_id, INFO).write_part(1, bytearray(CONTENT), zlib.crc32(CONTENT))
    else:
        storage.put("a.csv", CONTENT, INFO)


def storage_with(bucket, url, **config):
    client = client_of(url, **config)
    calls = Calls()
    client.meta.events.register("before-send.s3", calls.send)
    return S3Storage(client, bucket, "in/"), calls


@pytest.mark.parametrize(
    ("scheme", "config", "is_signed", "has_checksum"),
    [
        ("http", {}, True, True),
        ("https", {}, False, True),
        ("http", {"request_checksum_calculation": "when_required"}, True, False),
        ("https", {"request_checksum_calculation": "when_required"}, True, False),
        ("https", {"s3": {"payload_signing_enabled": True}}, True, True),
        ("http", {"s3": {"payload_signing_enabled": False}}, False, True),
    ],
)
@pytest.mark.parametrize("in_parts", [False, True])
def test_bodies_are_signed_without_tls_or_a_checksum(s3, scheme, config, is_signed, has_checksum, in_parts):
    """The user's setting for signatures wins; nothing is sent to the https endpoint."""
    storage, calls = storage_with(s3.bucket, f"{scheme}://127.0.0.1:9", retries={"max_attempts": 0}, **config)
    with pytest.raises(DestinationError):
        store(storage, in_parts)
    sent = calls.sent[0]
    signature = hashlib.sha256(CONTENT).hexdigest() if is_signed else "UNSIGNED-PAYLOAD"
    assert signature == sent["x-amz-content-sha256"]
    assert has_checksum == any("checksum" in name for name in sent)


def test_the_environment_switches_checksum_headers_off(s3, monkeypatch):
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    storage, calls = storage_with(s3.bucket, s3.url)
    storage.put("a.csv", CONTENT, INFO)
    upload = storage.begin("b.csv", INFO)
    upload.write_part(1, bytearray(CONTENT), zlib.crc32(CONTENT))
    upload.complete()
    sent = [name for headers in calls.sent for name in headers if "checksum" in name]
    assert ["x-amz-checksum-mode"] * len(sent) == sent
    assert CONTENT == s3.read("in/a.csv") == s3.read("in/b.csv")


@pytest.mark.parametrize("in_parts", [False, True])
def test_damaged_bytes_are_deleted_if_the_server_does_not_check(s3, in_parts):
    """The server of these tests checks neither checksums nor signatures; its ETag shows what it stored."""
    with FlippingProxy(urlsplit(s3.url).port, CONTENT[8:20], times=None).running() as proxy:
        storage, _ = storage_with(s3.bucket, f"http://127.0.0.1:{proxy.port}")
        upload_id = storage.begin("a.csv", INFO)._upload_id
        with pytest.raises(DestinationError, match="damaged in transit"):
            store(storage, in_parts, upload_id)
    assert [] == s3.stored_keys()


def test_a_server_that_confirms_no_checksum_is_logged_once(s3, storage, caplog):
    caplog.set_level("INFO")

    def without(parsed: dict[str, Any], **_: Any) -> None:
        parsed.pop("ChecksumCRC32", None)

    s3.client.meta.events.register("after-call.s3.PutObject", without)
    for name in ("a.csv", "b.csv"):
        storage.put(name, CONTENT, INFO)
    assert 1 == caplog.text.count("does not confirm checksums")


# Odd set-ups


def test_metadata_names_are_compared_in_lower_case(s3, storage):
    """Some servers capitalise them."""

    def capitalise(parsed: dict[str, Any], **_: Any) -> None:
        parsed["Metadata"] = {name.title(): value for name, value in parsed["Metadata"].items()}

    s3.client.meta.events.register("after-call.s3.HeadObject", capitalise)
    storage.put("a.csv", CONTENT, INFO)
    assert INFO.metadata == storage.head("a.csv").metadata


def test_without_the_permission_to_delete_a_delete_is_refused(s3, storage):
    refuse(s3, "DeleteObject")
    version = storage.put("a.csv", CONTENT, INFO)
    for arguments in ((), (version,)):
        with pytest.raises(DestinationRefusedError, match="delete_object of s3://"):
            storage.delete("a.csv", *arguments)


def test_a_delivery_does_not_need_permission_to_abort_uploads(s3, storage, caplog):
    refuse(s3, "AbortMultipartUpload")
    for _ in range(2):
        s3.client.create_multipart_upload(Bucket=s3.bucket, Key="in/a.csv")
    storage.begin("a.csv", INFO).abort()
    assert 0 == storage.abort_uploads(["a.csv"])
    assert 1 == caplog.text.count("Unfinished uploads cannot be aborted")


@pytest.mark.parametrize("code", ["NoSuchUpload", "NoSuchKey"])
def test_ending_an_upload_that_has_ended_is_no_error(s3, storage, code):
    upload = storage.begin("a.csv", INFO)
    refuse(s3, "AbortMultipartUpload", code)
    upload.abort()


def test_a_directory_bucket_lists_uploads_by_a_folder(s3):
    """Its prefixes must end in a slash."""
    storage = S3Storage(s3.client, "lake--use1-az4--x-s3", "a/in", {})
    assert {"Prefix": "a/"} == listing_prefix(storage._calls, "a/in-1.csv")
    assert {} == listing_prefix(storage._calls, "1.csv")


ARNS = (
    "arn:aws:s3:eu-west-1:123456789012:accesspoint/lake",
    "arn:aws-cn:s3:cn-north-1:123456789012:accesspoint:lake",
    "arn:aws:s3::123456789012:accesspoint/m.mrap",
    "arn:aws:s3-outposts:us-west-2:123456789012:outpost/op-1/accesspoint/lake",
)


@pytest.mark.parametrize("bucket", ["lake", *ARNS])
@pytest.mark.parametrize(
    ("key", "prefix"),
    [("", ""), ("/", ""), ("/a", "a/"), ("/a/b/", "a/b/"), ("//a/", "a/"), ("/a//b?c#d", "a//b?c#d/")],
)
def test_a_uri_is_split_into_bucket_and_folder(bucket, key, prefix):
    """The ARN of an access point has slashes and colons of its own."""
    assert (bucket, prefix) == split_s3_uri(f"s3://{bucket}{key}")


@pytest.mark.parametrize("uri", ["s3://", "s3:///a/", "gs://lake/a/", "lake/a/", "s3://arn:aws:s3:eu-west-1:1:x/a"])
def test_a_uri_that_names_no_bucket_is_refused(uri):
    with pytest.raises(ValueError, match="must be s3://bucket/prefix/"):
        split_s3_uri(uri)


# What comes back


def bend(s3, operation, change):
    """Have a response of S3 changed before boto3's caller has it."""
    s3.client.meta.events.register(f"after-call.s3.{operation}", lambda parsed, **_: change(parsed))


def body_of(content):
    from botocore.response import StreamingBody

    return StreamingBody(io.BytesIO(content), None)


@pytest.mark.parametrize("came", [CONTENT[:5], CONTENT.replace(b"ada", b"bda"), b""])
def test_what_is_read_is_what_is_stored(s3, storage, came):
    """It is read again; if it is damaged each time, that is an error, never another content."""
    storage.put("a.csv", CONTENT, INFO)
    times = iter(range(100))

    def damage_once(parsed):
        if not next(times):
            parsed["Body"] = body_of(came)

    bend(s3, "GetObject", damage_once)
    assert CONTENT == storage.read("a.csv").content
    bend(s3, "GetObject", lambda parsed: parsed.update(Body=body_of(came)))
    with pytest.raises(DestinationError, match="damaged in transit"):
        storage.read("a.csv")


@pytest.mark.parametrize("in_parts", [False, True])
@pytest.mark.parametrize("argument", ["ServerSideEncryption", "SSECustomerAlgorithm"])
def test_an_object_that_a_server_stores_unencrypted_is_deleted(s3, argument, in_parts):
    """Ceph RGW 16 accepts AES256 and stores unencrypted objects."""
    storage = S3Storage(s3.client, s3.bucket, "in/", {argument: "AES256"})
    bend(s3, "HeadObject", lambda parsed: parsed.pop(argument, None))
    s3.client.meta.events.register("before-parameter-build.s3", lambda params, **_: params.pop(argument, None))
    with pytest.raises(DestinationRefusedError, match=f"ignored {argument} and stored it unencrypted"):
        put(storage, in_parts)
    assert ([], []) == (s3.stored_keys(), s3.open_uploads())


@pytest.mark.parametrize("in_parts", [False, True])
def test_an_object_lock_that_cannot_be_seen_is_logged_once(s3, caplog, in_parts):
    """The credentials may not see it, or the server ignored it, as Ceph RGW 16 does for objects in parts."""
    storage = S3Storage(s3.client, s3.bucket, "in/", {"ObjectLockLegalHoldStatus": "ON"})
    s3.client.meta.events.register("before-parameter-build.s3", lambda params, **_: params.pop(LEGAL_HOLD, None))
    for _ in range(2):
        put(storage, in_parts)
    storage.put("_receipts/a.csv.json", CONTENT, INFO)
    assert 1 == caplog.text.count(f"/in/a.csv has no {LEGAL_HOLD}: it was ignored, or")


@pytest.mark.parametrize("code", ["InternalError", "NoSuchUpload"])
def test_an_upload_that_is_not_listed_any_more_was_ended(s3, storage, code):
    """Ceph RGW calls that an internal error."""
    upload = storage.begin("a.csv", INFO)
    upload.write_part(1, bytearray(CONTENT), zlib.crc32(CONTENT))
    refuse(s3, "CompleteMultipartUpload", code)
    if code == "InternalError":
        with pytest.raises(DestinationError, match="InternalError"):
            upload.complete()
    upload.abort()
    with pytest.raises(DestinationChangedError, match="Another run ended this upload"):
        upload.complete()


@pytest.mark.parametrize("returned", ["", None])
@pytest.mark.parametrize("is_replaced", [False, True])
def test_an_upload_without_an_etag_is_identified_by_its_parts(s3, storage, returned, is_replaced):
    """Ceph RGW 16 returns none. An object that another run stored right after is not mistaken for it."""
    upload = storage.begin("a.csv", INFO)
    upload.write_part(1, bytearray(CONTENT), zlib.crc32(CONTENT))

    def return_other(parsed):
        parsed["ETag"] = returned
        if is_replaced:
            s3.client.put_object(Bucket=s3.bucket, Key="in/a.csv", Body=b"theirs")

    bend(s3, "CompleteMultipartUpload", return_other)
    if is_replaced:
        with pytest.raises(DestinationChangedError, match="another run changed it"):
            upload.complete()
    else:
        upload.complete()
        assert CONTENT == s3.read("in/a.csv")


@pytest.mark.parametrize("setting", ["config", "environment"])
def test_checksums_of_responses_follow_the_setting_for_requests(monkeypatch, setting):
    """A server without checksum headers refuses a read that asks for one."""
    from botocore.config import Config

    given = {"request_checksum_calculation": "when_required"} if setting == "config" else {}
    if setting == "environment":
        monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    assert "when_required" == client_config(Config(**given), 4).response_checksum_validation
    own = Config(**given, response_checksum_validation="when_supported")
    assert "when_supported" == client_config(own, 4).response_checksum_validation


def test_other_settings_of_checksums_are_kept():
    from botocore.config import Config

    assert client_config(Config(), 4).response_checksum_validation is None


@pytest.mark.parametrize("in_parts", [False, True])
def test_bodies_without_a_crc32_carry_their_md5(s3, in_parts):
    """A bucket's default retention, which the delivery cannot see, requires a checksum."""
    storage, calls = storage_with(
        s3.bucket, "http://127.0.0.1:9", retries={"max_attempts": 0}, request_checksum_calculation="when_required"
    )
    with pytest.raises(DestinationError):
        store(storage, in_parts)
    assert base64.b64encode(hashlib.md5(CONTENT).digest()).decode() == calls.sent[0]["content-md5"]


def test_a_bucket_with_default_retention_gets_an_md5(s3):
    lock = {"ObjectLockEnabled": "Enabled", "Rule": {"DefaultRetention": {"Mode": "GOVERNANCE", "Days": 1}}}
    s3.client.create_bucket(Bucket="kept", ObjectLockEnabledForBucket=True)
    s3.client.put_object_lock_configuration(Bucket="kept", ObjectLockConfiguration=lock)
    storage, _ = storage_with("kept", s3.url, request_checksum_calculation="when_required")
    storage.put("a.csv", CONTENT, INFO)
    assert CONTENT == storage.read("a.csv").content


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("InvalidRequest", "Content-MD5 OR x-amz-checksum- HTTP header is required for Put Object with Object Lock"),
        ("MissingUploadObjectWithObjectLockHeaders", "Content-MD5 or x-amz-sdk-checksum-algorithm header required"),
    ],
)
def test_no_advice_disables_a_required_checksum(s3, storage, code, message):
    refuse(s3, "PutObject", code, message)
    with pytest.raises(DestinationRefusedError, match="remove request_checksum_calculation from"):
        storage.put("a.csv", CONTENT, INFO)


def test_if_match_in_a_name_is_not_a_refused_condition(s3, calls):
    """Only S3's own message does: there is one request."""
    storage = S3Storage(s3.client, s3.bucket, "if-match/")
    refuse(s3, "PutObject")
    with pytest.raises(DestinationRefusedError):
        storage.put("a.csv", CONTENT, INFO, None)
    assert 1 == len([name for name, _ in calls.asked if name == "PutObject"])


@pytest.mark.parametrize("code", ["InvalidArgument", "304"])
def test_a_condition_that_is_refused_in_other_words_is_omitted(s3, storage, code):
    refuse(s3, "PutObject", code, "header not supported", only_if="If-None-Match")
    storage.put("a.csv", CONTENT, INFO, None)
    assert CONTENT == s3.read("in/a.csv")


def test_a_refusal_that_is_not_about_the_condition_is_final(s3, storage, calls):
    """The request is repeated without one; the next object's request has one again."""
    refuse(s3, "PutObject", "InvalidArgument", "Invalid tag")
    for name in ("a.csv", "b.csv"):
        with pytest.raises(DestinationRefusedError, match="Invalid tag"):
            storage.put(name, CONTENT, INFO, None)
    assert ["*", None] * 2 == [params.get("IfNoneMatch") for name, params in calls.asked if name == "PutObject"]


@pytest.mark.parametrize("code", ["404", "NoSuchKey", "InvalidArgument", "400", "SomethingForbidden"])
def test_a_listing_refused_with_any_code_is_none(s3, storage, code):
    forbid(s3, "ListObjectsV2", code)
    assert storage.versions() is None


def test_an_unknown_code_with_the_status_403_is_refused(s3, storage):
    forbid(s3, "PutObject", "SomethingForbidden")
    with pytest.raises(DestinationRefusedError, match="SomethingForbidden"):
        storage.put("a.csv", CONTENT, INFO)


def forbid(s3, operation, code):
    """Make S3 respond with a code as it does, with the status 403 in the response's metadata."""

    def answer(**_):
        response = type("Answer", (), {"status_code": 403, "headers": {}})()
        return response, {"Error": {"Code": code, "Message": "no"}, "ResponseMetadata": {"HTTPStatusCode": 403}}

    s3.client.meta.events.register(f"before-call.s3.{operation}", answer)


@pytest.mark.parametrize(
    "extra_args",
    [
        {"Metadata": {"x": "s\u00e9cret-value"}},
        {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": b"s\xe9cret-value" * 3, "SSECustomerKeyMD5": "abc"},
        {"SSECustomerAlgorithm": "AES256", "SSECustomerKey": b"cret-value" * 3, "SSECustomerKeyMD5": "abc"},
    ],
)
def test_arguments_that_boto3_refuses_are_not_shown(s3, extra_args):
    storage = S3Storage(s3.client, s3.bucket, "in/", extra_args)
    with pytest.raises(DestinationRefusedError, match="boto3 rejects its arguments") as caught:
        storage.put("a.csv", CONTENT, INFO)
    assert "cret-value" not in str(caught.value)
    assert caught.value.__cause__ is None
